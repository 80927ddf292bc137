"""The AudioVAE's own convolutions at its real sizes: ours, and the ordinary PyTorch ways.

Overlap-add from frames, the whole head from hidden states (Linear, inverse transform, overlap-add),
and the framing with its Linear. One patch is 5 frames that continue a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mingcore import ops

N_FFT, HOP, WIDTH, PATCH = 1280, 320, 896, 5
Calls = dict[str, Callable[[], Tensor]]


class Head:
    """`calls(part)` at a number of frames; streaming calls continue a stream and do not end it."""

    def __init__(self, frames: int, streaming: bool):
        torch.manual_seed(0)
        self.T, self.streaming = frames, streaming
        self.window = torch.hann_window(N_FFT)
        self.frames = torch.randn(1, frames, N_FFT)
        self.hidden = torch.randn(1, frames, WIDTH)
        self.weight = torch.randn(N_FFT + 2, WIDTH) / WIDTH**0.5
        self.bias = torch.randn(N_FFT + 2) * 0.1
        self.packed = ops.pack_linear(self.weight)
        self.samples = torch.randn(1, frames * HOP)
        self.frame_weight = torch.randn(WIDTH, HOP) / HOP**0.5
        self.packed_frame = ops.pack_linear(self.frame_weight)
        self.length, self.tail = (frames - 1) * HOP + N_FFT, N_FFT - HOP
        self.state, self.earlier = None, None
        if streaming:
            before = torch.randn(1, PATCH, N_FFT)
            self.state = ops.overlap_add(before, self.window, HOP, None, False)[1]
            squares = self.window.square().expand(1, PATCH, -1)
            self.earlier = _fold(squares, (PATCH - 1) * HOP + N_FFT)[:, PATCH * HOP :]

    def calls(self, part: str) -> Calls:
        return getattr(self, f"_{part}")()

    def _overlap_add(self) -> Calls:
        args = (self.frames, self.window, HOP, self.state, not self.streaming)
        found: Calls = {"ours": lambda: ops.overlap_add(*args)[0], "F.fold": lambda: self.folded(self.frames)}
        compiled = torch.compile(self.folded)
        found["F.fold, compiled"] = lambda: compiled(self.frames)
        return found

    def _spectrum_head(self) -> Calls:
        args = (self.hidden, self.packed, self.bias, self.window, HOP, self.state)
        found: Calls = {
            "ours": lambda: ops.spectrum_head(*args, not self.streaming)[0],
            "irfft, F.fold": lambda: self.folded(torch.fft.irfft(self.spectrum(), n=N_FFT)),
        }
        if not self.streaming:  # centred: it begins 160 samples later and ends earlier
            found["torch.istft"] = lambda: torch.istft(self.spectrum().transpose(1, 2), N_FFT, HOP, window=self.window)
        return found

    def _frame_embed(self) -> Calls:
        x, w = self.samples, self.frame_weight
        return {
            "ours": lambda: ops.frame_embed(x, self.packed_frame, hop=HOP),
            "F.linear": lambda: F.linear(x.view(1, -1, HOP), w),
            "F.conv1d": lambda: F.conv1d(x[:, None], w[:, None], stride=HOP).transpose(1, 2),
        }

    def spectrum(self) -> Tensor:
        m, p = F.linear(self.hidden, self.weight, self.bias).chunk(2, dim=-1)
        return torch.polar(m.exp().clamp(max=100.0), p)

    def folded(self, frames: Tensor) -> Tensor:
        """Numerator and envelope by F.fold, as the reference implementation does."""
        total = _fold(frames * self.window, self.length)
        norm = _fold(self.window.square().expand(1, self.T, -1), self.length)
        if self.state is not None:
            total[:, : self.tail] += self.state.numerator
            norm[:, : self.tail] += self.earlier
            return total[:, : -self.tail] / norm[:, : -self.tail]
        trim = self.tail // 2
        return total[:, trim:-trim] / norm[:, trim:-trim]

    def cost(self, part: str) -> tuple[int, int]:
        """(bytes, flops), at least."""
        T, samples = self.T, self.T * HOP
        if part == "overlap_add":
            return 4 * (T * N_FFT + samples), 4 * T * N_FFT
        if part == "frame_embed":
            return 4 * (samples + WIDTH * HOP + T * WIDTH), 2 * samples * WIDTH
        product = (N_FFT + 2) * WIDTH
        return 4 * (T * WIDTH + product + samples), 2 * T * product


def _fold(frames: Tensor, length: int) -> Tensor:
    return F.fold(frames.transpose(1, 2), (1, length), (1, N_FFT), stride=(1, HOP))[:, 0, 0]
