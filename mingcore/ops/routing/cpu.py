"""The `cpu` backend's norms, rotary embedding and routing."""

import torch

from ... import _cpu
from .._core.cpu import array, unfit
from .._core.registry import register


def _route_topk_why_not(logits, top_k, renormalize):
    return unfit(("logits",), (logits,))


@register("route_topk", "cpu", _route_topk_why_not)
def route_topk(logits, top_k, renormalize):
    shape = logits.shape[0], top_k
    weights, ids = torch.empty(shape, dtype=torch.float32), torch.empty(shape, dtype=torch.int32)
    threads = torch.get_num_threads()
    _cpu.route_topk(array(logits), renormalize, array(weights), array(ids), threads)
    return weights, ids
