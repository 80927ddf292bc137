"""The flow head of the eager baseline: a transformer over 11 tokens, sampled by Euler steps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import RMSNorm, merge_heads, rotate_pairs, split_heads

# grids of the empirically pruned step sampling, in 32nds
EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


def time_grid(steps: int, epss: bool = True, sway: float | None = -1.0) -> Tensor:
    """Times [steps + 1] from 0 to 1, float32."""
    if epss and steps in EPSS:
        t = torch.tensor(EPSS[steps], dtype=torch.float32) / 32
    else:
        t = torch.linspace(0, 1, steps + 1)
    if sway is not None:
        t = t + sway * (torch.cos(math.pi / 2 * t) - 1 + t)
    return t


class TimeEmbedder(nn.Module):
    """Sines and cosines of 1000 t, then two Linears with SiLU."""

    def __init__(self, hidden: int):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor) -> Tensor:
        i = torch.arange(128, device=t.device).float()
        rate = torch.exp(i * -(math.log(10000) / 127))
        angle = 1000 * t.float()[:, None] * rate[None, :]
        wave = torch.cat((angle.sin(), angle.cos()), dim=-1)
        return self.time_mlp(wave.to(self.time_mlp[0].weight.dtype))


class CondEmbedder(nn.Module):
    """The Linear of the language model's hidden state."""

    def __init__(self, cond: int, hidden: int):
        super().__init__()
        self.cond_embedder = nn.Linear(cond, hidden)


class RotaryEmbedding(nn.Module):
    """Inverse frequencies, a buffer of the checkpoint."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.register_buffer("inv_freq", torch.empty(head_dim // 2))

    def forward(self, T: int) -> Tensor:
        positions = torch.arange(T, device=self.inv_freq.device).float()
        return positions[:, None] * self.inv_freq.float()[None, :]


class FlowAttention(nn.Module):
    """Full attention over all tokens, interleaved RoPE on the first heads."""

    def __init__(self, flow: dict[str, Any]):
        super().__init__()
        H, self.heads = flow["hidden_size"], flow["num_heads"]
        self.rope_heads = flow.get("pe_attn_head") or self.heads
        self.to_q, self.to_k, self.to_v = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.to_out = nn.ModuleList([nn.Linear(H, H)])
        self.has_qk_norm = flow.get("qk_norm") == "rms_norm"
        if self.has_qk_norm:
            self.q_norm = RMSNorm(H // self.heads, 1e-6)
            self.k_norm = RMSNorm(H // self.heads, 1e-6)

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        n = self.rope_heads
        return torch.cat((rotate_pairs(x[:, :n], angles), x[:, n:]), dim=1)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (split_heads(to(x), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._rotate(q, angles), self._rotate(k, angles)
        return self.to_out[0](merge_heads(F.scaled_dot_product_attention(q, k, v)))


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        up = nn.Sequential(nn.Linear(hidden, width), nn.GELU(approximate="tanh"))
        self.ff = nn.Sequential(up, nn.Identity(), nn.Linear(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Block(nn.Module):
    """x += attn(norm(x)); x += mlp(norm(x))."""

    def __init__(self, flow: dict[str, Any]):
        super().__init__()
        H = flow["hidden_size"]
        self.norm1, self.norm2 = RMSNorm(H, 1e-6), RMSNorm(H, 1e-6)
        self.attn = FlowAttention(flow)
        self.mlp = FeedForward(H, int(H * flow.get("mlp_ratio", 4.0)))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """RMSNorm and Linear."""

    def __init__(self, hidden: int, out: int):
        super().__init__()
        self.norm_final = RMSNorm(hidden, 1e-6)
        self.linear = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


class EagerFlow(nn.Module):
    """Velocity network and sampler."""

    def __init__(self, flow: dict[str, Any], cond: int, channels: int = 64):
        super().__init__()
        H = flow["hidden_size"]
        self.t_embedder = TimeEmbedder(H)
        self.x_embedder = nn.Linear(channels, H)
        self.c_embedder = CondEmbedder(cond, H)
        self.rotary_embed = RotaryEmbedding(H // flow["num_heads"])
        self.blocks = nn.ModuleList(Block(flow) for _ in range(flow["depth"]))
        self.final_layer = FinalLayer(H, channels)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor, history: Tensor) -> Tensor:
        """[B, P, 64] for x [B, P, 64], t [B], cond [B, Hc], history [B, N, 64]."""
        c = self.c_embedder.cond_embedder(cond)
        first = (self.t_embedder(t) + c)[:, None]
        h = torch.cat((first, self.x_embedder(torch.cat((history, x), dim=1))), dim=1)
        angles = self.rotary_embed(h.shape[1])
        for block in self.blocks:
            h = block(h, angles)
        return self.final_layer(h)[:, -x.shape[1] :]

    def guided(self, x: Tensor, t: Tensor, cond: Tensor, history: Tensor, guidance: float) -> Tensor:
        """v_c + g (v_c - v_u), float32, both branches in one doubled batch; g = 0 is v_c alone."""
        dtype = self.x_embedder.weight.dtype
        x, cond, history = x.to(dtype), cond.to(dtype), history.to(dtype)
        if guidance == 0:
            return self.velocity(x, t, cond, history).float()
        doubled = self.velocity(
            torch.cat((x, x)),
            torch.cat((t, t)),
            torch.cat((cond, torch.zeros_like(cond))),
            torch.cat((history, history)),
        )
        v_c, v_u = doubled.float().chunk(2)
        return v_c + guidance * (v_c - v_u)

    def sample(
        self,
        cond: Tensor,
        history: Tensor,
        noise: Tensor,
        steps: int = 10,
        guidance: float = 2.0,
        sigma: float = 0.25,
        temperature: float = 1.5,
        epss: bool = True,
        sway: float | None = -1.0,
    ) -> Tensor:
        """Latents [B, P, 64] float32 from noise [steps + 1, B, P, 64] (noise[0] is the start)."""
        grid = time_grid(steps, epss, sway).to(noise.device)
        x = out = noise[0].float()
        for i in range(steps):
            dt = grid[i + 1] - grid[i]
            t = grid[i].expand(x.shape[0])
            out = x + dt * self.guided(x, t, cond, history, guidance)
            spread = sigma * math.sqrt(temperature) * dt.abs().sqrt()
            x = out + spread * noise[i + 1]
        return out
