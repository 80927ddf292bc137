"""The flow sampler's step: the public functions."""

import torch
from torch import Tensor

from . import checks
from .dispatch import call


def flow_step(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None = None,
    noise_scale: float | Tensor = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise, in float32.

    x [B, P, C] float32; v_cond and v_null [B, P, C] of any float type (v_null None: v = v_c);
    guidance and noise_scale: a number or [B] float32; noise [B, P, C] float32 or None. Returns a
    new float32 tensor. docs/model.md section 3. Raises InputError.
    """
    args = _arguments("flow_step", x, v_cond, v_null, dt, guidance, noise, noise_scale)
    return call("flow_step", backend, *args)


def flow_step_(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None = None,
    noise_scale: float | Tensor = 0.0,
    *,
    backend: str | None = None,
) -> None:
    """`flow_step`, in place on x. Returns nothing."""
    args = _arguments("flow_step_", x, v_cond, v_null, dt, guidance, noise, noise_scale)
    return call("flow_step_", backend, *args)


def _arguments(
    op: str,
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor | float,
    noise: Tensor | None,
    noise_scale: float | Tensor,
) -> tuple:
    checks.rank(op, "x", x, "[B, P, C]", 3)
    if x.dtype not in checks.WIDE:
        checks.wide(op, "x", x)
    shape = x.shape
    for name, tensor in (("v_cond", v_cond), ("v_null", v_null), ("noise", noise)):
        if tensor is None:
            continue
        if tensor.shape != shape:
            checks.shape(op, name, tensor, "[B, P, C]", shape)
        if tensor.dtype not in checks.FLOATS:
            checks.floating(op, name, tensor)
        if tensor.device != x.device:
            checks.device(op, x, name, tensor)
    if noise is not None and noise.dtype != x.dtype:
        checks.dtype(op, "noise", noise, x.dtype)
    guidance = _per_row(op, "guidance", x, guidance)
    noise_scale = _per_row(op, "noise_scale", x, noise_scale)
    return x, v_cond, v_null, float(dt), guidance, noise, noise_scale


def _per_row(op: str, name: str, x: Tensor, value: float | Tensor) -> Tensor:
    """[B] float32 (float64 for float64 x) from a number, or checked."""
    B = x.shape[0]
    if not isinstance(value, Tensor):
        return torch.full((B,), value, dtype=x.dtype, device=x.device)
    if value.shape != (B,):
        checks.shape(op, name, value, "[B]", (B,))
    if value.dtype not in checks.WIDE:
        checks.wide(op, name, value)
    if value.device != x.device:
        checks.device(op, x, name, value)
    return value
