"""One Euler step of the flow, with classifier-free guidance and noise, in float32."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import matmul, quantised_matmul, wide
from ..attention.reference import attention_prefill
from ..norm.reference import rms_norm
from ..rotary.reference import rope
from . import FLOW_SAMPLE, FLOW_STEP
from .packing import flow_rows


@FLOW_STEP.implementation("reference")
def flow_step(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor,
    noise: Tensor | None,
    noise_scale: Tensor,
) -> Tensor:
    """x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise; x [B, P, C], g and scale [B].

    Without v_null the velocity is v_c alone; without noise the last term is absent.
    """
    velocity = wide(v_cond).to(x.dtype)
    if v_null is not None:
        velocity = velocity + guidance.view(-1, 1, 1) * (velocity - wide(v_null).to(x.dtype))
    out = x + dt * velocity
    if noise is not None:
        out = out + noise_scale.view(-1, 1, 1) * noise
    return out.to(x.dtype)


EPS = 1e-6
COND, X, QKV, OUT, UP, DOWN, FINAL = range(7)


@FLOW_SAMPLE.implementation("reference")
@by_row(condition=0, history=0, noise=1, guidance=0, noise_scale=1)
def flow_sample(
    condition: Tensor,
    history: Tensor,
    noise: Tensor,
    guidance: Tensor,
    times: Tensor,
    dt: Tensor,
    noise_scale: Tensor,
    advance: list[bool],
    cos: Tensor,
    sin: Tensor,
    matrices: list[Tensor],
    biases: list[Tensor],
    norms: list[Tensor],
    scales: list[Tensor],
    heads: int,
    rope_heads: int | None,
    guided: bool,
    layout: str,
    format: str,
) -> Tensor:
    """condition [B, Hc], history [B, N, C], noise [S or S+1, B, P, C] -> [B, P, C].

    The network computes in the type of `condition`, the state is kept in that of `noise`.
    guidance [B], times [E, H], dt [E], noise_scale [E, B], advance [E], cos and sin [T, D/2]; the
    rest is `PackedFlowHead`. Without `guided`, v = v_c.
    """
    H, C = norms[0].shape[1], noise.shape[3]
    inputs = condition.shape[1], C, H, H, H, biases[UP].shape[1], H
    parts = zip(matrices, biases, inputs)
    rows = [flow_rows(w, layout, b.shape[-1], k) for w, b, k in parts]
    rope_heads = heads if rope_heads is None else rope_heads
    net = Network(rows, biases, norms, scales, (cos[None], sin[None]), heads, rope_heads, format)
    B, P = noise.shape[1:3]
    first = net.linear(COND, condition)
    past = net.linear(X, history.to(condition.dtype))
    if guided:  # the unconditional rows: a condition of zeros leaves the bias
        first = torch.cat((first, biases[COND].to(first.dtype).expand(B, -1)))
        past = torch.cat((past, past))
    base = current = noise[0]
    draw = 0
    for e, advances in enumerate(advance):
        x = net.linear(X, current.to(condition.dtype))
        x = torch.cat((x, x)) if guided else x
        token = (first + times[e]).to(x.dtype)[:, None]
        v = net(torch.cat((token, past, x), dim=1))[:, -P:].to(noise.dtype)
        if guided:
            v = v[:B] + guidance.view(-1, 1, 1) * (v[:B] - v[B:])
        current = base + dt[e] * v
        if advances:
            draw += 1
            if draw < noise.shape[0]:  # noise of scale 0 is not read
                scale = noise_scale[e].view(-1, 1, 1)
                current = current + torch.where(scale == 0, 0, scale * noise[draw])
            base = current
    return current


@dataclass
class Network:
    """The blocks and the final layer, on matrices in rows: tokens [R, T, H] -> [R, T, C]."""

    matrices: list[Tensor]
    biases: list[Tensor]
    norms: list[Tensor]
    scales: list[Tensor]
    rope: tuple[Tensor, Tensor]
    heads: int
    rope_heads: int
    format: str

    def __call__(self, x: Tensor) -> Tensor:
        norm1, norm2, final_norm = self.norms[:3]
        for block in range(norm1.shape[0]):
            q, k, v = self.heads_of(rms_norm(x, norm1[block], EPS), block)
            a = attention_prefill(q, k, v, False, 0, q.shape[-1] ** -0.5)
            x = x + self.linear(OUT, a.flatten(2), block)
            h = F.gelu(self.linear(UP, rms_norm(x, norm2[block], EPS), block), approximate="tanh")
            x = x + self.linear(DOWN, h, block)
        return self.linear(FINAL, rms_norm(x, final_norm, EPS))

    def heads_of(self, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normed x [R, T, H] -> q, k and v [R, T, heads, D], q and k normed and rotated."""
        q, k, v = self.linear(QKV, x, block).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if len(self.norms) == 5:
            q, k = (rms_norm(t, norm[block], EPS) for t, norm in zip((q, k), self.norms[3:]))
        q, k = (rope(t, *self.rope, True, self.rope_heads) for t in (q, k))
        return q, k, v

    def linear(self, i: int, x: Tensor, block: int | None = None) -> Tensor:
        """x W^T + b in x.dtype."""
        w, b = self.matrices[i], self.biases[i]
        scale = self.scales[i] if self.scales and block is not None else None
        if block is not None:
            w, b, scale = w[block], b[block], None if scale is None else scale[block]
        return (wide(self.product(x, w, scale)) + wide(b)).to(x.dtype)

    def product(self, x: Tensor, w: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return matmul(x, w)
        rows = x.reshape(-1, x.shape[-1])
        return quantised_matmul(rows, w, scale, self.format).view(*x.shape[:-1], -1)
