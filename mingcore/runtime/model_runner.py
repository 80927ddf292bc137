"""The model runner: the state of sequences in fixed slots, and one step over those in use.

A sequence takes the lowest free slot, and when one leaves, the highest moves into its place: the rows in use are the
first n. On a GPU n is rounded up to a bucket whose CUDA graphs were captured at load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError
from .graph_prefill import GraphPrefillRunner
from .graphs import Graphs
from .params import FlowParams, PatchLimits
from .prefill import ALONE, PrefillResult, PrefillTarget, audio_frames
from .sampling import SampledTokens, sample_tokens
from .state import BatchState
from .step import FlowGroup, PatchOutput, advance, generate_patch
from .task import Segment, patch_seconds

# room in a slot at first beside its patches: text, and ten seconds of voice
PROMPT_TOKENS, VOICE_PATCHES = 1024, 100


@dataclass(frozen=True)
class PatchInput:
    """A row's part in the next patch: its schedule, whether it is guided, noise [S+1,1,P,C]."""

    row: int
    schedule: ops.FlowSchedule
    guided: bool
    noise: Tensor


@dataclass(frozen=True)
class TokenInput:
    """A row's part in the next tokens; noise [1,V], None at temperature 0."""

    row: int
    noise: Tensor | None


class ModelRunner:
    """State of `slots` sequences, and one patch for all of them, or a token of their text.

    `seconds` of speech fit into a slot at first; one longer sequence makes all of them longer. padded: every step
    computes all slots, in use or not, so every kernel sees the same shapes whoever else is there. flows: whose graphs
    are captured, where `graphs` captures. lookahead: steps of a sequence that may be launched after it has ended.
    """

    shared = True  # by many sequences, so their requests must be alike
    launches_ahead = False  # the second half of a step, before the results of the first are looked at

    def __init__(
        self,
        model,
        slots: int,
        *,
        seconds: float,
        graphs: Graphs,
        padded: bool = False,
        flows: Sequence[FlowParams] = (FlowParams(),),
        lookahead: int = 0,
    ):
        self.model, self.slots, self.graphs = model, slots, graphs
        self.static = padded or graphs.used
        self._schedules = tuple({flow.schedule for flow in flows})
        patches = math.ceil(seconds / patch_seconds(model.config))
        self._frames = model.config.patch_frames
        self.state: BatchState = BatchState.create(
            model, slots, tokens=patches + PROMPT_TOKENS, frames=(patches + VOICE_PATCHES) * self._frames, text=True
        )
        self.state.ensure(tokens=0, frames=0, patches=patches)
        self._padded = padded
        self._spare = 2 * lookahead  # steps launched behind the end of text, and behind the end of sound
        self._views: dict[int, BatchState] = {}
        self._flow_noise: dict[ops.FlowSchedule, Tensor] = {}
        self._sampling_noise: Tensor | None = None
        if self.static:
            size = (slots, model.config.llm.vocab_size)
            self._sampling_noise = torch.ones(size, dtype=torch.float32, device=model.llm.device)
        self._active = [False] * slots
        # on a GPU without graphs as well, so that they change no bit
        by_graphs = graphs.used or model.llm.device.type == "cuda"
        self._prefill = GraphPrefillRunner(model, graphs) if by_graphs else None
        self._capture()

    def bucket(self, used: int) -> int:
        """How many rows a step computes when the first `used` are in use."""
        if self._padded:
            return self.slots
        return min(1 << (used - 1).bit_length(), self.slots) if self.graphs.used else used

    def fits(self, segment: Segment) -> bool:
        """Whether a segment fits into a slot as it is."""
        tokens, frames, patches = self._needs(segment)
        states = self.state.llm, self.state.semantic, self.state.decoder.backbone
        wanted = zip(states, (tokens, frames, patches * self._frames))
        return all(s.capacity is None or size <= s.capacity for s, size in wanted)

    def reserve(self, segment: Segment) -> None:
        """Room for a segment; where memory moved, graphs are captured anew."""
        before = self.memory()
        tokens, frames, patches = self._needs(segment)
        try:
            self.state.ensure(tokens=tokens, frames=frames, patches=patches)
        finally:
            # also when only a part of it could be had
            if self.memory() != before:
                self._views.clear()
                self.graphs.clear()
                self._capture()

    def _needs(self, segment: Segment) -> tuple[int, int, int]:
        """Tokens, frames and patches of a segment."""
        patches = segment.max_patches + self._spare if segment.max_patches else 0
        return segment.max_tokens + self._spare, segment.audio_frames + patches * self._frames, patches

    def memory(self) -> list[int]:
        """Where the caches are."""
        states = (self.state.llm, self.state.semantic, self.state.decoder.backbone)
        return [t.data_ptr() for s in states for t in (*s.keys, *s.values)]

    def prefill_target(self, row: int, segment: Segment) -> PrefillTarget:
        """Where the prompt of `row` is run into.

        The state set apart for graphs, as far as it reaches; else the row, without its semantic state where no patches
        will follow.
        """
        self.reserve(segment)
        self.clear(row)
        runner = self._prefill
        if runner is not None and runner.fits(len(segment.prompt.ids), audio_frames(self.model, segment.prompt)):
            return PrefillTarget(*runner.start(), runner)
        state = self.state.rows(row, row + 1)
        return PrefillTarget(state.llm, state.semantic if segment.max_patches else None)

    def begin(self, row: int, result: PrefillResult, segment: Segment, guidance: float) -> None:
        """A segment begins in `row`, whose prompt was run into its `prefill_target`."""
        filled = [(self.state.llm, result.llm)]
        if segment.max_patches:
            filled.append((self.state.semantic, result.semantic))
        for state, other in filled:
            if self._prefill is not None and self._prefill.owns(other):
                state.take(row, other)
            state.bounds[row] = other.bounds[0]
        self._begin(row, result, segment, guidance)

    def _begin(self, row: int, result: PrefillResult, segment: Segment, guidance: float) -> None:
        if segment.text is not None:
            self.state.begin_text(row, result.hidden, segment.text)
        else:
            self.state.begin_patches(row, result.hidden, result.history, segment.limits, guidance)
        self._active[row] = True

    def force(self, row: int, token: int) -> None:
        """The text of `row` has ended; its next token is this one, and no part of the text."""
        self.state.text.force(row, token)

    def begin_patches(self, row: int, limits: PatchLimits, guidance: float) -> None:
        """The sequence in `row`, whose text has been fed to the LLM, goes on with patches."""
        self.state.text.clear(row)
        history = torch.zeros_like(self.state.history[:1])
        self.state.begin_patches(row, self.state.hidden[row : row + 1], history, limits, guidance)
        self._active[row] = True

    def clear(self, row: int) -> None:
        """`row` is free."""
        self.state.clear(row)
        self._active[row] = False

    def move(self, source: int, target: int) -> None:
        """The sequence in row `source` goes on in row `target`."""
        self.state.move(source, target)
        self._active[target], self._active[source] = self._active[source], False

    def set_active(self, rows: set[int]) -> None:
        """These rows take part in the next step."""
        for row, before in enumerate(self._active):
            if (row in rows) != before:
                self.state.active[row] = self._active[row] = row in rows

    def generate_patch(self, n: int, inputs: Sequence[PatchInput]) -> PatchOutput:
        """The first half of a step for rows 0..n-1: a patch of those in `inputs`."""
        view = self.view(n)
        full = not self.static and not self.launches_ahead and len(inputs) == n
        groups = self._groups_of_all(n, inputs) if self.static else self._groups(n, inputs)
        key = ("patch", n, groups[0].schedule if len(groups) == 1 else None)
        with ops.batch_invariant(self._padded):
            return self.graphs.run(key, lambda: generate_patch(self.model, view, groups, full=full))

    def sample_tokens(self, n: int, inputs: Sequence[TokenInput]) -> SampledTokens:
        """The first half of a step for rows 0..n-1: a token of those in `inputs`."""
        view, noise, rows = self.view(n), None, None
        if self.static:
            for entry in inputs:
                if entry.noise is not None:
                    self._sampling_noise[entry.row].copy_(entry.noise[0], non_blocking=True)
            noise = self._sampling_noise[:n]
        else:
            some = next((entry.noise for entry in inputs if entry.noise is not None), None)
            if some is not None:
                ones = torch.ones_like(some)
                noise = torch.cat([ones if entry.noise is None else entry.noise for entry in inputs])
            if len(inputs) < n:
                rows = torch.tensor([entry.row for entry in inputs], device=self.model.llm.device)
        with ops.batch_invariant(self._padded):
            return self.graphs.run(("tokens", n), lambda: sample_tokens(self.model, view, noise, rows))

    def advance(self, n: int, patches: set[int], tokens: set[int], *, full: bool = False) -> None:
        """The second half, behind a patch or a token of these rows. full: the host knows that all n rows go on."""
        view, full = self.view(n), full and not self.static
        kinds = bool(patches), bool(tokens)
        with ops.batch_invariant(self._padded):
            self.graphs.run(
                ("advance", n, *kinds), lambda: advance(self.model, view, full=full, patches=kinds[0], tokens=kinds[1])
            )
        self.state.count_step(*([row in rows for row in range(self.slots)] for rows in (patches, tokens)))

    def view(self, n: int) -> BatchState:
        """Rows 0..n-1, with the host's bounds of now."""
        view = self._views.get(n)
        if view is None:
            view = self._views[n] = self.state.rows(0, n)
        for name in ("llm", "semantic"):
            getattr(view, name).bounds[:] = getattr(self.state, name).bounds[:n]
        view.decoder.backbone.bounds[:] = self.state.decoder.backbone.bounds[:n]
        return view

    def _groups(self, n: int, inputs: Sequence[PatchInput]) -> list[FlowGroup]:
        """Groups of the rows that take part alone."""
        groups = []
        for schedule, members in _by_schedule(inputs).items():
            noise = [member.noise for member in members]
            noise = noise[0] if len(noise) == 1 else torch.cat(noise, dim=1)
            rows = None
            if len(members) < n:
                rows = torch.tensor([member.row for member in members], device=self.model.llm.device)
            groups.append(FlowGroup(schedule, any(member.guided for member in members), noise, rows))
        return groups

    def _groups_of_all(self, n: int, inputs: Sequence[PatchInput]) -> list[FlowGroup]:
        """Groups of all n rows, their noise in buffers that stay in place."""
        groups, parts = [], _by_schedule(inputs)
        for schedule, members in parts.items():
            noise = self._noise_buffer(schedule)
            for member in members:
                noise[:, member.row].copy_(member.noise[:, 0], non_blocking=True)
            mask = None
            if len(parts) > 1:
                kept = {member.row for member in members}
                mask = torch.tensor([row in kept for row in range(n)], device=noise.device)
            groups.append(FlowGroup(schedule, True, noise[:, :n], mask=mask))
        return groups

    def _noise_buffer(self, schedule: ops.FlowSchedule) -> Tensor:
        buffer = self._flow_noise.get(schedule)
        if buffer is None:
            for old in [s for s in self._flow_noise if s not in self._schedules]:
                del self._flow_noise[old]
            config = self.model.config
            shape = (schedule.steps + 1, self.slots, config.patch_frames, config.latent_dim)
            buffer = self._flow_noise[schedule] = torch.zeros(shape, dtype=torch.float32, device=self.model.llm.device)
        return buffer

    def _capture(self) -> None:
        """Graphs of all parts for every bucket and schedule; no row is active, so they leave no trace."""
        if not self.graphs.used:
            return
        active = list(self._active)
        self.set_active(set())
        self.state.alive.zero_()  # rows that were alive have advanced already
        sizes = sorted({self.bucket(used) for used in range(1, self.slots + 1)}, reverse=True)
        for n in sizes:
            with ops.batch_invariant(self._padded):
                self._capture_step(n)
        self._prefill.capture()
        self.set_active({row for row, was_active in enumerate(active) if was_active})

    def _capture_step(self, n: int) -> None:
        view, packed = self.view(n), self.model.flow.packed
        for schedule in self._schedules:
            groups = [FlowGroup(schedule, True, self._noise_buffer(schedule)[:, :n])]
            # constants that the head keeps in a bounded cache
            tokens = 1 + 2 * self._frames
            keep = (packed.times(schedule), packed.steps(schedule), packed.rope(tokens))
            self.graphs.add(("patch", n, schedule), partial(generate_patch, self.model, view, groups), keep)
        self.graphs.add(("tokens", n), partial(sample_tokens, self.model, view, self._sampling_noise[:n]))
        for patches, tokens in ((True, False), (True, True), (False, True)):
            half = partial(advance, self.model, view, patches=patches, tokens=tokens)
            self.graphs.add(("advance", n, patches, tokens), half)


