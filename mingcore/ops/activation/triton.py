"""SwiGLU's product on the Triton kernel."""

from mingcore_kernels.activation import silu_mul as kernels

from .._core.support import Support
from .._core.triton import KERNELS
from . import SILU_MUL


@SILU_MUL.implementation(
    "triton", Support(floats=("gate_up",), dense_last=("gate_up",)), sources=(KERNELS / "activation" / "silu_mul.py",)
)
def silu_mul(gate_up, out):
    if out.numel():
        kernels.silu_mul(gate_up.reshape(-1, gate_up.shape[-1]), out.view(-1, out.shape[-1]))
