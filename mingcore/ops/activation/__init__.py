"""SwiGLU's product."""

from torch import Tensor

from .._core import checks
from .._core.op import Op

SILU_MUL = Op(
    __name__,
    "silu_mul",
    "Tensor gate_up -> Tensor",
    results="out",
    fake=lambda gate_up: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2)),
    backends=("reference", "cpu", "triton"),
)


@SILU_MUL.public_function
def silu_mul(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up: gate_up [..., 2I], gate first -> [..., I], computed in float32, in gate_up.dtype.

    docs/model.md section 2. Raises InputError.
    """
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2:
        checks.fail("silu_mul", "gate_up", "[..., 2I]", list(gate_up.shape))
    checks.floating("silu_mul", "gate_up", gate_up)
    return SILU_MUL.call(backend, gate_up=gate_up)
