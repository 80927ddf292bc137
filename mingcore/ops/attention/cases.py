"""Cases of rotary embeddings, attention and the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.cases import Baselines, Cost, Draw, baselines_of, bytes_of, case, cost_of
from .._core.layouts import strided
from .._core.packing import quantise_activations

Layout = Callable[[Tensor], Tensor]


def _prefill(
    d: Draw,
    B: int,
    T: int,
    Hq: int,
    Hkv: int,
    D: int,
    S: int | None = None,
    window: int | None = None,
    scale: float | None = None,
    layout: Layout = torch.Tensor.contiguous,
) -> dict[str, Any]:
    q, k, v = d.normal(B, T, Hq, D), d.normal(B, S or T, Hkv, D), d.normal(B, S or T, Hkv, D)
    args: dict[str, Any] = {"q": layout(q), "k": layout(k), "v": layout(v)}
    return {**args, "causal": S is None, "window": window, "scale": scale}


case("attention_prefill", "real_llm", _prefill, "real", B=1, T=300, Hq=16, Hkv=4, D=128)
case("attention_prefill", "real_encoder", _prefill, "real", B=1, T=250, Hq=14, Hkv=2, D=64, window=32)
case("attention_prefill", "real_flow", _prefill, "real", "mid", B=2, T=11, S=11, Hq=16, Hkv=16, D=64)
case("attention_prefill", "windowed", _prefill, B=2, T=13, Hq=4, Hkv=2, D=16, window=5)
case("attention_prefill", "not_causal", _prefill, B=2, T=6, S=9, Hq=2, Hkv=2, D=8)
case("attention_prefill", "scaled", _prefill, B=1, T=7, Hq=2, Hkv=1, D=8, scale=0.3)
case("attention_prefill", "odd_sizes", _prefill, "odd", B=3, T=17, Hq=6, Hkv=3, D=10)
case("attention_prefill", "window_one", _prefill, "edge", B=1, T=5, Hq=2, Hkv=1, D=8, window=1)
case("attention_prefill", "one_token", _prefill, "edge", B=1, T=1, Hq=4, Hkv=2, D=16)
case("attention_prefill", "strided", _prefill, "strided", B=2, T=5, Hq=2, Hkv=1, D=8, layout=strided)


def _rows(positions: tuple[tuple[int, ...], ...], d: Draw) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device=d.device)


def _kv_write(
    d: Draw, S: int, Hkv: int, D: int, positions: tuple[tuple[int, ...], ...], layout: Layout = torch.Tensor.contiguous
) -> dict[str, Any]:
    B, T = len(positions), len(positions[0])
    args = {"k_cache": d.normal(B, S, Hkv, D), "v_cache": d.normal(B, S, Hkv, D)}
    args.update(k=layout(d.normal(B, T, Hkv, D)), v=layout(d.normal(B, T, Hkv, D)))
    return {**args, "positions": _rows(positions, d)}


def _span(start: int, T: int) -> tuple[int, ...]:
    return tuple(range(start, start + T))


case("kv_write_", "real_llm", _kv_write, "real", S=512, Hkv=4, D=128, positions=(_span(300, 1),))
case("kv_write_", "real_semantic", _kv_write, "real", S=256, Hkv=20, D=64, positions=(_span(95, 5),))
case("kv_write_", "rows_differ", _kv_write, S=12, Hkv=2, D=8, positions=(_span(0, 3), _span(7, 3)))
case("kv_write_", "wraps", _kv_write, "edge", S=8, Hkv=2, D=8, positions=(_span(14, 5),))
case("kv_write_", "longer_than_ring", _kv_write, "edge", S=4, Hkv=1, D=8, positions=(_span(3, 11),))
case("kv_write_", "gap", _kv_write, "edge", S=8, Hkv=2, D=8, positions=((3, 20), (5, 6)))
case("kv_write_", "padded", _kv_write, "edge", S=9, Hkv=2, D=8, positions=((-1, -1, 4), (2, 3, -1), (-1, -1, -1)))
case("kv_write_", "odd_sizes", _kv_write, "odd", S=7, Hkv=3, D=5, positions=(_span(1, 2),) * 3)
case("kv_write_", "strided", _kv_write, "strided", S=6, Hkv=2, D=8, positions=(_span(2, 2),), layout=strided)


def _decode(
    d: Draw,
    S: int,
    Hq: int,
    Hkv: int,
    D: int,
    positions: tuple[tuple[int, ...], ...],
    window: int | None = None,
    scale: float | None = None,
    layout: Layout = torch.Tensor.contiguous,
    eight: bool = False,
) -> dict[str, Any]:
    B, T = len(positions), len(positions[0])
    args: dict[str, Any] = {"q": layout(d.normal(B, T, Hq, D))}
    caches = d.normal(B, S, Hkv, D), d.normal(B, S, Hkv, D)
    if eight:
        stored, scales = zip(*(quantise_activations(t.reshape(-1, D)) for t in caches))
        caches = tuple(t.view(B, S, Hkv, D) for t in stored)
        args.update(zip(("k_scale", "v_scale"), (layout(t.view(B, S, Hkv, 1)) for t in scales)))
    args.update(k_cache=layout(caches[0]), v_cache=layout(caches[1]))
    return {**args, "positions": _rows(positions, d), "window": window, "scale": scale}


case("attention_decode", "real_llm", _decode, "real", S=512, Hq=16, Hkv=4, D=128, positions=(_span(300, 1),))
case("attention_decode", "real_semantic", _decode, "real", S=512, Hq=20, Hkv=20, D=64, positions=(_span(400, 5),))
case(
    "attention_decode",
    "real_decoder_ring",
    _decode,
    "real",
    S=37,
    Hq=14,
    Hkv=2,
    D=64,
    positions=(_span(100, 5),),
    window=32,
)
case("attention_decode", "real_llm_long", _decode, "real", S=4096, Hq=16, Hkv=4, D=128, positions=(_span(4095, 1),))
case(
    "attention_decode", "real_semantic_long", _decode, "real", S=4096, Hq=20, Hkv=20, D=64, positions=(_span(4091, 5),)
)
case("attention_decode", "mid_llm", _decode, "mid", S=512, Hq=8, Hkv=2, D=128, positions=(_span(300, 1),))
case(
    "attention_decode",
    "rows_differ",
    _decode,
    S=16,
    Hq=4,
    Hkv=2,
    D=8,
    positions=(_span(0, 3), _span(9, 3), _span(4, 3)),
)
case("attention_decode", "ring", _decode, S=11, Hq=4, Hkv=2, D=8, positions=(_span(35, 3),), window=8)
case(
    "attention_decode", "ring_filling", _decode, S=11, Hq=2, Hkv=1, D=8, positions=(_span(4, 2), _span(21, 2)), window=9
)
case(
    "attention_decode",
    "padded",
    _decode,
    "edge",
    S=9,
    Hq=4,
    Hkv=2,
    D=8,
    positions=((-1, 0, 1), (3, 4, -1), (-1, -1, -1)),
)
case("attention_decode", "full_cache", _decode, "edge", S=8, Hq=2, Hkv=2, D=16, positions=(_span(7, 1),))
case("attention_decode", "first_token", _decode, "edge", S=8, Hq=2, Hkv=1, D=8, positions=(_span(0, 1),))
case("attention_decode", "window_one", _decode, "edge", S=8, Hq=2, Hkv=1, D=8, positions=(_span(2, 4),), window=1)
case("attention_decode", "scaled", _decode, S=9, Hq=2, Hkv=1, D=8, positions=(_span(5, 2),), scale=0.3)
case(
    "attention_decode",
    "long_cache",
    _decode,
    S=4096,
    Hq=8,
    Hkv=4,
    D=64,
    positions=(_span(3000, 5), _span(5000, 5), _span(60, 5)),
)
case(
    "attention_decode",
    "long_ring",
    _decode,
    S=200,
    Hq=4,
    Hkv=2,
    D=32,
    positions=(_span(777, 3), _span(150, 3)),
    window=190,
)
case(
    "attention_decode",
    "many_queries",
    _decode,
    S=96,
    Hq=4,
    Hkv=2,
    D=16,
    positions=(_span(30, 50), _span(100, 50)),
    window=40,
)
case("attention_decode", "odd_sizes", _decode, "odd", S=13, Hq=6, Hkv=3, D=10, positions=(_span(5, 3),) * 3)
case(
    "attention_decode", "strided", _decode, "strided", S=10, Hq=2, Hkv=1, D=8, positions=(_span(4, 2),), layout=strided
)
case("attention_decode", "eight_bits", _decode, S=300, Hq=4, Hkv=4, D=64, positions=(_span(200, 5),), eight=True)
case(
    "attention_decode",
    "eight_bits_ring",
    _decode,
    S=70,
    Hq=4,
    Hkv=2,
    D=32,
    positions=(_span(500, 5), _span(33, 5)),
    window=60,
    eight=True,
)
case(
    "attention_decode",
    "eight_bits_odd",
    _decode,
    "odd",
    S=13,
    Hq=6,
    Hkv=3,
    D=10,
    positions=(_span(20, 3), (2, -1, 3)),
    eight=True,
)
case(
    "attention_decode",
    "eight_bits_strided",
    _decode,
    "strided",
    S=10,
    Hq=2,
    Hkv=1,
    D=8,
    positions=(_span(4, 2),),
    eight=True,
    layout=strided,
)


@cost_of("attention_prefill")
def _prefill_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    q, k = kwargs["q"], kwargs["k"]
    B, T, Hq, D = q.shape
    pairs = T * k.shape[1]
    if kwargs["causal"]:
        window = min(kwargs.get("window") or T, T)
        pairs = window * T - window * (window - 1) // 2
    return Cost(bytes_of(kwargs) + written, 4 * B * Hq * D * pairs)


@cost_of("attention_decode")
def _decode_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
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


@cost_of("kv_write_")
def _kv_write_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    new = kwargs["k"].nbytes + kwargs["v"].nbytes
    return Cost(2 * new + kwargs["positions"].nbytes, 0)


@baselines_of("attention_prefill")
def _prefill_baselines(kw: dict[str, Any]) -> Baselines:
    q, k, v = (kw[n].transpose(1, 2) for n in "qkv")
    window, causal, mask = kw["window"], kw["causal"], None
    if window is not None:
        t = torch.arange(q.shape[2], device=q.device)
        mask, causal = (t <= t[:, None]) & (t > t[:, None] - window), False

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=kw["scale"], enable_gqa=True)
        return out.transpose(1, 2)

    yield "SDPA", plain


def _visible(positions: Tensor, S: int, window: int | None) -> Tensor | None:
    """[B, 1, T, S] which slots a query sees; None: all of them."""
    last = positions.amax(1, keepdim=True)
    key = (last - (last - torch.arange(S, device=positions.device)).remainder(S)).unsqueeze(1)
    query = positions.unsqueeze(2)
    seen = (key >= 0) & (key <= query)
    if window is not None:
        seen &= key > query - window
    return None if bool(seen.all()) else seen.unsqueeze(1)


@baselines_of("attention_decode")
def _decode_baselines(kw: dict[str, Any]) -> Baselines:
    if kw.get("k_scale") is not None:
        return  # PyTorch has no attention over an 8-bit cache
    positions, scale = kw["positions"], kw["scale"]
    used = min(int(positions.max()) + 1, kw["k_cache"].shape[1])
    q = kw["q"].transpose(1, 2)
    k, v = (kw[name][:, :used].transpose(1, 2) for name in ("k_cache", "v_cache"))
    mask = _visible(positions, used, kw["window"])
    G, T = q.shape[1] // k.shape[1], q.shape[2]

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=G > 1)
        return out.transpose(1, 2)

    yield "SDPA", plain
    if G == 1:
        return
    many = None if mask is None else mask.repeat(1, 1, G, 1)

    def by_kv_head() -> Tensor:
        """The heads that share a KV head as rows of one product."""
        rows = q.reshape(q.shape[0], k.shape[1], G * T, -1)
        out = F.scaled_dot_product_attention(rows, k, v, many, scale=scale)
        return out.reshape(q.shape).transpose(1, 2)

    yield "SDPA by KV head", by_kv_head


@baselines_of("kv_write_")
def _kv_write_baselines(kw: dict[str, Any]) -> Baselines:
    if kw.get("k_scale") is not None:
        return  # quantised on the way, which PyTorch has in no operator
    caches, new = (kw["k_cache"], kw["v_cache"]), (kw["k"], kw["v"])
    slots = kw["positions"].remainder(caches[0].shape[1])
    if len(slots) == 1:
        yield "index_copy_", lambda: [c.index_copy_(1, slots[0], n) for c, n in zip(caches, new)]
    rows = torch.arange(len(slots), device=slots.device).unsqueeze(1)
    yield "index_put_", lambda: [c.index_put_((rows, slots), n) for c, n in zip(caches, new)]
