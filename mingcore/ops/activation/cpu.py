"""The `cpu` backend: mingcore._cpu, which runs on the vector units of this machine.

Importing this module fails where `_cpu` was not built; the registry reports that as the reason.
Tensors cross as (data_ptr, dtype code, sizes, strides); threads follow `torch.get_num_threads()`.
"""

import torch

from ... import _cpu
from .._core.cpu import array, rows, unfit
from .._core.registry import register


def _silu_mul_why_not(gate_up):
    return unfit(("gate_up",), (gate_up,))


@register("silu_mul", "cpu", _silu_mul_why_not)
def silu_mul(gate_up):
    outputs = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], outputs), dtype=gate_up.dtype)
    if out.numel():
        gate_up = rows(gate_up)
        _cpu.silu_mul(array(gate_up), array(out.view(-1, outputs)), torch.get_num_threads())
    return out
