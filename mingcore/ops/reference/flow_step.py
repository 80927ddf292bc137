"""One Euler step of the flow, with classifier-free guidance and noise, in float32."""

from torch import Tensor

from ..registry import register
from .common import wide


@register("flow_step", "reference")
def flow_step(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor,
    noise: Tensor | None,
    noise_scale: Tensor,
) -> Tensor:
    """x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise; x [B, P, C], g and scale [B].

    Without v_null the velocity is v_c alone; without noise the last term is absent.
    """
    velocity = wide(v_cond).to(x.dtype)
    if v_null is not None:
        velocity = velocity + guidance.view(-1, 1, 1) * (velocity - wide(v_null).to(x.dtype))
    out = x + dt * velocity
    if noise is not None:
        out = out + noise_scale.view(-1, 1, 1) * noise
    return out.to(x.dtype)


@register("flow_step_", "reference")
def flow_step_(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor,
    noise: Tensor | None,
    noise_scale: Tensor,
) -> None:
    """`flow_step`, written back into x."""
    x.copy_(flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale))
