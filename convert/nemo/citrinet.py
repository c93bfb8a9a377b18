"""NeMo's ConvASREncoder (Citrinet, QuartzNet, Jasper, MatchboxNet): its table of names and its settings.

In NeMo a block's settings depend on the blocks before it: `residual_mode` is that of the block before where it is not
stated, and a dense residual hears the inputs of all dense blocks so far. Here every block states its own.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxasr.convert.mapping import Ignored, Rule, conv1d, linear, same
from jaxasr.encoders.citrinet_config import Activation, BlockConfig, CitrinetConfig
from jaxasr.errors import CheckpointError, listing

# The last part of the class that `encoder._target_` names.
TARGETS = frozenset({"ConvASREncoder"})

IGNORED = (Ignored(r"encoder\..*\.num_batches_tracked", "a counter of training steps"),)

# --- names -----------------------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where a block's convolutions stand in its list `mconv`, which counts activations and dropouts too."""

    repeat: int
    separable: bool
    pointwise: bool
    shuffled: bool

    @property
    def norm(self) -> int:
        """The first norm's place, one after its last convolution."""
        return 2 if self.separable else 1

    @property
    def step(self) -> int:
        """Places from one convolution to the next: its parts, the shuffle of groups, an activation and a dropout."""
        return self.norm + 1 + int(self.shuffled) + 2

    @property
    def squeeze(self) -> int:
        """After the last convolution's parts come no activation and dropout, but squeeze-excite."""
        return self.repeat * self.step - 2


def rules(config: CitrinetConfig) -> Sequence[Rule]:
    """The table of this encoder: one part a kind of block, since the places of the convolutions differ."""
    kinds: dict[_Places, list[str]] = {}
    for number, block in enumerate(config.blocks):
        places = _Places(block.repeat, block.separable, block.is_pointwise, block.groups > 1)
        kinds.setdefault(places, []).append(str(number))
    residual, path = r"encoder\.encoder\.(?P<block>\d+)\.res\.(?P<n>\d+)\.", "encoder.blocks.{block}.residuals.{n}."
    table = [
        Rule(residual + r"0\.(?:conv\.)?weight", path + "conv.kernel", _pointwise),
        *_norm(residual + r"1\.", path),
    ]
    for places, numbers in kinds.items():
        table += _block(places, rf"encoder\.encoder\.(?P<block>{'|'.join(numbers)})\.mconv\.")
    return table


def _block(places: _Places, mconv: str) -> list[Rule]:
    """The rows of the blocks whose parts stand at these places; without `conv_mask` the names lack `conv`."""
    table = []
    weight, path = r"\.(?:conv\.)?weight", "encoder.blocks.{block}."
    for unit in range(places.repeat):
        first = unit * places.step
        ours = f"{path}units.{unit}."
        if places.separable:
            table.append(Rule(f"{mconv}{first}{weight}", ours + "depthwise.kernel", conv1d))
            table.append(Rule(f"{mconv}{first + 1}{weight}", ours + "conv.kernel", _pointwise))
        else:
            layout = _pointwise if places.pointwise else conv1d
            table.append(Rule(f"{mconv}{first}{weight}", ours + "conv.kernel", layout))
        table += _norm(rf"{mconv}{first + places.norm}\.", ours)
    return [
        *table,
        Rule(rf"{mconv}{places.squeeze}\.fc\.0\.weight", path + "squeeze.in_proj.kernel", linear),
        Rule(rf"{mconv}{places.squeeze}\.fc\.2\.weight", path + "squeeze.out_proj.kernel", linear),
    ]


def _norm(name: str, path: str) -> list[Rule]:
    """The rows of a norm; group norms have the first two."""
    return [
        Rule(name + "weight", path + "norm.scale", same),
        Rule(name + "bias", path + "norm.bias", same),
        Rule(name + "running_mean", path + "norm.mean", same),
        Rule(name + "running_var", path + "norm.variance", same),
    ]


def _pointwise(x: np.ndarray) -> np.ndarray:
    """(out, in/groups, 1) -> (in/groups, out)."""
    return x.squeeze(2).T


# --- settings --------------------------------------------------------------------------------------------------------

# The remaining settings of ConvASREncoder; `init_mode` is for training.
ENCODER_KEYS = frozenset(
    "_target_ jasper activation feat_in frame_splicing normalization_mode norm_groups residual_mode conv_mask "
    "init_mode quantize".split()
)
# Those of a block. `dropout` is for training; inference hears the whole utterance in squeeze-excite whatever its
# context is (NeMo since 1.6).
BLOCK_KEYS = frozenset(
    "filters repeat kernel stride dilation dropout residual separable groups heads residual_mode residual_dense se "
    "se_reduction_ratio se_context_size se_interpolation_mode kernel_size_factor stride_last future_context".split()
)
RESIDUAL_MODES = ("add", "stride_add", "max")
# NeMo's names to ours, with the number of groups; None where `norm_groups` states it.
NORMALIZATIONS = {"batch": ("batch", 0), "instance": ("group", 0), "layer": ("group", 1), "group": ("group", None)}


