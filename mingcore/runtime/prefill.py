"""Prefill: the prompt of one sequence through the AudioVAE and the LLM, chunk by chunk (docs/model.md section 1).

A `Prefill` is a list of chunks and, behind the last, its result. Whoever drives it may do something else between two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..text.prompts import Prompt
from .noise import NoiseSource

# Chunked prefill: tokens of a prompt, or patches of a voice, that are computed at once, between two patches of other
# sequences. Fewer would take hardly less time: this many choose every expert, and reading the experts' weights is then
# what takes the time.
CHUNK = 256


@dataclass
class PrefillResult:
    """What generation continues from.

    `hidden` [1,H]: the state that conditions the first patch, or gives the first token. `llm`: the LLM's state.
    `semantic`: the semantic module's, behind all audio so far. `history` [1,P,C]: the patch before the first one.
    """

    hidden: Tensor
    llm: Any
    semantic: Any
    history: Tensor


@dataclass(frozen=True)
class EncodedAudio:
    """Audio as the LLM takes it: projected [1,n,H], and the semantic state behind it."""

    projected: Tensor
    semantic: Any

    @property
    def patches(self) -> int:
        return self.projected.shape[1]


def audio_patches(samples: int, hop_samples: int, patch_frames: int) -> int:
    """Whole patches in `samples`: ceil(samples / hop) // frames per patch (docs/model.md section 5)."""
    return -(-samples // hop_samples) // patch_frames


def patches_of(model, samples: Tensor) -> int:
    """Whole patches that the latents of samples [1,L] have."""
    return audio_patches(samples.shape[1], model.config.hop_samples, model.config.patch_frames)


def audio_frames(model, prompt: Prompt) -> int:
    """Frames of all latents in a prompt."""
    return sum(patches for _, patches in prompt.spans) * model.config.patch_frames


@torch.no_grad()
def posterior_latents(model, samples: Tensor, noise: NoiseSource | None) -> Tensor:
    """samples [1,L] at 16 kHz -> latents [1,n·P,C], cut to whole patches: sampled, or without `noise` the mean."""
    mean, std = model.vae.encode(samples)
    if noise is None:
        return whole_patches(model, mean)
    # the reference's mean has the dtype of its activations, and so has its noise
    drawn = noise.posterior(mean.to(model.llm.activation_dtype)).to(mean.dtype)
    return whole_patches(model, model.vae.sample_posterior(mean, std, drawn))


def whole_patches(model, latents: Tensor) -> Tensor:
    """latents [1,T,C] -> [1,n·P,C], n = T // P. Raises InputError when there is not one patch."""
    frames = model.config.patch_frames
    n = latents.shape[1] // frames
    if n == 0:
        raise InputError(f"audio: must hold at least one patch of {frames} frames, got {latents.shape[1]}")
    return latents[:, : n * frames]


@torch.no_grad()
def embed_prompt(model, prompt: Prompt, audios: Sequence[Tensor]) -> Tensor:
    """Embeddings [1,T,H] of a prompt, the placeholders of each audio block replaced by its [1,n,H]."""
    ids = torch.tensor([prompt.ids], dtype=torch.int64, device=model.llm.device)
    embeds = model.llm.embed(ids)
    if len(prompt.spans) != len(audios):
        raise InputError(f"prompt: has {len(prompt.spans)} audio blocks, got {len(audios)} audios")
    for (start, patches), audio in zip(prompt.spans, audios):
        if audio.shape[1] != patches:
            raise InputError(f"prompt: the audio block has {patches} placeholders, got {audio.shape[1]} patches")
        embeds[:, start : start + patches] = audio.to(embeds.dtype)
    return embeds


class PrefillRunner(Protocol):
    """How one chunk is computed."""

    def encode_audio(self, model, latents: Tensor, state: Any) -> Tensor:
        """latents [1,n·P,C] behind what the semantic `state` holds -> the LLM's embeddings [1,n,H]."""

    def run_llm(self, model, embeds: Tensor, state: Any, audio_mask: Tensor | None) -> Tensor:
        """embeds [1,T,H] behind what the LLM's `state` holds -> hidden [1,T,H] after the final norm."""


class EagerPrefillRunner:
    """Calls the model at any length, without graphs."""

    def encode_audio(self, model, latents: Tensor, state: Any) -> Tensor:
        return model.pool(model.vae.unify(latents, state)[0])

    def run_llm(self, model, embeds: Tensor, state: Any, audio_mask: Tensor | None) -> Tensor:
        return model.llm(embeds, state, audio_mask=audio_mask)[0]


EAGER = EagerPrefillRunner()


@dataclass(frozen=True)
class PrefillTarget:
    """Where a prompt is run into: empty LLM and semantic states of one row, and the runner that fills them.

    None: the request makes a state, sized for itself.
    """

    llm: Any = None
    semantic: Any = None
    runner: PrefillRunner = EAGER


ALONE = PrefillTarget()


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt that is computed at once: `size` tokens, or patches of audio."""

    size: int
    run: Callable[[], None]


class Prefill:
    """The prompt of one segment on its way into its states."""

    def __init__(self, chunks: Iterable[Chunk], result: Callable[[], PrefillResult]):
        self._chunks, self._result = deque(chunks), result

    @property
    def next_size(self) -> int:
        """The size of the next chunk; 0 when all have been run."""
        return self._chunks[0].size if self._chunks else 0

    @torch.no_grad()
    def step(self) -> None:
        """Runs the next chunk."""
        self._chunks.popleft().run()

    @torch.no_grad()
    def finish(self) -> PrefillResult:
        """The result, once all chunks have been run."""
        return self._result()

    def run(self) -> PrefillResult:
        """All of it at once."""
        while self.next_size:
            self.step()
        return self.finish()


def chunks_of(n: int) -> list[range]:
    """0..n-1 in as few ranges of up to CHUNK as will do, all about as long.

    By `n` alone, so that a prompt is cut the same whoever else is there.
    """
    count = -(-n // CHUNK)
    ends = [n * i // count for i in range(count + 1)] if count else []
    return [range(start, end) for start, end in pairwise(ends)]


class AudioPrefill:
    """Audio through the semantic module and pooling: latents [1,n·P,C], or samples [1,L] whose posterior is sampled by
    `noise` (None: its mean is taken) in a chunk of its own. Where the target has no semantic state, the first chunk
    calls `make_state`.
    """

    def __init__(
        self,
        model,
        make_state: Callable[[], Any],
        *,
        latents: Tensor | None = None,
        samples: Tensor | None = None,
        noise: NoiseSource | None = None,
        target: PrefillTarget = ALONE,
    ):
        self._model, self._make_state, self._runner = model, make_state, target.runner
        self._samples, self._noise = samples, noise
        self.latents, self.state = latents, target.semantic
        self._parts: list[Tensor] = []

    def chunks(self) -> list[Chunk]:
        if self.latents is not None:
            patches, sample = self.latents.shape[1] // self._model.config.patch_frames, []
        else:
            patches = patches_of(self._model, self._samples)
            sample = [Chunk(patches, self._sample)]
        return sample + [Chunk(len(piece), partial(self._run, piece)) for piece in chunks_of(patches)]

    def _sample(self) -> None:
        self.latents = posterior_latents(self._model, self._samples, self._noise)

    def _run(self, piece: range) -> None:
        if self.state is None:
            self.state = self._make_state()
        frames = self._model.config.patch_frames
        part = self.latents[:, piece.start * frames : piece.stop * frames]
        self._parts.append(self._runner.encode_audio(self._model, part, self.state))

    def result(self) -> EncodedAudio:
        """What has been encoded, once all chunks have been run; of no audio nothing, and an empty state."""
        if self.state is None:
            self.state = self._make_state()
        if not self._parts:
            hidden = self._model.config.llm.hidden_size
            return EncodedAudio(
                torch.zeros(1, 0, hidden, dtype=torch.float32, device=self._model.llm.device), self.state
            )
        return EncodedAudio(_joined(self._parts), self.state)


class PromptPrefill:
    """A prompt through the LLM.

    `audios`, asked for by the first chunk, are the embeddings [1,n,H] of its audio blocks. audio_router: audio
    placeholders take the audio router (understanding), else all take the text router (speech and editing). Where the
    target has no LLM state, one is made with room for `expected_tokens` that follow.
    """

    def __init__(
        self,
        model,
        prompt: Prompt,
        audios: Callable[[], Sequence[Tensor]],
        *,
        audio_router: bool,
        expected_tokens: int = 0,
        target: PrefillTarget = ALONE,
    ):
        self._model, self._prompt, self._audios, self._runner = model, prompt, audios, target.runner
        self._audio_router, self._expected_tokens = audio_router, expected_tokens
        self.state, self._embeds, self._mask = target.llm, None, None
        self._parts: list[Tensor] = []

    def chunks(self) -> list[Chunk]:
        return [Chunk(len(piece), partial(self._run, piece)) for piece in chunks_of(len(self._prompt.ids))]

    def _start(self) -> None:
        self._embeds = embed_prompt(self._model, self._prompt, self._audios())
        if self.state is None:
            self.state = self._model.llm.new_state(1, self._embeds.shape[1] + self._expected_tokens)
        if self._audio_router:
            self._mask = torch.tensor([self._prompt.audio_mask], device=self._embeds.device)

    def _run(self, piece: range) -> None:
        if self._embeds is None:
            self._start()
        at = slice(piece.start, piece.stop)
        mask = None if self._mask is None else self._mask[:, at]
        self._parts.append(self._runner.run_llm(self._model, self._embeds[:, at], self.state, mask))

    @property
    def hidden(self) -> Tensor:
        """[1,T,H] after the final norm, of the chunks that have been run."""
        return _joined(self._parts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


@torch.no_grad()
def embed_audio(model, latents: Tensor, *, expected_patches: int = 0, state: Any = None) -> EncodedAudio:
    """latents [1,n·P,C] -> the LLM's embeddings of them, by the semantic module from its start.

    `state`: the empty semantic state to fill; None makes one, with room for `expected_patches` more.
    """
    frames = latents.shape[1] + expected_patches * model.config.patch_frames
    audio = AudioPrefill(
        model, lambda: model.vae.new_semantic_state(1, frames), latents=latents, target=PrefillTarget(semantic=state)
    )
    for chunk in audio.chunks():
        chunk.run()
    return audio.result()


@torch.no_grad()
def prefill(
    model, prompt: Prompt, audios: Sequence[Tensor], *, audio_router: bool, expected_tokens: int = 0, state: Any = None
) -> tuple[Tensor, Any]:
    """Runs a whole prompt -> (hidden [1,T,H] after the final norm, LLM state); see `PromptPrefill`."""
    run = PromptPrefill(
        model,
        prompt,
        lambda: audios,
        audio_router=audio_router,
        expected_tokens=expected_tokens,
        target=PrefillTarget(llm=state),
    )
    for chunk in run.chunks():
        chunk.run()
    return run.hidden, run.state
