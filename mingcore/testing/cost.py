"""The cost of an op: the minimum of bytes it must move, and the operations it must make.

Every input is read once and every output written once; weights that no token selects, and keys that no query attends
to, do not count. A multiply-add is two operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..ops._core.layouts import tensors_in


@dataclass(frozen=True)
class Cost:
    """Minimum of bytes moved and of operations made."""

    nbytes: int
    flops: int

    def gbs(self, seconds: float) -> float:
        return self.nbytes / seconds / 1e9

    def tflops(self, seconds: float) -> float:
        return self.flops / seconds / 1e12


def cost(op: str, kwargs: dict[str, Any], outputs: tuple[Tensor, ...]) -> Cost:
    """The cost of a call, by its keyword arguments and the tensors it returned or wrote. An in-place op costs what the
    allocating one does; its output is not read."""
    if op.endswith("_") and op not in _SPECIAL:
        op, kwargs = op[:-1], {name: t for name, t in kwargs.items() if name != "out"}
    count = _SPECIAL.get(op, _everything_once)
    return count(kwargs, sum(out.nbytes for out in outputs), outputs)


def _read(kwargs: dict[str, Any]) -> int:
    return sum(t.nbytes for t in tensors_in(kwargs))


def _everything_once(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    return Cost(_read(kwargs) + written, 5 * sum(out.numel() for out in outputs))


def _linear(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    x, (N, K) = kwargs["x"], kwargs["weight"].shape
    return Cost(_read(kwargs) + written, 2 * x.numel() // max(K, 1) * N * K)


def _frame_embed(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    return Cost(_read(kwargs) + written, 2 * outputs[0].numel() * kwargs["hop"])


def _spectrum_head(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    B, T, H = kwargs["hidden"].shape
    n_fft = kwargs["window"].shape[0]
    fft = 2.5 * n_fft * math.log2(n_fft)
    return Cost(_read(kwargs) + written, round(B * T * (2 * H * (n_fft + 2) + fft + 4 * n_fft)))


def _convolution(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    """Every output is a sum over the taps and channels of its group."""
    taps = kwargs["weight"].shape[1:].numel()
    return Cost(_read(kwargs) + written, 2 * outputs[0].numel() * taps)


def _transposed(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    """Every input goes to the taps and output channels of its group."""
    taps = kwargs["weight"].shape[1:].numel()
    return Cost(_read(kwargs) + written, 2 * kwargs["x"].numel() * taps)


def _grouped_gemm(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    x, w, offsets = kwargs["x"], kwargs["w"], kwargs["offsets"]
    groups = int((offsets[1:] > offsets[:-1]).sum())
    weights = groups * w[0].numel() * w.element_size()
    return Cost(x.nbytes + weights + offsets.nbytes + written, 2 * x.shape[0] * w[0].numel())


def _moe_mlp(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    experts, (T, K) = kwargs["experts"], kwargs["ids"].shape
    if isinstance(experts, tuple):
        routed, shared = experts, kwargs.get("shared") or ()
    else:
        routed = (*experts.matrices[:2], *(s for s in experts.scales[:2] if s is not None))
        shared = (*experts.matrices[2:], *experts.scales[2:])
        shared = tuple(t for t in shared if t is not None)
    chosen = kwargs["ids"].unique().numel()
    small = kwargs["x"].nbytes + kwargs["weights"].nbytes + kwargs["ids"].nbytes
    weights = chosen * sum(t[0].nbytes for t in routed) + sum(t.nbytes for t in shared)
    per_token = K * sum(t[0].numel() for t in routed[:2]) + sum(t.numel() for t in shared[:2])
    return Cost(weights + small + written, 2 * T * per_token)


def _attention_prefill(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    q, k = kwargs["q"], kwargs["k"]
    B, T, Hq, D = q.shape
    pairs = T * k.shape[1]
    if kwargs["causal"]:
        window = min(kwargs.get("window") or T, T)
        pairs = window * T - window * (window - 1) // 2
    return Cost(_read(kwargs) + written, 4 * B * Hq * D * pairs)


def _attention_decode(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    q, cache, positions = kwargs["q"], kwargs["k_cache"], kwargs["positions"]
    (Hq, D), (S, Hkv) = q.shape[2:], cache.shape[1:3]
    keys = pairs = 0
    for row in positions.tolist():
        first = min((p for p in row if p >= 0), default=0)
        window = kwargs.get("window")
        oldest = max(0, first - window + 1) if window else 0
        keys += min(S, max(row) + 1 - oldest)
        pairs += sum(min(S, p + 1, window or S) for p in row if p >= 0)
    nbytes = 2 * keys * Hkv * D * cache.element_size()
    nbytes += 8 * keys * Hkv * (kwargs.get("k_scale") is not None)
    return Cost(q.nbytes + nbytes + positions.nbytes + written, 4 * Hq * D * pairs)


def _kv_write(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    new = kwargs["k"].nbytes + kwargs["v"].nbytes
    return Cost(2 * new + kwargs["positions"].nbytes, 0)


def _flow_sample(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
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


_SPECIAL = {
    "flow_sample": _flow_sample,
    "linear": _linear,
    "frame_embed": _frame_embed,
    "spectrum_head": _spectrum_head,
    "causal_conv1d": _convolution,
    "causal_conv_transpose1d": _transposed,
    "grouped_gemm": _grouped_gemm,
    "moe_mlp": _moe_mlp,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "kv_write_": _kv_write,
}