def encoder_config(settings: Mapping[str, Any], input_dim: int) -> CitrinetConfig:
    """The mapping `encoder` of model_config.yaml as our configuration, for features with `input_dim` bins.

    CheckpointError where a setting is unknown or cannot be run, by NeMo or here, with its name.
    """
    _check_keys(settings, ENCODER_KEYS, "encoder")
    if _flag(settings, "quantize", "encoder", False):
        raise CheckpointError("encoder.quantize is on: convert the checkpoint from before its quantization")
    width = _integer(settings, "feat_in", "encoder") * _integer(settings, "frame_splicing", "encoder", 1)
    if width != input_dim:
        raise CheckpointError(f"encoder.feat_in asks for {width} bins, but the preprocessor gives {input_dim}")
    normalization, groups = NORMALIZATIONS[
        _choice(settings, "normalization_mode", "encoder", tuple(NORMALIZATIONS), "batch")
    ]
    if groups is None:
        groups = max(_integer(settings, "norm_groups", "encoder", -1), 0)
    masked = _flag(settings, "conv_mask", "encoder", True)
    try:
        return CitrinetConfig(
            blocks=_blocks(settings, masked),
            input_dim=input_dim,
            activation=_choice(settings, "activation", "encoder", typing.get_args(Activation)),
            normalization=normalization,
            norm_groups=groups,
            conv_mask=masked,
            trailing_frames=0 if masked and normalization == "batch" else 1,
        )
    except ValueError as error:
        raise CheckpointError(f"encoder.jasper: {error}") from None


def _blocks(settings: Mapping[str, Any], masked: bool) -> tuple[BlockConfig, ...]:
    """The list `jasper`, each block with what it takes over from those before it."""
    listed = settings.get("jasper")
    if not isinstance(listed, Sequence) or not all(isinstance(block, Mapping) for block in listed):
        raise CheckpointError("encoder.jasper is not a list of blocks")
    blocks: list[BlockConfig] = []
    mode = _choice(settings, "residual_mode", "encoder", RESIDUAL_MODES, "add")
    dense = 0  # dense blocks so far
    heard = [0]  # the blocks whose inputs the next block's residuals can hear
    for number, block in enumerate(listed):
        where = f"encoder.jasper[{number}]"
        _check_keys(block, BLOCK_KEYS, where)
        mode = _choice(block, "residual_mode", where, RESIDUAL_MODES, mode)
        residual, is_dense = _flag(block, "residual", where), _flag(block, "residual_dense", where, False)
        dense += is_dense
        is_dense = is_dense and residual
        if is_dense and dense > len(heard):
            raise CheckpointError(f"{where}.residual_dense: NeMo cannot run dense blocks with others between them")
        # NeMo gives a block that is not dense the first of the inputs that a dense one would hear.
        sources = (heard if is_dense else heard[:1]) if residual else []
        blocks.append(_block_config(block, where, masked, mode, tuple(number - source for source in sources)))
        heard = [*heard, number + 1] if is_dense else [number + 1]
    return tuple(blocks)


def _block_config(
    block: Mapping[str, Any], where: str, masked: bool, mode: str, residual: tuple[int, ...]
) -> BlockConfig:
    """One block; `residual` counts backwards."""
    kernel = _kernel(block, where)
    separable = _flag(block, "separable", where, False)
    stride, dilation = _single(block, "stride", where), _single(block, "dilation", where)
    config = BlockConfig(
        filters=_integer(block, "filters", where),
        kernel=kernel,
        repeat=_integer(block, "repeat", where),
        stride=stride,
        stride_last=_flag(block, "stride_last", where, False),
        dilation=dilation,
        padding=_padding(kernel, dilation, _integer(block, "future_context", where, -1)),
        separable=separable,
        groups=_integer(block, "groups", where, 1),
        # A convolution without a mask has no heads in NeMo, and one that is not separable has none either.
        heads=max(_integer(block, "heads", where, -1), 0) if masked and separable else 0,
        squeeze=_integer(block, "se_reduction_ratio", where, 8) if _flag(block, "se", where, False) else 0,
        residual=residual,
        residual_mode="max" if mode == "max" else "add",
    )
    strided = stride if mode == "stride_add" else 1
    if residual and strided != np.prod(config.strides):
        raise CheckpointError(f"{where}: residual_mode {mode} does not stride as its convolutions do")
    if not masked and config.padding is not None:
        raise CheckpointError(f"{where}.future_context needs encoder.conv_mask")
    if not masked and config.squeeze:
        raise CheckpointError(f"{where}.se needs encoder.conv_mask, by which it counts frames")
    return config


def _kernel(block: Mapping[str, Any], where: str) -> int:
    """The kernel's width after `kernel_size_factor`: at least 1, and one more where it is even."""
    factor = block.get("kernel_size_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise CheckpointError(f"{where}.kernel_size_factor is {factor!r}, not a number")
    width = max(int(_single(block, "kernel", where) * float(factor)), 1)
    return width + (width % 2 == 0)


def _padding(kernel: int, dilation: int, future: int) -> tuple[int, int] | None:
    """Zeros before and after for so many frames of future context; None for half of the kernel's reach each."""
    if future < 0 or kernel <= future:
        return None
    # NeMo's formula, which with a dilation gives more frames than went in.
    before = kernel - 1 - future if dilation == 1 else dilation * (kernel - future) - 1
    return before, dilation * future


def _single(block: Mapping[str, Any], key: str, where: str) -> int:
    """A number that NeMo writes as a list of one."""
    value = block.get(key)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    return _integer({key: value}, key, where)


def _integer(settings: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = settings.get(key, default)
    if type(value) is not int:
        raise CheckpointError(f"{where}.{key} is {value!r}, not a whole number")
    return value


def _flag(settings: Mapping[str, Any], key: str, where: str, default: bool | None = None) -> bool:
    value = settings.get(key, default)
    if type(value) is not bool:
        raise CheckpointError(f"{where}.{key} is {value!r}, not true or false")
    return value


def _choice(
    settings: Mapping[str, Any], key: str, where: str, choices: Sequence[str], default: str | None = None
) -> Any:
    value = settings.get(key, default)
    if value not in choices:
        raise CheckpointError(f"{where}.{key} is {value!r}; known are {', '.join(choices)}")
    return value


def _check_keys(settings: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        raise CheckpointError(f"{where} has settings that are not known here: {listing(unknown)}")
