"""Routing on the CPU kernel."""

import torch

from ... import _cpu
from .._core.cpu import array
from .._core.support import Support
from . import ROUTE_TOPK


@ROUTE_TOPK.implementation("cpu", Support(floats=("logits",)))
def route_topk(logits, top_k, renormalize, weights, ids):
    _cpu.route_topk(array(logits), renormalize, array(weights), array(ids), torch.get_num_threads())
