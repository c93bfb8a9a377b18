"""Citrinet's blocks against formulas in numpy, what its configuration refuses, and the sizes of published models."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from golden_models import difference, quick_jit
from jaxasr.configs import named_configs
from jaxasr.encoders import citrinet
from jaxasr.encoders.citrinet import Citrinet, Convolution, Depthwise, GroupNorm, SqueezeExcite, shuffle_groups
from jaxasr.encoders.citrinet_config import BlockConfig, CitrinetConfig
from jaxasr.model import AbstractModel
from jaxasr.store import flatten, read_config
from random_modules import build, noting_dropout, random_module

# Unequal everything, so that a swapped axis shows.
SMALL = CitrinetConfig(
    input_dim=6,
    blocks=(
        BlockConfig(filters=8, kernel=5, residual=()),
        BlockConfig(filters=12, kernel=3, repeat=3, stride=2, stride_last=True, squeeze=4),
        BlockConfig(filters=10, kernel=7, separable=False, dilation=3, residual=()),
    ),
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"filters": 0}, "positive"),
        ({"kernel": 4}, "even"),
        ({"stride": 2, "dilation": 2}, "only one of them"),
        ({"groups": 5}, "not divisible by groups"),
        ({"squeeze": 20}, "none of 12 filters"),
        ({"padding": (-1, 1)}, "not be negative"),
        ({"residual": (2,)}, r"blocks\[1\]: residual 2 lies before the first block"),
        ({"groups": 3}, r"blocks\[1\]: 8 and 12 input channels are not divisible by groups 3"),
        ({"heads": 3}, r"blocks\[1\]: 8 and 12 input channels are not divisible by heads 3"),
        ({"padding": (2, 1)}, "needs 2 frames of padding in all"),
    ],
)
def test_blocks_that_cannot_be_are_refused(change: dict[str, Any], named: str) -> None:
    first, second, third = SMALL.blocks
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(SMALL, blocks=(first, dataclasses.replace(second, **change), third))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks": ()}, "must not be empty"),
        ({"input_dim": 0}, "input_dim must be positive"),
        ({"normalization": "group", "norm_groups": 3}, "not divisible by norm_groups 3"),
        ({"blocks": (*SMALL.blocks[:2], BlockConfig(filters=4, kernel=3, residual=(1,)))}, "different frame rates"),
    ],
)
def test_networks_that_cannot_be_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(SMALL, **change)


def test_lengths() -> None:
    """A stride of 2 halves, rounded up (286, 401 and 35 frames to 143, 201 and 18); in every convolution it is 4."""
    block = BlockConfig(filters=4, kernel=9, repeat=2, stride=2, stride_last=True, residual=())
    assert [block.output_length(frames) for frames in (286, 401, 35, 1, 0)] == [143, 201, 18, 1, 0]
    assert dataclasses.replace(block, stride_last=False).output_length(35) == 9
    np.testing.assert_array_equal(block.output_length(jnp.array([286, 401, 35, 1, 0])), [143, 201, 18, 1, 0])
    assert (SMALL.subsampling, SMALL.output_dim, SMALL.encoded_length(35)) == (2, 10, 18)
    grown = dataclasses.replace(block, stride=1, dilation=2, padding=(13, 4))  # NeMo's future context with a dilation
    assert grown.output_length(10) == 12
    heard = dataclasses.replace(SMALL, conv_mask=False, trailing_frames=1)
    assert heard.encoded_length(34) == 18
    unstrided = dataclasses.replace(heard, blocks=(dataclasses.replace(block, stride=1),))  # 35 frames, NeMo reads 34
    assert unstrided.encoded_length(34) == 34
    np.testing.assert_array_equal(unstrided.encoded_length(jnp.array([34, 0])), [34, 0])


# --- published sizes --------------------------------------------------------------------------------------------------


# Counted in modules that NeMo 3.0.0 built from its own yaml files.
@pytest.mark.parametrize(
    ("name", "filters", "count"),
    [
        ("stt_zh_citrinet_1024_gamma_0_25", None, 140_173_712),
        ("stt_en_citrinet_512", None, 36_337_296),
        ("stt_en_citrinet_512", 384, 20_815_504),
        ("stt_en_quartznet15x5", None, 18_894_656),
    ],
)
def test_parameters_of_published_encoders(name: str, filters: int | None, count: int) -> None:
    """The statistics of batch norms are none of NeMo's parameters. Citrinet-384 has the blocks of Citrinet-512."""
    config = read_config(named_configs()[name])
    assert isinstance(config.encoder, CitrinetConfig)
    if filters:
        *blocks, last = config.encoder.blocks
        blocks = [dataclasses.replace(block, filters=filters) for block in blocks]
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, blocks=(*blocks, last)))
    leaves = flatten(AbstractModel(config).parameters["encoder"])
    sizes = [leaf.size for path, leaf in leaves.items() if path.rpartition(".")[2] not in ("mean", "variance")]
    assert sum(sizes) == count


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "dilation", "heads", "padding"), [(1, 1, 0, None), (3, 1, 0, (1, 0)), (1, 3, 2, None), (2, 1, 3, (4, 2))]
)
def test_depthwise(stride: int, dilation: int, heads: int, padding: tuple[int, int] | None) -> None:
    """Each channel with its own taps, `heads` of them in turn; frames `stride` apart, taps `dilation` apart."""
    config = BlockConfig(filters=6, kernel=5, dilation=dilation, heads=heads, padding=padding, residual=())
    module = build(Depthwise, config, 6, stride)
    x = random(1, 2, 20, 6)
    taps = np.asarray(module.kernel[...])[:, 0]
    taps = np.stack([taps[:, channel % taps.shape[1]] for channel in range(6)], axis=1)
    padded = np.pad(x, ((0, 0), config.pads, (0, 0)))
    frames = config.convolved(20, stride)
    expected = [(padded[:, t * stride : t * stride + 4 * dilation + 1 : dilation] * taps).sum(1) for t in range(frames)]
    np.testing.assert_allclose(module(x), np.stack(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 3)])
