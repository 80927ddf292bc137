"""The acoustic decoder: latents to samples, by a backbone and a streaming inverse STFT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import AudioConfig
from ...errors import InputError
from ..declared import Build, Declared
from ..layers import Linear
from ..state import KVState, cloned
from ..weights import Weights
from .backbone import Backbone, backbone_state


@dataclass
class DecoderState:
    """The backbone's state and the inverse STFT's.

    No step moves their tensors, so a CUDA graph of one step carries a stream on.
    """

    backbone: KVState
    overlap: ops.OverlapState
    finished: bool = False

    @property
    def nbytes(self) -> int:
        return self.backbone.nbytes + self.overlap.nbytes

    @property
    def lengths(self) -> Tensor:
        return self.backbone.lengths

    @property
    def max_length(self) -> int:
        return self.backbone.max_length

    def clone(self) -> DecoderState:
        return cloned(self)

    def rows(self, start: int, stop: int) -> DecoderState:
        """Rows start..stop-1 as a state of their own over the same memory."""
        return DecoderState(self.backbone.rows(start, stop), self.overlap.rows(start, stop))

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        self.backbone.move(source, target)
        self.overlap.move(source, target)

    @property
    def emitted(self) -> Tensor:
        """[B] int64: how many samples of the last call belong to each row; the next changes it."""
        return self.overlap.emitted

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Rows (None: all) begin a new stream, in place."""
        rows = None if rows is None else list(rows)
        self.backbone.reset(rows)
        self.overlap.reset(rows)
        if rows is None:
            self.finished = False


class Decoder:
    """fc1 -> backbone -> head: Linear, spectrum, inverse STFT (docs/model.md section 4)."""

    def __init__(self, fc1: Linear, backbone: Backbone, head: Linear, config: AudioConfig):
        self.fc1, self.backbone, self.head, self.config = fc1, backbone, head, config
        self.hop = config.hop_samples
        self.window = _hann(config.n_fft).to(backbone.device)

    @classmethod
    def declare(cls, w: Weights, config: AudioConfig, fc1: Declared[Linear]) -> Declared[Decoder]:
        """fc1 is shared with the semantic module."""
        for name in ("fc3.weight", "fc3.bias"):
            w.ignore(name, "decoding goes by fc1, the backbone and the head alone")
        w.check_buffer("head.istft.window", _hann(config.n_fft))
        return Build(
            cls,
            fc1,
            Backbone.declare(w.sub("decoder"), config.decoder),
            w.linear("head.out", config.n_fft + 2, config.decoder.hidden_size),
            config,
        )

    def new_state(self, batch: int, block: int) -> DecoderState:
        b = self.backbone
        return decoder_state(self.config, batch, block, dtype=b.activation_dtype, device=b.device)

    def __call__(
        self, latents: Tensor, state: DecoderState, last: bool | Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """latents [B,T,C] -> the samples [B,L] float32 that are final by now.

        last: nothing is held back; where it is a tensor [B], those rows begin anew, else the state
        takes no more. valid [B]: how many latents are a row's own.
        """
        if state.finished:
            raise InputError("vae.decode: the state has had its last latents; reset it")
        state.finished = last is True
        block, (B, T, _) = state.backbone.block, latents.shape
        # all sequences of the batch are at the same place, known to the host
        aligned = valid is None and isinstance(last, bool) and state.overlap.skip is not None
        sounds, hidden = [], []
        for t in range(0, T, block):
            mask = None
            if valid is not None:
                mask = torch.arange(t, min(t + block, T), device=latents.device) < valid[:, None]
            hidden.append(self.backbone_out(latents[:, t : t + block], state.backbone, mask))
            if aligned:
                sounds.append(self._sound(hidden.pop(), state, last and t + block >= T))
        if not sounds:
            # ragged: one call for all blocks, so that a row's own samples are contiguous
            hidden = hidden or [latents.new_empty(B, 0, self.backbone.config.hidden_size)]
            sounds = [self._sound(torch.cat(hidden, dim=1), state, last, valid)]
        if isinstance(last, Tensor):
            state.lengths.masked_fill_(last, 0)
        return sounds[0] if len(sounds) == 1 else torch.cat(sounds, dim=1)

    def _sound(self, hidden: Tensor, state: DecoderState, last: bool | Tensor, valid: Tensor | None = None) -> Tensor:
        overlap, (B, T, _) = state.overlap, hidden.shape
        L = overlap.due(T, self.hop, last, valid)
        samples = torch.empty(B, L, dtype=overlap.numerator.dtype, device=hidden.device)
        head = (self.head.weight, self.head.bias, self.window, self.hop)
        ops.spectrum_head_(hidden, samples, *head, overlap, last, valid=valid)
        return samples

    def backbone_out(self, latents: Tensor, state: KVState, mask: Tensor | None = None) -> Tensor:
        """latents [B,T,C] -> hidden states [B,T,H] after the backbone's final norm."""
        return self.backbone(self.fc1(latents.to(self.backbone.activation_dtype)), state, mask)


def decoder_state(
    config: AudioConfig, batch: int, block: int, *, dtype: torch.dtype, device: torch.device
) -> DecoderState:
    """An empty state of the decoder that takes at most `block` latents a step."""
    backbone = backbone_state(config.decoder, batch, block, dtype=dtype, device=device)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    overlap = ops.OverlapState.start(batch, config.n_fft, config.hop_samples, dtype=sums, device=device)
    return DecoderState(backbone, overlap)


def _hann(n: int) -> Tensor:
    return torch.hann_window(n, periodic=True, dtype=torch.float32)
