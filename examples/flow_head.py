"""A flow head of one's own on the sampler's kernels: a small DiT-like module, its names, a sample.

python examples/flow_head.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mingcore import ops
from mingcore.integrations import flow_head


def rotate(x: Tensor) -> Tensor:
    """RoPE on x [B, T, heads, D], pairs (i, i + D/2)."""
    T, D = x.shape[1], x.shape[-1]
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
    cos, sin = (f(angles).to(x)[:, None] for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, H: int, heads: int, W: int):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = (nn.RMSNorm(H, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(H, H, bias=False) for _ in range(3))
        self.o = nn.Linear(H, H)
        self.fc1, self.fc2 = nn.Linear(H, W), nn.Linear(W, H)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (rotate(q), rotate(k), v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


class MyFlowHead(nn.Module):
    """[time + condition; history; current frames] through blocks; the last frames' velocity."""

    def __init__(self, H: int = 64, heads: int = 4, depth: int = 3, C: int = 16, Hc: int = 96):
        super().__init__()
        self.clock = nn.Sequential(nn.Linear(1, H), nn.SiLU(), nn.Linear(H, H))
        self.cond, self.inp = nn.Linear(Hc, H), nn.Linear(C, H)
        self.layers = nn.ModuleList(Block(H, heads, 4 * H) for _ in range(depth))
        self.ln, self.out = nn.RMSNorm(H, eps=1e-6), nn.Linear(H, C)

    def time(self, t: Tensor) -> Tensor:
        """t [M] -> [M, H]"""
        return self.clock(t.to(self.ln.weight)[:, None])

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, history: Tensor) -> Tensor:
        first = self.cond(condition) + self.time(t)
        y = torch.cat((first[:, None], self.inp(history), self.inp(x)), dim=1)
        for layer in self.layers:
            y = layer(y)
        return self.out(self.ln(y))[:, -x.shape[1] :]


# the sampler's parts: where they are here; {} is a block's number
NAMES = {
    "condition": "cond",
    "latents": "inp",
    "qkv": ("layers.{}.q", "layers.{}.k", "layers.{}.v"),
    "out": "layers.{}.o",
    "up": "layers.{}.fc1",
    "down": "layers.{}.fc2",
    "final": "out",
    "norm1": "layers.{}.ln1",
    "norm2": "layers.{}.ln2",
    "final_norm": "ln",
}


def main() -> None:
    torch.manual_seed(0)
    mine = MyFlowHead()
    config = flow_head.FlowHeadConfig(heads=4, rope="half", embed=mine.time)
    packed = flow_head.pack(mine.state_dict(), NAMES, config, ignore=["clock.*"])
    print(f"velocities differ by {flow_head.deviation(packed, mine):.1e} of the largest")

    schedule = ops.FlowSchedule.make(10)
    condition, history = torch.randn(2, 96), torch.randn(2, 5, 16)
    noise = torch.randn(schedule.steps + 1, 2, 5, 16)
    latents = ops.flow_sample(packed, schedule, condition, history, noise, guidance=2.0)
    print(f"latents {tuple(latents.shape)}")


if __name__ == "__main__":
    main()
