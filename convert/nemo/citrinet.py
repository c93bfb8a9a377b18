"""NeMo's ConvASREncoder (Citrinet, QuartzNet, Jasper, MatchboxNet): its table of names and its settings.

In NeMo a block's settings depend on the blocks before it: `residual_mode` is that of the block before where it is not
stated, and a dense residual hears the inputs of all dense blocks so far. Here every block states its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from jaxasr.convert.mapping import Ignored, Rule, conv1d, linear, pointwise, same
from jaxasr.convert.nemo.settings import Section
from jaxasr.encoders.citrinet_config import Activation, BlockConfig, CitrinetConfig
from jaxasr.errors import CheckpointError

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
        Rule(residual + r"0\.(?:conv\.)?weight", path + "conv.kernel", pointwise),
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
            table.append(Rule(f"{mconv}{first + 1}{weight}", ours + "conv.kernel", pointwise))
        else:
            layout = pointwise if places.pointwise else conv1d
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


# --- settings --------------------------------------------------------------------------------------------------------

Value = TypeVar("Value")

# What ConvASREncoder takes; `init_mode` is for training.
ENCODER_KEYS = frozenset(
    "_target_ jasper activation feat_in frame_splicing normalization_mode norm_groups residual_mode conv_mask "
    "init_mode quantize".split()
)
# What a block takes. `dropout` is for training; squeeze-excite hears the whole utterance in inference, whatever its
# context is (NeMo since 1.6).
BLOCK_KEYS = frozenset(
    "filters repeat kernel stride dilation dropout residual separable groups heads residual_mode residual_dense se "
    "se_reduction_ratio se_context_size se_interpolation_mode kernel_size_factor stride_last future_context".split()
)
ACTIVATIONS: dict[str, Activation] = {name: name for name in get_args(Activation)}
RESIDUAL_MODES = {mode: mode for mode in ("add", "stride_add", "max")}
# Our kind of norm, and the number of its groups; None where `norm_groups` states it.
NORMALIZATIONS: dict[str, tuple[Literal["batch", "group"], int | None]] = {
    "batch": ("batch", 0),
    "instance": ("group", 0),
    "layer": ("group", 1),
    "group": ("group", None),
}


def encoder_config(settings: Mapping[str, Any], input_dim: int) -> CitrinetConfig:
    """The mapping `encoder` of model_config.yaml as our configuration, for features with `input_dim` bins.

    CheckpointError where a setting is unknown or cannot be run, by NeMo or here, with its name.
    """
    section = _section("encoder", settings, ENCODER_KEYS)
    if section.flag("quantize", False):
        raise section.refuse("quantize", "convert the checkpoint from before its quantization")
    if section.integer("feat_in", 0) * section.integer("frame_splicing", 1) != input_dim:
        raise section.refuse("feat_in", f"the preprocessor gives {input_dim} bins")
    normalization, groups = _choice(section, "normalization_mode", "batch", NORMALIZATIONS)
    masked = section.flag("conv_mask", True)
    try:
        return CitrinetConfig(
            blocks=_blocks(section, masked),
            input_dim=input_dim,
            activation=_choice(section, "activation", "", ACTIVATIONS),
            normalization=normalization,
            norm_groups=max(section.integer("norm_groups", -1), 0) if groups is None else groups,
            conv_mask=masked,
            trailing_frames=0 if masked and normalization == "batch" else 1,
        )
    except ValueError as error:
        raise CheckpointError(f"encoder.jasper: {error}") from None


def _blocks(section: Section, masked: bool) -> tuple[BlockConfig, ...]:
    """The list `jasper`, each block with what it takes over from those before it."""
    listed = section.values.get("jasper")
    if not isinstance(listed, list) or not all(isinstance(block, Mapping) for block in listed):
        raise section.refuse("jasper", "model_config.yaml should have a list of blocks there")
    blocks: list[BlockConfig] = []
    mode = _choice(section, "residual_mode", "add", RESIDUAL_MODES)
    dense = 0  # blocks so far that state residual_dense
    heard = [0]  # the blocks whose inputs NeMo hands to the next one
    for number, settings in enumerate(listed):
        block = _section(f"encoder.jasper[{number}]", settings, BLOCK_KEYS)
        mode = _choice(block, "residual_mode", mode, RESIDUAL_MODES)
        residual, is_dense = block.flag("residual", True), block.flag("residual_dense", False)
        dense += is_dense
        if residual and is_dense and dense > len(heard):
            raise block.refuse("residual_dense", "NeMo cannot run dense blocks with others between them")
        # A block that is not dense takes the first of what it is handed, its own input or not.
        sources = (heard if is_dense else heard[:1]) if residual else []
        blocks.append(_block_config(block, masked, mode, tuple(number - source for source in sources)))
        heard = [*heard, number + 1] if residual and is_dense else [number + 1]
    return tuple(blocks)


def _block_config(block: Section, masked: bool, mode: str, residual: tuple[int, ...]) -> BlockConfig:
    """One block; `residual` counts backwards."""
    kernel, dilation, stride = _kernel(block), _single(block, "dilation"), _single(block, "stride")
    separable = block.flag("separable", False)
    config = BlockConfig(
        filters=block.integer("filters", 0),
        kernel=kernel,
        repeat=block.integer("repeat", 0),
        stride=stride,
        stride_last=block.flag("stride_last", False),
        dilation=dilation,
        padding=_padding(kernel, dilation, block.integer("future_context", -1)),
        separable=separable,
        groups=block.integer("groups", 1),
        # NeMo's ordinary convolutions, and all that have no mask, take no notice of heads.
        heads=max(block.integer("heads", -1), 0) if masked and separable else 0,
        squeeze=block.integer("se_reduction_ratio", 8) if block.flag("se", False) else 0,
        residual=residual,
        residual_mode="max" if mode == "max" else "add",
    )
    if residual and math.prod(config.strides) != (stride if mode == "stride_add" else 1):
        raise block.refuse("residual_mode", f"a residual by {mode} does not stride as the block does")
    if not masked and config.padding is not None:
        raise block.refuse("future_context", "NeMo runs it with encoder.conv_mask only")
    if not masked and config.squeeze:
        raise block.refuse("se", "without encoder.conv_mask NeMo counts frames that are not there")
    return config


def _kernel(block: Section) -> int:
    """The kernel's width after `kernel_size_factor`: at least 1, and one more where it is even."""
    width = max(int(_single(block, "kernel") * block.number("kernel_size_factor", 1.0)), 1)
    return width + (width % 2 == 0)


