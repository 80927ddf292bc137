"""The state of a batch of sequences: a row each, preallocated, changed in place.

What ends is decided on the device: flags and counters live there, and a row that has ended or is not active is
computed along without a trace. So the host may launch steps ahead of what it knows (lookahead), and a CUDA graph of
a step serves whoever is there. The host keeps upper bounds of lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..model.state import KVState
from ..model.vae.decoder import DecoderState
from .params import PatchLimits
from .sampling import MAX_STOPS, TextPlan

_STATES = ("llm", "semantic", "decoder", "text")


@dataclass
class TextState:
    """The text of B rows. Tensors [B]:

    writing, bool: the text has not ended. feed, bool: the row's token goes to the LLM in this step. token int64: the
    one that was sampled last. forced int64: the one to be fed next whatever the model says, which is no part of the
    text; -1: none. num_tokens, max_tokens int64: tokens of the text, and how many at most. stops [B,MAX_STOPS] int64:
    tokens that end it; -1 is none. temperature float32.
    """

    writing: Tensor
    feed: Tensor
    token: Tensor
    forced: Tensor
    num_tokens: Tensor
    max_tokens: Tensor
    stops: Tensor
    temperature: Tensor

    @classmethod
    def create(cls, batch: int, device: torch.device) -> TextState:
        """`batch` rows, none of which writes."""
        flags = (torch.zeros(batch, dtype=torch.bool, device=device) for _ in range(2))
        counts = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(4))
        stops = torch.zeros(batch, MAX_STOPS, dtype=torch.int64, device=device)
        return cls(*flags, *counts, stops, torch.zeros(batch, dtype=torch.float32, device=device))

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def rows(self, start: int, stop: int) -> TextState:
        """Rows start..stop-1 over the same memory."""
        return TextState(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def begin(self, row: int, plan: TextPlan) -> None:
        """`row` writes from now on."""
        stops = [*plan.stops, *[-1] * MAX_STOPS][:MAX_STOPS]
        self.stops[row] = torch.tensor(stops, device=self.stops.device)
        self.num_tokens[row], self.max_tokens[row], self.forced[row] = 0, plan.max_tokens, -1
        self.temperature[row] = plan.temperature
        self.writing[row] = True

    def force(self, row: int, token: int) -> None:
        """`row`, whose text has ended, is fed one more token."""
        self.forced[row], self.writing[row] = token, True

    def clear(self, row: int) -> None:
        """`row` writes nothing."""
        self.writing[row] = self.feed[row] = False

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        for f in fields(self):
            part = getattr(self, f.name)
            part[target] = part[source]


@dataclass
class BatchState:
    """B rows. Tensors:

    hidden [B,H]: conditions the next patch. history [B,P,C] float32: the patch before it. latents [B,P,C] float32: the
    patch that was generated last.
    active [B] bool: takes part in the next step; set by the host. open [B] bool: its patches have not ended. alive [B]
    bool: took part in this step and goes on. num_patches, min_patches, max_patches [B] int64: patches so far, at
    least, at most. guidance [B] float32. `semantic` and `decoder` None: no row makes patches. `text` None: no row
    writes.
    """

    llm: KVState
    semantic: KVState | None
    decoder: DecoderState | None
    hidden: Tensor
    history: Tensor
    latents: Tensor
    active: Tensor
    open: Tensor
    alive: Tensor
    num_patches: Tensor
    min_patches: Tensor
    max_patches: Tensor
    guidance: Tensor
    text: TextState | None = None

    @classmethod
    def over(
        cls, model, llm: KVState, semantic: KVState | None, *, hidden: Tensor, decode: bool = True, text: bool = False
    ) -> BatchState:
        """Rows over existing LLM and semantic states and hidden [B,H], none of them open.

        decode: with a decoder. text: they can write.
        """
        B, device = llm.batch, hidden.device
        patch = (model.config.patch_frames, model.config.latent_dim)

        def new(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        decoder = None
        if decode:
            decoder = model.vae.new_decoder_state(B)
            decoder.overlap.skip = None  # each row is at a place of its own
        return cls(
            llm,
            semantic,
            decoder,
            hidden,
            *(new(B, *patch, dtype=torch.float32) for _ in range(2)),
            *(new(B, dtype=torch.bool) for _ in range(3)),
            *(new(B, dtype=torch.int64) for _ in range(3)),
            new(B, dtype=torch.float32),
            TextState.create(B, device) if text else None,
        )

    @classmethod
    def create(cls, model, batch: int, *, tokens: int, frames: int, text: bool = False) -> BatchState:
        """`batch` empty rows with room for `tokens` of the LLM and `frames` of semantic context each.

        text: they can write.
        """
        llm = model.llm.new_state(batch, tokens)
        semantic = model.vae.new_semantic_state(batch, frames)
        size = (batch, model.config.llm.hidden_size)
        hidden = torch.zeros(size, dtype=model.llm.activation_dtype, device=model.llm.device)
        return cls.over(model, llm, semantic, hidden=hidden, text=text)

    @property
    def batch(self) -> int:
        return self.hidden.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all state, filled or not."""
        parts = (getattr(self, f.name) for f in fields(self))
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, start: int, stop: int) -> BatchState:
        """Rows start..stop-1 over the same memory; the host's bounds are copied."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, part in parts.items():
            if part is not None:
                parts[name] = part.rows(start, stop) if name in _STATES else part[start:stop]
        return BatchState(**parts)

    def begin_patches(self, row: int, hidden: Tensor, history: Tensor, limits: PatchLimits, guidance: float) -> None:
        """Patches begin in `row`, whose LLM and semantic states are filled: hidden [1,H], history [1,P,C]."""
        self.hidden[row] = hidden[0]
        self.history[row] = history[0]
        self.num_patches[row] = 0
        self.min_patches[row], self.max_patches[row] = limits.min_patches, limits.max_patches
        self.guidance[row] = guidance
        self.open[row] = self.active[row] = True
        self.alive[row] = False

    def begin_text(self, row: int, hidden: Tensor, plan: TextPlan) -> None:
        """Text begins in `row`, whose states are filled: hidden [1,H]."""
        self.hidden[row] = hidden[0]
        self.text.begin(row, plan)
        self.active[row], self.alive[row] = True, False

    def clear(self, row: int) -> None:
        """Forgets what `row` has seen; it is free."""
        for state in (self.llm, self.semantic, self.decoder):
            if state is not None:
                state.reset([row])
        if self.text is not None:
            self.text.clear(row)
        self.open[row] = self.active[row] = self.alive[row] = False

    def move(self, source: int, target: int) -> None:
        """The sequence in row `source` goes on in row `target`; `source` is free."""
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
        """Every row has room for so many tokens, semantic frames and decoded patches; whether memory moved."""
        wanted = ((self.llm, tokens), (self.semantic, frames))
        if self.decoder is not None:
            wanted += ((self.decoder.backbone, patches * self.history.shape[1]),)
        short = [(s, n) for s, n in wanted if s.capacity is not None and n > s.capacity]
        for state, n in short:
            state.ensure(n)
        return bool(short)

    def count_step(self, patches: Sequence[bool], tokens: Sequence[bool] | None = None) -> None:
        """The host's bounds behind one step, in which each row made a patch, or was fed a token, or neither."""
        frames = self.history.shape[1]
        fed = patches if tokens is None else [a or b for a, b in zip(patches, tokens)]
        steps = [(self.llm, 1, fed)]
        if self.semantic is not None:
            steps.append((self.semantic, frames, patches))
        if self.decoder is not None:
            steps.append((self.decoder.backbone, frames, patches))
        for state, T, rows in steps:
            state.bounds = [b + T * bool(row) for b, row in zip(state.bounds, rows)]
