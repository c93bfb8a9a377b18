"""The settings of ConvASREncoder: what a block takes over from those before it, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo.citrinet import IGNORED, encoder_config, rules
from jaxasr.encoders.citrinet_config import BlockConfig
from jaxasr.errors import CheckpointError


def block(**settings: Any) -> dict[str, Any]:
    """A block as NeMo's yaml files write it."""
    usual = {"filters": 8, "repeat": 1, "kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.1}
    return {**usual, "residual": True, "separable": True, **settings}


def encoder(*blocks: dict[str, Any], **settings: Any) -> dict[str, Any]:
    usual = {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "feat_in": 8, "activation": "relu"}
    return {**usual, "conv_mask": True, "init_mode": "xavier_uniform", "jasper": list(blocks), **settings}


def blocks(*stated: dict[str, Any], **settings: Any) -> tuple[BlockConfig, ...]:
    return encoder_config(encoder(*stated, **settings), 8).blocks


def test_the_residual_mode_is_that_of_the_block_before() -> None:
    """Not the encoder's, which the first blocks have; a block without residuals hands its own on as well."""
    found = blocks(
        block(),
        block(residual=False, residual_mode="stride_add"),
        block(stride=[2]),
        block(residual_mode="max"),
        block(),
        residual_mode="max",
    )
    assert [each.residual_mode for each in found] == ["max", "add", "add", "max", "max"]
    with pytest.raises(CheckpointError, match=r"jasper\[1\]\.residual_mode is None: a residual by add does not stride"):
        blocks(block(), block(stride=[2]))
    with pytest.raises(CheckpointError, match="a residual by stride_add does not stride as the block does"):
        blocks(block(stride=[2], repeat=2, residual_mode="stride_add"))


def test_dense_residuals_hear_all_dense_blocks() -> None:
    """And the first block after them hears what the first of them heard, as NeMo runs it."""
    dense = {"residual_dense": True}
    found = blocks(block(residual=False), block(**dense), block(**dense), block(**dense), block(), block())
    assert [each.residual for each in found] == [(), (0,), (1, 0), (2, 1, 0), (3,), (0,)]
    with pytest.raises(CheckpointError, match=r"jasper\[2\]\.residual_dense is True: NeMo cannot run dense blocks"):
        blocks(block(**dense), block(), block(**dense))


@pytest.mark.parametrize(
    ("kernel", "factor", "width"),
    [(11, 0.25, 3), (19, 0.25, 5), (39, 0.25, 9), (12, 1.0, 13), (1, 0.1, 1), ([7], 1, 7)],
)
def test_kernels(kernel: Any, factor: float, width: int) -> None:
    assert blocks(block(kernel=kernel, kernel_size_factor=factor))[0].kernel == width


@pytest.mark.parametrize(
    ("settings", "padding"),
    [
        ({"future_context": -1}, (2, 2)),
        ({"future_context": 0}, (4, 0)),
        ({"future_context": 3}, (1, 3)),
        ({"future_context": 5}, (2, 2)),  # at least the kernel: half of it each
        ({"future_context": 1, "dilation": [2], "residual": False}, (7, 2)),
    ],
)
def test_future_context(settings: dict[str, Any], padding: tuple[int, int]) -> None:
    assert blocks(block(**settings))[0].pads == padding


def test_what_no_mask_and_other_norms_mean() -> None:
    """NeMo's arrays hold a frame after the last: convolutions without a mask hear it, statistics count it."""
    plain = encoder_config(encoder(block(heads=4)), 8)
    assert (plain.trailing_frames, plain.blocks[0].heads) == (0, 4)
    unmasked = encoder_config(encoder(block(heads=4), conv_mask=False), 8)
    assert (unmasked.trailing_frames, unmasked.conv_mask, unmasked.blocks[0].heads) == (1, False, 0)
    kinds = {"group": ("group", 2), "instance": ("group", 0), "layer": ("group", 1), "batch": ("batch", 0)}
    for name, expected in kinds.items():
        config = encoder_config(encoder(block(), normalization_mode=name, norm_groups=2), 8)
        assert (config.normalization, config.norm_groups, config.trailing_frames) == (*expected, int(name != "batch"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"jasper": None}, r"encoder\.jasper is None"),
        ({"jasper": [3]}, r"encoder\.jasper is \[3\]"),
        ({"jasper": []}, "blocks must not be empty"),
        ({"feat_in": 64}, r"encoder\.feat_in is 64: the preprocessor gives 8 bins"),
        ({"activation": "mish"}, r"encoder\.activation is 'mish': known are relu"),
        ({"normalization_mode": "weight"}, r"encoder\.normalization_mode is 'weight'"),
        ({"quantize": True}, r"encoder\.quantize is True"),
        ({"conv_mask": "no"}, r"encoder\.conv_mask is 'no'"),
        ({"aggregation": "sum"}, r"encoder\.aggregation is 'sum': a setting that jaxasr does not know"),
        ({"conv_mask": False, "jasper": [block(se=True)]}, r"jasper\[0\]\.se is True"),
        ({"conv_mask": False, "jasper": [block(future_context=1)]}, r"jasper\[0\]\.future_context is 1"),
        ({"jasper": [block(kernel=[3, 5])]}, r"jasper\[0\]\.kernel is \[3, 5\]"),
        ({"jasper": [block(residual_mode="mean")]}, r"jasper\[0\]\.residual_mode is 'mean'"),
        ({"jasper": [block(filters=None)]}, "encoder.jasper: filters, kernel"),
        ({"jasper": [block(attention=True)]}, r"jasper\[0\]\.attention is True"),
        ({"jasper": [block(groups=3)]}, "encoder.jasper: filters 8 is not divisible by groups 3"),
        ({"jasper": [block(stride=[2], dilation=[2])]}, "encoder.jasper: stride 2 and dilation 2"),
    ],
)
def test_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        encoder_config(encoder(block(), **settings), 8)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    """Two convolutions of a separable block with groups and squeeze-excite, then one without any of that."""
    config = encoder_config(encoder(block(repeat=2, groups=2, se=True), block(separable=False, residual=False)), 8)
    shapes = {
        "0.mconv.0.conv.weight": (8, 1, 5),
        "0.mconv.1.conv.weight": (8, 4, 1),
        "0.mconv.2.running_var": (8,),
        "0.mconv.6.conv.weight": (8, 1, 5),
        "0.mconv.8.num_batches_tracked": (),
        "0.mconv.10.fc.0.weight": (1, 8),
        "0.mconv.10.fc.2.weight": (8, 1),
        "0.res.0.0.conv.weight": (8, 8, 1),
        "0.res.0.1.weight": (8,),
        "1.mconv.0.weight": (8, 8, 5),
        "1.mconv.1.bias": (8,),
    }
    tensors = {f"encoder.encoder.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    mapped = map_tensors(tensors, rules(config), IGNORED)
    assert {path.removeprefix("encoder.blocks."): array.shape for path, array in mapped.items()} == {
        "0.units.0.depthwise.kernel": (5, 1, 8),
        "0.units.0.conv.kernel": (4, 8),
        "0.units.0.norm.variance": (8,),
        "0.units.1.depthwise.kernel": (5, 1, 8),
        "0.squeeze.in_proj.kernel": (8, 1),
        "0.squeeze.out_proj.kernel": (1, 8),
        "0.residuals.0.conv.kernel": (8, 8),
        "0.residuals.0.norm.scale": (8,),
        "1.units.0.conv.kernel": (5, 8, 8),
        "1.units.0.norm.bias": (8,),
    }
    with pytest.raises(CheckpointError, match=r"encoder\.encoder\.0\.mconv\.5\.weight"):
        map_tensors({"encoder.encoder.0.mconv.5.weight": np.zeros(8)}, rules(config), IGNORED)
