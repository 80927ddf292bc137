"""The flow head prepared once, at load, for the sampler that will read it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .._core.packing import PANEL, QUANTISED, PackedLinear, dequantise, format_of, unpack_rows
from ..gemm import linear
from .schedule import FlowSchedule

MATRICES = ("cond", "x", "qkv", "out", "up", "down", "final")
BLOCKS = range(2, 6)  # of MATRICES: those with a leading L; only they are quantised
NORMS = ("norm1", "norm2", "final_norm", "q_norm", "k_norm")
THETA = 10000.0
TIME_CHANNELS = 256
CACHED = 16


@dataclass(frozen=True, eq=False)
class PackedFlowHead:
    """All weights of a flow head of L blocks; made by `ops.pack_flow_head`.

    matrices: cond [H, Hc], x [H, C], qkv [L, 3H, H], out [L, H, H], up [L, W, H], down [L, H, W],
    final [C, H], in layout "rows", or in "panels" (`packed.py`), block matrices with a leading L.
    biases: the seven, [H], [H], [L, 3H], [L, H], [L, W], [L, H], [C]. norms: norm1 [L, H],
    norm2 [L, H], final_norm [H], and with normed queries and keys q_norm [L, D], k_norm [L, D].
    format: that of the four block matrices; "int8", "int8_dyn" and "fp8" have seven scales, float32
    per output row, [0] for cond, x and final, which stay in their own type. time: the two layers
    that embed the time, as weights and biases; none where `embed`, t [M] -> [M, H], does that.
    heads of width D = H / heads, the first rope_heads of which are rotated by RoPE (None: all), by
    frequencies theta^(-2i / D).
    """

    matrices: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    norms: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    time: tuple[tuple[PackedLinear, Tensor], ...]
    heads: int
    rope_heads: int | None
    layout: str
    format: str
    _cache: dict = field(default_factory=dict, repr=False)
    theta: float = THETA
    embed: Callable[[Tensor], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Of everything that is read for a patch: matrices, scales, biases and norms."""
        return sum(t.nbytes for t in (*self.matrices, *self.scales, *self.biases, *self.norms))

    @property
    def device(self) -> torch.device:
        return self.biases[0].device

    @property
    def depth(self) -> int:
        """L."""
        return self.norms[0].shape[0]

    @property
    def hidden(self) -> int:
        """H."""
        return self.norms[0].shape[1]

    @property
    def width(self) -> int:
        """W, of the MLP."""
        return self.biases[4].shape[1]

    @property
    def channels(self) -> int:
        """C."""
        return self.biases[6].shape[0]

    @property
    def cond_size(self) -> int:
        """Hc."""
        return self.matrices[0].shape[-2 if self.layout == "panels" else -1]

    @property
    def inputs(self) -> tuple[int, ...]:
        """K of the seven matrices."""
        H = self.hidden
        return self.cond_size, self.channels, H, H, H, self.width, H

    def linear(self, i: int, block: int | None = None, rows: slice = slice(None)) -> tuple[PackedLinear, Tensor]:
        """A view of matrix i (of a block's), or of some of its rows, and of its bias.

        In panels `rows` must begin and end at multiples of 32, or at the end.
        """
        w, bias = self.matrices[i], self.biases[i]
        scale = self.scales[i] if self.scales and self.scales[i].numel() else None
        if block is not None:
            w, bias, scale = w[block], bias[block], None if scale is None else scale[block]
        start, stop, _ = rows.indices(bias.shape[0])
        unit = PANEL if self.layout == "panels" else 1
        w, bias = w[start // unit : -(-stop // unit)], bias[start:stop]
        scale = None if scale is None else scale[start:stop]
        format = self.format if scale is not None else format_of(w.dtype)
        return PackedLinear(w, self.layout, len(bias), self.inputs[i], format, scale), bias

    def rows(self, i: int) -> Tensor:
        """Matrix i as rows, in its stored type: [N, K] or [L, N, K]."""
        n, k = self.biases[i].shape[-1], self.inputs[i]
        return flow_rows(self.matrices[i], self.layout, n, k)

    def as_rows(self) -> "PackedFlowHead":
        """The same head in layout "rows", in its format."""
        rows = tuple(self.rows(i) for i in range(7))
        time = tuple((w.as_rows(), bias) for w, bias in self.time)
        rest = (self.biases, self.norms, self.scales, time, self.heads, self.rope_heads)
        own = self._cache, self.theta, self.embed
        return PackedFlowHead(rows, *rest, "rows", self.format, *own)

    def unpack(self) -> "PackedFlowHead":
        """The same head in layout "rows"; quantised matrices as float32."""
        head = self.as_rows()
        if self.format not in QUANTISED:
            return head
        wide = [dequantise(w, scale) if scale.numel() else w for w, scale in zip(head.matrices, head.scales)]
        rest = (self.biases, self.norms, (), head.time, self.heads, self.rope_heads)
        own = self._cache, self.theta, self.embed
        return PackedFlowHead(tuple(wide), *rest, "rows", "fp32", *own)

    def time_embedding(self, t: Tensor) -> Tensor:
        """t [M] in 0..1 -> [M, H], float32 (float64 for float64 weights).

        The sinusoids in float32, in the reference's order: docs/model.md section 3.
        """
        if self.embed is not None:
            return self._embedded(self.embed, t)
        angles = 1000.0 * t.float()[:, None] * time_frequencies().to(t.device)
        e = torch.cat((angles.sin(), angles.cos()), dim=-1)
        (first, first_bias), (second, second_bias) = self.time
        e = e.to(torch.promote_types(torch.float32, first.weight.dtype))
        return linear(linear(e, first, first_bias, activation="silu"), second, second_bias)

    def _embedded(self, embed: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        found, wanted = embed(t), [len(t), self.hidden]
        if list(found.shape) != wanted or not found.is_floating_point():
            raise InputError(
                f"PackedFlowHead: embed must give [M, H] = {wanted} floats, got {found.dtype} {list(found.shape)}"
            )
        return found.detach().to(torch.promote_types(torch.float32, found.dtype))

    def times(self, schedule: FlowSchedule) -> Tensor:
        """The time embeddings [E, H] of a schedule's evaluations; cached."""
        return self._cached(("times", schedule.times), lambda: self._times(schedule.times))

    def _times(self, times: tuple[float, ...]) -> Tensor:
        return self.time_embedding(torch.tensor(times, dtype=torch.float32, device=self.device))

    def steps(self, schedule: FlowSchedule) -> tuple[Tensor, Tensor]:
        """dt [E] and noise_scale [E], float32, on the device; cached."""
        return self._cached(("steps", schedule.evaluations), lambda: self._steps(schedule))

    def _steps(self, schedule: FlowSchedule) -> tuple[Tensor, Tensor]:
        pairs = [(e.dt, e.noise_scale) for e in schedule.evaluations]
        values = torch.tensor(pairs, dtype=torch.float32).T.contiguous().to(self.device)
        # of their own: torch.compile would take the 2 of a pair for a batch of 2
        return values[0].clone(), values[1].clone()

    def rope(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, D/2] float32 of positions 0..T-1; cached."""
        dim = self.hidden // self.heads
        return self._cached(("rope", tokens), lambda: self._rope(tokens, dim))

    def _rope(self, tokens: int, dim: int) -> tuple[Tensor, Tensor]:
        return rope_table(tokens, dim, self.device, self.theta)

    def _cached(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What does not change from patch to patch: the `CACHED` results made last."""
        cache = self._cache
        if key not in cache:
            cache[key] = make()
            if len(cache) > CACHED:
                del cache[next(iter(cache))]
        return cache[key]


def flow_rows(weight: Tensor, layout: str, n: int, k: int) -> Tensor:
    """One matrix of `PackedFlowHead` as rows: [n, k], or [L, n, k] for those of the blocks."""
    if layout == "rows":
        return weight
    if weight.dim() == 3:
        return unpack_rows(weight, layout, n, k)
    return torch.stack([unpack_rows(each, layout, n, k) for each in weight])


def time_frequencies() -> Tensor:
    """exp(i * -ln 10000 / 127), i = 0..127, float32."""
    half = TIME_CHANNELS // 2
    # exp by way of float64: angles reach 1000, so the last bit of a frequency shows.
    step = torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1))
    return step.double().exp().float()


def rope_table(tokens: int, dim: int, device: torch.device, theta: float = THETA) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D/2] float32; the angles in float64."""
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    inv_freq = (1.0 / (theta**exponent)).double()
    angles = torch.arange(tokens, device=device).double()[:, None] * inv_freq
    return angles.cos().float(), angles.sin().float()