def test_ordinary_convolution(stride: int, dilation: int, groups: int) -> None:
    config = BlockConfig(filters=9 if groups == 3 else 8, kernel=3, dilation=dilation, groups=groups, residual=())
    module = build(Convolution, config, 6, stride)
    x = random(1, 2, 15, 6)
    kernel, padded = np.asarray(module.kernel[...]), np.pad(x, ((0, 0), config.pads, (0, 0)))
    per_group, outputs = 6 // groups, config.filters // groups
    expected = np.zeros((2, config.convolved(15, stride), config.filters))
    for t in range(expected.shape[1]):
        for out in range(config.filters):
            group = out // outputs
            window = padded[:, t * stride : t * stride + 2 * dilation + 1 : dilation]
            part = window[:, :, group * per_group : (group + 1) * per_group]
            expected[:, t, out] = (part * kernel[:, :, out]).sum((1, 2))
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def test_squeeze_excite_hears_the_valid_frames_alone() -> None:
    module = build(SqueezeExcite, SMALL.blocks[1], "relu")
    x, lengths = random(1, 2, 7, 12), np.array([7, 4], np.int32)
    for row, length in enumerate(lengths):
        hidden = np.maximum(x[row, :length].mean(0) @ np.asarray(module.in_proj.kernel[...]), 0)
        gate = 1 / (1 + np.exp(-hidden @ np.asarray(module.out_proj.kernel[...])))
        np.testing.assert_allclose(module(x, lengths)[row], x[row] * gate, atol=1e-6)


def test_group_norm_counts_its_frames_alone() -> None:
    module = build(GroupNorm, 6, 3, 1e-5)
    x, lengths = jnp.asarray(random(1, 2, 7, 6) + 5), np.array([7, 4], np.int32)
    for row, length in enumerate(lengths):
        groups = x[row, :length].reshape(length, 3, 2)
        normal = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-5)
        expected = normal.reshape(length, 6) * np.asarray(module.scale[...]) + np.asarray(module.bias[...])
        np.testing.assert_allclose(module(x, lengths)[row, :length], expected, atol=1e-5)


def test_groups_are_shuffled() -> None:
    x = jnp.arange(6.0)[None, None]
    np.testing.assert_array_equal(shuffle_groups(x, 2)[0, 0], [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(shuffle_groups(x, 3)[0, 0], [0, 2, 4, 1, 3, 5])


# --- the whole --------------------------------------------------------------------------------------------------------


def test_rows_of_every_length_are_as_if_alone() -> None:
    """0 to 12 frames beside each other, before what must not be heard; and one frame without any padding."""
    graph, state = random_module(lambda rngs: Citrinet(SMALL, rngs=rngs), seed=3)
    state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.abs(leaf) + 0.5 if "variance" in str(path) else leaf, state
    )
    run = quick_jit(lambda frames, lengths: nnx.merge(graph, state)(frames, lengths))
    lengths = np.arange(13, dtype=np.int32)
    frames = random(0, 13, 12, 6)
    for row, length in enumerate(lengths):
        frames[row, length:] = np.nan if row % 2 else 1e6
    encoded, counts = run(frames, lengths)
    np.testing.assert_array_equal(counts, (lengths + 1) // 2)
    again, _ = run(np.where(np.isfinite(frames) & (frames < 1e5), frames, -1.0)[::-1], lengths[::-1])
    for row, count in enumerate(np.asarray(counts)):
        if count:
            assert difference(again[12 - row, :count], np.asarray(encoded[row, :count])) < 1e-5, row
    alone, _ = run(frames[1:2, :1], lengths[1:2])
    assert difference(alone[0], np.asarray(encoded[1, :1])) < 1e-5


def test_dropout_follows_every_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citrinet, "run_layer", lambda layer, *inputs: layer(*inputs))
    model = nnx.eval_shape(lambda: Citrinet(SMALL, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    frames, lengths = jnp.zeros((1, 9, 6)), jnp.array([9])
    noting, places = noting_dropout()
    jax.eval_shape(lambda state: nnx.merge(graph, state)(frames, lengths, noting)[0], state)
    assert places == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
