"""silu(gate) * up."""

import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import wide
from . import SILU_MUL


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@SILU_MUL.implementation("reference")
@by_row(gate_up=0)
def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2I], gate first -> [..., I]."""
    return swiglu(wide(gate_up)).to(gate_up.dtype)
