"""What convolutional VAEs share: samples in, latents out, and back, one-shot or as streams."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import InputError
from .layers import Network
from .stream import Chunk, CodecState

BLOCK = 64  # latents that a longer input is cut into, so that memory stays bounded


class ConvVAE(ABC):
    """An encoder and a decoder made of causal convolutions; a stream's state is an argument.

    Latents [B, T, C] float32, samples [B, L] float32 ([B, channels, L] where there are several).
    sample_rate of the encoder's inputs, out_sample_rate of the decoder's outputs, in Hz. A latent
    is hop_samples inputs, out_hop_samples outputs: latent_rate of them are a second. Rows of a
    batch may be at different places: `valid` [B] int64 says how many of a chunk's inputs are a
    row's own (None: all; 0: it sits out), `last`, a bool or bool [B], ends streams; the state's
    `emitted` then says how many outputs belong to each row, and the rest are zeros.
    """

    def __init__(
        self,
        encoder: Network,
        decoder: Network,
        *,
        channels: int,
        latent_dim: int,
        hop_samples: int,
        out_hop_samples: int,
        sample_rate: int,
        out_sample_rate: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.encoder, self.decoder = encoder, decoder
        self.channels, self.latent_dim = channels, latent_dim
        self.hop_samples, self.out_hop_samples = hop_samples, out_hop_samples
        self.sample_rate, self.out_sample_rate = sample_rate, out_sample_rate
        self.device, self.activation_dtype = device, dtype

    @property
    def latent_rate(self) -> float:
        """Latents per second."""
        return self.sample_rate / self.hop_samples

    def new_encoder_state(self, batch: int) -> CodecState:
        """The state before a stream's first samples; its size does not grow."""
        return self._new_state(self.encoder, batch)

    def new_decoder_state(self, batch: int) -> CodecState:
        """The state before a stream's first latents; its size does not grow."""
        return self._new_state(self.decoder, batch)

    def encode(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """samples [B, L] -> mean, std [B, T, C], T = ceil(L / hop_samples).

        The end is padded with zeros to a whole latent. Long inputs are computed in blocks.
        """
        return self.encode_stream(samples, last=True)[:2]

    def encode_stream(
        self, samples: Tensor, state: CodecState | None = None, last: bool | Tensor = False, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor, CodecState]:
        """The next samples [B, L], L >= 0, of a stream -> mean, std [B, T, C], state.

        T are the latents that are complete by now; `last` completes the one that has begun with
        zeros, and the next samples begin a new stream. The state is changed in place; None starts
        one. Raises InputError for another shape or type.
        """
        what = "vae.encode_stream"
        x = self._checked_samples(what, samples)
        state = state or self.new_encoder_state(x.shape[0])
        valid, last = _checked_rows(what, state, x, valid, last)
        if last is not False:
            x, valid = self._padded(x, state, valid, last)
        y = _run_blocks(self.encoder, x, Chunk(state, valid), BLOCK * self.hop_samples)
        state.end(last)
        return *self._posterior(y.transpose(1, 2).float()), state

    def sample_posterior(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """mean + std * noise, all [B, T, C]; noise drawn by the caller."""
        if noise.shape != mean.shape:
            raise InputError(f"vae.sample_posterior: noise must be {list(mean.shape)}, got {list(noise.shape)}")
        return mean + std * noise

    def decode(
        self, latents: Tensor, state: CodecState | None = None, last: bool | Tensor = True, valid: Tensor | None = None
    ) -> tuple[Tensor, CodecState]:
        """The next latents [B, T, C], T >= 0 -> samples [B, T * out_hop_samples], state.

        Every latent gives its samples at once: `last` only begins a new stream for what follows.
        The state is changed in place; None starts one. Raises InputError for another shape or type.
        """
        return self._decode(latents, state, last, valid)

    @abstractmethod
    def _posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's outputs [B, T, C'] -> mean, std [B, T, C]."""

    def _decode(self, latents, state, last, valid, condition=None, noise=()):
        what, C = "vae.decode", self.latent_dim
        fits = latents.dim() == 3 and latents.shape[2] == C and latents.shape[0] > 0
        if not fits or not latents.is_floating_point():
            raise InputError(f"{what}: latents must be float [B, T, {C}], got {latents.dtype} {list(latents.shape)}")
        state = state or self.new_decoder_state(latents.shape[0])
        x = latents.to(self.device, self.activation_dtype).transpose(1, 2)
        valid, last = _checked_rows(what, state, x, valid, last)
        chunk = Chunk(state, valid, condition=condition, noise=noise)
        y = _run_blocks(self.decoder, x, chunk, BLOCK)
        state.end(last)
        return (y[:, 0] if self.channels == 1 else y).float(), state

    def _new_state(self, network: Network, batch: int) -> CodecState:
        if batch < 1:
            raise InputError(f"vae: batch must be positive, got {batch}")
        return network.new_state(batch, self.activation_dtype, self.device)

    def _checked_samples(self, what: str, samples: Tensor) -> Tensor:
        """[B, channels, L], where and as the encoder computes."""
        x = samples.unsqueeze(1) if self.channels == 1 and samples.dim() == 2 else samples
        fits = x.dim() == 3 and x.shape[1] == self.channels and x.shape[0] > 0
        if not fits or not x.is_floating_point():
            shape = "[B, L]" if self.channels == 1 else f"[B, {self.channels}, L]"
            raise InputError(f"{what}: samples must be float {shape}, got {samples.dtype} {list(samples.shape)}")
        return x.to(self.device, self.activation_dtype)

    def _padded(self, x, state: CodecState, valid, last) -> tuple[Tensor, Tensor | None]:
        """Zeros behind the rows that end, to a whole latent."""
        hop, L = self.hop_samples, x.shape[2]
        if last is True and valid is None:
            return F.pad(x, (0, -(state.seen + L) % hop)), None
        if valid is None:
            valid = torch.full_like(state.lengths, L)
        own = torch.arange(L, device=x.device) < valid.view(-1, 1, 1)
        missing = torch.remainder(-(state.lengths + valid), hop)
        if last is not True:
            missing = missing.masked_fill(~last, 0)
        return F.pad(torch.where(own, x, 0), (0, hop - 1)), valid + missing


def _checked_rows(what: str, state: CodecState, x: Tensor, valid, last):
    """valid and last, checked and on the state's device; valid as a tensor where the batch is ragged."""
    B, L = x.shape[0], x.shape[2]
    if state.batch != B:
        raise InputError(f"{what}: the state has {state.batch} rows, the input has {B}")
    for name, rows, dtype in (("valid", valid, torch.int64), ("last", last, torch.bool)):
        if isinstance(rows, Tensor) and (rows.shape != (B,) or rows.dtype != dtype):
            raise InputError(f"{what}: {name} must be {dtype} [{B}], got {rows.dtype} {list(rows.shape)}")
    if isinstance(last, Tensor):
        last = last.to(x.device)
    if valid is not None:
        valid = valid.to(x.device).clamp(0, L)
    elif state.seen is None:
        valid = torch.full_like(state.emitted, L)
    return valid, last


def _run_blocks(network: Network, x: Tensor, chunk: Chunk, block: int) -> Tensor:
    """The network's outputs [B, C_out, T], block by block.

    A block is whole latents, so a row that owns all of it gives as many outputs as any: what a row
    gives is one piece at the front of the blocks' outputs put together.
    """
    state, valid, L = chunk.state, chunk.valid, x.shape[2]
    parts, emitted = [], 0
    for start in range(0, L, block):
        piece = x[:, :, start : start + block]
        chunk.start = start
        chunk.valid = None if valid is None else (valid - start).clamp(0, piece.shape[2])
        parts.append(network(piece, chunk))
        emitted = emitted + (parts[-1].shape[2] if valid is None else chunk.valid)
    if isinstance(emitted, Tensor):
        state.emitted.copy_(emitted)
    else:
        state.emitted.fill_(emitted)
    state.seen = state.seen + L if valid is None else None
    if not parts:
        return x.new_empty(x.shape[0], network.outputs, 0)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
