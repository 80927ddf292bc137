"""Routing and the mixture of experts: the public functions."""

import torch
from torch import Tensor

from .._core import checks
from .._core.dispatch import call


def route_topk(
    logits: Tensor, top_k: int, *, renormalize: bool = True, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The top_k experts of every token, best first: logits [T, E] -> weights [T, K], ids [T, K].

    Chosen on the logits, ties to the lower id; weights (float32) are the softmax over all E,
    divided by their sum when `renormalize` and top_k > 1; ids are int32. docs/model.md section 2.
    """
    checks.rank("route_topk", "logits", logits, "[T, E]", 2)
    checks.floating("route_topk", "logits", logits)
    if not 1 <= top_k <= logits.shape[1]:
        checks.fail("route_topk", "top_k", f"in 1..E = 1..{logits.shape[1]}", top_k)
    return call("route_topk", backend, logits, top_k, renormalize)


def sort_by_expert(ids: Tensor, num_experts: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Group the slots of ids [T, K] int32 by expert.

    Returns rows [T*K] int32: the flat slots t*K + k ordered by expert, stable; offsets [E+1] int32:
    expert e owns rows[offsets[e] : offsets[e+1]]. On the device, without waiting for it.
    """
    checks.rank("sort_by_expert", "ids", ids, "[T, K]", 2)
    checks.dtype("sort_by_expert", "ids", ids, torch.int32)
    checks.positive("sort_by_expert", "num_experts", num_experts)
    return call("sort_by_expert", backend, ids, num_experts)
