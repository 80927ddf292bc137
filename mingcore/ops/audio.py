"""The AudioVAE's own convolutions: the public functions and the streaming state."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .dispatch import call
from .packed import PackedLinear


@dataclass
class OverlapState:
    """What a streamed inverse STFT carries from one chunk to the next; F = n_fft.

    numerator [B, F - hop], envelope [F - hop]: sums that later frames still add to. skip: samples
    of the "same" padding that are still to be dropped. All rows share their start and their end.
    """

    numerator: Tensor
    envelope: Tensor
    skip: int

    @classmethod
    def start(
        cls,
        batch: int,
        n_fft: int,
        hop: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "OverlapState":
        """The state before the first frame."""
        carried = n_fft - hop
        numerator = torch.zeros(batch, carried, dtype=dtype, device=device)
        return cls(numerator, torch.zeros_like(numerator[:1].view(-1)), carried // 2)

    def reset(self) -> None:
        """Back to before the first frame, in place."""
        self.numerator.zero_()
        self.envelope.zero_()
        self.skip = self.envelope.shape[0] // 2

    def clone(self) -> "OverlapState":
        return OverlapState(self.numerator.clone(), self.envelope.clone(), self.skip)

    @property
    def nbytes(self) -> int:
        return self.numerator.nbytes + self.envelope.nbytes


def frame_embed(
    samples: Tensor, weight: Tensor | PackedLinear, *, hop: int, backend: str | None = None
) -> Tensor:
    """Cut samples into frames and embed each: a convolution with kernel = stride = hop, no bias.

    samples [B, L], padded right with zeros to whole frames; weight [H, hop] or packed. Returns
    [B, ceil(L / hop), H] in the type of samples. docs/model.md section 4. Raises InputError.
    """
    op = "frame_embed"
    checks.rank(op, "samples", samples, "[B, L]", 2)
    checks.positive(op, "hop", hop)
    checks.positive(op, "the length of samples", samples.shape[1])
    matrix, layout, n, k = _matrix(op, samples, weight)
    if k != hop:
        checks.fail(op, "weight", f"[H, hop] with hop = {hop}", [n, k])
    return call(op, backend, samples, matrix, hop, layout, n)


def overlap_add(
    frames: Tensor,
    window: Tensor,
    hop: int,
    state: OverlapState | None,
    last: bool,
    *,
    backend: str | None = None,
) -> tuple[Tensor, OverlapState]:
    """The windowed overlap-add of an inverse STFT, streamed ("same" padding).

    frames [B, T, F] before the window; window [F]; state None: a new stream. samples =
    sum(window * frame) / sum(window^2); (F - hop) / 2 samples are trimmed at both ends. A chunk
    that is not the `last` holds back the F - hop samples that later frames reach, so chunks, put
    together, equal the one-shot output; the first may be empty. The last may have T = 0.
    Returns samples [B, L] float32 (float64 for float64 frames) and the next state, which after
    `last` is that of a new stream. docs/model.md section 4. Raises InputError.
    """
    op = "overlap_add"
    size = _window(op, window, hop)
    checks.rank(op, "frames", frames, "[B, T, F]", 3)
    checks.floating(op, "frames", frames)
    B, T, _ = frames.shape
    checks.shape(op, "frames", frames, "[B, T, F]", (B, T, size))
    carry = _carry(op, state, frames, size, hop, T, last)
    samples, numerator, envelope = call(op, backend, frames, window, hop, *carry, last)
    return samples, _next(numerator, envelope, carry[2] - T * hop, last)


def spectrum_head(
    hidden: Tensor,
    weight: Tensor | PackedLinear,
    bias: Tensor | None,
    window: Tensor,
    hop: int,
    state: OverlapState | None,
    last: bool,
    *,
    backend: str | None = None,
) -> tuple[Tensor, OverlapState]:
    """Hidden states to samples: Linear, inverse real FFT, `overlap_add`.

    hidden [B, T, H]; weight [F + 2, H] or packed; bias [F + 2] or None; window [F]. The Linear
    gives [log-magnitude m | phase p], S = min(exp m, 100) (cos p + i sin p), frames = irfft(S);
    all in float32. Returns as `overlap_add`. docs/model.md section 4. Raises InputError.
    """
    op = "spectrum_head"
    size = _window(op, window, hop)
    checks.rank(op, "hidden", hidden, "[B, T, H]", 3)
    checks.floating(op, "hidden", hidden)
    _, T, H = hidden.shape
    matrix, layout, n, k = _matrix(op, hidden, weight)
    if (n, k) != (size + 2, H):
        checks.fail(op, "weight", f"[F + 2, H] = [{size + 2}, {H}]", [n, k])
    if bias is not None:
        checks.shape(op, "bias", bias, "[F + 2]", (n,))
    carry = _carry(op, state, hidden, size, hop, T, last)
    args = (hidden, matrix, bias, window, hop, *carry, last, layout, n)
    samples, numerator, envelope = call(op, backend, *args)
    return samples, _next(numerator, envelope, carry[2] - T * hop, last)


def _matrix(op: str, x: Tensor, weight: Tensor | PackedLinear) -> tuple[Tensor, str, int, int]:
    if type(weight) is PackedLinear:
        matrix, layout, n, k = weight.weight, weight.layout, weight.n, weight.k
    else:
        checks.rank(op, "weight", weight, "[N, K]", 2)
        matrix, layout = weight, "rows"
        n, k = weight.shape
    checks.floating(op, "the input", x)
    checks.floating(op, "weight", matrix)
    checks.device(op, x, "weight", matrix)
    return matrix, layout, n, k


def _window(op: str, window: Tensor, hop: int) -> int:
    checks.rank(op, "window", window, "[F]", 1)
    checks.floating(op, "window", window)
    size = window.shape[0]
    if not 1 <= hop <= size:
        checks.fail(op, "hop", f"in 1..F = 1..{size}", hop)
    return size


def _carry(
    op: str, state: OverlapState | None, x: Tensor, size: int, hop: int, T: int, last: bool
) -> tuple[Tensor | None, Tensor | None, int]:
    carried = size - hop
    if T < 1 and not (last and state is not None):
        checks.fail(op, "T", ">= 1 (0 only to flush a stream)", T)
    if state is None:
        return None, None, carried // 2
    checks.shape(op, "state.numerator", state.numerator, "[B, F - hop]", (x.shape[0], carried))
    checks.shape(op, "state.envelope", state.envelope, "[F - hop]", (carried,))
    checks.device(op, x, "state.numerator", state.numerator)
    return state.numerator, state.envelope, state.skip


def _next(numerator: Tensor, envelope: Tensor, skip: int, last: bool) -> OverlapState:
    if last:
        state = OverlapState(torch.zeros_like(numerator), torch.zeros_like(envelope), 0)
        state.skip = envelope.shape[0] // 2
        return state
    return OverlapState(numerator, envelope, max(skip, 0))
