"""Several requests at once: continuous batching over fixed slots.

Requests wait in order, take a slot when one is free, run in step with whoever else is there, and
leave between two patches. What goes wrong with one of them, or what its consumer does not take,
is its own affair: an error ends it alone, and a full outlet makes its row sit out.

Everything here runs on the caller's thread. On a GPU patches are launched up to `ahead` before the
results of earlier ones are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from . import generate
from .faults import Fault
from .generate import Context
from .graphs import Graphs, graphs_for
from .params import AS_REFERENCE, FlowParams
from .slots import Slots, Turn, check_slots
from .speaking import Segment, Speaking, SpeechRequest, say
from .step import Landing

AHEAD_ON_GPU = 2
SLOT_SECONDS = 90.0


class Outlet(Protocol):
    """Where a request's results go; `end` is the last call, and nothing follows it."""

    def room(self) -> int:
        """How many more pieces would be taken now."""

    def put(self, piece: Any) -> None:
        """A piece of the result."""

    def end(self, error: BaseException | None) -> None:
        """It is complete, or what went wrong."""


@dataclass(eq=False)
class Job:
    """A request in the engine. `work`: speech, or an iterator that is taken one piece at a time.

    filling: the prompt that is being run; `due`: the size of its next piece. begun: it is done, and
    patches are made.
    """

    work: SpeechRequest | Iterator[Any]
    outlet: Outlet
    speaking: Speaking | None = None
    segment: Segment | None = None
    filling: Iterator[int | Context] | None = None
    due: int = 0
    begun: bool = False
    row: int | None = None
    in_flight: int = 0
    over: bool = False


@dataclass
class _Flight:
    """A patch that was launched: whose rows, and where each one's draws stood before it."""

    rows: list[tuple[int, Job, Any]]
    landing: Landing


