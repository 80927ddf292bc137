"""The `triton` backend's routing, grouped product and mixture of experts."""

import torch

from mingcore_kernels.gemm import configs
from mingcore_kernels.routing import routing as routing_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit


def _too_many(experts: int) -> str | None:
    if 1 <= experts <= configs.MAX_EXPERTS:
        return None
    return f"there are {experts} experts; it takes 1 to {configs.MAX_EXPERTS}"


def _route_why_not(logits, top_k, renormalize):
    return _too_many(logits.shape[1]) or unfit(("logits",), (logits,))


@register("route_topk", "triton", _route_why_not, sources=(KERNELS / "routing" / "routing.py", __file__))
def route_topk(logits, top_k, renormalize):
    weights = logits.new_empty(logits.shape[0], top_k, dtype=torch.float32)
    ids = torch.empty_like(weights, dtype=torch.int32)
    routing_kernels.route_topk(logits, renormalize, weights, ids)
    return weights, ids


def _sort_why_not(ids, num_experts):
    return unfit(("ids",), (ids.flatten()[:1],), types=None)  # in any order: it is made dense


@register("sort_by_expert", "triton", _sort_why_not, sources=(KERNELS / "routing" / "routing.py", __file__))
def sort_by_expert(ids, num_experts):
    rows, offsets = ids.new_empty(ids.numel()), ids.new_empty(num_experts + 1)
    routing_kernels.sort_by_expert(ids.contiguous(), rows, offsets)
    return rows, offsets
