"""What each op is measured against: the ordinary PyTorch ways to do the same, prepared alike.

`candidates(op, kwargs)` gives callables without arguments, by name. "ours" comes first and takes
weights packed at load, as the model does; the others may prepare their weights as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attention_ways
import moe_ways
import torch
import torch.nn.functional as F
from torch import Tensor

from mingcore import ops

Call = Callable[[], Any]
_ACT = {
    None: lambda y: y,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "swiglu": lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
}


def candidates(op: str, kwargs: dict[str, Any]) -> dict[str, Call]:
    """Callables that compute the op on these arguments; all but "ours" are plain PyTorch."""
    found = {"ours": _ours(op, kwargs)}
    found.update(_OTHERS.get(op, lambda _: ())(kwargs))
    return found


def _ours(op: str, kwargs: dict[str, Any]) -> Call:
    function, kwargs = getattr(ops, op), dict(kwargs)
    if op in ("linear", "frame_embed", "spectrum_head"):
        weight, hint = kwargs["weight"], kwargs.get("activation")
        if isinstance(weight, ops.PackedLinear):
            packed = ops.pack_linear(weight.unpack(), format=weight.format, activation=hint)
        else:
            packed = ops.pack_linear(weight, activation=hint)
        kwargs["weight"] = packed
    if op == "moe_mlp":
        kwargs["experts"] = ops.pack_experts(*kwargs["experts"], shared=kwargs.pop("shared", None))
    return lambda: function(**kwargs)


def _linear(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, w, b = kw["x"], kw["weight"], kw.get("bias")
    act, residual = _ACT[kw.get("activation")], kw.get("residual")
    if isinstance(w, ops.PackedLinear):
        if w.format == "int8_dyn":
            return  # PyTorch has no such product of one scale per row
        w = w.unpack().to(x.dtype)

    def finish(y: Tensor) -> Tensor:
        y = act(y)
        return y if residual is None else y + residual

    yield "F.linear", lambda: finish(F.linear(x, w, b))
    if x.is_cpu and torch.backends.mkldnn.is_available():
        rows = x.numel() // x.shape[-1]
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        product = torch.ops.mkldnn._linear_pointwise
        yield "oneDNN prepacked", lambda: finish(product(x, packed, b, "none", [], ""))


def _silu_mul(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x = kw["gate_up"]

    def plain() -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    yield "F.silu * up", plain


def _rms_norm(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, w, eps = kw["x"], kw["weight"], kw["eps"]
    yield "F.rms_norm", lambda: F.rms_norm(x, w.shape, w, eps)


def _add_rms_norm(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, r, w, eps = kw["x"], kw["residual"], kw["weight"], kw["eps"]
    yield "add, F.rms_norm", lambda: F.rms_norm(x + r, w.shape, w, eps)


def _layer_norm(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, w, b, eps = kw["x"], kw["weight"], kw["bias"], kw["eps"]
    yield "F.layer_norm", lambda: F.layer_norm(x, w.shape, w, b, eps)


def _flow_step(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, v_c, v_u, dt = kw["x"], kw["v_cond"], kw["v_null"], kw["dt"]
    g, noise, scale = kw["guidance"], kw.get("noise"), kw.get("noise_scale")

    def plain() -> Tensor:
        v = v_c.float()
        if v_u is not None:
            v = v + g[:, None, None] * (v - v_u.float())
        out = x + dt * v
        return out if noise is None else out + scale[:, None, None] * noise

    yield "expression", plain


def _moe_mlp(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    yield "loop over the experts hit", moe_ways.loop_over_hit(kw)
    if moe_ways.takes_grouped_mm(kw["x"], *kw["experts"]):
        yield "F.grouped_mm", moe_ways.grouped_mm(kw)


def _grouped_gemm(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    x, w, offsets = kw["x"], kw["w"], kw["offsets"]
    bounds = offsets.tolist()

    def loop() -> Tensor:
        spans = zip(range(len(w)), bounds, bounds[1:])
        return torch.cat([F.linear(x[a:b], w[e]) for e, a, b in spans if b > a])

    yield "loop", loop
    if moe_ways.takes_grouped_mm(x, w):
        yield "F.grouped_mm", lambda: F.grouped_mm(x, w.transpose(1, 2), offs=offsets[1:])


def _attention_prefill(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    q, k, v = (kw[n].transpose(1, 2) for n in "qkv")
    window, causal, mask = kw["window"], kw["causal"], None
    if window is not None:
        t = torch.arange(q.shape[2], device=q.device)
        mask, causal = (t <= t[:, None]) & (t > t[:, None] - window), False

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=kw["scale"], enable_gqa=True)
        return out.transpose(1, 2)

    yield "SDPA", plain


def _overlap_add(kw: dict[str, Any]) -> Iterator[tuple[str, Call]]:
    frames, window, hop, state = kw["frames"], kw["window"], kw["hop"], kw["state"]
    T, n_fft = frames.shape[1:]
    length, tail = (T - 1) * hop + n_fft, n_fft - hop

    def fold(x: Tensor) -> Tensor:
        return F.fold(x.transpose(1, 2), (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]

    if state is not None:  # what the frames before leave, kept from chunk to chunk
        before = int(state.lengths.max())
        squares = window.square().expand(1, before, -1).transpose(1, 2)
        size = (1, (before - 1) * hop + n_fft)
        earlier = F.fold(squares, size, (1, n_fft), stride=(1, hop))[:, 0, 0, -tail:]

    def plain() -> Tensor:
        numerator = fold(frames * window)
        envelope = fold(window.square().expand(1, T, -1))
        if state is not None:
            numerator[:, :tail] += state.numerator
            envelope[:, :tail] += earlier
        end = length - (tail // 2 if kw["last"] else tail)
        skip = tail // 2 if state is None else state.skip
        return numerator[:, skip:end] / envelope[:, skip:end]

    yield "F.fold", plain


_OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "linear": _linear,
    "silu_mul": _silu_mul,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "flow_step": _flow_step,
    "moe_mlp": _moe_mlp,
    "grouped_gemm": _grouped_gemm,
    "attention_prefill": _attention_prefill,
    "attention_decode": attention_ways.attention_decode,
    "kv_write_": attention_ways.kv_write_,
    "rope": attention_ways.rope,
    "qkv_rope": attention_ways.qkv_rope,
    "route_topk": attention_ways.route_topk,
    "overlap_add": _overlap_add,
}
