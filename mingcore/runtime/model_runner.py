"""Fixed slots for requests, and the static step over those in use.

A run takes the lowest free slot, and when one leaves, the highest moves into its place: the rows in
use are the first n. On a GPU n is rounded up to a bucket whose graphs were captured at load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError
from .graph_prefill import BucketReader
from .graphs import Graphs
from .params import FlowParams, PatchLimits
from .prefill import PLAIN, Context, Reader
from .run import Segment, patch_seconds
from .sampling import Picked, pick
from .state import Rows
from .step import Emitted, Group, advance, emit

# what a slot holds at first beside its patches: text, and ten seconds of voice
PROMPT_TOKENS, VOICE_PATCHES = 1024, 100


@dataclass(frozen=True)
class Turn:
    """A row's part in the next patch: its schedule, whether it is guided, noise [S+1,1,P,C]."""

    row: int
    schedule: ops.FlowSchedule
    guided: bool
    noise: Tensor


@dataclass(frozen=True)
class Token:
    """A row's part in the next tokens; draws [1,V], None at temperature 0."""

    row: int
    draws: Tensor | None


class Slots:
    """State of `count` requests, and one patch for all of them, or a token of their text.

    `seconds` of speech fit into a slot at first; one longer run makes all of them longer. padded:
    every step computes all slots, in use or not, so every kernel sees the same shapes whoever else
    is there. flows: whose graphs are captured, where `graphs` captures. spare: steps of a run that
    may be launched after it has ended.
    """

    def __init__(
        self,
        model,
        count: int,
        *,
        seconds: float,
        graphs: Graphs,
        padded: bool = False,
        flows: Sequence[FlowParams] = (FlowParams(),),
        spare: int = 0,
    ):
        self.model, self.count, self.graphs = model, count, graphs
        self.static = padded or graphs.used
        self._schedules = tuple({flow.schedule for flow in flows})
        patches = math.ceil(seconds / patch_seconds(model.config))
        self._frames = model.config.patch_frames
        self.rows = Rows.create(
            model, count, tokens=patches + PROMPT_TOKENS, frames=(patches + VOICE_PATCHES) * self._frames, text=True
        )
        self.rows.ensure(tokens=0, frames=0, patches=patches)
        self._padded, self._spare = padded, spare
        self._views: dict[int, Rows] = {}
        self._noise: dict[ops.FlowSchedule, Tensor] = {}
        self._draws: Tensor | None = None
        if self.static:
            size = (count, model.config.llm.vocab_size)
            self._draws = torch.ones(size, device=model.llm.device)
        self._turns = [False] * count
        # on a GPU without graphs as well, so that they change no bit
        static = graphs.used or model.llm.device.type == "cuda"
        self._reader = BucketReader(model, graphs) if static else None
        self._capture()

    def bucket(self, used: int) -> int:
        """How many rows a step computes when the first `used` are in use."""
        if self._padded:
            return self.count
        return min(1 << (used - 1).bit_length(), self.count) if self.graphs.used else used

    def holds(self, segment: Segment) -> bool:
        """Whether a run fits as it is."""
        tokens, frames, patches = self._room(segment)
        states = self.rows.llm, self.rows.semantic, self.rows.decoder.backbone
        wanted = zip(states, (tokens, frames, patches * self._frames))
        return all(s.capacity is None or size <= s.capacity for s, size in wanted)

    def fit(self, segment: Segment) -> None:
        """Room for a run; where memory moved, graphs are made anew."""
        before = self.memory()
        tokens, frames, patches = self._room(segment)
        try:
            self.rows.ensure(tokens=tokens, frames=frames, patches=patches)
        finally:
            # also when only a part of it could be had
            if self.memory() != before:
                self._views.clear()
                self.graphs.clear()
                self._capture()

    def _room(self, segment: Segment) -> tuple[int, int, int]:
        """Tokens, frames and patches of a run."""
        patches = segment.patches + self._spare if segment.patches else 0
        return segment.tokens + self._spare, segment.heard + patches * self._frames, patches

    def memory(self) -> list[int]:
        """Where the caches are."""
        states = (self.rows.llm, self.rows.semantic, self.rows.decoder.backbone)
        return [t.data_ptr() for s in states for t in (*s.keys, *s.values)]

    def row(self, row: int) -> Rows:
        """Row `row` alone, empty, for a prompt to be run into it."""
        self.clear(row)
        return self.rows.rows(row, row + 1)

    def desk(self, row: int, segment: Segment, heard: int) -> tuple[Any, Any, Reader]:
        """Where the prompt of `row` is run into: empty LLM and semantic states, and who reads it.

        Where steps are graphs, those of the prompt's pieces, as far as they reach; else the row,
        whose semantic state is None where no patches will follow. heard: frames of all latents.
        """
        alone = self.row(row)
        if self._reader is not None and self._reader.fits(len(segment.prompt.ids), heard):
            return *self._reader.start(), self._reader
        return alone.llm, alone.semantic if segment.patches else None, PLAIN

    def begin(self, row: int, context: Context, segment: Segment, guidance: float) -> None:
        """A run begins in `row`, whose prompt was run into what its desk gave."""
        filled = [(self.rows.llm, context.llm)]
        if segment.patches:
            filled.append((self.rows.semantic, context.semantic))
        for state, other in filled:
            if self._reader is not None and self._reader.owns(other):
                state.take(row, other)
            state.bounds[row] = other.bounds[0]
        if segment.text is not None:
            self.rows.write(row, context.hidden, segment.text)
        else:
            self.rows.begin(row, context.hidden, context.history, segment.limits, guidance)
        self._turns[row] = True

    def force(self, row: int, token: int) -> None:
        """The text of `row` has ended; its next token is this one, and no part of the text."""
        self.rows.text.force(row, token)

    def speak(self, row: int, limits: PatchLimits, guidance: float) -> None:
        """The run in `row`, whose text has been read, goes on with patches."""
        self.rows.text.clear(row)
        history = torch.zeros_like(self.rows.history[:1])
        self.rows.begin(row, self.rows.hidden[row : row + 1], history, limits, guidance)
        self._turns[row] = True

    def clear(self, row: int) -> None:
        """`row` is free."""
        self.rows.clear(row)
        self._turns[row] = False

    def move(self, source: int, target: int) -> None:
        """The run in row `source` goes on in row `target`."""
        self.rows.move(source, target)
        self._turns[target], self._turns[source] = self._turns[source], False

    def take_turns(self, taking: set[int]) -> None:
        """These rows take part in the next patch."""
        for row, before in enumerate(self._turns):
            if (row in taking) != before:
                self.rows.turn[row] = self._turns[row] = row in taking

    def emit(self, n: int, turns: Sequence[Turn]) -> Emitted:
        """The first half of a patch for rows 0..n-1, of which those of `turns` take part."""
        view = self.view(n)
        full = not self.static and len(turns) == n
        groups = self._whole(n, turns) if self.static else self._picked(n, turns)
        key = ("emit", n, groups[0].schedule if len(groups) == 1 else None)
        with ops.batch_invariant(self._padded):
            return self.graphs.run(key, lambda: emit(self.model, view, groups, full=full))

    def pick(self, n: int, tokens: Sequence[Token]) -> Picked:
        """The next token of the rows that write, of which those of `tokens` take part."""
        view, draws, who = self.view(n), None, None
        if self.static:
            for token in tokens:
                if token.draws is not None:
                    self._draws[token.row].copy_(token.draws[0], non_blocking=True)
            draws = self._draws[:n]
        else:
            some = next((token.draws for token in tokens if token.draws is not None), None)
            if some is not None:
                ones = torch.ones_like(some)
                draws = torch.cat([ones if t.draws is None else t.draws for t in tokens])
            if len(tokens) < n:
                who = torch.tensor([t.row for t in tokens], device=self.model.llm.device)
        with ops.batch_invariant(self._padded):
            return self.graphs.run(("pick", n), lambda: pick(self.model, view, draws, who))

    def advance(self, n: int, spoke: set[int], wrote: set[int], *, full: bool = False) -> None:
        """The second half. full: the host knows that all of the n rows go on."""
        view, full = self.view(n), full and not self.static
        kinds = bool(spoke), bool(wrote)
        with ops.batch_invariant(self._padded):
            self.graphs.run(
                ("advance", n, *kinds), lambda: advance(self.model, view, full=full, spoke=kinds[0], wrote=kinds[1])
            )
        self.rows.counted(*([row in rows for row in range(self.count)] for rows in (spoke, wrote)))

    def view(self, n: int) -> Rows:
        """Rows 0..n-1, with the host's bounds of now."""
        view = self._views.get(n)
        if view is None:
            view = self._views[n] = self.rows.rows(0, n)
        for name in ("llm", "semantic"):
            getattr(view, name).bounds[:] = getattr(self.rows, name).bounds[:n]
        view.decoder.backbone.bounds[:] = self.rows.decoder.backbone.bounds[:n]
        return view

    def _picked(self, n: int, turns: Sequence[Turn]) -> list[Group]:
        """Groups of the rows that take part alone."""
        groups = []
        for schedule, members in _by_schedule(turns).items():
            noise = [turn.noise for turn in members]
            noise = noise[0] if len(noise) == 1 else torch.cat(noise, dim=1)
            rows = None
            if len(members) < n:
                rows = torch.tensor([t.row for t in members], device=self.model.llm.device)
            groups.append(Group(schedule, any(t.guided for t in members), noise, rows))
        return groups

    def _whole(self, n: int, turns: Sequence[Turn]) -> list[Group]:
        """Groups of all n rows, their noise in buffers that stay in place."""
        groups, parts = [], _by_schedule(turns)
        for schedule, members in parts.items():
            noise = self._buffer(schedule)
            for turn in members:
                noise[:, turn.row].copy_(turn.noise[:, 0], non_blocking=True)
            mask = None
            if len(parts) > 1:
                meant = {turn.row for turn in members}
                mask = torch.tensor([r in meant for r in range(n)], device=noise.device)
            groups.append(Group(schedule, True, noise[:, :n], mask=mask))
        return groups

    def _buffer(self, schedule: ops.FlowSchedule) -> Tensor:
        buffer = self._noise.get(schedule)
        if buffer is None:
            for old in [s for s in self._noise if s not in self._schedules]:
                del self._noise[old]
            config = self.model.config
            shape = (schedule.steps + 1, self.count, config.patch_frames, config.latent_dim)
            buffer = self._noise[schedule] = torch.zeros(shape, device=self.model.llm.device)
        return buffer

    def _capture(self) -> None:
        """Graphs of all parts for every bucket and schedule; no row takes part, so no trace."""
        if not self.graphs.used:
            return
        turns = list(self._turns)
        self.take_turns(set())
        self.rows.going.zero_()  # what went on has done so already
        sizes = sorted({self.bucket(used) for used in range(1, self.count + 1)}, reverse=True)
        for n in sizes:
            with ops.batch_invariant(self._padded):
                self._capture_step(n)
        self._reader.capture()
        self.take_turns({row for row, turn in enumerate(turns) if turn})

    def _capture_step(self, n: int) -> None:
        view, packed = self.view(n), self.model.flow.packed
        for schedule in self._schedules:
            groups = [Group(schedule, True, self._buffer(schedule)[:, :n])]
            # constants that the head keeps for a while only
            tokens = 1 + 2 * self._frames
            keep = (packed.times(schedule), packed.steps(schedule), packed.rope(tokens))
            half = partial(emit, self.model, view, groups)
            self.graphs.add(("emit", n, schedule), half, keep)
        self.graphs.add(("pick", n), partial(pick, self.model, view, self._draws[:n]))
        for spoke, wrote in ((True, False), (True, True), (False, True)):
            half = partial(advance, self.model, view, spoke=spoke, wrote=wrote)
            self.graphs.add(("advance", n, spoke, wrote), half)


def _by_schedule(turns: Sequence[Turn]) -> dict[ops.FlowSchedule, list[Turn]]:
    parts: dict[ops.FlowSchedule, list[Turn]] = {}
    for turn in turns:
        parts.setdefault(turn.schedule, []).append(turn)
    return parts


def check_slots(slots: int) -> int:
    """A number of slots, or InputError."""
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 1024:
        raise InputError(f"slots: must be a whole number from 1 to 1024, got {slots!r}")
    return slots
