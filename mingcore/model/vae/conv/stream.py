"""The state of a stream through a network of convolutions, and a chunk at one of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .... import ops
from ...state import cloned


@dataclass
class CodecState:
    """One state per convolution that has a left context, in the order of the network.

    Preallocated and changed in place; its size is constant. emitted [B] int64: how many outputs of
    the last call are a row's own. seen: inputs that every row has had, None where rows differ.
    """

    layers: list[ops.ConvState]
    emitted: Tensor
    seen: int | None = 0

    @classmethod
    def create(
        cls, batch: int, contexts: Sequence[tuple[int, int]], *, dtype: torch.dtype, device: torch.device
    ) -> CodecState:
        """contexts: channels and width of each convolution's context."""
        layers = [
            ops.ConvState.start(batch, channels, width, dtype=dtype, device=device) for channels, width in contexts
        ]
        return cls(layers, torch.zeros(batch, dtype=torch.int64, device=device))

    @property
    def batch(self) -> int:
        return self.emitted.shape[0]

    @property
    def lengths(self) -> Tensor:
        """[B] int64: inputs that each row has had."""
        return self.layers[0].lengths

    @property
    def nbytes(self) -> int:
        return self.emitted.nbytes + sum(state.nbytes for state in self.layers)

    def clone(self) -> CodecState:
        return cloned(self)

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Rows (None: all) begin a new stream."""
        rows = None if rows is None else list(rows)
        for state in self.layers:
            state.reset(rows)
        self.seen = 0 if rows is None else None

    def end(self, last: bool | Tensor) -> None:
        """Every row, none, or those of `last` [B] begin a new stream."""
        if last is True:
            self.reset()
        elif last is not False:
            for state in self.layers:
                state.lengths.masked_fill_(last, 0)
                state.offset = None
            self.seen = None


@dataclass
class Chunk:
    """A chunk at some layer of a network.

    valid [B] int64: how many of its columns there are a row's own, None for all. start: inputs of
    the same call that went before it. condition: which row, or [B] rows, of the tables of a
    conditioned network; noise: of a noisy one.
    """

    state: CodecState
    valid: Tensor | None = None
    start: int = 0
    condition: int | Tensor | None = None
    noise: Sequence[Tensor] = ()
