"""Several requests at once: continuous batching over fixed slots.

Requests wait in order, take a slot when one is free, run in step with whoever else is there, and
leave between two patches. A step is a patch of those that speak and a token of those that write.
What goes wrong with one of them, or what its consumer does not take,
is its own affair: an error ends it alone, and a full outlet makes its row sit out.

Everything here runs on the caller's thread. On a GPU patches are launched up to `ahead` before the
results of earlier ones are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from . import prefill
from .graphs import Graphs, graphs_for
from .isolation import Fault
from .model_runner import Slots, Token, Turn, check_slots
from .params import AS_REFERENCE, FlowParams
from .prefill import Context
from .requests import REQUESTS, Request, alone, new_run
from .sequence import Flight, Job, Outlet
from .step import Landed, Landing

AHEAD_ON_GPU = 2
SLOT_SECONDS = 90.0


class Engine:
    """`submit` requests, then `tick` while it says True; or `cancel` them.

    slots: how many share a step. seconds: of speech that fits into one at first. ahead: steps
    launched before the host has looked at earlier ones (None: 2 on a GPU, 0 on a CPU, where sound
    goes out before the next hidden state is computed). batch_invariant: a request's bits never
    depend on who else is there, or was: every step computes all slots, under `ops.batch_invariant`.
    On the backends "cpu" and "reference" they do not depend on the number of slots either. GPU
    kernels go by the shapes that they see, so there it holds among engines of as many slots, whose
    memory has not grown: `seconds` should be those of the longest run. Without this mode it holds
    on the CPU's kernels all the same (below 64 slots, where `moe_mlp` in bfloat16 has one product
    on every CPU), but not by PyTorch's formulas, which agree to rounding.
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
                spare=2 * self._ahead,  # of text that has ended, and of sound
            )
        self._rows: list[Job | None] = [None] * slots
        self._waiting: deque[Job] = deque()
        self._prompts: deque[Job] = deque()
        self._others: list[Job] = []
        self._flying: deque[Flight] = deque()
        self._leaving: set[int] = set()

    @property
    def jobs(self) -> list[Job]:
        """All that is not over."""
        return [*(job for job in self._rows if job), *self._waiting, *self._others]

    def submit(self, work: Request | Iterator[Any], outlet: Outlet) -> Job:
        """A request waits for a slot; anything else is an iterator, of which each tick takes one.

        So is a request whose context departs from the reference's: slots are alike. And so becomes
        a recording, or an edit of one, that does not fit into a slot; for speech they grow.
        """
        job = Job(work, outlet)
        if not isinstance(work, REQUESTS):
            self._others.append(job)
        elif getattr(work, "context", AS_REFERENCE) != AS_REFERENCE:
            job.work = alone(self.model, work)
            self._others.append(job)
        else:
            self._waiting.append(job)
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
            self._retire(self._land(self._flying.popleft())[0])
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
            elif piece is not None:
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
            job.run = new_run(self.model, job.work)
            self._start(job)
        self._settle()
        return True

    def _start(self, job: Job) -> None:
        """The job's next segment queues for its prompt to be run, or the job is finished."""
        job.begun, job.segment = False, job.run.next()
        if job.segment is None:
            self._finish(job)
        elif job.segment.text is not None and not self.slots.holds(job.segment):
            self._aside(job)
        else:
            self._prompts.append(job)

    def _aside(self, job: Job) -> None:
        """It is too long for a slot, and runs beside them."""
        self._leave(job)
        job.work, job.run = alone(self.model, job.work), None
        self._others.append(job)

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
                if done and done + piece > prefill.PIECE:
                    return True
                done += piece
            self._begin(job, piece)
        self._settle()
        return True

    def _filling(self, job: Job) -> Iterator[int | Context]:
        self.slots.fit(job.segment)
        heard = prefill.heard_frames(self.model, job.segment.prompt)
        llm, semantic, reader = self.slots.desk(job.row, job.segment, heard)
        return job.run.filling(job.segment, llm, semantic, reader)

    def _begin(self, job: Job, context: Context) -> None:
        self._prompts.popleft()
        job.filling, job.begun, job.writing = None, True, job.segment.text is not None
        self.slots.begin(job.row, context, job.segment, job.run.flow.guidance)

    def _launch(self) -> bool:
        """One patch, or one token, of every row whose outlet has room for it."""
        patches: list[tuple[int, Job, Any]] = []
        tokens: list[tuple[int, Job, bool]] = []
        turns, draws = [], []
        for row, job in enumerate(self._rows):
            if job is None or not job.begun or not self._has_room(job):
                continue
            with Fault(lambda error, job=job: self._finish(job, error)):
                if job.writing:
                    draws.append(self._token(row, job))
                    tokens.append((row, job, job.given is not None))
                else:
                    mark = job.run.noise.mark() if self._ahead else None
                    turns.append(self._turn(row, job))
                    patches.append((row, job, mark))
        self._settle()
        if not patches and not tokens:
            return False
        with Fault(self._fail_all):
            self._step(Flight(patches, tokens, None, None), turns, draws)
        return True

    def _turn(self, row: int, job: Job) -> Turn:
        flow, config = job.run.flow, self.model.config
        noise = job.run.noise.patch(1, config.patch_frames, config.latent_dim, flow.steps)
        return Turn(row, flow.schedule, flow.guidance != 0, noise)

    def _token(self, row: int, job: Job) -> Token:
        return Token(row, None if job.given is not None else job.run.draws())

    def _has_room(self, job: Job) -> bool:
        """Whether a patch more would be taken; the job's clock rests while not."""
        room = job.outlet.room() > job.in_flight
        if room:
            job.run.meter.go_on()
        elif not job.in_flight:
            job.run.meter.pause()
        return room

    def _step(self, flight: Flight, turns: list[Turn], draws: list[Token]) -> None:
        slots, kept = self.slots, not self.slots.graphs.used
        spoke = {row for row, _, _ in flight.patches}
        wrote = {row for row, _, _ in flight.tokens}
        n = slots.bucket(max(spoke | wrote) + 1)
        slots.take_turns(spoke | wrote)
        if turns:
            flight.sound = Landing.of(slots.emit(n, turns), kept=kept)
        if draws:
            out = slots.pick(n, draws)
            flight.text = Landing(out.token, out.ended, out.stopped, kept=kept)
        for _, job, _ in (*flight.patches, *flight.tokens):
            job.in_flight += 1
        if self._ahead:
            slots.advance(n, spoke, wrote)
            self._flying.append(flight)
        else:
            ended, going = self._land(flight)
            if going:
                slots.advance(n, spoke, wrote, full=going == n)
        for row, job, given in flight.tokens:
            if given and not job.over:
                slots.speak(row, job.segment.limits, job.run.flow.guidance)
                job.writing, job.given = False, None
        if not self._ahead:
            self._retire(ended)

    def _land(self, flight: Flight) -> tuple[list[Job], int]:
        """Sound and text of a step go out -> the jobs whose run ended with it, how many go on."""
        ended, going = [], 0
        if flight.sound is not None:
            landed = flight.sound.patch()
            for row, job, _ in flight.patches:
                job.in_flight -= 1
                going += not landed.ended[row]
                if not job.over and self._put_sound(row, job, landed):
                    ended.append(job)
        if flight.text is not None:
            token, last, stopped = (t.tolist() for t in flight.text.wait())
            for row, job, given in flight.tokens:
                job.in_flight -= 1
                speaks = job.segment.text.then is not None
                going += given or not last[row] or (speaks and not stopped[row])
                if job.over or given:
                    continue
                if self._put_text(job, token[row], last[row], stopped[row]):
                    ended.append(job)
        return ended, going

    def _put_sound(self, row: int, job: Job, landed: Landed) -> bool:
        """The sound of a patch goes out; whether the run ended with it."""
        samples = landed.samples[row, : landed.counts[row]].copy()
        last, stopped = landed.ended[row], landed.stopped[row]
        with Fault(lambda error: self._finish(job, error)) as fault:
            job.outlet.put(job.run.deliver(samples, last=last, stopped=stopped))
        if last and not fault.happened:
            self._recall(job)
        return last and not fault.happened

    def _put_text(self, job: Job, token: int, last: bool, stopped: bool) -> bool:
        """What a token completes goes out; whether the run ended with it."""
        with Fault(lambda error: self._finish(job, error)) as fault:
            for piece in job.run.wrote(token, last=last, stopped=stopped):
                job.outlet.put(piece)
        if not last or fault.happened:
            return False
        self._recall(job)
        if job.segment.text.then is None:
            return True
        job.given = job.segment.text.then
        self.slots.force(job.row, job.given)
        return False

    def _recall(self, job: Job) -> None:
        """The job's text or sound has ended: what was launched of it since never came to be."""
        marks = []
        for flight in self._flying:
            marks += [mark for _, other, mark in flight.patches if other is job]
            flight.patches = [entry for entry in flight.patches if entry[1] is not job]
            flight.tokens = [entry for entry in flight.tokens if entry[1] is not job]
        if marks:
            job.run.noise.rewind(marks[0])
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
        if job.run is not None:
            job.run.meter.pause()
        if job in self._prompts:
            self._prompts.remove(job)
            job.filling = None
        if job.row is not None:
            self._leave(job)
        elif job in self._waiting:
            self._waiting.remove(job)
        elif job in self._others:
            self._others.remove(job)
        if isinstance(job.work, Iterator) and hasattr(job.work, "close"):
            job.work.close()

    def _leave(self, job: Job) -> None:
        self._rows[job.row] = None
        self._leaving.add(job.row)
        job.row = None

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
