"""State of a causal transformer: one KV cache per layer, and how much of it is filled.

A layer with a window is a ring buffer of constant size; one without keeps every key and doubles
when full. `lengths` is on the device and counts the tokens stored by each sequence of the batch.
`bounds` are upper bounds of it on the host, so that no call synchronises with the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

VIEW = 64  # a growing cache is read in multiples of so many slots, so few shapes occur
CACHE_LINE_BYTES = 64  # vector loads that cross no cache line are faster


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.zeros`; on a CPU by lazy allocation: a page takes memory once something is written there.

    So a cache can be allocated for the longest sequence that there may be.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -room.ctypes.data % CACHE_LINE_BYTES
    # sliced in NumPy: a storage offset would be a dynamic size to torch.compile, which would then
    # compile anew for every offset
    return torch.from_numpy(room[start : start + size]).view(dtype).view(shape)


@dataclass
class KVState:
    """`keys[layer]`, `values[layer]` [B,S,Hkv,D]; `windows[layer]` visible keys or None for all.

    `fixed`: its memory is part of another state's and cannot grow.
    """

    keys: list[Tensor]
    values: list[Tensor]
    windows: tuple[int | None, ...]
    lengths: Tensor
    bounds: list[int]
    block: int
    fixed: bool = False

    @classmethod
    def create(
        cls,
        batch: int,
        capacity: int,
        windows: Sequence[int | None],
        kv_heads: int,
        head_dim: int,
        *,
        block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVState:
        """`capacity` tokens for layers without a window; at most `block` tokens a step."""
        if batch < 1 or capacity < 1:
            raise InputError(f"state: batch and capacity must be positive, got {batch}, {capacity}")

        def slots(window: int | None) -> int:
            return -(-capacity // VIEW) * VIEW if window is None else window - 1 + block

        def cache() -> list[Tensor]:
            return [zeros((batch, slots(w), kv_heads, head_dim), dtype, device) for w in windows]

        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(cache(), cache(), tuple(windows), lengths, [0] * batch, block)

    def __post_init__(self) -> None:
        self._views: tuple[int, list[tuple[Tensor, Tensor]]] | None = None

    @property
    def batch(self) -> int:
        return len(self.bounds)

    @property
    def max_length(self) -> int:
        """Host-side upper bound of `lengths`."""
        return max(self.bounds)

    @property
    def capacity(self) -> int | None:
        """Tokens that fit before a layer grows; None where every layer has a window."""
        full = [k.shape[1] for k, w in zip(self.keys, self.windows) if w is None]
        return min(full) if full else None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for side in self._caches() for t in side) + self.lengths.nbytes

    def _caches(self) -> Sequence[list[Tensor]]:
        """The caches: lists by layer of tensors [B,S,Hkv,...]."""
        return self.keys, self.values

    def _view(self, layer: int, shown: int) -> tuple[Tensor, Tensor]:
        """A layer's cache, as far as `shown` slots unless it has a window."""
        k, v = self.keys[layer], self.values[layer]
        return (k, v) if self.windows[layer] is not None else (k[:, :shown], v[:, :shown])

    def reserve(self, T: int) -> list[tuple[Tensor, Tensor]]:
        """Room for T more tokens -> each layer's (keys, values), as much as can be filled then."""
        needed = self.max_length + T
        if self.capacity is not None and needed > self.capacity:
            self._grow(needed)
        # rows of another state show all their memory, always the same
        shown = self.capacity if self.fixed else -(-needed // VIEW) * VIEW
        if self._views is None or self._views[0] != shown:
            self._views = (shown, [self._view(i, shown) for i in range(len(self.windows))])
        return self._views[1]

    def advance(self, T: int) -> None:
        """The host's side of a step of T tokens; the step itself moved `lengths`."""
        self.bounds = [bound + T for bound in self.bounds]

    def ensure(self, capacity: int) -> None:
        """Layers without a window hold at least `capacity` tokens a row from now on."""
        if self.capacity is not None and capacity > self.capacity:
            self._grow(capacity)

    def rows(self, start: int, stop: int) -> KVState:
        """Rows start..stop-1 as a state of their own over the same memory; `bounds` are copied."""
        keys, values = ([t[start:stop] for t in side] for side in (self.keys, self.values))
        lengths, bounds = self.lengths[start:stop], self.bounds[start:stop]
        return KVState(keys, values, self.windows, lengths, bounds, self.block, fixed=True)

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        filled = self.bounds[source]
        for cache in self._caches():
            for tensor, window in zip(cache, self.windows):
                used = filled if window is None else tensor.shape[1]
                tensor[target, :used] = tensor[source, :used]
        self.lengths[target] = self.lengths[source]
        self.bounds[target] = filled

    def take(self, target: int, other: KVState) -> None:
        """Row `target` becomes a copy of the only row of `other`, which keeps as many heads."""
        for mine, cache in zip(self._caches(), other._caches()):
            for tensor, source in zip(mine, cache):
                used = min(other.bounds[0], tensor.shape[1])
                tensor[target, :used] = source[0, :used]
        self.lengths[target] = other.lengths[0]
        self.bounds[target] = other.bounds[0]

    def _grow(self, needed: int) -> None:
        if self.fixed:
            raise InputError(f"state: {needed} tokens do not fit into rows of {self.capacity} that cannot grow")
        self._views = None
        for cache in self._caches():
            for layer, window in enumerate(self.windows):
                if window is None:
                    old = cache[layer]
                    B, S, heads, dim = old.shape
                    size = max(2 * S, -(-needed // VIEW) * VIEW)
                    cache[layer] = zeros((B, size, heads, dim), old.dtype, old.device)
                    for row, filled in enumerate(self.bounds):
                        cache[layer][row, :filled] = old[row, :filled]

    def clone(self) -> KVState:
        """An independent copy: a branch of a conversation, a voice that is used again."""
        copy = cloned(self)
        copy._views, copy.fixed = None, False
        return copy

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Forget what rows (None: all) have seen; their memory is used again."""
        rows = range(self.batch) if rows is None else list(rows)
        for row in rows:
            self.bounds[row] = 0
        if len(rows) == self.batch:
            self.lengths.zero_()
        else:
            self.lengths[torch.tensor(rows, device=self.lengths.device)] = 0


def cloned(value):
    """A deep copy of a state: of dataclasses, lists and tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [cloned(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{f.name: cloned(getattr(value, f.name)) for f in fields(value)})
    return value
