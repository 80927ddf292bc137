"""Routing on the Triton kernels."""

from collections.abc import Callable

import torch

from mingcore_kernels.gemm import configs
from mingcore_kernels.routing import routing as kernels

from .._core.support import Limit, Support
from .._core.triton import KERNELS
from . import ROUTE_TOPK, SORT_BY_EXPERT

_SOURCES = (KERNELS / "routing" / "routing.py",)


def experts_limit(of: Callable[..., int]) -> Limit:
    """How many experts the kernels take; of(**arguments): how many there are."""
    return Limit("there are {} experts", of, configs.MAX_EXPERTS, min_value=1)


@ROUTE_TOPK.implementation(
    "triton",
    Support(floats=("logits",), dense_last=("logits",), limits=(experts_limit(lambda logits, **_: logits.shape[1]),)),
    sources=_SOURCES,
)
def route_topk(logits, top_k, renormalize, weights, ids):
    kernels.route_topk(logits, renormalize, weights, ids)


@SORT_BY_EXPERT.implementation("triton", Support(types={"ids": (torch.int32,)}), sources=_SOURCES)
def sort_by_expert(ids, num_experts, rows, offsets):
    kernels.sort_by_expert(ids.contiguous(), rows, offsets)