def _padding(kernel: int, dilation: int, future: int) -> tuple[int, int] | None:
    """Zeros before and after for so many frames of future context; None for half of the kernel's reach each."""
    if future < 0 or kernel <= future:
        return None
    # NeMo's formula, which with a dilation gives more frames than went in.
    before = kernel - 1 - future if dilation == 1 else dilation * (kernel - future) - 1
    return before, dilation * future


def _single(block: Section, key: str) -> int:
    """A number that NeMo writes as a list of one."""
    value = block.values.get(key)
    if not isinstance(value, list):
        return block.integer(key, 0)
    numbers = block.integers(key) or ()
    if len(numbers) != 1:
        raise block.refuse(key, "a convolution over time has one number there")
    return numbers[0]


def _choice(section: Section, key: str, default: str, choices: Mapping[str, Value]) -> Value:
    """What a name stands for."""
    name = section.text(key, default)
    if name not in choices:
        raise section.refuse(key, f"known are {', '.join(choices)}")
    return choices[name]


def _section(name: str, settings: Mapping[str, Any], known: frozenset[str]) -> Section:
    """The mapping `settings` by its place in the file; CheckpointError for a key that is not known."""
    section = Section({name: settings}, name)
    for key in settings:
        if key not in known:
            raise section.refuse(key, "a setting that jaxasr does not know")
    return section
