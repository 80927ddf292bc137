"""The engine: the one driver of all sequences, `schedule -> run -> postprocess` for each step.

Requests wait in order, take a slot when one is free, run in step with whoever else is there, and leave between two
steps (continuous batching). A step is a patch of the sequences that speak and a token of those that write. What goes
wrong with one of them, or what its consumer does not take, is its own affair: an error ends it alone (error
isolation), and a full output sink makes it sit out. A single request is the case of one sequence (single.py).

Everything here runs on the caller's thread. On a GPU steps are launched up to `lookahead` before the results of
earlier ones are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch

from . import prefill
from .graphs import Graphs, graphs_for
from .host_copy import AsyncHostCopy, HostPatch
from .isolation import ErrorIsolation
from .model_runner import ModelRunner, PatchInput, SingleRunner, TokenInput, check_slots
from .params import AS_REFERENCE, FlowParams
from .requests import Request, new_task
from .scheduler import Scheduler
from .sequence import Call, InFlightStep, OutputSink, PatchEntry, Sequence, TokenEntry
from .task import Patch, Task

GPU_LOOKAHEAD = 2
SLOT_SECONDS = 90.0


class Engine:
    """`submit` requests, then `step` while it says True; or `cancel` them.

    slots: how many share a step. seconds: of speech that fits into one at first. lookahead: steps launched before the
    host has looked at earlier ones (None: 2 on a GPU, 0 on a CPU, where sound goes out before the next hidden state is
    computed). batch_invariant: a request's bits never depend on who else is there, or was: every step computes all
    slots, under `ops.batch_invariant`. On the backends "cpu" and "reference" they do not depend on the number of slots
    either. GPU kernels go by the shapes that they see, so there it holds among engines of as many slots, whose memory
    has not grown: `seconds` should be those of the longest sequence. Without this mode it holds on the CPU's kernels
    all the same (below 64 slots, where `moe_mlp` in bfloat16 has one product on every CPU), but not by PyTorch's
    formulas, which agree to rounding.
    """

    def __init__(
        self,
        model,
        slots: int = 8,
        *,
        seconds: float = SLOT_SECONDS,
        lookahead: int | None = None,
        batch_invariant: bool = False,
        graphs: Graphs | bool = True,
        flows: SequenceOf[FlowParams] = (FlowParams(),),
    ):
        if not isinstance(graphs, Graphs):
            graphs = graphs_for(model.llm.device, graphs)
        if lookahead is None:
            lookahead = GPU_LOOKAHEAD if model.llm.device.type == "cuda" else 0
        with torch.no_grad():
            runner = ModelRunner(
                model,
                check_slots(slots),
                seconds=seconds,
                graphs=graphs,
                padded=batch_invariant,
                flows=flows,
                lookahead=lookahead,
            )
        self._set_up(model, runner, lookahead)

    @classmethod
    def single(cls, model) -> Engine:
        """An engine of one sequence, whose states are sized for its request and grow as they fill."""
        engine = cls.__new__(cls)
        engine._set_up(model, SingleRunner(model), 0)
        return engine

    def _set_up(self, model, runner: ModelRunner, lookahead: int) -> None:
        self.model, self.runner = model, runner
        self._lookahead = lookahead
        self._launches_ahead = lookahead > 0 or runner.launches_ahead
        self._scheduler = Scheduler(runner.slots)
        self._unbatched: list[Sequence] = []
        self._in_flight: deque[InFlightStep] = deque()
        self._half_done: InFlightStep | None = None

    @property
    def sequences(self) -> list[Sequence]:
        """All that have not finished."""
        return [*self._scheduler.sequences, *self._unbatched]

    def submit(self, work: Request | Task | Call, sink: OutputSink) -> Sequence:
        """A request waits for a slot; a `Call` runs beside the batch.

        So does a request whose context departs from the reference's, as slots are alike; and so will a recording, or
        an edit of one, that does not fit into a slot. For speech slots grow.
        """
        sequence = Sequence(work, sink)
        if isinstance(work, Call):
            self._unbatched.append(sequence)
        elif self.runner.shared and getattr(work, "context", AS_REFERENCE) != AS_REFERENCE:
            self._run_unbatched(sequence)
        else:
            self._scheduler.waiting.append(sequence)
        return sequence

    @torch.no_grad()
    def cancel(self, sequence: Sequence) -> None:
        """Its slot is free at once; its sink is not called any more."""
        if not sequence.finished:
            self._drop(sequence)
            self._scheduler.compact(self.runner)

    def close(self) -> None:
        """Cancels everything; what is half computed or in flight is forgotten."""
        self._half_done = None
        self._in_flight.clear()
        for sequence in self.sequences:
            self.cancel(sequence)

    def step(self) -> bool:
        """At most one request is admitted, one chunk of a prompt run, and one step of all launched. False: nothing can
        be done now, until something is submitted, taken or cancelled."""
        busy = self.generate()
        self.advance()
        return busy

    @torch.no_grad()
    def generate(self) -> bool:
        """The first half of `step`, behind which results have gone out; `advance` must follow."""
        busy = False
        for sequence in list(self._unbatched):
            busy |= self._step_unbatched(sequence)
        busy |= self._admit()
        busy |= self._prefill()
        launched = self._launch()
        while self._in_flight and (len(self._in_flight) > self._lookahead or not launched):
            self._postprocess(self._in_flight.popleft())
            busy = True
        return busy or launched

    @torch.no_grad()
    def advance(self) -> None:
        """The second half of `step`: the next hidden states, where they were not launched ahead."""
        step, self._half_done = self._half_done, None
        if step is None:
            return
        with ErrorIsolation(self._fail_all):
            if step.alive:
                self.runner.advance(step.n, *step.rows, full=step.alive == step.n)
            self._begin_patches(step)
        self._next_segments(step.ended)

    # ---- beside the batch

    def _run_unbatched(self, sequence: Sequence) -> None:
        """It runs by itself, one step a round: its context is its own, or it is too long for a slot."""
        if sequence.row is not None:
            self._scheduler.vacate(sequence)
        sequence.task, sequence.unbatched = None, Engine.single(self.model)
        sequence.unbatched.submit(sequence.work, sequence.sink)
        self._unbatched.append(sequence)

    def _step_unbatched(self, sequence: Sequence) -> bool:
        if sequence.sink.room() < 1:
            return False
        engine = sequence.unbatched
        if engine is None:
            with ErrorIsolation(lambda error: self._finish(sequence, error)):
                sequence.sink.put(sequence.work.function())
                self._finish(sequence)
            return True
        (inner,) = engine.sequences
        inner.resume()
        engine.step()
        inner.pause()
        if inner.finished:
            sequence.finished = True
            self._unbatched.remove(sequence)
        return True

    # ---- schedule

    def _admit(self) -> bool:
        """The request that waits longest takes a free slot; its prompt runs between steps."""
        sequence = self._scheduler.admit()
        if sequence is None:
            return False
        with ErrorIsolation(lambda error: self._finish(sequence, error)):
            sequence.task = new_task(self.model, sequence.work)
            self._next_segment(sequence)
        self._scheduler.compact(self.runner)
        return True

    def _next_segment(self, sequence: Sequence) -> None:
        """The prompt of the sequence's next segment queues, or the sequence is finished."""
        sequence.started, sequence.segment = False, sequence.task.next_segment()
        if sequence.segment is None:
            self._finish(sequence)
        elif sequence.segment.text is not None and not self.runner.fits(sequence.segment):
            self._run_unbatched(sequence)
        else:
            self._scheduler.prefilling.append(sequence)

    def _prefill(self) -> bool:
        """Chunked prefill: up to `prefill.CHUNK` of the prompt that waits longest, so that the patches of others wait
        no longer.

        One prompt at a time, so that nothing moves the memory that it is run into.
        """
        if not self._scheduler.prefilling:
            return False
        sequence = self._scheduler.prefilling[0]
        with ErrorIsolation(lambda error: self._finish(sequence, error)):
            if sequence.prefill is None:
                target = self.runner.prefill_target(sequence.row, sequence.segment)
                sequence.prefill = sequence.task.prefill(sequence.segment, target)
            done = 0
            while size := sequence.prefill.next_size:
                if done and done + size > prefill.CHUNK:
                    return True
                sequence.prefill.step()
                done += size
            self._start(sequence)
        self._scheduler.compact(self.runner)
        return True

    def _start(self, sequence: Sequence) -> None:
        """The prompt has been run: text or patches begin."""
        result, segment = sequence.prefill.finish(), sequence.segment
        self._scheduler.prefilling.popleft()
        sequence.prefill, sequence.started, sequence.patches = None, True, 0
        sequence.writing = segment.text is not None
        self.runner.begin(sequence.row, result, segment, sequence.task.flow.guidance)

    # ---- run

    def _launch(self) -> bool:
        """One patch, or one token, of every sequence that is scheduled."""
        step = InFlightStep(0, [], [])
        patches: list[PatchInput] = []
        tokens: list[TokenInput] = []
        for sequence in self._scheduler.schedule():
            with ErrorIsolation(lambda error, sequence=sequence: self._finish(sequence, error)):
                row, forced = sequence.row, sequence.forced is not None
                if sequence.writing:
                    tokens.append(TokenInput(row, None if forced else sequence.task.sampling_noise()))
                    step.tokens.append(TokenEntry(row, sequence, forced))
                else:
                    mark = sequence.task.noise.mark() if self._lookahead else None
                    patches.append(self._patch_input(sequence))
                    step.patches.append(PatchEntry(row, sequence, mark))
        if not step.patches and not step.tokens:
            self._scheduler.compact(self.runner)
            return False
        with ErrorIsolation(self._fail_all):
            self._run(step, patches, tokens)
        return True

    def _patch_input(self, sequence: Sequence) -> PatchInput:
        flow, config = sequence.task.flow, self.model.config
        noise = sequence.task.noise.patch(1, config.patch_frames, config.latent_dim, flow.steps)
        return PatchInput(sequence.row, flow.schedule, flow.guidance != 0, noise)

    def _run(self, step: InFlightStep, patches: list[PatchInput], tokens: list[TokenInput]) -> None:
        runner, stable = self.runner, not self.runner.graphs.used
        patch_rows, token_rows = step.rows
        step.n = runner.bucket(max(patch_rows | token_rows) + 1)
        runner.set_active(patch_rows | token_rows)
        if patches:
            if not runner.shared:
                step.inputs = runner.state.hidden.clone(), runner.state.history.clone()
            output = runner.generate_patch(step.n, patches)
            step.sound = AsyncHostCopy.of_patch(output, stable=stable)
            step.output = None if runner.shared else output
        if tokens:
            sampled = runner.sample_tokens(step.n, tokens)
            step.text = AsyncHostCopy(sampled.token, sampled.ended, sampled.stopped, stable=stable)
        for entry in (*step.patches, *step.tokens):
            entry.sequence.in_flight += 1
        if self._launches_ahead:
            runner.advance(step.n, patch_rows, token_rows)
            self._begin_patches(step)
        self._in_flight.append(step)

    def _begin_patches(self, step: InFlightStep) -> None:
        """Sequences whose text has been read to its end go on with patches."""
        for entry in step.tokens:
            sequence = entry.sequence
            if entry.forced and not sequence.finished:
                self.runner.begin_patches(entry.row, sequence.segment.limits, sequence.task.flow.guidance)
                sequence.writing, sequence.forced = False, None

    # ---- postprocess

    def _postprocess(self, step: InFlightStep) -> None:
        """Sound and text of a step go out; what follows it is left to `advance`, unless it was launched ahead."""
        if step.sound is not None:
            host = step.sound.patch()
            for entry in step.patches:
                entry.sequence.in_flight -= 1
                step.alive += not host.ended[entry.row]
                if not entry.sequence.finished:
                    self._put_patch(step, entry, host)
        if step.text is not None:
            token, ended, stopped = (t.tolist() for t in step.text.wait())
            for entry in step.tokens:
                row, sequence = entry.row, entry.sequence
                sequence.in_flight -= 1
                goes_on = not ended[row] or (sequence.segment.text.then is not None and not stopped[row])
                step.alive += entry.forced or goes_on
                if not sequence.finished and not entry.forced:
                    self._put_token(step, sequence, token[row], last=ended[row], stopped=stopped[row])
        if self._launches_ahead:
            self._next_segments(step.ended)
        else:
            self._half_done = step

    def _put_patch(self, step: InFlightStep, entry: PatchEntry, host: HostPatch) -> None:
        sequence, last = entry.sequence, host.ended[entry.row]
        with ErrorIsolation(lambda error: self._finish(sequence, error)) as isolation:
            sequence.sink.put(sequence.task.on_patch(self._patch(step, entry, host)))
        if last and not isolation.failed:
            self._discard_speculative(sequence)
            step.ended.append(sequence)

    def _patch(self, step: InFlightStep, entry: PatchEntry, host: HostPatch) -> Patch:
        row, sequence = entry.row, entry.sequence
        index, sequence.patches = sequence.patches, sequence.patches + 1
        samples = torch.from_numpy(host.samples[row : row + 1, : host.counts[row]].copy())
        made_of: dict[str, Any] = {}
        if step.output is not None:
            made_of = {"latents": step.output.latents, "condition": step.inputs[0], "history": step.inputs[1]}
            if sequence.patches >= sequence.segment.limits.min_patches:
                made_of["stop_probability"] = step.output.probability
        return Patch(index, samples, host.ended[row], host.stopped[row], **made_of)

    def _put_token(self, step: InFlightStep, sequence: Sequence, token: int, *, last: bool, stopped: bool) -> None:
        with ErrorIsolation(lambda error: self._finish(sequence, error)) as isolation:
            for piece in sequence.task.on_token(token, last=last, stopped=stopped):
                sequence.sink.put(piece)
        if not last or isolation.failed:
            return
        self._discard_speculative(sequence)
        if sequence.segment.text.then is None:
            step.ended.append(sequence)
        else:
            sequence.forced = sequence.segment.text.then
            self.runner.force(sequence.row, sequence.forced)

    def _discard_speculative(self, sequence: Sequence) -> None:
        """The sequence's text or sound has ended: what was launched of it since is discarded, its noise put back."""
        marks = []
        for step in self._in_flight:
            marks += [entry.noise_mark for entry in step.patches if entry.sequence is sequence]
            step.patches = [entry for entry in step.patches if entry.sequence is not sequence]
            step.tokens = [entry for entry in step.tokens if entry.sequence is not sequence]
        if marks:
            sequence.task.noise.rewind(marks[0])
        sequence.in_flight = 0

    def _next_segments(self, ended: Iterable[Sequence]) -> None:
        """Sequences whose segment has ended go on with the next, or leave."""
        for sequence in ended:
            if not sequence.finished:
                with ErrorIsolation(lambda error, sequence=sequence: self._finish(sequence, error)):
                    self._next_segment(sequence)
        self._scheduler.compact(self.runner)

    def _finish(self, sequence: Sequence, error: BaseException | None = None) -> None:
        if not sequence.finished:
            self._drop(sequence)
            sequence.sink.end(error)

    def _drop(self, sequence: Sequence) -> None:
        sequence.pause()
        sequence.finished, sequence.prefill = True, None
        self._scheduler.remove(sequence)
        if sequence in self._unbatched:
            self._unbatched.remove(sequence)
        if sequence.unbatched is not None:
            sequence.unbatched.close()

    def _fail_all(self, error: Exception) -> None:
        """A step itself failed: the sequences that have a row cannot go on; those that wait can."""
        for sequence in [sequence for sequence in self._scheduler.rows if sequence]:
            self._finish(sequence, error)
        self._in_flight.clear()
        self._half_done = None
        self._scheduler.compact(self.runner)
