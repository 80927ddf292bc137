"""Ordinary PyTorch ways to compute the expert MLP: what `moe_mlp` is measured against.

Each takes the keyword arguments of `ops.moe_mlp` with raw weights and gives a callable, prepared
outside the clock. All gather, multiply, and sum the slots of a token in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Way = Callable[[], Tensor]
GATHERED_BYTES = 1 << 30  # of weights, or of hidden values, that bmm and einsum may make
EINSUM_TOKENS = 64  # every expert computes every token: wasteful early


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return F.linear(swiglu(F.linear(x, gate_up)), down)


def ways(kw: dict[str, Any]) -> Iterator[tuple[str, Way]]:
    """Every way that takes these sizes, by name. Names of those that wait for a GPU: "loop"."""
    yield "loop over the experts hit", loop_over_hit(kw)
    yield "loop over all experts", loop_over_all(kw)
    if takes_grouped_mm(kw["x"], *kw["experts"]):
        yield "F.grouped_mm", grouped_mm(kw)
    T, K = kw["ids"].shape
    gate_up, down = kw["experts"]
    if T * K * (gate_up[0].nbytes + down[0].nbytes) <= GATHERED_BYTES:
        yield "bmm of gathered experts", bmm(kw)
    if T <= EINSUM_TOKENS and T * gate_up[:, :, 0].nbytes <= GATHERED_BYTES:
        yield "einsum over all experts", einsum(kw)


def _finish(kw: dict[str, Any], slots: Tensor) -> Tensor:
    """Slots [T*K, H] to [T, H]: weighted, summed in float32, plus the shared expert."""
    x, ids, shared = kw["x"], kw["ids"], kw.get("shared")
    y = (slots.view(*ids.shape, -1).float() * kw["weights"][..., None]).sum(1).to(x.dtype)
    return y if shared is None else y + mlp(x, *shared)


def loop_over_hit(kw: dict[str, Any]) -> Way:
    """Rows sorted by expert, one MLP per expert that has any; counts go to the host."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"], kw["experts"]

    def run() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        counts = ids.flatten().bincount(minlength=len(gate_up)).tolist()
        parts, start = [], 0
        gathered = x[order // ids.shape[1]]
        for e, count in enumerate(counts):
            if count:
                parts.append(mlp(gathered[start : start + count], gate_up[e], down[e]))
            start += count
        slots = torch.empty_like(gathered)
        slots[order] = torch.cat(parts)
        return _finish(kw, slots)

    return run


def loop_over_all(kw: dict[str, Any]) -> Way:
    """One mask, gather, MLP and scatter per expert, whether tokens chose it or not."""
    x, ids, weights, shared = kw["x"], kw["ids"], kw["weights"], kw.get("shared")
    gate_up, down = kw["experts"]

    def run() -> Tensor:
        total = torch.zeros(x.shape, device=x.device)
        for e in range(len(gate_up)):
            token, slot = torch.where(ids == e)
            rows = mlp(x[token], gate_up[e], down[e]).float()
            total.index_add_(0, token, rows * weights[token, slot, None])
        y = total.to(x.dtype)
        return y if shared is None else y + mlp(x, *shared)

    return run


def takes_grouped_mm(*tensors: Tensor) -> bool:
    """PyTorch's own grouped product wants rows of whole 16 bytes."""
    rows = (t.shape[-1] * t.element_size() for t in tensors)
    return hasattr(F, "grouped_mm") and all(row % 16 == 0 for row in rows)


def grouped_mm(kw: dict[str, Any]) -> Way:
    """Two grouped products of the rows sorted by expert; nothing goes to the host."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"], kw["experts"]
    w1, w2 = gate_up.transpose(1, 2), down.transpose(1, 2)

    def run() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        chosen = ids.flatten().long()
        counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x.device)
        ends = counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        ends = ends.cumsum(0).to(torch.int32)
        hidden = swiglu(F.grouped_mm(x[order // ids.shape[1]], w1, offs=ends))
        slots = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
        slots[order] = F.grouped_mm(hidden, w2, offs=ends)
        return _finish(kw, slots)

    return run


def bmm(kw: dict[str, Any]) -> Way:
    """The chosen experts' matrices copied side by side, one batched product each."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"].long(), kw["experts"]

    def run() -> Tensor:
        chosen = ids.flatten()
        rows = x.repeat_interleave(ids.shape[1], 0).unsqueeze(2)  # [T*K, H, 1]
        hidden = swiglu(torch.bmm(gate_up[chosen], rows).squeeze(2))
        return _finish(kw, torch.bmm(down[chosen], hidden.unsqueeze(2)).squeeze(2))

    return run


def einsum(kw: dict[str, Any]) -> Way:
    """Every expert computes every token; the chosen ones are kept."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"].long(), kw["experts"]

    def run() -> Tensor:
        hidden = swiglu(torch.einsum("th,enh->etn", x, gate_up))
        every = torch.einsum("eti,ehi->teh", hidden, down)
        slots = every.gather(1, ids[..., None].expand(-1, -1, x.shape[1]))
        return _finish(kw, slots.flatten(0, 1))

    return run
