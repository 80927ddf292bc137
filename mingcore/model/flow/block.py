"""One block of the flow head: attention over a handful of tokens, and an MLP."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ..layers import Linear
from ..weights import Weights

EPS = 1e-6


class Block:
    """x += attention(norm x); x += mlp(norm x), no mask (docs/model.md section 3).

    The last block of the head computes only its last rows: the others serve as keys and values
    there, and nothing reads what would become of them.
    """

    def __init__(
        self,
        norm1: Tensor,
        norm2: Tensor,
        qkv: Linear | tuple[Linear, Linear],
        out: Linear,
        up: Linear,
        down: Linear,
        heads: int,
        *,
        rope_heads: int | None,
        qk_norm: tuple[Tensor, Tensor] | None,
    ):
        self.norm1, self.norm2 = norm1, norm2
        self.qkv, self.out, self.up, self.down = qkv, out, up, down
        self.heads, self.rope_heads, self.qk_norm = heads, rope_heads, qk_norm

    @classmethod
    def from_weights(
        cls, w: Weights, hidden: int, width: int, heads: int, rope_heads: int | None, last: bool
    ) -> Block:
        a = w.sub("attn")
        H = hidden
        if last:
            qkv = a.linear("to_q", H, H), a.linear(("to_k", "to_v"), (H, H), H)
        else:
            qkv = a.linear(("to_q", "to_k", "to_v"), (H, H, H), H)
        qk_norm = None
        if a.has("q_norm.weight") or a.has("k_norm.weight"):
            D = H // heads
            qk_norm = a.vector("q_norm.weight", D), a.vector("k_norm.weight", D)
        return cls(
            w.vector("norm1.weight", H),
            w.vector("norm2.weight", H),
            qkv,
            a.linear("to_out.0", H, H),
            w.linear("mlp.ff.0.0", width, H),
            w.linear("mlp.ff.2", H, width),
            heads,
            rope_heads=rope_heads,
            qk_norm=qk_norm,
        )

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: int) -> Tensor:
        """x [R,T,H], rope cos and sin [1,T,D/2] -> the last `rows` rows [R,rows,H]."""
        q, k, v = self._heads(ops.rms_norm(x, self.norm1, EPS), rope, rows)
        a = ops.attention_prefill(q, k, v, causal=False)
        x = self.out(a.flatten(2), residual=x[:, x.shape[1] - rows :])
        h = self.up(ops.rms_norm(x, self.norm2, EPS), activation="gelu_tanh")
        return self.down(h, residual=x)

    def _heads(
        self, x: Tensor, rope: tuple[Tensor, Tensor], rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normed x [R,T,H] -> q [R,rows,Hn,D], k and v [R,T,Hn,D], turned by RoPE."""
        n, split = self.heads, isinstance(self.qkv, tuple)
        if not split and self.qk_norm is None:
            q, k, v = ops.qkv_rope(
                self.qkv(x), *rope, n, n, interleaved=True, rope_heads=self.rope_heads
            )
            return q[:, q.shape[1] - rows :], k, v
        start = x.shape[1] - rows
        if split:
            q = self.qkv[0](x[:, start:]).unflatten(-1, (n, -1))
            k, v = self.qkv[1](x).unflatten(-1, (2, n, -1)).unbind(2)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, n, -1)).unbind(2)
            q = q[:, start:]
        if self.qk_norm is not None:
            q, k = ops.rms_norm(q, self.qk_norm[0], EPS), ops.rms_norm(k, self.qk_norm[1], EPS)
        cos, sin = rope
        last = cos[:, start:], sin[:, start:]
        q = ops.rope(q, *last, interleaved=True, rope_heads=self.rope_heads)
        k = ops.rope(k, cos, sin, interleaved=True, rope_heads=self.rope_heads)
        return q, k, v
