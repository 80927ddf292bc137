"""Convolution weights prepared once, at load.

Layouts:
- "rows": as PyTorch holds them, [C_out, C_in/groups, k], or transposed [C_in, C_out/groups, k].
- "conv_panels" (CPU, groups of more than a few outputs): per group the matrix [N, K] of the
  convolution as `packed.py`'s panels, [groups, ceil(N/32), K, 32], K = C_in/groups * taps with the
  taps innermost. A transposed convolution is one of stride 1 whose N = C_out/groups * stride
  outputs (the phases of one output channel side by side) are interleaved in time: `phases`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.packing import PANEL, unpack_rows

FEW = 4  # outputs of a group that are not worth a panel of 32


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A convolution's weight in one `layout` and `format`; made by `ops.pack_conv`.

    A transposed one is packed for its stride and dilation, which the others only carry along.
    """

    weight: Tensor
    layout: str
    format: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    dilation: int
    groups: int
    transposed: bool

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def context(self) -> int:
        """How many earlier inputs a stream carries: the width of `ConvState.context`."""
        return context_width(self.kernel, self.stride, self.dilation, self.transposed)

    def unpack(self) -> Tensor:
        """The weight as PyTorch holds it, in the packed format."""
        shape = (self.in_channels, self.out_channels, self.kernel, self.stride, self.dilation)
        return unpack_conv(self.weight, self.layout, *shape, self.groups, self.transposed)


def context_width(kernel: int, stride: int, dilation: int, transposed: bool) -> int:
    span = (kernel - 1) * dilation
    return span // stride if transposed else span


def pack_conv_panels(
    pack_panels: Callable[[Tensor, str], Tensor],
    weight: Tensor,
    format: str,
    stride: int,
    dilation: int,
    groups: int,
    transposed: bool,
) -> Tensor | None:
    """A convolution's weight as "conv_panels"; None where rows serve better."""
    rows = group_matrices(weight, stride, dilation, groups, transposed)
    if rows.shape[1] <= FEW:
        return None
    if rows.shape[1] % PANEL:  # a group's panels must not share one with the next
        rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % PANEL))
    panels = pack_panels(rows.reshape(-1, rows.shape[2]), format)
    return panels.view(groups, -1, *panels.shape[1:])


def group_matrices(weight: Tensor, stride: int, dilation: int, groups: int, transposed: bool) -> Tensor:
    """[groups, N, K]: the rows of each group's product."""
    if transposed:
        return phases(weight, stride, dilation, groups).flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def phases(weight: Tensor, stride: int, dilation: int, groups: int) -> Tensor:
    """Transposed [C_in, C_out/groups, k] -> [groups, C_out/groups * stride, C_in/groups, taps].

    Row c * stride + r gives output channel c at the times q * stride + r; tap i reads the input
    at q - (taps - 1) + i.
    """
    C, outputs, kernel = weight.shape
    span = (kernel - 1) * dilation
    taps = span // stride + 1
    spread = weight.new_zeros(C, outputs, taps * stride)
    spread[:, :, : span + 1 : dilation] = weight
    spread = spread.view(groups, C // groups, outputs, taps, stride).flip(3)
    return spread.permute(0, 2, 4, 1, 3).reshape(groups, outputs * stride, C // groups, taps)


def unpack_conv(
    weight: Tensor,
    layout: str,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    dilation: int,
    groups: int,
    transposed: bool,
) -> Tensor:
    """The weight as PyTorch holds it, from any layout."""
    if layout == "rows":
        return weight
    inputs, outputs = in_channels // groups, out_channels // groups
    if not transposed:
        rows = torch.stack([unpack_rows(w, "panels", outputs) for w in weight])
        return rows.view(out_channels, inputs, kernel)
    rows = torch.stack([unpack_rows(w, "panels", outputs * stride) for w in weight])
    spread = rows.view(groups, outputs, stride, inputs, -1).flip(4).permute(0, 3, 1, 4, 2)
    spread = spread.reshape(in_channels, outputs, -1)
    short = (kernel - 1) * dilation + 1 - spread.shape[2]
    return F.pad(spread, (0, short))[:, :, ::dilation][:, :, :kernel].contiguous()
