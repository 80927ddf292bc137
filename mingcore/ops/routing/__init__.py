"""From router logits to experts, and from experts to groups of rows."""

import torch
from torch import Tensor

from .._core import checks
from .._core.op import Op


def _route_topk_fake(logits: Tensor, top_k: int, **_) -> tuple[Tensor, Tensor]:
    shape = logits.shape[0], top_k
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def _sort_by_expert_fake(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return ids.new_empty(ids.shape[0] * ids.shape[1]), ids.new_empty(num_experts + 1)


ROUTE_TOPK = Op(
    __name__,
    "route_topk",
    "Tensor logits, int top_k, bool renormalize -> (Tensor, Tensor)",
    results="weights ids",
    fake=_route_topk_fake,
    backends=("reference", "cpu", "triton"),
)
SORT_BY_EXPERT = Op(
    __name__,
    "sort_by_expert",
    "Tensor ids, int num_experts -> (Tensor, Tensor)",
    results="rows offsets",
    fake=_sort_by_expert_fake,
    backends=("reference", "triton"),
)


@ROUTE_TOPK.public_function
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
    return ROUTE_TOPK.call(backend, logits=logits, top_k=top_k, renormalize=renormalize)


@SORT_BY_EXPERT.public_function
def sort_by_expert(ids: Tensor, num_experts: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Group the slots of ids [T, K] int32 by expert.

    Returns rows [T*K] int32: the flat slots t*K + k ordered by expert, stable; offsets [E+1] int32:
    expert e owns rows[offsets[e] : offsets[e+1]]. On the device, without waiting for it.
    """
    checks.rank("sort_by_expert", "ids", ids, "[T, K]", 2)
    checks.dtype("sort_by_expert", "ids", ids, torch.int32)
    checks.positive("sort_by_expert", "num_experts", num_experts)
    return SORT_BY_EXPERT.call(backend, ids=ids, num_experts=num_experts)
