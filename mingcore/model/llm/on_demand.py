"""Layer offloading: layers are read when they are needed and dropped again, for one pass over a long input.

A model runs that way in the memory of two layers, and reads its file once per pass: far too slow to
generate with, and just right to measure with (`mingcore.precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from ..declared import Declared, Reader

T = TypeVar("T")
HELD_LAYERS = 2  # a layer, and the next one, whose norm it applies


class OnDemand(Sequence[T], Generic[T]):
    """The `count` results of `build(index)`; the last `HELD_LAYERS` asked for stay in memory."""

    def __init__(self, build: Callable[[int], T], count: int):
        self._build, self._count = build, count
        self._held: dict[int, T] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            raise TypeError("layers on demand come one by one")
        if not -self._count <= index < self._count:
            raise IndexError(index)
        index %= self._count
        if index not in self._held:
            if len(self._held) == HELD_LAYERS:
                del self._held[next(iter(self._held))]
            self._held[index] = self._build(index)
        return self._held[index]


class ReadOnDemand(Declared[OnDemand[T]]):
    """Layers that are not read with the rest of the plan, but each whenever it is asked for."""

    def __init__(self, layers: Sequence[Declared[T]]):
        self.layers = layers

    def read(self, reader: Reader) -> OnDemand[T]:
        return OnDemand(lambda index: self.layers[index].read(reader), len(self.layers))
