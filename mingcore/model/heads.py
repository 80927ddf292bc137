"""The two small parts beside the LLM: pooling of audio into its embeddings, and the stop head."""

from __future__ import annotations

from torch import Tensor

from .. import ops
from ..errors import InputError
from .declared import Build, Declared
from .layers import Linear
from .weights import Weights

EPS = 1e-6


class LinearPooling:
    """Unified embeddings of a patch's frames to one embedding of the language model.

    RMSNorm, Linear, mean over the frames; the mean is taken first, which is the same for a fifth
    of the work.
    """

    def __init__(self, norm: Tensor, linear: Linear, frames: int):
        self.norm, self.linear, self.frames = norm, linear, frames

    @classmethod
    def declare(cls, w: Weights, hidden: int, out: int, frames: int) -> Declared[LinearPooling]:
        return Build(cls, w.vector("norm_final.weight", hidden), w.linear("linear", out, hidden), frames)

    def __call__(self, embedding: Tensor) -> Tensor:
        """embedding [B, frames * n, Hs] -> [B, n, H]. Raises InputError unless whole patches."""
        if embedding.dim() != 3 or embedding.shape[1] % self.frames or embedding.shape[1] == 0:
            raise InputError(
                f"pool: embedding must be [B, {self.frames} * n, {self.norm.shape[0]}], got {list(embedding.shape)}"
            )
        normed = ops.rms_norm(embedding, self.norm, EPS)
        return self.linear(normed.unflatten(1, (-1, self.frames)).mean(dim=2))


class StopHead:
    """Hidden state [..., H] -> probability [...] float32 that this patch is the last."""

    def __init__(self, linear: Linear):
        self.linear = linear

    @classmethod
    def declare(cls, w: Weights, hidden: int) -> Declared[StopHead]:
        return Build(cls, w.linear("stop_head", 2, hidden))

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden).float().softmax(dim=-1)[..., 1]
