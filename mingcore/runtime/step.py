"""One step of a batch, in two halves over preallocated state (docs/model.md section 1).

`generate_patch`: stop head, flow sampler, decoder: what goes out. `advance`: semantic module, pooling, LLM: the next
hidden state. Both take and give tensors on the device alone, look at none of them, and change the state of active rows
only; so a CUDA graph of either can be replayed. Where rows write text, `sampling.sample_tokens` takes the place of
`generate_patch` and the token's embedding that of the patch's, in one pass of the LLM for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from .state import BatchState

STOP_PROBABILITY = 0.5


@dataclass(frozen=True)
class FlowGroup:
    """Rows whose flow runs by one schedule. noise [S+1,m,P,C]; `rows` [m] int64, None: all of them.

    `guided` False: the guidance of every one of them is 0. mask [n] bool: all rows are computed, these are kept.
    """

    schedule: ops.FlowSchedule
    guided: bool
    noise: Tensor
    rows: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class SampledLatents:
    """Latents of a patch, and of each row whether it took part and whether it ends; see `PatchOutput`."""

    latents: Tensor
    consumed: Tensor
    ended: Tensor
    stopped: Tensor
    probability: Tensor


@dataclass(frozen=True)
class PatchOutput:
    """What a patch gives, on the device: latents [n,P,C] float32, samples [n,L] float32.

    counts [n] int64: how many samples are the row's. consumed [n] bool: took part, and its noise was used; ended [n]:
    this was its last patch; stopped [n]: because the stop head said so, by probability [n]. Without meaning where not
    consumed.
    """

    latents: Tensor
    samples: Tensor
    counts: Tensor
    consumed: Tensor
    ended: Tensor
    stopped: Tensor
    probability: Tensor


def generate_patch(model, state: BatchState, groups: Sequence[FlowGroup], *, full: bool = False) -> PatchOutput:
    """The first half: latents and sound of the next patch of every open, active row.

    full: the host knows that this is every row, which saves masks; the same bits.

    The stop head counts from `min_patches` on, and at `max_patches` it ends anyway; with its last patch a row's decoder
    is flushed, so n patches are exactly n·P·hop samples.
    """
    sampled = sample_latents(model, state, groups)
    samples, counts = decode_audio(model, state, sampled, full=full)
    return PatchOutput(
        sampled.latents, samples, counts, sampled.consumed, sampled.ended, sampled.stopped, sampled.probability
    )


def sample_latents(model, state: BatchState, groups: Sequence[FlowGroup]) -> SampledLatents:
    """Stop head and flow sampler: who takes part, and the latents."""
    consumed = state.open & state.active
    state.num_patches += consumed
    probability = model.stop_head(state.hidden)
    stopped = (probability > STOP_PROBABILITY) & (state.num_patches >= state.min_patches) & consumed
    ended = (stopped | (state.num_patches >= state.max_patches)) & consumed
    latents = _sample_groups(model, state, groups)
    state.latents.copy_(latents)
    return SampledLatents(latents, consumed, ended, stopped, probability)


def decode_audio(model, state: BatchState, sampled: SampledLatents, *, full: bool = False) -> tuple[Tensor, Tensor]:
    """The decoder -> samples [n,L], counts [n]; rows that ended are not open any more."""
    consumed, ended, latents = sampled.consumed, sampled.ended, sampled.latents
    if state.decoder is None:
        samples, counts = latents.new_zeros(state.batch, 0), torch.zeros_like(state.num_patches)
    else:
        decoder = state.decoder
        bounds = list(decoder.backbone.bounds)
        valid = None if full else consumed * latents.shape[1]
        samples, _ = model.vae.decode(latents, decoder, last=ended, valid=valid)
        decoder.backbone.bounds[:] = bounds  # `BatchState.count_step` counts
        counts = decoder.emitted.clone()
    state.open &= ~ended
    torch.logical_and(consumed, ~ended, out=state.alive)
    return samples, counts


def _sample_groups(model, state: BatchState, groups: Sequence[FlowGroup]) -> Tensor:
    """Latents [n,P,C] float32; of rows in no group the history."""
    inputs = (state.hidden, state.history, state.guidance)
    if len(groups) == 1 and groups[0].rows is None:
        return _flow(model, groups[0], *inputs)
    latents = state.history.clone()
    for group in groups:
        if group.rows is None:
            mask = group.mask[:, None, None]
            latents = torch.where(mask, _flow(model, group, *inputs), latents)
        else:
            selected = (t.index_select(0, group.rows) for t in inputs)
            latents.index_copy_(0, group.rows, _flow(model, group, *selected))
    return latents


def _flow(model, group: FlowGroup, hidden: Tensor, history: Tensor, guidance: Tensor) -> Tensor:
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


def advance(model, state: BatchState, *, full: bool = False, patches: bool = True, tokens: bool = False) -> None:
    """The second half: patches and tokens go through the LLM, and the rows that are alive move on.

    full: the host knows that this is every row. patches, tokens: whether any row made a patch, was given a token.
    """
    if not tokens:
        embeds = encode_audio(model, state, full=full)
    elif not patches:
        embeds = embed_tokens(model, state)
    else:
        audio = encode_audio(model, state, mask=state.alive & ~state.text.feed)
        embeds = torch.where(state.text.feed[:, None, None], embed_tokens(model, state), audio)
    llm_step(model, state, embeds, full=full)


def encode_audio(model, state: BatchState, *, full: bool = False, mask: Tensor | None = None) -> Tensor:
    """Semantic module and pooling on `state.latents` -> embeddings [n,1,H].

    mask [n] bool: the rows whose patch it is; None: those that are alive.
    """
    latents, frames = state.latents, state.latents.shape[1]
    mask = state.alive if mask is None else mask
    embedding = model.vae.semantic.forward(
        latents,
        state.semantic.reserve(frames),
        state.semantic.lengths,
        mask=None if full else mask[:, None].expand(-1, frames),
    )
    return model.pool(embedding)


def embed_tokens(model, state: BatchState) -> Tensor:
    """Embeddings [n,1,H] of the tokens that were sampled last."""
    return model.llm.embed(state.text.token)[:, None]


def llm_step(model, state: BatchState, embeds: Tensor, *, full: bool = False) -> None:
    """The LLM on embeds [n,1,H]: the next `state.hidden`; the patch becomes history."""
    alive = None if full else state.alive[:, None]
    states = model.llm.forward(embeds, state.llm.reserve(1), state.llm.lengths, attention_mask=alive)
    hidden, latents = states[:, -1], state.latents
    if not full:
        hidden = torch.where(alive, hidden, state.hidden)
        latents = torch.where(alive[:, :, None], latents, state.history)
    state.hidden.copy_(hidden)
    state.history.copy_(latents)
