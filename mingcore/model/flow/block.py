"""One block of the flow head, step by step: attention over a handful of tokens, and an MLP."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ..layers import Linear

EPS = 1e-6
QKV, OUT, UP, DOWN = 2, 3, 4, 5  # of `PackedFlowHead.matrices`
PANEL_ROWS = 32  # a packed matrix can be cut between its panels only


class FlowBlock:
    """x += attention(norm x); x += mlp(norm x), no mask (docs/model.md section 3).

    A view of block `index` of a packed head. The last block of the head computes only its last
    rows: the others are only keys and values there, and their outputs are not read.
    """

    def __init__(self, head: ops.PackedFlowHead, index: int):
        self.norm1, self.norm2 = head.norms[0][index], head.norms[1][index]
        self.out, self.up, self.down = (Linear(*head.linear(i, index)) for i in (OUT, UP, DOWN))
        self.heads, self.rope_heads = head.heads, head.rope_heads
        self.qk_norm = tuple(norm[index] for norm in head.norms[3:]) or None
        H = head.hidden
        self.qkv: Linear | tuple[Linear, Linear]
        if index + 1 == head.depth and H % PANEL_ROWS == 0:
            parts = slice(0, H), slice(H, 3 * H)
            self.qkv = tuple(Linear(*head.linear(QKV, index, rows)) for rows in parts)
        else:
            self.qkv = Linear(*head.linear(QKV, index))

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: int) -> Tensor:
        """x [R,T,H], rope cos and sin [1,T,D/2] -> the last `rows` rows [R,rows,H]."""
        q, k, v = self._heads(ops.rms_norm(x, self.norm1, EPS), rope, rows)
        a = ops.attention_prefill(q, k, v, causal=False)
        x = self.out(a.flatten(2), residual=x[:, x.shape[1] - rows :])
        h = self.up(ops.rms_norm(x, self.norm2, EPS), activation="gelu_tanh")
        return self.down(h, residual=x)

    def _heads(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normed x [R,T,H] -> q [R,rows,Hn,D], k and v [R,T,Hn,D], rotated by RoPE."""
        n, split = self.heads, isinstance(self.qkv, tuple)
        if not split and self.qk_norm is None:
            q, k, v = ops.qkv_rope(self.qkv(x), *rope, n, n, interleaved=True, rope_heads=self.rope_heads)
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
