"""One patch for every row at once, in two halves over preallocated state (MODEL.md §1).

`emit`: stop head, flow sampler, decoder: what goes out. `advance`: semantic module, pooling, LLM:
the next hidden state. Both take and give tensors on the device alone, look at none of them and
leave no row's state but that of the rows that take part; so a CUDA graph of either can be replayed.
Rows may write text instead: then `text_rows.pick` takes the place of `emit`, the token that of what
was heard, and one pass of the LLM serves both. `Landing` is how results reach the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .state import Rows

STOP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Group:
    """Rows whose flow runs by one schedule. noise [S+1,m,P,C]; `rows` [m] int64, None: all of them.

    `guided` False: the guidance of every one of them is 0. mask [n] bool: all rows are computed,
    and these are meant.
    """

    schedule: ops.FlowSchedule
    guided: bool
    noise: Tensor
    rows: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Emitted:
    """What a patch gives, on the device: latents [n,P,C] float32, samples [n,L] float32.

    counts [n] int64: how many samples are the row's. taken [n]: took part; ended [n]: this was its
    last patch; stopped [n]: because the model said so, by probability [n]. Without meaning where
    not taken.
    """

    latents: Tensor
    samples: Tensor
    counts: Tensor
    taken: Tensor
    ended: Tensor
    stopped: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Decided:
    """Latents of a patch, who takes part in it and whose last it is; see `Emitted`."""

    latents: Tensor
    taken: Tensor
    ended: Tensor
    stopped: Tensor
    probability: Tensor


def emit(model, rows: Rows, groups: Sequence[Group], *, full: bool = False) -> Emitted:
    """The first half: the latents and sound of the next patch of every open row whose turn it is.

    full: the host knows that this is every row, which saves masks; the same bits.

    The stop head counts from `least` patches on, and a run ends at `most` anyway; with its last
    patch a row's decoder gives all it held back, so n patches are exactly n·P·hop samples.
    """
    decided = draw(model, rows, groups)
    samples, counts = sound(model, rows, decided, full=full)
    return Emitted(decided.latents, samples, counts, decided.taken, decided.ended, decided.stopped, decided.probability)


def draw(model, rows: Rows, groups: Sequence[Group]) -> Decided:
    """Stop head and flow sampler: who takes part, and the latents."""
    taken = rows.open & rows.turn
    rows.made += taken
    probability = model.stop_head(rows.hidden)
    stopped = (probability > STOP_PROBABILITY) & (rows.made >= rows.least) & taken
    ended = (stopped | (rows.made >= rows.most)) & taken
    latents = _sample(model, rows, groups)
    rows.latents.copy_(latents)
    return Decided(latents, taken, ended, stopped, probability)


def sound(model, rows: Rows, decided: Decided, *, full: bool = False) -> tuple[Tensor, Tensor]:
    """The decoder -> samples [n,L], counts [n]; who ended is not open any more."""
    taken, ended, latents = decided.taken, decided.ended, decided.latents
    if rows.decoder is None:
        samples, counts = latents.new_zeros(rows.batch, 0), torch.zeros_like(rows.made)
    else:
        state = rows.decoder
        bounds = list(state.backbone.bounds)
        valid = None if full else taken * latents.shape[1]
        samples, _ = model.vae.decode(latents, state, last=ended, valid=valid)
        state.backbone.bounds[:] = bounds  # `Rows.counted` counts
        counts = state.emitted.clone()
    rows.open &= ~ended
    torch.logical_and(taken, ~ended, out=rows.going)
    return samples, counts


def _sample(model, rows: Rows, groups: Sequence[Group]) -> Tensor:
    """Latents [n,P,C] float32; of rows in no group the history."""
    inputs = (rows.hidden, rows.history, rows.guidance)
    if len(groups) == 1 and groups[0].rows is None:
        return _flow(model, groups[0], *inputs)
    latents = rows.history.clone()
    for group in groups:
        if group.rows is None:
            mask = group.mask[:, None, None]
            latents = torch.where(mask, _flow(model, group, *inputs), latents)
        else:
            picked = (t.index_select(0, group.rows) for t in inputs)
            latents.index_copy_(0, group.rows, _flow(model, group, *picked))
    return latents


def _flow(model, group: Group, hidden: Tensor, history: Tensor, guidance: Tensor) -> Tensor:
    dtype = model.flow.activation_dtype
    return ops.flow_sample(
        model.flow.packed,
        group.schedule,
        hidden.to(dtype),
        history.to(dtype),
        group.noise,
        guidance,
        guided=group.guided,
    )


def advance(model, rows: Rows, *, full: bool = False, spoke: bool = True, wrote: bool = False) -> None:
    """The second half: what was emitted is heard, what was picked is read, and the rows that go on
    move on.

    full: the host knows that this is every row. spoke, wrote: any row emitted a patch, any was
    picked a token for.
    """
    if not wrote:
        embeds = hear(model, rows, full=full)
    elif not spoke:
        embeds = read(model, rows)
    else:
        heard, tokens = hear(model, rows, heard=rows.going & ~rows.text.read), read(model, rows)
        embeds = torch.where(rows.text.read[:, None, None], tokens, heard)
    think(model, rows, embeds, full=full)


def hear(model, rows: Rows, *, full: bool = False, heard: Tensor | None = None) -> Tensor:
    """Semantic module and pooling on `rows.latents` -> embeddings [n,1,H].

    heard [n] bool: the rows whose patch it is; None: those that go on.
    """
    latents, frames = rows.latents, rows.latents.shape[1]
    heard = rows.going if heard is None else heard
    embedding = model.vae.semantic.forward(
        latents,
        rows.semantic.reserve(frames),
        rows.semantic.lengths,
        mask=None if full else heard[:, None].expand(-1, frames),
    )
    return model.pool(embedding)


def read(model, rows: Rows) -> Tensor:
    """Embeddings [n,1,H] of the tokens that were picked last."""
    return model.llm.embed(rows.text.token)[:, None]


def think(model, rows: Rows, embeds: Tensor, *, full: bool = False) -> None:
    """The LLM on embeds [n,1,H]: the next `rows.hidden`; the patch becomes history."""
    going = None if full else rows.going[:, None]
    states = model.llm.forward(embeds, rows.llm.reserve(1), rows.llm.lengths, attention_mask=going)
    hidden, latents = states[:, -1], rows.latents
    if not full:
        hidden = torch.where(going, hidden, rows.hidden)
        latents = torch.where(going[:, :, None], latents, rows.history)
    rows.hidden.copy_(hidden)
    rows.history.copy_(latents)


@dataclass(frozen=True)
class Landed:
    """A patch on the host: `samples` [n,L] float32, and of each row what `Emitted` says."""

    samples: np.ndarray
    counts: list[int]
    taken: list[bool]
    ended: list[bool]
    stopped: list[bool]


class Landing:
    """The one way from device to host: the copy starts at once and is waited for when it is read.

    Work that is launched after it is not waited for. kept: the tensors will not change, as those of
    a replayed graph do, so a CPU needs no copy.
    """

    def __init__(self, *tensors: Tensor, kept: bool = True):
        self._event = None
        if tensors[0].is_cuda:
            host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(host, tensors):
                copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensors[0].device))
            tensors = tuple(host)
        elif not kept:
            tensors = tuple(t.clone() for t in tensors)
        self._tensors = tensors

    @classmethod
    def of(cls, out: Emitted, *, kept: bool = True) -> Landing:
        """What goes out of a patch."""
        return cls(out.samples, out.counts, out.taken, out.ended, out.stopped, kept=kept)

    def wait(self) -> tuple[Tensor, ...]:
        """What landed."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors

    def patch(self) -> Landed:
        """What landed of a patch."""
        samples, *rest = self.wait()
        return Landed(samples.numpy(), *(t.tolist() for t in rest))
