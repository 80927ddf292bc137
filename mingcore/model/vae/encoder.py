"""The encoder: frames of samples to the mean and deviation of each frame's latent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...config.model_config import AudioConfig
from ...errors import InputError
from ..declared import Build, Declared
from ..layers import Linear
from ..state import KVState, cloned
from ..weights import Weights
from .backbone import Backbone

MIN_STD = 1e-4


@dataclass
class EncoderState:
    """The backbone's state, and the samples that do not make a frame yet.

    tail [B, hop - 1]; held [B] int64: how many samples of it are a row's. emitted [B] int64: how
    many frames of the last call belong to each row; the rest of it is zeros. offset: `held` while
    all rows are alike, known to the host, else None: a call then returns as many frames as any row
    might have. `nbytes` stays what it is where every layer has a window.
    """

    backbone: KVState
    tail: Tensor
    held: Tensor
    emitted: Tensor
    offset: int | None = 0
    finished: bool = False

    @property
    def nbytes(self) -> int:
        tensors = (self.tail, self.held, self.emitted)
        return self.backbone.nbytes + sum(t.nbytes for t in tensors)

    @property
    def lengths(self) -> Tensor:
        return self.backbone.lengths

    @property
    def max_length(self) -> int:
        return self.backbone.max_length

    def clone(self) -> EncoderState:
        return cloned(self)

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Rows (None: all) begin a new stream, in place."""
        rows = None if rows is None else list(rows)
        self.backbone.reset(rows)
        if rows is None:
            self.held.zero_()
            self.offset, self.finished = 0, False
        else:
            self.held[torch.tensor(rows, device=self.held.device)] = 0
            self.offset = None


class Encoder:
    """frames -> fc1 -> fc2 -> backbone -> fc3 -> mean | scale (docs/model.md section 4)."""

    def __init__(self, frame: Linear, fc2: Linear, backbone: Backbone, fc3: Linear, hop: int):
        self.frame, self.fc2, self.backbone, self.fc3, self.hop = frame, fc2, backbone, fc3, hop

    @classmethod
    def declare(cls, w: Weights, config: AudioConfig) -> Declared[Encoder]:
        H = config.encoder.hidden_size
        for name in ("norm.weight", "norm.bias"):
            w.ignore(name, "the backbone's own final norm is the one applied")
        return Build(
            cls,
            w.linear("fc1", H, config.hop_samples, bias=False),
            w.linear("fc2", H, H),
            Backbone.declare(w.sub("encoder"), config.encoder),
            w.linear("fc3", 2 * config.latent_dim, H),
            config.hop_samples,
        )

    def new_state(self, batch: int, block: int) -> EncoderState:
        device, dtype = self.backbone.device, self.backbone.activation_dtype
        tail = torch.zeros(batch, self.hop - 1, device=device, dtype=dtype)
        held = torch.zeros(batch, dtype=torch.int64, device=device)
        return EncoderState(self.backbone.new_state(batch, block), tail, held, torch.zeros_like(held))

    def __call__(
        self, samples: Tensor, state: EncoderState, last: bool | Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """samples [B,L] -> mean, std [B,T,C] float32 of the whole frames there are.

        last: the rest is padded to a frame with zeros; where it is a tensor [B], those rows begin
        anew, else the state takes no more. valid [B]: how many samples are a row's own.
        """
        if state.finished:
            raise InputError("vae.encode_stream: the state has had its last samples; reset it")
        state.finished = last is True
        if valid is None and isinstance(last, bool) and state.offset is not None:
            samples, frames = self._aligned(samples, state, last), None
        else:
            samples, frames = self._ragged(samples, state, last, valid)
        block, T = state.backbone.block, -(-samples.shape[1] // self.hop)
        scores = []
        for t in range(0, T, block):
            mask = None
            if frames is not None:
                mask = torch.arange(t, min(t + block, T), device=samples.device) < frames[:, None]
            part = samples[:, t * self.hop : (t + block) * self.hop]
            scores.append(self.scores(part, state.backbone, mask))
        if not scores:
            scores = [samples.new_empty(samples.shape[0], 0, self.fc3.bias.shape[0])]
        mean, std = split_scores(scores[0] if len(scores) == 1 else torch.cat(scores, dim=1))
        if frames is None:
            return mean, std
        if isinstance(last, Tensor):
            state.lengths.masked_fill_(last, 0)
        padding = (torch.arange(T, device=samples.device) >= frames[:, None])[..., None]
        return mean.masked_fill(padding, 0.0), std.masked_fill(padding, 0.0)

    def _aligned(self, samples: Tensor, state: EncoderState, last: bool) -> Tensor:
        """The samples [B,L'] of complete frames, where all sequences hold equally many samples back."""
        if state.offset:
            samples = torch.cat((state.tail[:, : state.offset], samples), dim=1)
        L = samples.shape[1]
        due = L if last else L // self.hop * self.hop
        state.tail[:, : L - due] = samples[:, due:]
        state.offset = L - due
        state.held.fill_(L - due)
        state.emitted.fill_(-(-due // self.hop))
        return samples[:, :due]

    def _ragged(
        self, samples: Tensor, state: EncoderState, last: bool | Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(samples [B,T*hop], their frames [B]) of complete frames; without host synchronisation.

        Each row: what it held, then its own new samples, then zeros. T: of any row at most.
        """
        L = samples.shape[1]
        hop, device, held = self.hop, samples.device, state.held[:, None]
        room = hop - 1 + L
        place = torch.arange(-(-room // hop) * hop, device=device)
        new = L if valid is None else valid.clamp(0, L)[:, None]
        source = torch.where(place < held, place, place - held + hop - 1)
        rows = torch.cat((state.tail, samples), dim=1).gather(1, source.clamp(max=room - 1))
        total = held + new
        rows = torch.where(place < total, rows, 0.0)
        frames = total[:, 0] // hop
        if last is not False:
            padded = -(-total[:, 0] // hop)
            frames = torch.where(last, padded, frames) if isinstance(last, Tensor) else padded
        due = frames[:, None] * hop
        behind = due + torch.arange(hop - 1, device=device)
        state.tail.copy_(rows.gather(1, behind.clamp(max=place.numel() - 1)))
        state.held.copy_((total - due).clamp(min=0)[:, 0])
        state.emitted.copy_(frames)
        state.offset = None
        T = room // hop if last is False else -(-room // hop)
        return rows[:, : T * hop], frames

    def scores(self, samples: Tensor, state: KVState, mask: Tensor | None = None) -> Tensor:
        """One block of samples [B,L] -> mean | scale [B,T,2C]; mask [B,T]: frames that count."""
        x = ops.frame_embed(samples, self.frame.weight, hop=self.hop)
        return self.fc3(self.backbone(self.fc2(x), state, mask))


def split_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """mean | scale [B,T,2C] -> mean, std = softplus(scale) + 1e-4, float32 [B,T,C]."""
    mean, scale = scores.float().chunk(2, dim=-1)
    return mean, F.softplus(scale) + MIN_STD
