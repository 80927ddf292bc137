"""From router logits to experts, and from experts to groups of rows."""

import torch
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import wide
from . import ROUTE_TOPK, SORT_BY_EXPERT


@ROUTE_TOPK.implementation("reference")
@by_row(logits=0)
def route_topk(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """logits [T, E] -> weights [T, K] float32, ids [T, K] int32; ties go to the lower id."""
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = wide(logits).softmax(dim=-1).gather(1, ids)
    if renormalize and top_k > 1:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.float(), ids.to(torch.int32)


@SORT_BY_EXPERT.implementation("reference")
def sort_by_expert(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """ids [T, K] -> rows [T*K]: flat slots ordered by expert, stable; offsets [E+1]."""
    sorted_ids, rows = ids.flatten().sort(stable=True)
    bounds = torch.arange(num_experts + 1, device=ids.device, dtype=ids.dtype)
    offsets = torch.searchsorted(sorted_ids, bounds, out_int32=True)
    return rows.to(torch.int32), offsets
