"""Calls of every CPU kernel through mingcore._cpu alone, for instructions.py: small, of real kinds.

No PyTorch: arguments are ctypes arrays. A call takes some 20 to 760 thousand instructions.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FLOAT, INT8, UINT8, INT32, INT64 = 0, 3, 4, 5, 6  # mingcore._cpu's codes
_TYPES = {
    FLOAT: ctypes.c_float,
    INT8: ctypes.c_int8,
    UINT8: ctypes.c_uint8,
    INT32: ctypes.c_int32,
    INT64: ctypes.c_int64,
}
_KEPT: list[Any] = []
Call = Callable[[], Any]


def native() -> Any:
    """mingcore._cpu from its file, without the package around it."""
    path = next((ROOT / "mingcore").glob("_cpu*.so"))
    spec = importlib.util.spec_from_file_location("_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def array(*shape: int, code: int = FLOAT, values: tuple[int, ...] = ()) -> tuple:
    """Memory of a shape as mingcore._cpu takes it, never freed: `values` over and over; by default
    floats in (-1, 1) of which none is zero, or the bytes 1 to 113."""
    count, strides = 1, []
    for n in reversed(shape):
        strides.insert(0, count)
        count *= n
    of = _TYPES[code]
    if code == FLOAT:
        pattern = (of * 1009)(*((i - 504.5) / 505 for i in range(1009)))
    else:
        values = values or tuple(range(1, 114))
        pattern = (of * len(values))(*values)
    size = count * ctypes.sizeof(of)
    repeated = bytes(pattern) * (size // len(bytes(pattern)) + 1)
    memory = (of * count).from_buffer_copy(repeated[:size])
    _KEPT.append(memory)
    return ctypes.addressof(memory), code, tuple(shape), tuple(strides)


def _stream(batch: int, length: int) -> tuple:
    """The rows of a stream that is under way: every row has seen `length` before."""
    before = array(batch, code=INT64, values=(length,))
    after, emitted = (array(batch, code=INT64, values=(0,)) for _ in range(2))
    return before[0], 0, 0, 0, after[0], emitted[0]


def _linear(cpu: Any) -> Call:
    given = (array(4, 256), array(512, 256), None, None, None, array(4, 512))
    return lambda: cpu.linear(*given, "none", "rows", 512, 1)


def _linear_packed(cpu: Any) -> Call:
    given = (array(16, 256), array(16, 256, 32), None, None, None, array(16, 512))
    return lambda: cpu.linear(*given, "gelu", "panels", 512, 1)


def _linear_int8_dyn(cpu: Any) -> Call:
    weight = array(16, 64, 32, 4, code=UINT8)
    given = (array(16, 256), weight, None, None, array(512), array(16, 512))
    return lambda: cpu.linear(*given, "none", "panels", 512, 1)


def _moe_mlp(cpu: Any) -> Call:
    """Four tokens of 128 at two of eight experts of width 64 each, and a shared one of 128."""
    given = (
        array(4, 128),
        array(8, 4, 128, 32),
        array(8, 4, 64, 32),
        array(4, 2),
        array(4, 2, code=INT32, values=(0, 3, 5, 3, 7)),
        array(8, 128, 32),
        array(4, 128, 32),
        [None] * 4,
        array(4, 128),
    )
    return lambda: cpu.moe_mlp(*given, "panels", 1)


def _moe_mlp_int8(cpu: Any) -> Call:
    given = (
        array(1, 128),
        array(8, 4, 128, 32, code=INT8),
        array(8, 4, 64, 32, code=INT8),
        array(1, 4),
        array(1, 4, code=INT32, values=(0, 3, 5, 7)),
        None,
        None,
        [array(8, 128), array(8, 128), None, None],
        array(1, 128),
    )
    return lambda: cpu.moe_mlp(*given, "panels", 1)


def _flow_step(cpu: Any) -> Call:
    B, P, C = 64, 5, 64
    x, cond, null, noise, out = (array(B, P, C) for _ in range(5))
    guidance, scale = array(B), array(B)
    return lambda: cpu.flow_step(x, cond, null, 0.1, guidance, noise, scale, out, 1)


def _flow_sample(cpu: Any) -> Call:
    """One evaluation of two blocks of 64, guided: 11 tokens twice."""
    E, L, H, W, C, N, P, heads = 1, 2, 64, 128, 64, 5, 5, 2
    out_of, into = (H, H, 3 * H, H, W, H, C), (H, C, H, H, H, W, H)
    blocks = [() if i < 2 or i == 6 else (L,) for i in range(7)]
    matrices = [array(*b, n // 32, k, 32) for b, n, k in zip(blocks, out_of, into)]
    biases = [array(*b, n) for b, n in zip(blocks, out_of)]
    norms = [array(L, H), array(L, H), array(H)]
    angles = [array(1 + N + P, H // heads // 2) for _ in range(2)]
    given = (
        array(1, H),
        array(1, N, C),
        array(2, 1, P, C),
        array(1),
        array(E, H),
        array(E),
        array(E, 1),
        b"\1" * E,
        *angles,
        matrices,
        biases,
        norms,
        [],
    )
    out = array(1, P, C)
    return lambda: cpu.flow_sample(*given, heads, heads, True, out, 1)


def _causal_conv(cpu: Any) -> Call:
    """64 channels to 64 over 7 taps, dilated by 3, streamed, Snake before and a residual behind."""
    B, C, L, taps, dilation = 1, 64, 20, 7, 3
    context, context_out = (array(B, C, (taps - 1) * dilation) for _ in range(2))
    given = (
        array(B, C, L),
        array(1, C // 32, C * taps, 32),
        array(C),
        array(B, C, L),
        context,
        context_out,
        _stream(B, 100),
        array(B, C, L),
        (1, taps, 1, dilation, 1, 0, 0, 0),
        "snake",
        array(C),
        array(C),
        "none",
        None,
        None,
    )
    return lambda: cpu.causal_conv(*given, True, 1)


def _causal_conv_depthwise(cpu: Any) -> Call:
    B, C, L, taps = 1, 64, 160, 7
    given = (
        array(B, C, L),
        array(C, 1, taps),
        array(C),
        None,
        array(B, C, taps - 1),
        array(B, C, taps - 1),
        _stream(B, 100),
        array(B, C, L),
        (C, taps, 1, 1, 1, 0, 0, 0),
        "none",
        None,
        None,
        "silu",
        None,
        None,
    )
    return lambda: cpu.causal_conv(*given, False, 1)


def _causal_conv_transpose(cpu: Any) -> Call:
    """64 channels to 32, twice as many samples: two taps of each phase."""
    B, C, N, L, taps, up = 1, 64, 32, 20, 2, 2
    given = (
        array(B, C, L),
        array(1, N * up // 32, C * taps, 32),
        array(N),
        None,
        array(B, C, taps - 1),
        array(B, C, taps - 1),
        _stream(B, 100),
        array(B, N, up * L),
        (1, taps, 1, 1, up, taps - 1, 0, 0),
        "none",
        None,
        None,
        "none",
        None,
        None,
    )
    return lambda: cpu.causal_conv(*given, True, 1)


def _overlap_add(cpu: Any) -> Call:
    B, T, F, hop = 4, 10, 640, 160
    frames, window, out = array(B, T, F), array(F), array(B, T * hop)
    carried = array(B, F - hop), array(B, F - hop)
    rows = _stream(B, 100)
    return lambda: cpu.overlap_add(frames, window, hop, *carried, rows, out, 1)


def _spectrum_head(cpu: Any) -> Call:
    """Two frames of 64 to a transform of 320 points, hop 80."""
    T, H, F, hop, radices = 2, 64, 320, 80, (8, 5, 4)
    twiddles, points = 2 * 8 * 9, F // 2
    for r in radices:
        points //= r
        twiddles += 2 * (r - 1) * points
    given = (
        array(1, T, H),
        array(-(-(F + 2) // 32), H, 32),
        array(F + 2),
        "panels",
        array(F),
        hop,
        array(1, F - hop),
        array(1, F - hop),
        _stream(1, 100),
        array(1, T * hop),
        radices,
        array(twiddles),
        array(2, F // 2),
    )
    return lambda: cpu.spectrum_head(*given, 1)


def _silu_mul(cpu: Any) -> Call:
    given = (array(64, 2048), array(64, 1024))
    return lambda: cpu.silu_mul(*given, 1)


def _rms_norm(cpu: Any) -> Call:
    given = (array(64, 1024), None, array(1024), 1e-6, array(64, 1024), None)
    return lambda: cpu.rms_norm(*given, 1)


def _layer_norm(cpu: Any) -> Call:
    given = (array(64, 1024), array(1024), array(1024), 1e-6, array(64, 1024))
    return lambda: cpu.layer_norm(*given, 1)


def _qkv_rope(cpu: Any) -> Call:
    T, Hq, Hkv, D = 16, 8, 2, 64
    angles = array(1, T, D // 2), array(1, T, D // 2)
    parts = array(1, T, Hq, D), array(1, T, Hkv, D), array(1, T, Hkv, D)
    qkv = array(1, T, (Hq + 2 * Hkv) * D)
    return lambda: cpu.qkv_rope(qkv, *angles, False, Hq, *parts, 1)


def _rope(cpu: Any) -> Call:
    x, cos, sin, out = (array(2, 11, 16, 64), array(1, 11, 32), array(1, 11, 32), array(2, 11, 16, 64))
    return lambda: cpu.rope(x, cos, sin, True, 8, out, 1)


def _kv_write(cpu: Any) -> Call:
    T, Hkv, D = 256, 2, 64
    caches, new = (array(1, T, Hkv, D), array(1, T, Hkv, D)), (array(1, T, Hkv, D),) * 2
    positions = array(1, T, code=INT64, values=tuple(range(T)))
    return lambda: cpu.kv_write(*caches, *new, positions, 1)


def _route_topk(cpu: Any) -> Call:
    given = (array(16, 64), True, array(16, 6), array(16, 6, code=INT32))
    return lambda: cpu.route_topk(*given, 1)


def _attention_decode(cpu: Any) -> Call:
    q, caches = array(1, 1, 8, 64), (array(1, 256, 2, 64), array(1, 256, 2, 64))
    at = array(1, 1, code=INT64, values=(255,))
    given = (q, *caches, at, 0, 0.125, None, None, array(1, 1, 8, 64))
    return lambda: cpu.attention_decode(*given, 1)


KERNELS: dict[str, Callable[[Any], Call]] = {
    "linear": _linear,
    "linear, packed": _linear_packed,
    "linear, int8_dyn": _linear_int8_dyn,
    "moe_mlp": _moe_mlp,
    "moe_mlp, int8": _moe_mlp_int8,
    "flow_sample": _flow_sample,
    "flow_step": _flow_step,
    "causal_conv": _causal_conv,
    "causal_conv, depthwise": _causal_conv_depthwise,
    "causal_conv, transposed": _causal_conv_transpose,
    "overlap_add": _overlap_add,
    "spectrum_head": _spectrum_head,
    "attention_decode": _attention_decode,
    "kv_write": _kv_write,
    "qkv_rope": _qkv_rope,
    "rope": _rope,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "route_topk": _route_topk,
    "silu_mul": _silu_mul,
}
