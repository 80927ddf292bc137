"""The scheduler: who waits, who has which slot, whose prompt is run, and who takes part in the next step."""

from __future__ import annotations

from collections import deque

from .model_runner import ModelRunner
from .sequence import Sequence


class Scheduler:
    """First come, first served, into `slots` rows; prompts are run one at a time, in the same order."""

    def __init__(self, slots: int):
        self.rows: list[Sequence | None] = [None] * slots
        self.waiting: deque[Sequence] = deque()
        self.prefilling: deque[Sequence] = deque()
        self._vacated: set[int] = set()

    @property
    def sequences(self) -> list[Sequence]:
        """All that have a row or wait for one."""
        return [*(sequence for sequence in self.rows if sequence), *self.waiting]

    def admit(self) -> Sequence | None:
        """The sequence that waits longest takes a free row; None when there is none of either."""
        if not self.waiting or None not in self.rows:
            return None
        sequence = self.waiting.popleft()
        sequence.row = self.rows.index(None)
        self.rows[sequence.row] = sequence
        return sequence

    def schedule(self) -> list[Sequence]:
        """The sequences that take part in the next step: their sinks have room for its result.

        The clock of one whose consumer does not take its results is stopped meanwhile.
        """
        ready = []
        for sequence in self.rows:
            if sequence is None or not sequence.started:
                continue
            if sequence.sink.room() > sequence.in_flight:
                sequence.resume()
                ready.append(sequence)
            elif not sequence.in_flight:
                sequence.pause()
        return ready

    def vacate(self, sequence: Sequence) -> None:
        """The sequence gives its row up."""
        self.rows[sequence.row] = None
        self._vacated.add(sequence.row)
        sequence.row = None

    def remove(self, sequence: Sequence) -> None:
        """The sequence leaves, wherever it is."""
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        if sequence.row is not None:
            self.vacate(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def compact(self, runner: ModelRunner) -> None:
        """Rows that were vacated are cleared, and those in use become the first ones again.

        Only between two steps: not while one is half computed.
        """
        for row in self._vacated:
            runner.clear(row)
        self._vacated.clear()
        while None in self.rows:
            free = self.rows.index(None)
            # a row whose prompt is being run stays where it is until then
            used = [row for row, sequence in enumerate(self.rows) if sequence and sequence.prefill is None]
            if not used or used[-1] < free:
                return
            sequence = self.rows[used[-1]]
            runner.move(used[-1], free)
            self.rows[free], self.rows[used[-1]] = sequence, None
            sequence.row = free
