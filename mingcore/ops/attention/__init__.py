"""Attention and its cache: the public functions."""

import torch
from torch import Tensor

from .._core import checks
from .._core.op import Op, like

ATTENTION_PREFILL = Op(
    __name__,
    "attention_prefill",
    "Tensor q, Tensor k, Tensor v, bool causal, int window, float scale -> Tensor",
    results="out",
    fake=lambda q, **_: like(q),
    backends=("reference", "cpu", "flash"),
)
ATTENTION_DECODE = Op(
    __name__,
    "attention_decode",
    "Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, int window, float scale, Tensor? k_scale, "
    "Tensor? v_scale -> Tensor",
    results="out",
    fake=lambda q, **_: like(q),
    backends=("reference", "cpu", "triton"),
)
KV_WRITE = Op(
    __name__,
    "kv_write_",
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor positions -> ()",
    fake=lambda **_: None,
    backends=("reference", "cpu", "triton"),
)


@ATTENTION_PREFILL.public_function
def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over keys that are not in a cache.

    q [B, T, Hq, D]; k, v [B, S, Hkv, D], Hq a multiple of Hkv; causal needs T = S; window W: the W
    newest keys including a query's own; scale None: 1/sqrt(D). Returns [B, T, Hq, D] in q.dtype,
    softmax in float32. Raises InputError.
    """
    op = "attention_prefill"
    _heads(op, q, k, v, "k", "v")
    T, S = q.shape[1], k.shape[1]
    if causal and T != S:
        checks.fail(op, "k", f"as long as q when causal (T = {T})", S)
    if window is not None and not causal:
        checks.fail(op, "window", "None unless causal", window)
    window = checks.window(op, window)
    return ATTENTION_PREFILL.call(backend, q=q, k=k, v=v, causal=causal, window=window, scale=_scale(q, scale))


@ATTENTION_DECODE.public_function
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of new tokens over a cache that already holds their keys.

    q [B, T, Hq, D] at positions [B, T] int64; caches [B, S, Hkv, D], finite everywhere (start them
    with zeros). Position p of a row lies in slot p mod S: a cache of S >= length slots and a ring
    of the newest S are one contract. With last = positions[b].max(), slot j holds position
    last - ((last - j) mod S), and a query at p sees those in 0..p, with a window W only those
    > p - W. A query with position < 0 returns zeros. Rows may stand at different positions.
    k_scale, v_scale [B, S, Hkv, 1] float32: of caches in int8, key = scale * stored, a scale per
    slot and head. Returns [B, T, Hq, D]. The host never waits for a GPU. Raises InputError.
    """
    op = "attention_decode"
    if k_scale is None and v_scale is None:
        _heads(op, q, k_cache, v_cache, "k_cache", "v_cache")
    else:
        _heads(op, q, k_cache, v_cache, "k_cache", "v_cache", torch.int8)
        for name, t in (("k_scale", k_scale), ("v_scale", v_scale)):
            if t is None:
                checks.fail(op, name, "given where the other is", None)
            checks.shape(op, name, t, "[B, S, Hkv, 1]", (*k_cache.shape[:3], 1))
            checks.wide(op, name, t)
            checks.device(op, q, name, t)
    _positions(op, q, positions)
    window = checks.window(op, window)
    return ATTENTION_DECODE.call(
        backend,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        positions=positions,
        window=window,
        scale=_scale(q, scale),
        k_scale=k_scale,
        v_scale=v_scale,
    )


@KV_WRITE.public_function
def kv_write_(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, positions: Tensor, *, backend: str | None = None
) -> None:
    """Write new keys and values into a cache, in place: slot positions[b, t] mod S.

    Caches [B, S, Hkv, D]; k, v [B, T, Hkv, D]; positions [B, T] int64, distinct within a row; a
    token with position < 0 is skipped. With T > S only the newest S stay. Returns nothing.
    """
    op = "kv_write_"
    checks.rank(op, "k_cache", k_cache, "[B, S, Hkv, D]", 4)
    checks.rank(op, "k", k, "[B, T, Hkv, D]", 4)
    B, _, heads, D = k_cache.shape
    if k.shape != (B, k.shape[1], heads, D):
        checks.shape(op, "k", k, "[B, T, Hkv, D]", (B, k.shape[1], heads, D))
    if v.shape != k.shape or v_cache.shape != k_cache.shape:
        checks.shape(op, "v", v, "[B, T, Hkv, D]", k.shape)
        checks.shape(op, "v_cache", v_cache, "[B, S, Hkv, D]", k_cache.shape)
    for name, tensor in (("v_cache", v_cache), ("k", k), ("v", v)):
        if tensor.dtype != k_cache.dtype:
            checks.dtype(op, name, tensor, k_cache.dtype)
        if tensor.device != k_cache.device:
            checks.device(op, k_cache, name, tensor)
    _positions(op, k, positions)
    KV_WRITE.call(backend, k_cache=k_cache, v_cache=v_cache, k=k, v=v, positions=positions)


def _heads(
    op: str, q: Tensor, k: Tensor, v: Tensor, k_name: str, v_name: str, stored: torch.dtype | None = None
) -> None:
    """stored: the type of k and v, None for q's."""
    checks.rank(op, "q", q, "[B, T, Hq, D]", 4)
    checks.rank(op, k_name, k, "[B, S, Hkv, D]", 4)
    B, T, heads, D = q.shape
    _, S, kv_heads, _ = k.shape
    if T < 1 or S < 1:
        checks.fail(op, "q" if T < 1 else k_name, "of length >= 1", 0)
    if k.shape != (B, S, kv_heads, D):
        checks.shape(op, k_name, k, "[B, S, Hkv, D]", (B, S, kv_heads, D))
    if v.shape != k.shape:
        checks.shape(op, v_name, v, "[B, S, Hkv, D]", k.shape)
    if kv_heads < 1 or heads % kv_heads:
        checks.head_groups(op, heads, kv_heads)
    if q.dtype not in checks.FLOATS:
        checks.floating(op, "q", q)
    stored = stored or q.dtype
    if k.dtype != stored or v.dtype != stored:
        checks.dtype(op, k_name, k, stored)
        checks.dtype(op, v_name, v, stored)
    if k.device != q.device:
        checks.device(op, q, k_name, k)


def _positions(op: str, x: Tensor, positions: Tensor) -> None:
    if positions.shape != x.shape[:2]:
        checks.shape(op, "positions", positions, "[B, T]", x.shape[:2])
    if positions.dtype != torch.int64:
        checks.dtype(op, "positions", positions, torch.int64)
    if positions.device != x.device:
        checks.device(op, x, "positions", positions)


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)
