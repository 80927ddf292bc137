"""SwiGLU's product on the CPU kernel."""

import torch

from ... import _cpu
from .._core.cpu import array, rows
from .._core.support import Support
from . import SILU_MUL


@SILU_MUL.implementation("cpu", Support(floats=("gate_up",)))
def silu_mul(gate_up, out):
    if out.numel():
        gate_up = rows(gate_up)
        _cpu.silu_mul(array(gate_up), array(out.view(-1, out.shape[-1])), torch.get_num_threads())
