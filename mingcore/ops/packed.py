"""Weights prepared once, at load, for the backend that will read them.

Layouts of a [N, K] matrix:
- "rows": the tensor as it is.
- "panels" (CPU): [ceil(N/32), K, 32], zero padded; the 32 rows of a panel side by side for each k.
  bf16 columns are interleaved: 32-bit word j of a k-row holds column j (low half) and column
  j + 16 (high half), so that widening to float32 is a shift and a mask.
- "panels_swiglu" (CPU): panels of 2I rows in `swiglu_order`: [ceil(I/16), K, 32], each with 16 gate
  rows and then their 16 up rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
PANEL = 32


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A linear weight [n, K] in one `layout` and `format`; made by `ops.pack_linear`."""

    weight: Tensor
    layout: str
    n: int
    k: int
    format: str

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    def unpack(self) -> Tensor:
        """The matrix [n, K] back, in the packed format."""
        return unpack_rows(self.weight, self.layout, self.n)


@dataclass(frozen=True, eq=False)
class PackedExperts:
    """Expert weights: gate_up [E, 2I, H] (gate rows first), down [E, H, I], and the shared expert's
    pair [2Is, H], [H, Is] or None; made by `ops.pack_experts`.

    In layout "panels" every expert's matrices are packed: gate_up as "panels_swiglu"
    [E, ceil(I/16), H, 32], down as "panels" [E, ceil(H/32), I, 32]; the shared pair likewise.
    """

    gate_up: Tensor
    down: Tensor
    shared_gate_up: Tensor | None
    shared_down: Tensor | None
    layout: str
    format: str

    @property
    def nbytes(self) -> int:
        shared = (self.shared_gate_up, self.shared_down)
        return sum(t.nbytes for t in (self.gate_up, self.down, *shared) if t is not None)

    @property
    def device(self) -> torch.device:
        return self.gate_up.device

    @property
    def hidden(self) -> int:
        """H."""
        return self.gate_up.shape[2]

    def unpack(self) -> "PackedExperts":
        """The same experts in layout "rows"."""
        parts = (self.gate_up, self.down, self.shared_gate_up, self.shared_down)
        return PackedExperts(*unpack_experts(*parts, self.layout), "rows", self.format)


def format_of(dtype: torch.dtype) -> str | None:
    """The format name of a dtype, or None when no format holds it."""
    return next((name for name, held in FORMATS.items() if held == dtype), None)


def swiglu_order(n: int) -> Tensor:
    """Row order of "panels_swiglu": 16 gate rows, then their 16 up rows, and so on; -1 is padding.

    n = 2I rows, gate 0..I-1 then up I..2I-1 -> [ceil(I/16) * 32] row indices.
    """
    width = n // 2
    gate = torch.arange((width + 15) // 16 * 16).view(-1, 16)
    gate = torch.where(gate < width, gate, -1)
    up = torch.where(gate >= 0, gate + width, -1)
    return torch.stack((gate, up), dim=1).flatten()


def unpack_rows(weight: Tensor, layout: str, n: int) -> Tensor:
    """[N, K] from any layout."""
    if layout == "rows":
        return weight
    rows = weight
    if weight.dtype == torch.bfloat16:
        P, K, _ = weight.shape
        rows = weight.view(P, K, PANEL // 2, 2).transpose(2, 3).reshape(P, K, PANEL)
    rows = rows.transpose(1, 2).reshape(-1, weight.shape[1])
    if layout == "panels":
        return rows[:n].contiguous()
    order = swiglu_order(n).to(weight.device)
    out = rows.new_empty(n, rows.shape[1])
    out[order[order >= 0]] = rows[: len(order)][order >= 0]
    return out


def unpack_experts(
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    layout: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The four matrices of `PackedExperts` as rows, from any layout."""
    if layout == "rows":
        return gate_up, down, shared_gate_up, shared_down
    H, I = gate_up.shape[2], down.shape[2]
    gate_up = torch.stack([unpack_rows(w, "panels_swiglu", 2 * I) for w in gate_up])
    down = torch.stack([unpack_rows(w, "panels", H) for w in down])
    if shared_gate_up is not None:
        shared_gate_up = unpack_rows(shared_gate_up, "panels_swiglu", 2 * shared_down.shape[1])
        shared_down = unpack_rows(shared_down, "panels", H)
    return gate_up, down, shared_gate_up, shared_down