class Engine:
    """`submit` requests, then `tick` while it says True; or `cancel` them.

    slots: how many speak at once. ahead: patches launched before the host has looked at earlier
    ones (None: 2 on a GPU, 0 on a CPU, where sound goes out before the next hidden state is
    computed). batch_invariant: a request's bits never depend on who else is there, or was: every
    step computes all slots, under `ops.batch_invariant`. On the backends "cpu" and "reference" they
    do not depend on the number of slots either. GPU kernels go by the shapes that they see, so
    there it holds among engines of as many slots, whose memory has not grown: `seconds` should be
    those of the longest run. Without this mode it holds on the CPU's kernels all the same (below
    64 slots, where `moe_mlp` in bfloat16 has one product on every CPU), but not by PyTorch's
    formulas, which agree to rounding.
    """

    def __init__(
        self,
        model,
        slots: int = 8,
        *,
        seconds: float = SLOT_SECONDS,
        ahead: int | None = None,
        batch_invariant: bool = False,
        graphs: Graphs | bool = True,
        flows: Sequence[FlowParams] = (FlowParams(),),
    ):
        self.model = model
        if not isinstance(graphs, Graphs):
            graphs = graphs_for(model.llm.device, graphs)
        on_gpu = model.llm.device.type == "cuda"
        self._ahead = (AHEAD_ON_GPU if on_gpu else 0) if ahead is None else ahead
        with torch.no_grad():
            self.slots = Slots(
                model,
                check_slots(slots),
                seconds=seconds,
                graphs=graphs,
                padded=batch_invariant,
                flows=flows,
            )
        self._rows: list[Job | None] = [None] * slots
        self._waiting: deque[Job] = deque()
        self._prompts: deque[Job] = deque()
        self._others: list[Job] = []
        self._flying: deque[_Flight] = deque()
        self._leaving: set[int] = set()

    @property
    def jobs(self) -> list[Job]:
        """All that is not over."""
        return [*(job for job in self._rows if job), *self._waiting, *self._others]

    def submit(self, work: SpeechRequest | Iterator[Any], outlet: Outlet) -> Job:
        """Speech waits for a slot; anything else is an iterator, of which each tick takes one.

        So is speech whose context departs from the reference's: slots are alike.
        """
        if isinstance(work, SpeechRequest) and work.context != AS_REFERENCE:
            work = say(self.model, work)
        job = Job(work, outlet)
        (self._waiting if isinstance(work, SpeechRequest) else self._others).append(job)
        return job

    @torch.no_grad()
    def cancel(self, job: Job) -> None:
        """Its slot is free at once; its outlet hears nothing more."""
        if not job.over:
            self._drop(job)
            self._settle()

    @torch.no_grad()
    def tick(self) -> bool:
        """One round: at most one request joins, one piece of a prompt, one patch of all. False:
        nothing can be done now, until something is submitted, taken or cancelled."""
        busy = False
        for job in list(self._others):
            busy |= self._other(job)
        busy |= self._admit()
        busy |= self._prompt()
        launched = self._launch()
        while self._flying and (len(self._flying) > self._ahead or not launched):
            self._retire(self._land(self._flying.popleft()))
            busy = True
        return busy or launched

    def close(self) -> None:
        """Cancels everything."""
        for job in self.jobs:
            self.cancel(job)
        self._flying.clear()

    def _other(self, job: Job) -> bool:
        if job.outlet.room() < 1:
            return False
        with Fault(lambda error: self._finish(job, error)):
            piece = next(job.work, job)
            if piece is job:
                self._finish(job)
            else:
                job.outlet.put(piece)
        return True

    def _admit(self) -> bool:
        """The request that waits longest takes a free slot; its prompt runs between patches."""
        if not self._waiting or None not in self._rows:
            return False
        job = self._waiting.popleft()
        job.row = self._rows.index(None)
        self._rows[job.row] = job
        with Fault(lambda error: self._finish(job, error)):
            job.speaking = Speaking(self.model, job.work)
            self._start(job)
        self._settle()
        return True

    def _start(self, job: Job) -> None:
        """The job's next segment queues for its prompt to be run, or the job is finished."""
        job.begun, job.segment = False, job.speaking.next()
        if job.segment is None:
            self._finish(job)
        else:
            self._prompts.append(job)

    def _prompt(self) -> bool:
        """Up to a piece of the prompt that waits longest: the patches of others wait no longer.

        One at a time, so that nothing moves the memory that it is run into.
        """
        if not self._prompts:
            return False
        job = self._prompts[0]
        with Fault(lambda error: self._finish(job, error)):
            if job.filling is None:
                job.filling, job.due = self._filling(job), 0
            done = job.due
            while not isinstance(piece := next(job.filling), Context):
                job.due = piece
                if done and done + piece > generate.PIECE:
                    return True
                done += piece
            self._begin(job, piece)
        self._settle()
        return True

    def _filling(self, job: Job) -> Iterator[int | Context]:
        segment, voice = job.segment, job.work.latents.shape[1]
        tokens = len(segment.prompt.ids)
        self.slots.fit(tokens, voice, max(segment.limits.most, 1))
        llm, semantic, reader = self.slots.desk(job.row, tokens, voice)
        return job.speaking.filling(segment, llm, semantic, reader)

    def _begin(self, job: Job, context: Context) -> None:
        self._prompts.popleft()
        job.filling, job.begun = None, True
        self.slots.begin(job.row, context, job.segment.limits, job.work.flow.guidance)

    def _launch(self) -> bool:
        """One patch of every row whose outlet has room for it."""
        going: list[tuple[int, Job, Any]] = []
        turns = []
        for row, job in enumerate(self._rows):
            if job is None or not job.begun or not self._has_room(job):
                continue
            with Fault(lambda error, job=job: self._finish(job, error)) as fault:
                mark = job.speaking.noise.mark() if self._ahead else None
                turns.append(self._turn(row, job))
            if not fault.happened:
                going.append((row, job, mark))
        self._settle()
        if not going:
            return False
        with Fault(self._fail_all):
            self._step(going, turns)
        return True

    def _turn(self, row: int, job: Job) -> Turn:
        flow, config = job.work.flow, self.model.config
        noise = job.speaking.noise.patch(1, config.patch_frames, config.latent_dim, flow.steps)
        return Turn(row, flow.schedule, flow.guidance != 0, noise)

    def _has_room(self, job: Job) -> bool:
        """Whether a patch more would be taken; the job's clock rests while not."""
        room = job.outlet.room() > job.in_flight
        if room:
            job.speaking.meter.go_on()
        elif not job.in_flight:
            job.speaking.meter.pause()
        return room

    def _step(self, going: list[tuple[int, Job, Any]], turns: list[Turn]) -> None:
        slots, taken = self.slots, {row for row, _, _ in going}
        n = slots.bucket(max(taken) + 1)
        slots.take_turns(taken)
        out = slots.emit(n, turns)
        flight = _Flight(going, Landing(out, kept=not slots.graphs.used))
        for _, job, _ in going:
            job.in_flight += 1
        if self._ahead:
            slots.advance(n, taken)
            self._flying.append(flight)
            return
        ended = self._land(flight)
        if len(ended) < len(going):
            slots.advance(n, taken, full=not ended and len(going) == n)
        self._retire(ended)

    def _land(self, flight: _Flight) -> list[Job]:
        """The sound of a patch goes out -> the jobs whose run ended with it."""
        landed, ended = flight.landing.wait(), []
        for row, job, _ in flight.rows:
            job.in_flight -= 1
            if job.over:
                continue
            samples = landed.samples[row, : landed.counts[row]].copy()
            last, stopped = landed.ended[row], landed.stopped[row]
            with Fault(lambda error, job=job: self._finish(job, error)) as fault:
                job.outlet.put(job.speaking.deliver(samples, last=last, stopped=stopped))
            if last and not fault.happened:
                self._recall(job)
                ended.append(job)
        return ended

    def _recall(self, job: Job) -> None:
        """The job's run has ended: patches of it that were launched since never came to be."""
        marks = []
        for flight in self._flying:
            marks += [mark for _, other, mark in flight.rows if other is job]
            flight.rows = [entry for entry in flight.rows if entry[1] is not job]
        if marks:
            job.speaking.noise.rewind(marks[0])
        job.in_flight = 0

    def _retire(self, ended: Iterable[Job]) -> None:
        """Jobs whose run has ended go on with their next segment, or leave."""
        for job in ended:
            if not job.over:
                with Fault(lambda error, job=job: self._finish(job, error)):
                    self._start(job)
        self._settle()

    def _finish(self, job: Job, error: BaseException | None = None) -> None:
        if job.over:
            return
        self._drop(job)
        job.outlet.end(error)

    def _drop(self, job: Job) -> None:
        job.over = True
        if job.speaking is not None:
            job.speaking.meter.pause()
        if job in self._prompts:
            self._prompts.remove(job)
            job.filling = None
        if job.row is not None:
            self._rows[job.row] = None
            self._leaving.add(job.row)
        elif job in self._waiting:
            self._waiting.remove(job)
        elif job in self._others:
            self._others.remove(job)
        if isinstance(job.work, Iterator) and hasattr(job.work, "close"):
            job.work.close()

    def _settle(self) -> None:
        """Slots that were left are cleared, and those in use become the first ones again.

        Only between patches: not while one is half computed.
        """
        for row in self._leaving:
            self.slots.clear(row)
        self._leaving.clear()
        while None in self._rows:
            free = self._rows.index(None)
            # a row whose prompt is being run stays where it is until then
            used = [row for row, job in enumerate(self._rows) if job and job.filling is None]
            if not used or used[-1] < free:
                return
            job = self._rows[used[-1]]
            self.slots.move(used[-1], free)
            self._rows[free], self._rows[used[-1]] = job, None
            job.row = free

    def _fail_all(self, error: Exception) -> None:
        """A step itself failed: whose rows they are cannot go on; those that wait can."""
        for job in [job for job in self._rows if job]:
            self._finish(job, error)
        self._flying.clear()
        self._settle()
