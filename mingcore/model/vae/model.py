"""The AudioVAE as one object; every stream's state is an explicit argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...config import AudioConfig
from ...errors import InputError
from ..layers import Linear
from ..weights import DictTensors, Weights, assemble
from .decoder import Decoder, DecoderState
from .encoder import Encoder, EncoderState
from .semantic import Semantic, SemanticState

BLOCK = 256  # frames that a long input is cut into, so that memory stays bounded
STREAM_BLOCK = 32  # the same for states made for streaming: a few frames at a time


class AudioVAE:
    """MingTok-Audio: 16 kHz, a latent of 64 per 320 samples (docs/model.md section 4)."""

    def __init__(self, config: AudioConfig, encoder: Encoder, semantic: Semantic, decoder: Decoder):
        self.config = config
        self.encoder, self.semantic, self.decoder = encoder, semantic, decoder

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        activation_dtype: torch.dtype | None = None,
    ) -> AudioVAE:
        """An AudioVAE alone: names without `audio.`, config the `audio_tokenizer_config` mapping.

        dtype None: that of `encoder.fc2.weight`. Raises CheckpointError for a config that lacks or
        contradicts something and for keys that are missing, unexpected or misshapen.
        """
        if dtype is None:
            probe = tensors.get("encoder.fc2.weight")
            dtype = torch.float32 if probe is None else probe.dtype
        parsed = AudioConfig.from_json(config)
        vae, _ = assemble(
            DictTensors(tensors, "the AudioVAE's state dict"),
            lambda w: cls.from_weights(w, parsed),
            device=device,
            dtype=dtype,
            activation_dtype=activation_dtype,
        )
        return vae

    @classmethod
    def from_weights(cls, w: Weights, config: AudioConfig) -> AudioVAE:
        d = w.sub("decoder")
        fc1: Linear = d.linear("fc1", config.decoder.hidden_size, config.latent_dim)
        return cls(
            config,
            Encoder.from_weights(w.sub("encoder"), config),
            Semantic.from_weights(d, config, fc1),
            Decoder.from_weights(d, config, fc1),
        )

    def new_encoder_state(self, batch: int, block: int = STREAM_BLOCK) -> EncoderState:
        """An empty state; `block` is the most frames that one step computes at once."""
        return self.encoder.new_state(batch, block)

    def new_semantic_state(self, batch: int, capacity: int) -> SemanticState:
        """An empty state for `capacity` frames a row; it doubles when they are exceeded."""
        return self.semantic.new_state(batch, capacity)

    def new_decoder_state(self, batch: int, block: int = STREAM_BLOCK) -> DecoderState:
        """An empty state; its size does not grow where every layer has a window."""
        return self.decoder.new_state(batch, block)

    def encode(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """samples [B,L] at 16 kHz -> mean, std [B,T,C] float32, T = ceil(L / hop).

        The end is padded with zeros to a whole frame. Long inputs are computed in blocks. Raises
        InputError for another shape, or without samples.
        """
        B = _check_samples("vae.encode", samples)
        frames = -(-samples.shape[1] // self.config.hop_samples)
        state = self.new_encoder_state(B, min(frames, BLOCK))
        mean, std, _ = self.encode_stream(samples, state, last=True)
        return mean, std

    def encode_stream(
        self, samples: Tensor, state: EncoderState | None = None, last: bool = False
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """The next samples [B,L] of a stream -> (mean, std [B,T,C], state), T >= 0 whole frames."""
        B = _check_samples("vae.encode_stream", samples)
        state = state or self.new_encoder_state(B)
        _check_rows("vae.encode_stream", state.tail.shape[0], B)
        mean, std = self.encoder(samples.to(self.encoder.backbone.activation_dtype), state, last)
        return mean, std, state

    def sample_posterior(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """mean + std * noise, all [B,T,C]: latents of a voice, noise drawn by the caller."""
        if noise.shape != mean.shape:
            raise InputError(
                f"vae.sample_posterior: noise must be {list(mean.shape)}, got {list(noise.shape)}"
            )
        return mean + std * noise

    def unify(
        self, latents: Tensor, state: SemanticState | None = None
    ) -> tuple[Tensor, SemanticState]:
        """latents [B,T,C] -> (unified embedding [B,T,Hs], state), at any length.

        The state continues a stream and is changed in place; None starts one.
        """
        B, T = self._check_latents("vae.unify", latents)
        state = state or self.new_semantic_state(B, T)
        _check_rows("vae.unify", state.batch, B)
        parts = [self.semantic(latents[:, i : i + BLOCK], state) for i in range(0, T, BLOCK)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), state

    def decode(
        self, latents: Tensor, state: DecoderState | None = None, last: bool = True
    ) -> tuple[Tensor, DecoderState]:
        """latents [B,T,C] -> (samples [B,L] float32, state).

        A stream passes last=False until its end: each chunk then holds back what later frames
        still overlap, the first one also drops the samples before the signal, and the chunks one
        after the other equal the one-shot output. The last chunk may have no latents (T = 0): it
        flushes. The state is changed in place. Raises InputError for another shape, and after the
        last chunk.
        """
        flush = last and state is not None
        B, T = self._check_latents("vae.decode", latents, least=0 if flush else 1)
        if state is None:
            state = self.new_decoder_state(B, min(T, BLOCK) if last else STREAM_BLOCK)
        _check_rows("vae.decode", state.backbone.batch, B)
        return self.decoder(latents, state, last), state

    def _check_latents(self, what: str, latents: Tensor, least: int = 1) -> tuple[int, int]:
        C = self.config.latent_dim
        fits = latents.dim() == 3 and latents.shape[-1] == C and latents.shape[0] > 0
        if not fits or latents.shape[1] < least:
            raise InputError(f"{what}: latents must be [B, T, {C}], got {list(latents.shape)}")
        return latents.shape[0], latents.shape[1]


def _check_samples(what: str, samples: Tensor) -> int:
    if samples.dim() != 2 or samples.numel() == 0 or not samples.is_floating_point():
        raise InputError(
            f"{what}: samples must be float [B, L], got {samples.dtype} {list(samples.shape)}"
        )
    return samples.shape[0]


def _check_rows(what: str, rows: int, B: int) -> None:
    if rows != B:
        raise InputError(f"{what}: the state has {rows} rows, the input has {B}")
