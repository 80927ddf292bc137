"""Rotary position embedding."""

from torch import Tensor

from .._core import checks
from .._core.op import Op, like


def _qkv_fake(qkv, num_heads, num_kv_heads, **_):
    B, T, width = qkv.shape
    D = width // (num_heads + 2 * num_kv_heads)
    return tuple(qkv.new_empty((B, T, heads, D)) for heads in (num_heads, num_kv_heads, num_kv_heads))


ROPE = Op(
    __name__,
    "rope",
    "Tensor x, Tensor cos, Tensor sin, bool interleaved, int rope_heads -> Tensor",
    results="out",
    fake=lambda x, **_: like(x),
    backends=("reference", "cpu", "triton"),
)
QKV_ROPE = Op(
    __name__,
    "qkv_rope",
    "Tensor qkv, Tensor cos, Tensor sin, int num_heads, int num_kv_heads, bool interleaved, int rope_heads "
    "-> (Tensor, Tensor, Tensor)",
    results="q k v",
    fake=_qkv_fake,
    backends=("reference", "cpu", "triton"),
)


@ROPE.public_function
def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    rope_heads: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Rotate pairs of x [B, T, Hn, D] by the angles of cos, sin [1 or B, T, D/2] (float32).

    Pairs (i, i + D/2), or (2i, 2i+1) when interleaved; only the first `rope_heads` heads (None:
    all). Returns x's shape and type. Su et al. 2021; docs/model.md sections 2 and 3.
    """
    checks.rank("rope", "x", x, "[B, T, Hn, D]", 4)
    B, T, heads, D = x.shape
    _angles("rope", x, cos, sin, B, T, D)
    rope_heads = _rope_heads("rope", rope_heads, heads)
    return ROPE.call(backend, x=x, cos=cos, sin=sin, interleaved=interleaved, rope_heads=rope_heads)


@QKV_ROPE.public_function
def qkv_rope(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    *,
    interleaved: bool = False,
    rope_heads: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv [B, T, (Hq + 2 Hkv) D] and `rope` q and k.

    Returns q [B, T, Hq, D], k [B, T, Hkv, D], v [B, T, Hkv, D], each a tensor of its own.
    `rope_heads` counts from the first head of q and of k alike.
    """
    checks.rank("qkv_rope", "qkv", qkv, "[B, T, (Hq + 2 Hkv) D]", 3)
    checks.head_groups("qkv_rope", num_heads, num_kv_heads)
    B, T, width = qkv.shape
    heads = num_heads + 2 * num_kv_heads
    if width % heads:
        checks.fail("qkv_rope", "qkv", f"[B, T, {heads} * D]", [B, T, width])
    _angles("qkv_rope", qkv, cos, sin, B, T, width // heads)
    rope_heads = _rope_heads("qkv_rope", rope_heads, num_heads)
    return QKV_ROPE.call(
        backend,
        qkv=qkv,
        cos=cos,
        sin=sin,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        interleaved=interleaved,
        rope_heads=rope_heads,
    )


def _angles(op: str, x: Tensor, cos: Tensor, sin: Tensor, B: int, T: int, D: int) -> None:
    if D % 2:
        checks.fail(op, "D", "even", D)
    got = cos.shape
    if got != (1, T, D // 2) and got != (B, T, D // 2):
        checks.fail(op, "cos", f"[1 or {B}, T, D/2] = [1 or {B}, {T}, {D // 2}]", list(got))
    if sin.shape != got:
        checks.shape(op, "sin", sin, "[1 or B, T, D/2]", got)
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if cos.dtype not in checks.WIDE or sin.dtype != cos.dtype:
        checks.wide(op, "cos", cos)
        checks.dtype(op, "sin", sin, cos.dtype)
    if cos.device != x.device:
        checks.device(op, x, "cos", cos)


def _rope_heads(op: str, rope_heads: int | None, heads: int) -> int:
    if rope_heads is None:
        return heads
    if not 0 <= rope_heads <= heads:
        checks.fail(op, "rope_heads", f"in 0..{heads}", rope_heads)
    return rope_heads
