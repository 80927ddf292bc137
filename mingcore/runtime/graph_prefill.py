"""Prompts in CUDA graphs: pieces of fixed lengths over a state of their own, then into the row.

A graph works on memory that stays in place, and there are many rows: so a prompt is run into one
row set apart, whose few graphs serve all, and copied. A piece is padded to the next bucket; what
is padded is neither stored nor seen. Not measured: see README.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.state import KVState
from .graphs import Graphs
from .prefill import PIECE

# of tokens, and of patches of a voice; the last is the longest piece there is
TOKENS, PATCHES = (32, 64, 128, PIECE), (16, 32, 64, PIECE)
ROOM = 1024  # tokens, and patches, of the longest prompt that is run in graphs


class BucketReader:
    """A `generate.Reader` for one prompt at a time, which begins with `start`."""

    def __init__(self, model, graphs: Graphs):
        self.model, self._graphs = model, graphs
        config, device = model.config, model.llm.device
        self._frames = config.patch_frames
        self._llm = model.llm.new_state(1, ROOM)
        self._semantic = model.vae.new_semantic_state(1, ROOM * self._frames)
        self._fixed: tuple[KVState, KVState] = (self._llm.rows(0, 1), self._semantic.rows(0, 1))
        width = config.llm.hidden_size
        dtype = model.llm.activation_dtype
        self._embeds = torch.zeros(1, PIECE, width, dtype=dtype, device=device)
        self._latents = torch.zeros(1, PIECE * self._frames, config.latent_dim, device=device)
        self._tokens = torch.zeros(1, PIECE, dtype=torch.bool, device=device)
        self._audio = torch.zeros_like(self._tokens)
        self._heard = torch.zeros(1, PIECE * self._frames, dtype=torch.bool, device=device)

    def fits(self, tokens: int, frames: int) -> bool:
        """Whether a prompt of so many tokens, voice included, with such a voice is run here."""
        return tokens <= ROOM and frames <= ROOM * self._frames

    def start(self) -> tuple[KVState, KVState]:
        """The LLM's and the semantic state, empty; whatever was there is gone."""
        for state in self._fixed:
            state.reset()
        return self._fixed

    def owns(self, state: Any) -> bool:
        """Whether `state` is one of `start`'s."""
        return any(state is mine for mine in self._fixed)

    def capture(self) -> None:
        """Graphs of every bucket, of the first piece and of later ones; nothing is valid, so they
        leave no trace."""
        bounds = [list(state.bounds) for state in self._fixed]
        self._tokens.zero_()
        self._audio.zero_()
        self._heard.zero_()
        for fresh in (True, False):
            for n in reversed(TOKENS):
                for routed in (False, True):
                    read = partial(self._read, n, fresh, routed)
                    self._graphs.add(("read", n, fresh, routed), read)
            for n in reversed(PATCHES):
                self._graphs.add(("hear", n, fresh), partial(self._hear, n, fresh))
        for state, before in zip(self._fixed, bounds):
            state.bounds[:] = before

    def hear(self, model, latents: Tensor, state: KVState) -> Tensor:
        T = latents.shape[1]
        n, fresh = _bucket(T // self._frames, PATCHES), state.max_length == 0
        self._latents.zero_()[:, :T].copy_(latents)
        self._heard.zero_()[:, :T] = True
        out = self._graphs.run(("hear", n, fresh), partial(self._hear, n, fresh))
        state.advance(T)
        return out[:, : T // self._frames].clone()

    def read(self, model, embeds: Tensor, state: KVState, audio_mask: Tensor | None) -> Tensor:
        T = embeds.shape[1]
        n, fresh, routed = _bucket(T, TOKENS), state.max_length == 0, audio_mask is not None
        if routed:
            self._audio.zero_()[:, :T] = audio_mask
        # experts that padding would choose by what was left there change PyTorch's products
        self._embeds.zero_()[:, :T].copy_(embeds)
        self._tokens.zero_()[:, :T] = True
        read = partial(self._read, n, fresh, routed)
        out = self._graphs.run(("read", n, fresh, routed), read)
        state.advance(T)
        return out[:, :T].clone()

    def _hear(self, n: int, fresh: bool) -> Tensor:
        T, state = n * self._frames, self._fixed[1]
        embedding = self.model.vae.semantic.forward(
            self._latents[:, :T], state.reserve(0), state.lengths, fresh=fresh, mask=self._heard[:, :T]
        )
        return self.model.pool(embedding)

    def _read(self, n: int, fresh: bool, routed: bool) -> Tensor:
        state = self._fixed[0]
        return self.model.llm.forward(
            self._embeds[:, :n],
            state.reserve(0),
            state.lengths,
            fresh=fresh,
            attention_mask=self._tokens[:, :n],
            audio_mask=self._audio[:, :n] if routed else None,
        )


def _bucket(n: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if n <= size)
