"""What the MoE bench runs on: several layers of random experts, and tokens routed to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mingcore import ops
from mingcore.testing.compare import check_op


@dataclass(frozen=True)
class Size:
    """E experts of width I, K per token, hidden width H, one shared expert of width `shared`."""

    E: int
    K: int
    H: int
    I: int
    shared: int

    @property
    def elements(self) -> int:
        """Weights of one layer."""
        return 3 * self.H * (self.E * self.I + self.shared)


SIZES = {
    "real": Size(E=64, K=6, H=2048, I=1408, shared=2816),
    "mid": Size(E=64, K=6, H=1024, I=704, shared=1408),
    "tiny": Size(E=8, K=2, H=64, I=48, shared=96),
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int8_dyn": 1, "fp8": 1}


def balanced(size: Size, T: int, g: torch.Generator) -> Tensor:
    """Every expert gets as many slots as any other, or one more."""
    order = torch.randperm(size.E, generator=g)
    return order[torch.arange(T * size.K) % size.E].view(T, size.K)


def zipf(size: Size, T: int, g: torch.Generator) -> Tensor:
    """The r-th most popular expert is drawn with probability in proportion to 1/r."""
    popularity = 1 / torch.arange(1.0, size.E + 1)
    chosen = torch.multinomial(popularity.expand(T, -1), size.K, generator=g)
    return torch.randperm(size.E, generator=g)[chosen]


def one(size: Size, T: int, g: torch.Generator) -> Tensor:
    """Every token chooses the same K experts."""
    return torch.randperm(size.E, generator=g)[: size.K].expand(T, -1)


ROUTINGS: dict[str, Callable[[Size, int, torch.Generator], Tensor]] = {"balanced": balanced, "zipf": zipf, "one": one}


@dataclass(frozen=True)
class Rows:
    """One layer's matrices: [E, 2I, H], [E, H, I] and the shared expert's pair."""

    gate_up: Tensor
    down: Tensor
    shared: tuple[Tensor, Tensor]

    @staticmethod
    def random(size: Size, device: str, seed: int) -> Rows:
        """bfloat16; products keep the size of their input. The numbers come around after 4194301,
        a prime, so that no two rows of a matrix are alike and a layer is there in a second."""
        g = torch.Generator(device).manual_seed(seed)
        draw = torch.empty(4194301, dtype=torch.bfloat16, device=device).normal_(generator=g)

        def matrix(*shape: int) -> Tensor:
            w = torch.empty(shape, dtype=torch.bfloat16, device=device)
            for piece in w.view(-1).split(len(draw)):
                torch.mul(draw[: len(piece)], shape[-1] ** -0.5, out=piece)
            return w

        E, H, I, S = size.E, size.H, size.I, size.shared
        shared = matrix(2 * S, H), matrix(H, S)
        return Rows(matrix(E, 2 * I, H), matrix(E, H, I), shared)

    def to(self, dtype: torch.dtype) -> Rows:
        shared = self.shared[0].to(dtype), self.shared[1].to(dtype)
        return Rows(self.gate_up.to(dtype), self.down.to(dtype), shared)

    def packed(self, format: str) -> ops.PackedExperts:
        return ops.pack_experts(self.gate_up, self.down, shared=self.shared, format=format)


@dataclass(frozen=True)
class Tokens:
    """Routed inputs: x [T, H], weights [T, K] float32, ids [T, K] int32."""

    x: Tensor
    weights: Tensor
    ids: Tensor

    @staticmethod
    def random(size: Size, T: int, routing: str, device: str, seed: int) -> Tokens:
        """x is bfloat16."""
        g = torch.Generator().manual_seed(seed)
        ids = ROUTINGS[routing](size, T, g).to(device, torch.int32).contiguous()
        weights = torch.rand(T, size.K, generator=g).softmax(1).to(device)
        x = torch.randn(T, size.H, generator=g).to(device, torch.bfloat16)
        return Tokens(x, weights, ids)

    def arguments(self, experts: ops.PackedExperts | Rows) -> dict:
        """Keyword arguments of `ops.moe_mlp`; x in the type of float32 experts."""
        kw = {"x": self.x, "weights": self.weights, "ids": self.ids}
        if isinstance(experts, Rows):
            pair = experts.gate_up, experts.down
            return {**kw, "x": self.x.to(pair[0].dtype), "experts": pair, "shared": experts.shared}
        wide = experts.format == "fp32"
        return {**kw, "x": self.x.float() if wide else self.x, "experts": experts}


@dataclass(frozen=True)
class Layers:
    """`count` layers, each with weights of its own: as bfloat16 rows and in each of `formats`; so
    many of them as float32 rows as memory allows (none on a GPU)."""

    size: Size
    device: str
    count: int
    formats: tuple[str, ...]

    @cached_property
    def rows(self) -> list[Rows]:
        return [Rows.random(self.size, self.device, seed) for seed in range(self.count)]

    @cached_property
    def packed(self) -> dict[str, list[ops.PackedExperts]]:
        return {f: [rows.packed(f) for rows in self.rows] for f in self.formats}

    @cached_property
    def wide(self) -> list[Rows]:
        if self.device != "cpu":
            return []
        per_layer = 4 * self.size.elements
        count = self.count if memory() > self.count * per_layer + (2 << 30) else 1
        return [rows.to(torch.float32) for rows in self.rows[:count]]

    def need(self) -> int:
        """Bytes, at least."""
        per_weight = 2 + sum(BYTES[f] for f in self.formats if self.device == "cpu" or f != "bf16")
        wide = 4 if self.device == "cpu" else 0
        return self.size.elements * (self.count * per_weight + wide)


def memory() -> int:
    """Bytes that the system says are available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))


def check(experts: ops.PackedExperts, tokens: Tokens, got: Tensor) -> None:
    """Hold the last token of a result to the oracle: it sees its own experts only, so a layer of
    any size is checked in little time. Raises AssertionError."""
    last = slice(len(got) - 1, None)
    hit, ids = tokens.ids[last].unique(return_inverse=True)
    per_expert = ("gate_up", "down", "gate_up_scale", "down_scale")
    stacks = {name: getattr(experts, name) for name in per_expert}
    few = replace(experts, **{n: None if t is None else t[hit] for n, t in stacks.items()})
    kw = Tokens(tokens.x[last], tokens.weights[last], ids.int()).arguments(few)
    check_op("moe_mlp", kw, (got[last],))
