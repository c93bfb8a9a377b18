"""Sizes of a Citrinet, QuartzNet, Jasper or MatchboxNet encoder, and the frames that it gives; needs no Flax."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxasr.arrays import Count, at_least_zero

Activation = Literal["relu", "hardtanh", "selu", "swish", "silu", "gelu", "identity"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block: `repeat` convolutions with `filters` outputs, each with a norm; squeeze-excite; residuals; activation.

    `kernel` and `dilation` are in frames. `stride` is that of every convolution, with `stride_last` of the last one
    alone. `padding`: frames of zeros before and after, half of the kernel's reach each unless stated. `separable`: a
    convolution is a depthwise one and a pointwise one. `groups` of a pointwise or ordinary convolution, whose channels
    are shuffled after the norm. `heads`: so many depthwise kernels, which channels with the same number modulo `heads`
    share; 0 gives each channel its own. `squeeze`: by what squeeze-excite narrows the channels; 0 for none. `residual`:
    the blocks whose inputs reach the result through a 1 x 1 convolution and a norm each, counted backwards: [0] is this
    block's own input, [2, 1, 0] a dense residual, [] none; they are added, or the largest is taken.
    """

    filters: int
    kernel: int
    repeat: int = 1
    stride: int = 1
    stride_last: bool = False
    dilation: int = 1
    padding: tuple[int, int] | None = None
    separable: bool = True
    groups: int = 1
    heads: int = 0
    squeeze: int = 0
    residual: tuple[int, ...] = (0,)
    residual_mode: Literal["add", "max"] = "add"

    def __post_init__(self) -> None:
        if min(self.filters, self.kernel, self.repeat, self.stride, self.dilation, self.groups) < 1:
            raise ValueError("filters, kernel, repeat, stride, dilation and groups must be positive")
        if min(self.heads, self.squeeze, *self.residual, *(self.padding or ()), 0) < 0:
            raise ValueError("heads, squeeze, padding and residual must not be negative")
        if self.padding is None and self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: it needs its padding stated")
        if self.stride > 1 and self.dilation > 1:
            raise ValueError(f"stride {self.stride} and dilation {self.dilation}: only one of them may exceed 1")
        if self.filters % self.groups:
            raise ValueError(f"filters {self.filters} is not divisible by groups {self.groups}")
        if self.squeeze > self.filters:
            raise ValueError(f"squeeze {self.squeeze} leaves none of {self.filters} filters")

    @property
    def pads(self) -> tuple[int, int]:
        """Frames of zeros before and after the input of each convolution."""
        return self.padding or (self.reach // 2, self.reach // 2)

    @property
    def reach(self) -> int:
        """Frames from the first to the last that an output depends on."""
        return self.dilation * (self.kernel - 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether its convolutions see one frame alone and have no depthwise part."""
        return not self.separable and self.kernel == 1 and not any(self.pads)

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each convolution."""
        return (*([1] * (self.repeat - 1)), self.stride) if self.stride_last else (self.stride,) * self.repeat

    def convolved(self, frames: Count, stride: int) -> Count:
        """Frames after one convolution, for integers and arrays."""
        return at_least_zero(frames + sum(self.pads) - self.reach - 1 + stride) // stride

    def output_length(self, frames: Count) -> Count:
        """Frames after the block, for integers and arrays."""
        for stride in self.strides:
            frames = self.convolved(frames, stride)
        return frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class CitrinetConfig:
    """The blocks of a Citrinet and what they share.

    `normalization`: by stored statistics ("batch"), or by those of an utterance's own frames over `norm_groups` groups
    of channels ("group"); 0 groups are as many as channels, NeMo's "instance", and 1 is its "layer".

    `trailing_frames`: frames of zeros that NeMo's preprocessor leaves after an utterance's last frame, one since 2.5.
    Statistics of "group" count them. `conv_mask`: convolutions hear nothing from an utterance's length on; without it
    the trailing frames are frames of the utterance.
    """

    kind: Literal["citrinet"] = "citrinet"
    blocks: tuple[BlockConfig, ...]
    input_dim: int = 80
    activation: Activation = "relu"
    normalization: Literal["batch", "group"] = "batch"
    norm_groups: int = 0
    conv_mask: bool = True
    trailing_frames: int = 0

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks must not be empty")
        if self.input_dim < 1 or self.norm_groups < 0 or self.trailing_frames < 0:
            raise ValueError("input_dim must be positive, norm_groups and trailing_frames not negative")
        for index, block in enumerate(self.blocks):
            if fault := self._fault(index, block):
                raise ValueError(f"blocks[{index}]: {fault}")

    def _fault(self, index: int, block: BlockConfig) -> str:
        """Why this block does not fit its place; empty where it fits."""
        widths = {self.width(index), block.filters} if block.repeat > 1 else {self.width(index)}
        for name, size in (("groups", block.groups), ("heads", block.heads if block.separable else 0)):
            if size and any(width % size for width in widths):
                return f"{' and '.join(map(str, sorted(widths)))} input channels are not divisible by {name} {size}"
        if self.norm_groups and block.filters % self.norm_groups:
            return f"filters {block.filters} is not divisible by norm_groups {self.norm_groups}"
        if not block.residual:
            return ""
        if max(block.residual) > index:
            return f"residual {max(block.residual)} lies before the first block"
        before = self.blocks[index - max(block.residual) : index]
        if any(math.prod(each.strides) > 1 or sum(each.pads) != each.reach for each in before):
            return "its residuals have different frame rates"
        if sum(block.pads) != block.reach:
            return f"a block with residuals needs {block.reach} frames of padding in all"
        return ""

    def width(self, index: int) -> int:
        """Channels of the input of block `index`."""
        return self.blocks[index - 1].filters if index else self.input_dim

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames."""
        return self.blocks[-1].filters

    @property
    def subsampling(self) -> int:
        """Feature frames from one encoded frame to the next."""
        return math.prod(stride for block in self.blocks for stride in block.strides)

    @property
    def context(self) -> int:
        """Feature frames on either side that an encoded frame depends on, but for statistics of the utterance."""
        context, jump = 0, 1
        for block in self.blocks:
            for stride in block.strides:
                context += jump * max(block.pads[0], block.reach - block.pads[0])
                jump *= stride
        return context

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays."""
        encoded = frames if self.conv_mask else frames + self.trailing_frames
        for block in self.blocks:
            encoded = block.output_length(encoded)
        # Without masks NeMo decodes as many as there were feature frames: without a stride not the trailing ones.
        return encoded if self.conv_mask else encoded - at_least_zero(encoded - frames)

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of a Citrinet."""
        return {"blocks": len(self.blocks), "convolutions": sum(block.repeat for block in self.blocks)}
