"""The loop: hidden state → patch of latents → sound → embedding → next hidden state (MODEL.md §1).

One request at a time; `engine.py` has several. Nothing waits for the device but the sound and the
stop flag of a patch, once they are there; the text head is used for text alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..text.prompts import Prompt
from .noise import NoiseSource
from .params import FlowParams, PatchLimits
from .sampling import TextPlan, choose
from .state import Rows
from .step import Group, Landing, advance, emit

# tokens of a prompt, or patches of a voice, that are computed at once, between two patches of
# others. Fewer would take hardly less time: this many meet every expert, whose weights are then
# what takes the time.
PIECE = 256


@dataclass(frozen=True)
class Patch:
    """One patch: latents [1,P,C] float32, what made it, and its sound [1,L] float32 on the host.

    L = 0 unless decoded. `condition` [1,H] and `history` [1,N,C] are the flow head's inputs,
    `stop_probability` [1] belongs to `condition`; None where the run could not have ended.
    """

    index: int
    latents: Tensor
    samples: Tensor
    last: bool
    stopped: bool
    condition: Tensor
    history: Tensor
    stop_probability: Tensor | None


@dataclass
class Context:
    """What a run continues from.

    `hidden` [1,H]: the state that conditions the first patch, or gives the first token.
    `llm`: the LLM's state. `semantic`: the semantic module's, behind all audio so far.
    `history` [1,N,C]: the patch before the first one.
    """

    hidden: Tensor
    llm: Any
    semantic: Any
    history: Tensor


@dataclass(frozen=True)
class EncodedAudio:
    """Audio as the LLM takes it: latents [1,n·P,C], projected [1,n,H], semantic state behind it."""

    latents: Tensor
    projected: Tensor
    semantic: Any

    @property
    def patches(self) -> int:
        return self.projected.shape[1]


def audio_patches(samples: int, hop_samples: int, patch_frames: int) -> int:
    """Whole patches in `samples`: ceil(samples / hop) // frames per patch (MODEL.md §5)."""
    return -(-samples // hop_samples) // patch_frames


def patches_of(model, samples: Tensor) -> int:
    """Whole patches that the latents of samples [1,L] have."""
    return audio_patches(samples.shape[1], model.config.hop_samples, model.config.patch_frames)


def heard_frames(model, prompt: Prompt) -> int:
    """Frames of all latents in a prompt."""
    return sum(patches for _, patches in prompt.spans) * model.config.patch_frames


@torch.no_grad()
def sample_latents(model, samples: Tensor, noise: NoiseSource) -> Tensor:
    """samples [1,L] at 16 kHz → posterior latents [1,n·P,C], cut to whole patches."""
    mean, std = model.vae.encode(samples)
    # the reference's mean has the dtype of its activations, and so has its noise
    drawn = noise.posterior(mean.to(model.llm.activation_dtype)).to(mean.dtype)
    return whole_patches(model, model.vae.sample_posterior(mean, std, drawn))


def whole_patches(model, latents: Tensor) -> Tensor:
    """latents [1,T,C] → [1,n·P,C], n = T // P. Raises InputError when there is not one patch."""
    frames = model.config.patch_frames
    n = latents.shape[1] // frames
    if n == 0:
        raise InputError(f"audio: must hold at least one patch of {frames} frames, got {latents.shape[1]}")
    return latents[:, : n * frames]


class Reader(Protocol):
    """How one piece of a prompt is computed."""

    def hear(self, model, latents: Tensor, state: Any) -> Tensor:
        """latents [1,n·P,C] behind what `state` has heard -> the LLM's embeddings [1,n,H]."""

    def read(self, model, embeds: Tensor, state: Any, audio_mask: Tensor | None) -> Tensor:
        """embeds [1,T,H] behind what `state` has read -> hidden [1,T,H] after the final norm."""


class PlainReader:
    """As it is, at any length."""

    def hear(self, model, latents: Tensor, state: Any) -> Tensor:
        return model.pool(model.vae.unify(latents, state)[0])

    def read(self, model, embeds: Tensor, state: Any, audio_mask: Tensor | None) -> Tensor:
        return model.llm(embeds, state, audio_mask=audio_mask)[0]


PLAIN = PlainReader()


def pieces(n: int) -> list[range]:
    """0..n-1 in as few ranges of up to PIECE as will do, all about as long.

    By `n` alone, so that a prompt is cut the same whoever else is there.
    """
    count = -(-n // PIECE)
    ends = [n * i // count for i in range(count + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def embed_audio(model, latents: Tensor, *, expected_patches: int = 0, state: Any = None) -> EncodedAudio:
    """latents [1,n·P,C] → the LLM's embeddings of them, by the semantic module from its start.

    `state`: the empty semantic state to fill; None makes one, for `expected_patches` more.
    """
    return last(hearing(model, latents, expected_patches=expected_patches, state=state))


@torch.no_grad()
def hearing(
    model, latents: Tensor, *, expected_patches: int = 0, state: Any = None, reader: Reader = PLAIN
) -> Iterator[int | EncodedAudio]:
    """`embed_audio` piece by piece: before each, how many patches it has; at last the result."""
    T, frames = latents.shape[1], model.config.patch_frames
    if state is None:
        state = model.vae.new_semantic_state(1, T + expected_patches * frames)
    parts = []
    for piece in pieces(T // frames):
        yield len(piece)
        part = latents[:, piece.start * frames : piece.stop * frames]
        parts.append(reader.hear(model, part, state))
    yield EncodedAudio(latents, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), state)


def last(steps: Iterator[Any]) -> Any:
    """The result of what goes piece by piece."""
    return deque(steps, maxlen=1)[0]


@torch.no_grad()
def embed_prompt(model, prompt: Prompt, audios: Sequence[Tensor]) -> Tensor:
    """Embeddings [1,T,H] of a prompt, the placeholders of each block replaced by its [1,n,H]."""
    ids = torch.tensor([prompt.ids], dtype=torch.int64, device=model.llm.device)
    embeds = model.llm.embed(ids)
    if len(prompt.spans) != len(audios):
        raise InputError(f"prompt: has {len(prompt.spans)} audio blocks, got {len(audios)} audios")
    for (start, patches), audio in zip(prompt.spans, audios):
        if audio.shape[1] != patches:
            raise InputError(f"prompt: the audio block has {patches} placeholders, got {audio.shape[1]} patches")
        embeds[:, start : start + patches] = audio.to(embeds.dtype)
    return embeds


def prefill(
    model, prompt: Prompt, audios: Sequence[Tensor], *, audio_router: bool, expected_tokens: int = 0, state: Any = None
) -> tuple[Tensor, Any]:
    """Runs the prompt → (hidden [1,T,H] after the final norm, LLM state).

    `audio_router`: audio placeholders take the audio router (understanding), else all take the
    text router (speech and editing). `state`: the empty state to fill; None makes one with room
    for `expected_tokens` that follow.
    """
    return last(reading(model, prompt, audios, audio_router=audio_router, expected_tokens=expected_tokens, state=state))


@torch.no_grad()
def reading(
    model,
    prompt: Prompt,
    audios: Sequence[Tensor],
    *,
    audio_router: bool,
    expected_tokens: int = 0,
    state: Any = None,
    reader: Reader = PLAIN,
) -> Iterator[int | tuple[Tensor, Any]]:
    """`prefill` piece by piece: before each, how many tokens it has; at last the result."""
    embeds = embed_prompt(model, prompt, audios)
    if state is None:
        state = model.llm.new_state(1, embeds.shape[1] + expected_tokens)
    mask = None
    if audio_router:
        mask = torch.tensor([prompt.audio_mask], device=embeds.device)
    parts = []
    for piece in pieces(embeds.shape[1]):
        yield len(piece)
        at = slice(piece.start, piece.stop)
        part = None if mask is None else mask[:, at]
        parts.append(reader.read(model, embeds[:, at], state, part))
    yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), state


@torch.no_grad()
def speak(
    model, context: Context, noise: NoiseSource, flow: FlowParams, limits: PatchLimits, *, decode: bool = True
) -> Iterator[Patch]:
    """Patches until the model stops, from `limits.least` patches on, or `limits.most` is reached.

    The stopping patch is emitted too, and the last one flushes the decoder however the run ends,
    so a run of n patches gives exactly n·P·320 samples. Closing the iterator drops all state.
    The static step with one row (step.py), over the context's own states.
    """
    frames, channels = model.config.patch_frames, model.config.latent_dim
    schedule, guided = flow.schedule, flow.guidance != 0
    rows = Rows.over(model, context.llm, context.semantic, decode=decode, hidden=context.hidden.clone())
    rows.begin(0, rows.hidden, context.history, limits, flow.guidance)
    # a GPU is kept busy while the host waits; a CPU gives the sound out first
    ahead = rows.hidden.is_cuda
    for index in range(limits.most):
        hidden, history = rows.hidden.clone(), rows.history.clone()
        drawn = noise.patch(1, frames, channels, flow.steps)
        out = emit(model, rows, [Group(schedule, guided, drawn)], full=not ahead)
        landing = Landing.of(out)
        if ahead:
            advance(model, rows)
        landed = landing.patch()
        last, stopped = landed.ended[0], landed.stopped[0]
        samples = torch.from_numpy(landed.samples[:, : landed.counts[0]])
        probability = out.probability if index + 1 >= limits.least else None
        yield Patch(index, out.latents, samples, last, stopped, hidden, history, probability)
        if last:
            return
        if not ahead:
            advance(model, rows, full=True)
        rows.counted([True])


@torch.no_grad()
def write(model, context: Context, plan: TextPlan, draws: Callable[[], Tensor | None]) -> Iterator[int]:
    """Token ids from `context.hidden` on, the stop token included; at most `plan.most`.

    draws: what `choose` takes for the next token. `context` follows: after each token is taken, its
    hidden and LLM state are those after feeding the tokens before it.
    """
    for _ in range(plan.most):
        logits = model.llm.logits(context.hidden[:, None])[:, -1].float()
        token = int(choose(logits, plan.temperature, draws()))
        yield token
        if token in plan.stops:
            return
        feed(model, context, token)


@torch.no_grad()
def feed(model, context: Context, token: int) -> None:
    """Feeds one token to the LLM; `context.hidden` and `context.llm` move on."""
    ids = torch.tensor([[token]], dtype=torch.int64, device=context.hidden.device)
    states, context.llm = model.llm(model.llm.embed(ids), context.llm)
    context.hidden = states[:, -1]
