"""The encoder: frames of samples to the mean and deviation of each frame's latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...config import AudioConfig
from ...errors import InputError
from ..layers import Linear
from ..state import KVState, _cloned
from ..weights import Weights
from .backbone import Backbone

MIN_STD = 1e-4


@dataclass
class EncoderState:
    """The backbone's state, and the samples [B, < hop] that do not make a frame yet."""

    backbone: KVState
    tail: Tensor
    finished: bool = False

    @property
    def nbytes(self) -> int:
        return self.backbone.nbytes + self.tail.nbytes

    @property
    def lengths(self) -> Tensor:
        return self.backbone.lengths

    @property
    def max_length(self) -> int:
        return self.backbone.max_length

    def clone(self) -> EncoderState:
        return _cloned(self)

    def reset(self) -> None:
        self.backbone.reset()
        self.tail, self.finished = self.tail[:, :0], False


class Encoder:
    """frames -> fc1 -> fc2 -> backbone -> fc3 -> mean | scale (docs/model.md section 4)."""

    def __init__(self, frame: Linear, fc2: Linear, backbone: Backbone, fc3: Linear, hop: int):
        self.frame, self.fc2, self.backbone, self.fc3, self.hop = frame, fc2, backbone, fc3, hop

    @classmethod
    def from_weights(cls, w: Weights, config: AudioConfig) -> Encoder:
        H = config.encoder.hidden_size
        for name in ("norm.weight", "norm.bias"):
            w.ignore(name, "the backbone's own final norm is the one applied")
        return cls(
            w.linear("fc1", H, config.hop_samples, bias=False),
            w.linear("fc2", H, H),
            Backbone.from_weights(w.sub("encoder"), config.encoder),
            w.linear("fc3", 2 * config.latent_dim, H),
            config.hop_samples,
        )

    def new_state(self, batch: int, block: int) -> EncoderState:
        tail = torch.empty(batch, 0, device=self.backbone.device)
        return EncoderState(self.backbone.new_state(batch, block), tail)

    def __call__(self, samples: Tensor, state: EncoderState, last: bool) -> tuple[Tensor, Tensor]:
        """samples [B,L] -> mean, std [B,T,C] float32 of the whole frames there are.

        last: the rest is padded to a frame with zeros, and the state takes no more.
        """
        if state.finished:
            raise InputError("vae.encode_stream: the state has had its last samples; reset it")
        state.finished = last
        if state.tail.shape[1]:
            samples = torch.cat((state.tail, samples), dim=1)
        hop, L = self.hop, samples.shape[1]
        if not last:
            whole = L // hop * hop
            samples, state.tail = samples[:, :whole], samples[:, whole:].clone()
        step = state.backbone.block * hop
        starts = range(0, samples.shape[1], step)
        scores = [self.scores(samples[:, i : i + step], state.backbone) for i in starts]
        if not scores:
            width = self.fc3.bias.shape[0]
            scores = [torch.empty(samples.shape[0], 0, width, device=samples.device)]
        return split_scores(scores[0] if len(scores) == 1 else torch.cat(scores, dim=1))

    def scores(self, samples: Tensor, state: KVState) -> Tensor:
        """One block of samples [B,L] -> mean | scale [B,T,2C]."""
        x = ops.frame_embed(samples, self.frame.weight, hop=self.hop)
        return self.fc3(self.backbone(self.fc2(x), state))


def split_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """mean | scale [B,T,2C] -> mean, std = softplus(scale) + 1e-4, float32 [B,T,C]."""
    mean, scale = scores.float().chunk(2, dim=-1)
    return mean, F.softplus(scale) + MIN_STD