class SingleRunner(ModelRunner):
    """The runner of one sequence by itself: its prompt makes states sized for the request, which grow as they fill.

    So any request can be run, with any context, and nothing is held between two segments.
    """

    shared = False

    def __init__(self, model):
        self.model, self.slots, self.graphs = model, 1, Graphs(None)
        self.static = self._padded = False
        self.state: BatchState | None = None
        self._active = [False]
        # a GPU is kept busy while the host waits for a patch; on a CPU the sound goes out first
        self.launches_ahead = model.llm.device.type == "cuda"

    def fits(self, segment: Segment) -> bool:
        return True

    def prefill_target(self, row: int, segment: Segment) -> PrefillTarget:
        self.state = None
        return ALONE

    def begin(self, row: int, result: PrefillResult, segment: Segment, guidance: float) -> None:
        with_patches = segment.max_patches > 0
        self.state = BatchState.over(
            self.model,
            result.llm,
            result.semantic if with_patches else None,
            hidden=result.hidden.clone(),
            decode=with_patches,
            text=segment.text is not None,
        )
        self._begin(row, result, segment, guidance)

    def begin_patches(self, row: int, limits: PatchLimits, guidance: float) -> None:
        super().begin_patches(row, limits, guidance)
        self.state.text = None

    def clear(self, row: int) -> None:
        self.state, self._active[row] = None, False

    def view(self, n: int) -> BatchState:
        return self.state


def _by_schedule(inputs: Sequence[PatchInput]) -> dict[ops.FlowSchedule, list[PatchInput]]:
    parts: dict[ops.FlowSchedule, list[PatchInput]] = {}
    for entry in inputs:
        parts.setdefault(entry.schedule, []).append(entry)
    return parts


def check_slots(slots: int) -> int:
    """A number of slots, or InputError."""
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 1024:
        raise InputError(f"slots: must be a whole number from 1 to 1024, got {slots!r}")
    return slots
