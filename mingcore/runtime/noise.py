"""Where randomness enters: the noise of the posterior and of the flow, in the reference's order.

MODEL.md §3 and §4: a run that encodes a waveform first draws the posterior noise [B, C, T] on
the model's device in the dtype of the mean; then each patch draws its start noise [B, C, P] in
float32 from the CPU's generator, and one [B, P, C] in float32 on the model's device per step,
the last of which is not used. The same seed therefore gives the reference's numbers.
"""

from typing import Protocol

import torch
from torch import Tensor

# what torch.Generator.manual_seed takes
MAX_SEED = 2**63 - 1


class NoiseSource(Protocol):
    """What the loop asks for noise; a recording may stand in for a generator."""

    def posterior(self, mean: Tensor) -> Tensor:
        """Noise for `mean` [B, T, C], in its dtype and on its device."""

    def patch(self, batch: int, frames: int, channels: int, steps: int) -> Tensor:
        """[steps + 1, batch, frames, channels] float32 on the model's device.

        Entry 0 is the start, entry i the draw after step i.
        """


class SeededNoise:
    """The reference's draws for one seed: on the CPU from one generator, on a GPU from two."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed, self.device = seed, torch.device(device)
        self._host = torch.Generator("cpu").manual_seed(seed)
        self._device = self._host
        if self.device.type != "cpu":
            self._device = torch.Generator(self.device).manual_seed(seed)

    def posterior(self, mean: Tensor) -> Tensor:
        """Noise for `mean` [B, T, C]; drawn as [B, C, T] and transposed."""
        B, T, C = mean.shape
        noise = torch.empty(B, C, T, dtype=mean.dtype, device=mean.device)
        return noise.normal_(generator=self._device).transpose(1, 2)

    def patch(self, batch: int, frames: int, channels: int, steps: int) -> Tensor:
        """[steps + 1, batch, frames, channels] float32: the start, then one draw per step."""
        start = torch.empty(batch, channels, frames, pin_memory=self.device.type == "cuda")
        start.normal_(generator=self._host)
        noise = torch.empty(steps + 1, batch, frames, channels, device=self.device)
        noise[0].copy_(start.transpose(1, 2), non_blocking=True)
        for i in range(1, steps + 1):
            # one draw per step, not one for all: a GPU's generator counts calls
            noise[i].normal_(generator=self._device)
        return noise
