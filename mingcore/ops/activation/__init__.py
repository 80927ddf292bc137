"""Linear layers, norms, rotary embedding and SwiGLU: the public functions."""

from torch import Tensor

from .._core import checks
from .._core.dispatch import call


def silu_mul(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up: gate_up [..., 2I], gate first -> [..., I]. docs/model.md section 2."""
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2:
        checks.fail("silu_mul", "gate_up", "[..., 2I]", list(gate_up.shape))
    checks.floating("silu_mul", "gate_up", gate_up)
    return call("silu_mul", backend, gate_up)
