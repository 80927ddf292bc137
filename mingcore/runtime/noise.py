"""Where randomness enters: the noise of the posterior and of the flow, in one of two orders.

"reference" (docs/model.md sections 3 and 4): a run that encodes a waveform first draws the posterior noise
[B, C, T] on the model's device in the dtype of the mean; then each patch draws its start noise
[B, C, P] in float32 from the CPU's generator, and one [B, P, C] in float32 on the model's device
per step, the last of which is not used. The same seed therefore gives the reference's numbers.

"per_request": a number depends on the request's seed, the patch and its place in it alone (Philox,
Salmon et al. 2011), so neither on the device, nor on how many steps are taken, nor on who shares
the batch.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

# what torch.Generator.manual_seed takes
MAX_SEED = 2**63 - 1


class NoiseSource(Protocol):
    """Where the engine gets its noise; recorded noise may stand in for a generator."""

    def posterior(self, mean: Tensor) -> Tensor:
        """Noise for `mean` [B, T, C], in its dtype and on its device."""

    def patch(self, batch: int, frames: int, channels: int, steps: int) -> Tensor:
        """[steps + 1, batch, frames, channels] float32 on the model's device.

        Entry 0 is the start, entry i the draw after step i.
        """

    def mark(self) -> Any:
        """Where the draws are; asked for with lookahead only."""

    def rewind(self, mark: Any) -> None:
        """The draws go on from `mark`: those behind it were of speculative patches, which are discarded."""


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
        start = torch.empty(batch, channels, frames, dtype=torch.float32, pin_memory=self.device.type == "cuda")
        start.normal_(generator=self._host)
        noise = torch.empty(steps + 1, batch, frames, channels, dtype=torch.float32, device=self.device)
        noise[0].copy_(start.transpose(1, 2), non_blocking=True)
        for i in range(1, steps + 1):
            # one draw per step, not one for all: a GPU's generator counts calls
            noise[i].normal_(generator=self._device)
        return noise

    def mark(self) -> tuple[Tensor, Tensor]:
        """The generators' states."""
        return self._host.get_state(), self._device.get_state()

    def rewind(self, mark: tuple[Tensor, Tensor]) -> None:
        """The draws go on from `mark`."""
        self._host.set_state(mark[0])
        self._device.set_state(mark[1])


_POSTERIOR, _PATCH = 0, 1  # streams of one seed


class RequestNoise:
    """Noise of B requests, each by its own seed and its own count of patches.

    The i-th patch of a request comes from the Philox counter (0, 0, i, stream) under its seed as
    the key: start [P, C] first, then one [P, C] after the other. `patches`: how many patches each
    request has behind it, for one that joins a batch.
    """

    def __init__(
        self, seeds: int | Sequence[int], device: torch.device | str = "cpu", patches: Sequence[int] | None = None
    ):
        self.seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
        self.patches = [0] * len(self.seeds) if patches is None else list(patches)
        self.device = torch.device(device)
        if len(self.patches) != len(self.seeds):
            raise InputError(
                f"RequestNoise: patches must be one for each of {len(self.seeds)} seeds, got {len(self.patches)}"
            )

    def posterior(self, mean: Tensor) -> Tensor:
        """Noise for `mean` [B, T, C]."""
        self._check(mean.shape[0])
        rows = [_philox(seed, 0, _POSTERIOR, mean.shape[1:]) for seed in self.seeds]
        return torch.from_numpy(np.stack(rows)).to(mean.device, mean.dtype)

    def patch(self, batch: int, frames: int, channels: int, steps: int) -> Tensor:
        """[steps + 1, batch, frames, channels] float32; the next patch of every request."""
        self._check(batch)
        noise = torch.empty(
            steps + 1, batch, frames, channels, dtype=torch.float32, pin_memory=self.device.type == "cuda"
        )
        for b, (seed, index) in enumerate(zip(self.seeds, self.patches)):
            row = _philox(seed, index, _PATCH, (steps + 1, frames, channels))
            noise[:, b] = torch.from_numpy(row)
            self.patches[b] += 1
        return noise.to(self.device, non_blocking=True)

    def mark(self) -> list[int]:
        """How many patches each request has behind it."""
        return list(self.patches)

    def rewind(self, mark: list[int]) -> None:
        """The draws go on from `mark`."""
        self.patches = list(mark)

    def _check(self, batch: int) -> None:
        if batch != len(self.seeds):
            raise InputError(f"RequestNoise: made for {len(self.seeds)} requests, got {batch}")


def _philox(seed: int, index: int, stream: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal values, float32; the generator counts up in the first two words."""
    bits = np.random.Philox(key=seed, counter=[0, 0, index, stream])
    return np.random.Generator(bits).standard_normal(tuple(shape), dtype=np.float32)


ORDERS = {"reference": SeededNoise, "per_request": RequestNoise}


def noise_source(order: str, seed: int, device: torch.device | str) -> NoiseSource:
    """The noise of one request in one of `ORDERS`."""
    return ORDERS[order](seed, device)
