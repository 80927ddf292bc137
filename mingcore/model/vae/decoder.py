"""The acoustic decoder: latents to samples, by a backbone and a streaming inverse STFT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...config import AudioConfig
from ...errors import InputError
from ..layers import Linear
from ..state import KVState, _cloned
from ..weights import Weights
from .backbone import Backbone


@dataclass
class DecoderState:
    """The backbone's state and the inverse STFT's (None before the first frame)."""

    backbone: KVState
    overlap: ops.OverlapState | None = None
    finished: bool = False

    @property
    def nbytes(self) -> int:
        return self.backbone.nbytes + (0 if self.overlap is None else self.overlap.nbytes)

    @property
    def lengths(self) -> Tensor:
        return self.backbone.lengths

    @property
    def max_length(self) -> int:
        return self.backbone.max_length

    def clone(self) -> DecoderState:
        return _cloned(self)

    def reset(self) -> None:
        self.backbone.reset()
        self.overlap, self.finished = None, False


class Decoder:
    """fc1 -> backbone -> head: Linear, spectrum, inverse STFT (docs/model.md section 4)."""

    def __init__(self, fc1: Linear, backbone: Backbone, head: Linear, config: AudioConfig):
        self.fc1, self.backbone, self.head = fc1, backbone, head
        self.hop = config.hop_samples
        self.window = _hann(config.n_fft).to(backbone.device)

    @classmethod
    def from_weights(cls, w: Weights, config: AudioConfig, fc1: Linear) -> Decoder:
        """fc1 is shared with the semantic module."""
        for name in ("fc3.weight", "fc3.bias"):
            w.ignore(name, "decoding goes by fc1, the backbone and the head alone")
        w.check_buffer("head.istft.window", _hann(config.n_fft))
        return cls(
            fc1,
            Backbone.from_weights(w.sub("decoder"), config.decoder),
            w.linear("head.out", config.n_fft + 2, config.decoder.hidden_size),
            config,
        )

    def new_state(self, batch: int, block: int) -> DecoderState:
        return DecoderState(self.backbone.new_state(batch, block))

    def __call__(self, latents: Tensor, state: DecoderState, last: bool) -> Tensor:
        """latents [B,T,C] -> the samples [B,L] float32 that are final by now."""
        if state.finished:
            raise InputError("vae.decode: the state has had its last latents; reset it")
        state.finished = last
        block, T = state.backbone.block, latents.shape[1]
        if T == 0:
            width = self.backbone.config.hidden_size
            return self._sound(latents.new_empty(latents.shape[0], 0, width), state, last)
        chunks = [
            self._sound(
                self.backbone_out(latents[:, i : i + block], state.backbone),
                state,
                last and i + block >= T,
            )
            for i in range(0, T, block)
        ]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def _sound(self, hidden: Tensor, state: DecoderState, last: bool) -> Tensor:
        samples, state.overlap = ops.spectrum_head(
            hidden, self.head.weight, self.head.bias, self.window, self.hop, state.overlap, last
        )
        return samples

    def backbone_out(self, latents: Tensor, state: KVState) -> Tensor:
        """latents [B,T,C] -> hidden states [B,T,H] after the backbone's final norm."""
        return self.backbone(self.fc1(latents.to(self.backbone.activation_dtype)), state)


def _hann(n: int) -> Tensor:
    return torch.hann_window(n, periodic=True, dtype=torch.float32)
