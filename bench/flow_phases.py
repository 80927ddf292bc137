"""Where the time of one patch goes, phase by phase: each phase out of the other ops, on its real
shapes and over all blocks in turn, times how often the sampler needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mingcore import ops
from mingcore.testing.timing import events_interleaved, interleaved, rotate

EPS = 1e-6
QKV, OUT, UP, DOWN = 2, 3, 4, 5


def phases_ms(kw: dict[str, Any], budget_s: float, quick: bool = False) -> dict[str, float]:
    """Milliseconds of a patch by phase, and their sum.

    Norms count to the product behind them, the residual to the product before it. The last block's
    rows that nothing reads are counted as in the other blocks.
    """
    head, noise, schedule = kw["head"], kw["noise"], kw["schedule"]
    guidance = kw["guidance"]
    guided = bool((guidance != 0).any()) if isinstance(guidance, torch.Tensor) else guidance != 0
    (_, B, P, C), N, E = noise.shape, kw["history"].shape[1], len(schedule.evaluations)
    R, T, H = B * (1 + guided), 1 + N + P, head.hidden
    dtype, device = kw["condition"].dtype, noise.device
    draw = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=device, dtype=dtype)

    x, wide, tall = random(R, T, H), random(R, T, 3 * H), random(R, T, head.width)
    q, k, v = (random(R, T, head.heads, H // head.heads) for _ in range(3))
    cos, sin = (t[None] for t in head.rope(T))
    velocity, state = random(R, P, C), noise[0]
    scale = torch.full((B,), 2.0, device=device)
    norms = head.norms
    blocks = range(head.depth)
    layers = {i: [head.linear(i, block) for block in blocks] for i in (QKV, OUT, UP, DOWN)}

    def normed(i: int, norm: int, activation: str | None = None) -> Callable[..., Any]:
        def call(block: int) -> Any:
            n = ops.rms_norm(x, norms[norm][block], EPS)
            return ops.linear(n, *layers[i][block], activation=activation)

        return call

    def rotated(block: int) -> Any:
        return ops.qkv_rope(wide, cos, sin, head.heads, head.heads, interleaved=True, rope_heads=head.rope_heads)

    def other(block: int) -> Any:
        embedded = ops.linear(state.to(dtype), *head.linear(1))
        n = ops.rms_norm(x[:, -P:], norms[2], EPS)
        ops.linear(n, *head.linear(6))
        v_null = velocity[B:] if guided else None
        ops.flow_step(state, velocity[:B], v_null, 0.1, scale, noise[0], 0.1)
        return embedded

    parts = {
        "qkv": normed(QKV, 0),
        "rope": rotated,
        "attention": lambda block: ops.attention_prefill(q, k, v, causal=False),
        "out": lambda block: ops.linear(x, *layers[OUT][block], residual=x),
        "up": normed(UP, 1, "gelu_tanh"),
        "down": lambda block: ops.linear(tall, *layers[DOWN][block], residual=x),
        "other": other,
    }
    calls = {name: rotate(part, [(block,) for block in blocks]) for name, part in parts.items()}
    timer = events_interleaved if noise.is_cuda else interleaved
    measured = timer(calls, rounds=3 if quick else 7, budget_s=budget_s)
    times = {}
    for name in parts:
        often = E * (1 if name == "other" else head.depth)
        times[name] = 1e3 * measured.time_s(name).median * often
    return {**times, "sum": sum(times.values())}
