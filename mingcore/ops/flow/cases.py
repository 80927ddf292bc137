"""Cases of the flow sampler and its step, their cost, and the baselines of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from .._core.cases import LARGE, Baselines, Cost, Draw, baselines_of, case, cost_of
from .._core.layouts import strided

TIME_CHANNELS = 256


def head_weights(d: Draw, L: int, H: int, W: int, C: int, Hc: int, heads: int, qk_norm: bool = False) -> dict[str, Any]:
    """Random arguments of `ops.pack_flow_head` for L blocks, in the dtype of the draw."""
    shapes = (H, Hc), (H, C), (L, 3 * H, H), (L, H, H), (L, W, H), (L, H, W), (C, H)
    norms = [(L, H), (L, H), (H,)] + [(L, H // heads)] * (2 if qk_norm else 0)
    return {
        "matrices": [d.matrix(*shape) for shape in shapes],
        "biases": [d.normal(*shape[:-1], scale=0.1) for shape in shapes],
        "norms": [d.near_one(math.prod(shape)).view(shape) for shape in norms],
        "time": [(d.matrix(H, k), d.normal(H, scale=0.1)) for k in (TIME_CHANNELS, H)],
        "heads": heads,
    }


def _flow_sample(
    d: Draw,
    B: int = 2,
    N: int = 5,
    P: int = 5,
    L: int = 2,
    H: int = 64,
    W: int = 128,
    C: int = 16,
    Hc: int = 48,
    heads: int = 4,
    rope_heads: int | None = None,
    qk_norm: bool = False,
    guidance: float | tuple[float, ...] = 2.0,
    schedule: dict[str, Any] | None = None,
    noise_scale: tuple[float, ...] | None = None,
    last_draw: bool = True,
    format: str | None = None,
    float_input: bool = False,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    scale: float = 1.0,
) -> dict[str, Any]:
    head = head_weights(d, L, H, W, C, Hc, heads, qk_norm)
    options = {"steps": 4} if schedule is None else schedule
    make = ops.FlowSchedule.from_grid if "t" in options else ops.FlowSchedule.make
    plan = make(**options)
    dtype = torch.float32 if float_input else None
    args: dict[str, Any] = {
        "head": ops.pack_flow_head(**head, rope_heads=rope_heads, format=format),
        "schedule": plan,
        "condition": layout(d.normal(B, Hc, scale=scale, dtype=dtype)),
        "history": layout(d.normal(B, N, C, scale=scale, dtype=dtype)),
    }
    draws = plan.steps + int(last_draw)
    args["noise"] = layout(d.normal(draws, B, P, C, scale=scale, dtype=torch.float32))
    if isinstance(guidance, tuple):
        guidance = torch.tensor(guidance, device=d.device)
    args["guidance"] = guidance
    if noise_scale is not None:
        args["noise_scale"] = torch.tensor(noise_scale, device=d.device)
    return args


def add(name: str, *tags: str, **dims: Any) -> None:
    case("flow_sample", name, _flow_sample, *tags, **dims)


_REAL = {"L": 8, "H": 1024, "W": 4096, "C": 64, "Hc": 2048, "heads": 16}
_ODD = {"L": 3, "H": 36, "W": 52, "C": 7, "Hc": 13, "heads": 3}
# (N, P) of the model itself, and of its relative with the long history
SWEEP_TOKENS, SWEEP_BATCHES = {11: (5, 5), 37: (32, 4)}, (1, 2, 4, 8, 32)
for _tokens, (_n, _p) in SWEEP_TOKENS.items():
    for _b in SWEEP_BATCHES:
        _s = {"steps": 10}
        add(f"real_{_tokens}_b{_b}", "real", "sweep", LARGE, B=_b, N=_n, P=_p, schedule=_s, **_REAL)
        add(f"tiny_{_tokens}_b{_b}", "sweep", LARGE, B=_b, N=_n, P=_p, schedule=_s)
    add(f"mid_{_tokens}", "mid", B=1, N=_n, P=_p, L=2, H=256, W=1024, C=64, Hc=512, heads=4)
# what a GPU kernel is proven by: two blocks of the real width, for the tiles that those take, and
# those below that reach every branch; all of the others would keep `mingcore verify` waiting
_PROOF = {**_REAL, "L": 2, "schedule": {"steps": 2}}
for _b, _n, _p in ((1, 5, 5), (2, 32, 4), (4, 5, 5), (32, 5, 5)):
    add(f"proof_b{_b}", "verify", LARGE, B=_b, N=_n, P=_p, **_PROOF)
for _format in ("int8", "fp8"):
    for _b in (1, 8):
        add(f"proof_{_format}_b{_b}", "verify", LARGE, B=_b, format=_format, **_PROOF)
add("b1", B=1)
add("b3", "verify", B=3)
add("b8", B=8)
add("odd_sizes", "odd", B=3, N=3, P=2, **_ODD)
add("odd_qk_norm", "odd", "verify", B=2, N=1, P=3, qk_norm=True, rope_heads=2, **_ODD)
add("one_token_of_each", "edge", B=1, N=1, P=1, L=1)
for _n in (0, 1, 2, 7):
    add(f"history_{_n}", "edge", *(["verify"] if _n == 0 else []), N=_n)
add("tokens_37", B=2, N=32, P=4)
add("long_patch", "verify", B=1, N=2, P=23)
for _g in (0, 1, 7):
    add(f"guidance_{_g}", guidance=float(_g))
add("guidance_on_the_device", B=2, guidance=(2.0, 2.0))
add("guidance_mixed", "verify", B=4, guidance=(0.0, 1.0, 2.0, 7.0))
for _steps in (1, 8, 10, 16):
    add(f"steps_{_steps}", B=1, schedule={"steps": _steps})
add("temperature_0", schedule={"steps": 4, "temperature": 0.0})
add("temperature_mixed", "verify", B=3, noise_scale=(1.0, 0.0, 0.5))
add("no_last_draw", "verify", last_draw=False)
add("euler", schedule={"steps": 4, "solver": "euler"})
add("midpoint", "verify", schedule={"steps": 3, "solver": "midpoint"})
add("own_grid", schedule={"t": (0.0, 0.05, 0.3, 0.55, 1.0)})
add("equal_steps", schedule={"steps": 5, "epss": False, "sway": None})
add("shifted", schedule={"steps": 4, "shift_dims": 16384})
add("rope_heads", "verify", rope_heads=1)
add("no_rope", "edge", rope_heads=0)
add("qk_norm", qk_norm=True)
add("one_head", "edge", heads=1)
add("wide_heads", "verify", H=128, heads=1)
add("strided", "strided", B=3, layout=strided)
add("float_input", float_input=True)
add("large_input", "edge", "verify", scale=1e3, schedule={"steps": 4, "temperature": 0.0})
for _format in ("bf16", "fp16", "int8", "int8_dyn", "fp8"):
    _f = {"format": _format, "float_input": True}
    add(f"{_format}_b1", B=1, **_f)
    add(f"{_format}_b3", B=3, guidance=(0.0, 2.0, 7.0), **_f)
    add(f"{_format}_odd_sizes", "odd", B=2, N=3, P=2, **_ODD, **_f)
    add(f"{_format}_wide", "mid", B=1, L=2, H=256, W=512, C=64, Hc=128, heads=4, **_f)

_SMALL = {"L": 2, "H": 64, "W": 128, "C": 16, "Hc": 48, "heads": 4}
case("pack_flow_head", "even", head_weights, **_SMALL)
case("pack_flow_head", "odd_sizes", head_weights, "odd", **_ODD)
case("pack_flow_head", "qk_norm", head_weights, "odd", qk_norm=True, **_ODD)
case("pack_flow_head", "one_block", head_weights, "edge", **{**_SMALL, "L": 1, "heads": 1})


def _flow_step(
    d: Draw,
    B: int,
    P: int,
    C: int,
    guided: bool = True,
    noisy: bool = True,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
) -> dict[str, Any]:
    args: dict[str, Any] = {
        "x": layout(d.normal(B, P, C, dtype=torch.float32)),
        "v_cond": layout(d.normal(B, P, C)),
        "v_null": layout(d.normal(B, P, C)) if guided else None,
        "dt": 0.137,
        "guidance": 1.5 + d.uniform(B),
    }
    if noisy:
        args["noise"] = layout(d.normal(B, P, C, dtype=torch.float32))
        args["noise_scale"] = 0.1 + d.uniform(B)
    return args


for _op in ("flow_step", "flow_step_"):
    case(_op, "real_b1", _flow_step, "real", "mid", B=1, P=5, C=64)
    case(_op, "real_b64", _flow_step, "real", B=64, P=5, C=64)
    case(_op, "no_noise", _flow_step, B=2, P=5, C=64, noisy=False)
    case(_op, "unguided", _flow_step, B=2, P=5, C=64, guided=False)
    case(_op, "odd_sizes", _flow_step, "odd", B=3, P=7, C=13)
    case(_op, "one", _flow_step, "edge", B=1, P=1, C=1)
    case(_op, "strided", _flow_step, "strided", B=2, P=4, C=24, layout=strided)


@cost_of("flow_sample")
def _flow_sample_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    """Weights once per evaluation, condition and history once; the last block's last rows only."""
    head, schedule = kwargs["head"], kwargs["schedule"]
    (_, B, P, C), N = kwargs["noise"].shape, kwargs["history"].shape[1]
    L, H, W, T = head.depth, head.hidden, head.width, 1 + N + P
    g = kwargs["guidance"]
    guided = kwargs.get("guided", bool((g != 0).any()) if isinstance(g, Tensor) else g != 0)
    R, E = B * (2 if guided else 1), len(schedule.evaluations)
    per_token = 4 * H * H + 2 * H * W
    full = R * T * (per_token + 2 * H * T)  # multiply-adds of a block
    last = R * (T * 2 * H * H + P * (per_token - 2 * H * H + 2 * H * T))
    each = (L - 1) * full + last + B * P * C * H + R * P * C * H
    once = B * (head.cond_size + N * C) * H
    blocks = (*head.matrices[1:], *head.scales, *head.biases[1:], *head.norms)
    weights = E * sum(t.nbytes for t in blocks) + head.matrices[0].nbytes
    small = sum(kwargs[name].nbytes for name in ("condition", "history", "noise"))
    return Cost(weights + small + written, 2 * (E * each + once))


@baselines_of("flow_step")
def _flow_step_baselines(kw: dict[str, Any]) -> Baselines:
    x, v_c, v_u, dt = kw["x"], kw["v_cond"], kw["v_null"], kw["dt"]
    g, noise, scale = kw["guidance"], kw.get("noise"), kw.get("noise_scale")

    def plain() -> Tensor:
        v = v_c.float()
        if v_u is not None:
            v = v + g[:, None, None] * (v - v_u.float())
        out = x + dt * v
        return out if noise is None else out + scale[:, None, None] * noise

    yield "expression", plain
