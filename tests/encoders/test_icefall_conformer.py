"""icefall's Conformer: sizes, its norm by hand, and its forms against each other on random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from golden_models import difference, quick_jit
from jaxasr.encoders.icefall_conformer import BasicNorm, IcefallConformer, chunk_mask, double_swish
from jaxasr.encoders.icefall_conformer_config import IcefallConformerConfig
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.positions import relative_positions
from random_modules import build, random_module

CONFIG = IcefallConformerConfig(
    num_layers=2, encoder_dim=12, feedforward_dim=10, num_heads=3, conv_kernel=5, input_dim=20, embed_channels=(2, 3, 4)
)
CAUSAL = dataclasses.replace(CONFIG, causal=True, chunk_size=4, left_context=8, processed="encoded")


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 5}, "divisible by num_heads 5"),
        ({"encoder_dim": 9}, "must be even"),
        ({"conv_kernel": 4}, "must be odd"),
        ({"input_dim": 5}, "input_dim is 5"),
        ({"embed_channels": (2, 0, 4)}, "embed_channels"),
        ({"right_context": -1}, "right_context"),
        ({"chunk_size": 4}, "for causal convolutions"),
        ({"causal": True, "chunk_size": 4, "left_context": 6}, "whole number of chunks of 4"),
        ({"whole_chunks": True}, "whole_chunks needs a chunk_size"),
        ({"causal": True, "chunk_size": 4, "whole_chunks": True}, "limited left_context"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(CONFIG, **change)


def test_what_a_step_reads() -> None:
    """icefall-conformer: 4C + 4(R + 2) + 3 feature frames, 4C apart."""
    assert (CAUSAL.frames_per_step, CAUSAL.shift_per_step) == (27, 16)
    exported = dataclasses.replace(CAUSAL, chunk_size=16, left_context=64)
    assert (exported.frames_per_step, exported.shift_per_step) == (75, 64)
    assert dataclasses.replace(exported, right_context=4).frames_per_step == 91
    assert [CONFIG.encoded_length(frames) for frames in (0, 1, 6, 7, 8, 11, 35, 287)] == [0, 0, 0, 1, 1, 2, 8, 71]


def test_the_norm_and_the_activation_by_hand() -> None:
    norm = build(lambda *, rngs: BasicNorm(rngs=rngs))
    x = random(0, 2, 3, 5)
    squares = np.square(x.astype(np.float64)).mean(axis=-1, keepdims=True)
    expected = x / np.sqrt(squares + np.exp(np.asarray(norm.log_epsilon[...], np.float64)))
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    np.testing.assert_allclose(double_swish(jnp.asarray(x)), x / (1 + np.exp(1 - x)), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def module() -> tuple[Any, Any]:
    return random_module(lambda rngs: IcefallConformer(CONFIG, rngs=rngs))


def run(config: IcefallConformerConfig, module: tuple[Any, Any], *inputs: Any) -> Any:
    """The encoder of this configuration over the parameters of `module`; they do not depend on its chunks."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: IcefallConformer(config, rngs=nnx.Rngs(0))))
    return quick_jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))(module[1], *inputs)


@pytest.mark.parametrize("config", [CONFIG, CAUSAL, dataclasses.replace(CAUSAL, whole_chunks=True)])
def test_a_batch_gives_what_single_utterances_give(config: IcefallConformerConfig, module: tuple[Any, Any]) -> None:
    """Whatever stands beyond the end of the shorter row."""
    lengths = np.array([63, 47], np.int32)
    frames = random(1, 2, 63, 20)
    frames[1, 47:] = np.nan
    encoded, encoded_lengths = run(config, module, frames, lengths)
    assert encoded.shape == (2, 15, 12)
    for row, length in enumerate(lengths):
        alone, alone_lengths = run(config, module, frames[row : row + 1, :length], lengths[row : row + 1])
        count = int(alone_lengths[0])
        assert count == int(encoded_lengths[row]) == config.decoded_length(int(length)) > 0
        assert difference(encoded[row, :count], np.asarray(alone[0, :count])) < 1e-5


def test_a_stream_is_the_masked_utterance_from_the_second_frame_on(module: tuple[Any, Any]) -> None:
    """icefall drops the first frame of the front end; from there on the layers see the same in both forms."""
    frames = random(2, 1, 27 + 3 * 16, 20)
    graph, _ = nnx.split(nnx.eval_shape(lambda: IcefallConformer(CAUSAL, rngs=nnx.Rngs(0))))

    @quick_jit
    def whole(state: Any, frames: jax.Array) -> jax.Array:
        encoder = nnx.merge(graph, state)
        x = encoder.embed(frames)[:, 1:-1]
        positions = relative_positions(x.shape[1], 0, CAUSAL.encoder_dim)
        for layer in encoder.layers:
            x = layer(x, positions, chunk_mask(x.shape[1], 4, 8)[None], jnp.array([x.shape[1]]))
        return x

    step = quick_jit(lambda params, state, x: nnx.merge(graph, params).step(state, x))
    state = nnx.merge(graph, module[1]).initial_state(1)
    pieces = []
    for number in range(4):
        state, piece = step(module[1], state, frames[:, number * 16 : number * 16 + 27])
        pieces.append(piece)
    assert difference(np.concatenate(pieces, axis=1), np.asarray(whole(module[1], frames))) < 1e-5
    assert state["processed"].tolist() == [16]


def test_an_utterance_shorter_than_a_chunk_gives_nothing_to_decode(module: tuple[Any, Any]) -> None:
    config = dataclasses.replace(CAUSAL, whole_chunks=True)
    encoded, lengths = run(config, module, random(3, 1, 27, 20), np.array([27], np.int32))
    assert encoded.shape == (1, 6, 12) and lengths.tolist() == [0]  # sherpa-onnx waits for one frame more


def test_dropout_acts_in_every_layer(module: tuple[Any, Any]) -> None:
    frames, lengths = random(4, 1, 23, 20), np.array([23], np.int32)
    plain, _ = run(CONFIG, module, frames, lengths)
    none, _ = run(CONFIG, module, frames, lengths, Dropout(jnp.float32(0), jax.random.key(0)))
    some, _ = run(CONFIG, module, frames, lengths, Dropout(jnp.float32(0.5), jax.random.key(0)))
    assert difference(none, np.asarray(plain)) < 1e-6
    assert difference(some, np.asarray(plain)) > 0.01


def test_only_chunks_have_a_step_form() -> None:
    encoder = nnx.eval_shape(lambda: IcefallConformer(CONFIG, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="limited left context"):
        encoder.initial_state(1)
