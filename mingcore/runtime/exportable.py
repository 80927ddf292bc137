"""The step as a module of tensors alone, for `torch.export` (docs/compiler.md).

`PatchStep` is `step.generate_patch` and `step.advance` of a `BatchState`. Its inputs are the tensors of that state,
which it changes in place, and a patch's noise; the model's weights are its constants. So an exported step needs neither
the model's classes nor its checkpoint, only the ops: import `mingcore.ops` before loading one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .state import BatchState
from .step import FlowGroup, advance, generate_patch


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a state: of dataclasses and lists, in the order of their fields."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (list, tuple)):
        return [t for part in state for t in tensors_of(part)]
    if is_dataclass(state):
        return [t for f in fields(state) for t in tensors_of(getattr(state, f.name))]
    return []


def with_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The same state over other tensors, taken in the order of `tensors_of`."""
    if isinstance(state, Tensor):
        return next(tensors)
    if isinstance(state, (list, tuple)):
        return type(state)(with_tensors(part, tensors) for part in state)
    if is_dataclass(state):
        parts = {f.name: with_tensors(getattr(state, f.name), tensors) for f in fields(state)}
        return type(state)(**parts)
    return state


class PatchStep(nn.Module):
    """One patch of every row: forward(state, noise [S+1,B,P,C]) -> (latents [B,P,C], samples [B,L],
    counts, consumed, ended, stopped [B]), as `PatchOutput` says; `state` is changed in place.

    rows: the state whose shapes it is for, rows of another one (`BatchState.rows`), so that caches show all their
    memory. guided: whether any guidance may be other than 0.
    """

    def __init__(self, model: Any, rows: BatchState, schedule: ops.FlowSchedule, *, guided: bool = True):
        super().__init__()
        self._model, self._schedule, self._guided = model, schedule, guided
        # host-side bounds only say when caches grow, which those of rows never do
        self._rows = rows
        packed, tokens = model.flow.packed, 1 + 2 * model.config.patch_frames
        packed.times(schedule), packed.steps(schedule), packed.rope(tokens)  # constants, made now

    @property
    def state(self) -> list[Tensor]:
        """The tensors of the state that it was made of: what `forward` takes first."""
        return tensors_of(self._rows)

    def noise(self) -> Tensor:
        """Room for a patch's noise: the start, and a draw after each step."""
        config, B = self._model.config, self._rows.batch
        shape = (self._schedule.steps + 1, B, config.patch_frames, config.latent_dim)
        return torch.zeros(shape, dtype=torch.float32, device=self._rows.hidden.device)

    def forward(self, state: list[Tensor], noise: Tensor) -> tuple[Tensor, ...]:
        rows = with_tensors(self._rows, iter(state))
        out = generate_patch(self._model, rows, [FlowGroup(self._schedule, self._guided, noise)])
        advance(self._model, rows)
        return out.latents, out.samples, out.counts, out.consumed, out.ended, out.stopped
