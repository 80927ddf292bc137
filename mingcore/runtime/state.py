"""The state of requests that are spoken in step: a row each, preallocated, changed in place.

The device decides what ends: a row's flags and counters live there, and a row that has ended or
sits out is computed along without a trace. So the host may launch patches ahead of what it knows,
and a CUDA graph of a step serves for all of them. What the host keeps are upper bounds of lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..model.state import KVState
from ..model.vae.decoder import DecoderState
from .params import PatchLimits
from .sampling import TextPlan, TextRows

_STATES = ("llm", "semantic", "decoder", "text")


@dataclass
class Rows:
    """B rows. Tensors:

    hidden [B,H]: conditions the next patch. history [B,P,C] float32: the patch before it. latents
    [B,P,C] float32: the patch that was emitted last.
    turn [B] bool: takes part in the next patch; the host's to set. open [B] bool: the run has not
    ended. going [B] bool: took part in this patch and goes on. made, least, most [B] int64: patches
    made; how many at least, at most. guidance [B] float32. `decoder` None: nothing is decoded.
    `text` None: no row writes text.
    """

    llm: KVState
    semantic: KVState
    decoder: DecoderState | None
    hidden: Tensor
    history: Tensor
    latents: Tensor
    turn: Tensor
    open: Tensor
    going: Tensor
    made: Tensor
    least: Tensor
    most: Tensor
    guidance: Tensor
    text: TextRows | None = None

    @classmethod
    def over(cls, model, llm: KVState, semantic: KVState, *, decode: bool = True, hidden: Tensor) -> Rows:
        """Rows over LLM and semantic states that are there, and the hidden states; none is open."""
        B, device = llm.batch, hidden.device
        patch = (model.config.patch_frames, model.config.latent_dim)

        def new(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        decoder = None
        if decode:
            decoder = model.vae.new_decoder_state(B)
            decoder.overlap.skip = None  # rows at places of their own
        return cls(
            llm,
            semantic,
            decoder,
            hidden,
            *(new(B, *patch, dtype=torch.float32) for _ in range(2)),
            *(new(B, dtype=torch.bool) for _ in range(3)),
            *(new(B, dtype=torch.int64) for _ in range(3)),
            new(B, dtype=torch.float32),
        )

    @classmethod
    def create(cls, model, batch: int, *, tokens: int, frames: int, text: bool = False) -> Rows:
        """`batch` rows with room for so many tokens of the LLM and frames of semantic context.

        text: they can write.
        """
        llm = model.llm.new_state(batch, tokens)
        semantic = model.vae.new_semantic_state(batch, frames)
        size = (batch, model.config.llm.hidden_size)
        hidden = torch.zeros(size, dtype=model.llm.activation_dtype, device=model.llm.device)
        rows = cls.over(model, llm, semantic, hidden=hidden)
        rows.text = TextRows.create(batch, model.llm.device) if text else None
        return rows

    @property
    def batch(self) -> int:
        return self.hidden.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all state, filled or not."""
        parts = (getattr(self, f.name) for f in fields(self))
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, start: int, stop: int) -> Rows:
        """Rows start..stop-1 over the same memory; the host's bounds are copied."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, part in parts.items():
            if part is not None:
                parts[name] = part.rows(start, stop) if name in _STATES else part[start:stop]
        return Rows(**parts)

    def begin(self, row: int, hidden: Tensor, history: Tensor, limits: PatchLimits, guidance: float) -> None:
        """A run begins in `row`, whose LLM and semantic states are filled: hidden [1,H]."""
        if hidden is not self.hidden:
            self.hidden[row] = hidden[0]
        self.history[row] = history[0]
        self.made[row], self.least[row], self.most[row] = 0, limits.least, limits.most
        self.guidance[row] = guidance
        self.open[row] = self.turn[row] = True
        self.going[row] = False

    def write(self, row: int, hidden: Tensor, plan: TextPlan) -> None:
        """Text begins in `row`, whose states are filled: hidden [1,H]."""
        self.hidden[row] = hidden[0]
        self.text.begin(row, plan)
        self.turn[row], self.going[row] = True, False

    def clear(self, row: int) -> None:
        """Forgets what `row` has seen; it is free."""
        self.llm.reset([row])
        self.semantic.reset([row])
        if self.decoder is not None:
            self.decoder.reset([row])
        if self.text is not None:
            self.text.clear(row)
        self.open[row] = self.turn[row] = self.going[row] = False

    def move(self, source: int, target: int) -> None:
        """The run in row `source` goes on in row `target`; `source` is free."""
        for f in fields(self):
            part = getattr(self, f.name)
            if part is None:
                continue
            if f.name in _STATES:
                part.move(source, target)
            else:
                part[target] = part[source]
        self.clear(source)

    def ensure(self, *, tokens: int, frames: int, patches: int) -> bool:
        """Every row has so much room, that of what is decoded included; whether memory moved."""
        wanted = ((self.llm, tokens), (self.semantic, frames))
        if self.decoder is not None:
            wanted += ((self.decoder.backbone, patches * self.history.shape[1]),)
        short = [(s, n) for s, n in wanted if s.capacity is not None and n > s.capacity]
        for state, n in short:
            state.ensure(n)
        return bool(short)

    def counted(self, spoke: Sequence[bool], wrote: Sequence[bool] | None = None) -> None:
        """The host's side of one step, in which rows `spoke` a patch or `wrote` a token."""
        frames = self.history.shape[1]
        read = spoke if wrote is None else [a or b for a, b in zip(spoke, wrote)]
        steps = [(self.llm, 1, read), (self.semantic, frames, spoke)]
        if self.decoder is not None:
            steps.append((self.decoder.backbone, frames, spoke))
        for state, T, taken in steps:
            state.bounds = [b + T * bool(t) for b, t in zip(state.bounds, taken)]
