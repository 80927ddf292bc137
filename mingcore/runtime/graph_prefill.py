"""Prefill by CUDA graphs: chunks of bucketed lengths over a state set apart, then copied into the row.

A graph works on memory that stays in place, and there are many rows: so a prompt is run into a row of its own, whose
few graphs serve all, and copied. A chunk is padded to the next bucket; padding is neither stored nor attended to.
Not measured: see README.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.state import KVState
from .graphs import Graphs
from .prefill import CHUNK

# buckets of tokens, and of patches of a voice; the last is the longest chunk there is
TOKENS, PATCHES = (32, 64, 128, CHUNK), (16, 32, 64, CHUNK)
CAPACITY = 1024  # tokens, and patches, of the longest prompt that is run by graphs


class GraphPrefillRunner:
    """A `PrefillRunner` for one prompt at a time, which begins with `start`."""

    def __init__(self, model, graphs: Graphs):
        self.model, self._graphs = model, graphs
        config, device = model.config, model.llm.device
        self._frames = config.patch_frames
        self._llm = model.llm.new_state(1, CAPACITY)
        self._semantic = model.vae.new_semantic_state(1, CAPACITY * self._frames)
        self._states: tuple[KVState, KVState] = (self._llm.rows(0, 1), self._semantic.rows(0, 1))
        width = config.llm.hidden_size
        dtype = model.llm.activation_dtype
        self._embeds = torch.zeros(1, CHUNK, width, dtype=dtype, device=device)
        self._latents = torch.zeros(1, CHUNK * self._frames, config.latent_dim, dtype=torch.float32, device=device)
        self._token_mask = torch.zeros(1, CHUNK, dtype=torch.bool, device=device)
        self._audio_mask = torch.zeros_like(self._token_mask)
        self._frame_mask = torch.zeros(1, CHUNK * self._frames, dtype=torch.bool, device=device)

    def fits(self, tokens: int, frames: int) -> bool:
        """Whether a prompt of so many tokens, voice included, with such a voice can be run here."""
        return tokens <= CAPACITY and frames <= CAPACITY * self._frames

    def start(self) -> tuple[KVState, KVState]:
        """The LLM's and the semantic state, empty; what they held is gone."""
        for state in self._states:
            state.reset()
        return self._states

    def owns(self, state: Any) -> bool:
        """Whether `state` is one of `start`'s."""
        return any(state is own for own in self._states)

    def capture(self) -> None:
        """Graphs of every bucket, of the first chunk and of later ones; all is masked, so they leave no trace."""
        bounds = [list(state.bounds) for state in self._states]
        self._token_mask.zero_()
        self._audio_mask.zero_()
        self._frame_mask.zero_()
        for fresh in (True, False):
            for n in reversed(TOKENS):
                for routed in (False, True):
                    run = partial(self._run_llm, n, fresh, routed)
                    self._graphs.add(("prefill_llm", n, fresh, routed), run)
            for n in reversed(PATCHES):
                self._graphs.add(("prefill_audio", n, fresh), partial(self._encode_audio, n, fresh))
        for state, before in zip(self._states, bounds):
            state.bounds[:] = before

    def encode_audio(self, model, latents: Tensor, state: KVState) -> Tensor:
        T = latents.shape[1]
        n, fresh = _bucket(T // self._frames, PATCHES), state.max_length == 0
        self._latents.zero_()[:, :T].copy_(latents)
        self._frame_mask.zero_()[:, :T] = True
        out = self._graphs.run(("prefill_audio", n, fresh), partial(self._encode_audio, n, fresh))
        state.advance(T)
        return out[:, : T // self._frames].clone()

    def run_llm(self, model, embeds: Tensor, state: KVState, audio_mask: Tensor | None) -> Tensor:
        T = embeds.shape[1]
        n, fresh, routed = _bucket(T, TOKENS), state.max_length == 0, audio_mask is not None
        if routed:
            self._audio_mask.zero_()[:, :T] = audio_mask
        # padding is zeros: the experts that left-over values would choose change the shapes of PyTorch's products
        self._embeds.zero_()[:, :T].copy_(embeds)
        self._token_mask.zero_()[:, :T] = True
        out = self._graphs.run(("prefill_llm", n, fresh, routed), partial(self._run_llm, n, fresh, routed))
        state.advance(T)
        return out[:, :T].clone()

    def _encode_audio(self, n: int, fresh: bool) -> Tensor:
        T, state = n * self._frames, self._states[1]
        embedding = self.model.vae.semantic.forward(
            self._latents[:, :T], state.reserve(0), state.lengths, fresh=fresh, mask=self._frame_mask[:, :T]
        )
        return self.model.pool(embedding)

    def _run_llm(self, n: int, fresh: bool, routed: bool) -> Tensor:
        state = self._states[0]
        return self.model.llm.forward(
            self._embeds[:, :n],
            state.reserve(0),
            state.lengths,
            fresh=fresh,
            attention_mask=self._token_mask[:, :n],
            audio_mask=self._audio_mask[:, :n] if routed else None,
        )


def _bucket(n: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if n <= size)
