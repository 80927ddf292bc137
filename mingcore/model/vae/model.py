"""The AudioVAE as one object; every stream's state is an explicit argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...config.model_config import AudioConfig
from ...errors import InputError
from ...ops._core import checks
from ..declared import Build, Declared, Shared
from ..sources import DictTensors
from ..weights import Weights, assemble
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
        return assemble(
            DictTensors(tensors, "the AudioVAE's state dict"),
            lambda w: cls.declare(w, parsed),
            device=device,
            dtype=dtype,
            activation_dtype=activation_dtype,
        )

    @classmethod
    def declare(cls, w: Weights, config: AudioConfig) -> Declared[AudioVAE]:
        d = w.sub("decoder")
        fc1 = Shared(d.linear("fc1", config.decoder.hidden_size, config.latent_dim))
        return Build(
            cls,
            config,
            Encoder.declare(w.sub("encoder"), config),
            Semantic.declare(d, config, fc1),
            Decoder.declare(d, config, fc1),
        )

    def new_encoder_state(self, batch: int, block: int = STREAM_BLOCK) -> EncoderState:
        """An empty state; `block` is the most frames that one step computes at once."""
        return self.encoder.new_state(batch, block)

    def new_semantic_state(
        self, batch: int, capacity: int, *, window: int | None = None, format: str | None = None
    ) -> SemanticState:
        """An empty state for `capacity` frames a row; it doubles when they are exceeded.

        window: how many of the newest frames are seen, so that memory is constant; format: "int8"
        keeps keys and values in 8 bits. Both depart from the reference. Raises InputError.
        """
        return self.semantic.new_state(batch, capacity, window=window, format=format, block=min(capacity, BLOCK))

    def new_decoder_state(self, batch: int, block: int = STREAM_BLOCK) -> DecoderState:
        """An empty state; its size does not grow where every layer has a window."""
        return self.decoder.new_state(batch, block)

    def encode(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """samples [B,L] at 16 kHz -> mean, std [B,T,C] float32, T = ceil(L / hop).

        The end is padded with zeros to a whole frame. Long inputs are computed in blocks. Raises
        InputError for another shape, or without samples.
        """
        B = _check_samples("vae.encode", samples, min_samples=1)
        frames = -(-samples.shape[1] // self.config.hop_samples)
        state = self.new_encoder_state(B, min(frames, BLOCK))
        mean, std, _ = self.encode_stream(samples, state, last=True)
        return mean, std

    def encode_stream(
        self,
        samples: Tensor,
        state: EncoderState | None = None,
        last: bool | Tensor = False,
        *,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """The next samples [B,L] of streams, any L >= 0 -> (mean, std [B,T,C] float32, state).

        Each chunk gives the frames that are whole by then, and put together they equal `encode`;
        `last` pads the rest with zeros to a whole frame. The state (None starts one) is changed
        in place; its memory is constant where every layer has a window.
        Rows may be at different places: valid [B] int64 (None: L each) is how many samples are a
        row's own, 0 where it sits out; last [B] bool ends streams row by row, and those rows begin
        anew with the next call. `state.emitted` [B] then says how many of the T frames are a
        row's; the others are zeros. Raises InputError for other shapes, and after `last=True`.
        """
        what = "vae.encode_stream"
        B = _check_samples(what, samples, min_samples=0)
        checks.stream_arguments(what, samples, valid, last)
        state = state or self.new_encoder_state(B)
        _check_batch(what, state.backbone.batch, B)
        samples = samples.to(self.encoder.backbone.activation_dtype)
        last = last if isinstance(last, Tensor) else bool(last)
        mean, std = self.encoder(samples, state, last, valid)
        return mean, std, state

    def sample_posterior(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """mean + std * noise, all [B,T,C]: latents of a voice, noise drawn by the caller."""
        if noise.shape != mean.shape:
            raise InputError(f"vae.sample_posterior: noise must be {list(mean.shape)}, got {list(noise.shape)}")
        return mean + std * noise

    def unify(self, latents: Tensor, state: SemanticState | None = None) -> tuple[Tensor, SemanticState]:
        """latents [B,T,C] -> (unified embedding [B,T,Hs], state), at any length.

        The state continues a stream and is changed in place; None starts one.
        """
        B, T = self._check_latents("vae.unify", latents)
        state = state or self.new_semantic_state(B, T)
        _check_batch("vae.unify", state.batch, B)
        parts = [self.semantic(latents[:, i : i + BLOCK], state) for i in range(0, T, BLOCK)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), state

    def decode(
        self,
        latents: Tensor,
        state: DecoderState | None = None,
        last: bool | Tensor = True,
        *,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, DecoderState]:
        """latents [B,T,C] -> (samples [B,L] float32, state).

        A stream passes last=False until its end: each chunk then holds back what later frames
        still overlap, the first one also drops the samples before the signal, and the chunks one
        after the other equal the one-shot output. A chunk of a stream may have no latents (T = 0);
        as the last one it flushes. The state is changed in place.
        Rows may be at different places: valid [B] int64 (None: T each) is how many latents are a
        row's own, 0 where it sits out; last [B] bool ends streams row by row, and those rows begin
        anew with the next call. `state.emitted` [B] then says how many of the L samples are a
        row's; the others are zeros. Raises InputError for other shapes, and after `last=True`.
        """
        what = "vae.decode"
        B, T = self._check_latents(what, latents, min_frames=1 if state is None else 0)
        checks.stream_arguments(what, latents, valid, last)
        last = last if isinstance(last, Tensor) else bool(last)
        if state is None:
            state = self.new_decoder_state(B, min(T, BLOCK) if last is True else STREAM_BLOCK)
        _check_batch(what, state.backbone.batch, B)
        return self.decoder(latents, state, last, valid), state

    def _check_latents(self, what: str, latents: Tensor, min_frames: int = 1) -> tuple[int, int]:
        C = self.config.latent_dim
        fits = latents.dim() == 3 and latents.shape[-1] == C and latents.shape[0] > 0
        if not fits or latents.shape[1] < min_frames:
            raise InputError(f"{what}: latents must be [B, T, {C}], got {list(latents.shape)}")
        return latents.shape[0], latents.shape[1]


def _check_samples(what: str, samples: Tensor, min_samples: int) -> int:
    fits = samples.dim() == 2 and samples.shape[0] > 0 and samples.is_floating_point()
    if not fits or samples.shape[1] < min_samples:
        raise InputError(f"{what}: samples must be float [B, L], got {samples.dtype} {list(samples.shape)}")
    return samples.shape[0]


def _check_batch(what: str, found: int, B: int) -> None:
    if found != B:
        raise InputError(f"{what}: the state has {found} rows, the input has {B}")
