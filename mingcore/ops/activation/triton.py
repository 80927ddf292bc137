"""The `triton` backend: launchers of `mingcore_kernels`, one kernel per op.

Importing this module fails where Triton is not installed; the registry reports the reason. Under
TRITON_INTERPRET=1 the kernels also run on CPU tensors, which is how they are tested without a GPU.
"""

from mingcore_kernels.activation import silu_mul as silu_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit


def _silu_mul_why_not(gate_up):
    return unfit(("gate_up",), (gate_up,))


@register("silu_mul", "triton", _silu_mul_why_not, sources=(KERNELS / "activation" / "silu_mul.py",))
def silu_mul(gate_up):
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    if out.numel():
        silu_kernels.silu_mul(gate_up.reshape(-1, gate_up.shape[-1]), out.view(-1, width))
    return out
