"""The AudioVAE's convolutions: framing + Linear, and the streaming inverse STFT."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import stream_progress, wide
from ..gemm.reference import linear
from . import FRAME_EMBED, OVERLAP_ADD, SPECTRUM_HEAD


@FRAME_EMBED.implementation("reference")
def frame_embed(samples: Tensor, weight: Tensor, hop: int, layout: str, n: int) -> Tensor:
    """samples [B, L], zero-padded to frames of hop, weight [H, hop] -> [B, ceil(L/hop), H]."""
    return linear(frames(samples, hop), weight, None, None, "none", layout, n, None, "")


def frames(samples: Tensor, hop: int) -> Tensor:
    """[B, L] -> [B, ceil(L / hop), hop], zeros at the end."""
    return F.pad(samples, (0, -samples.shape[1] % hop)).unflatten(1, (-1, hop))


@OVERLAP_ADD.implementation("reference")
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs):
    """frames [B, T, F] -> samples [B, outputs], numerator [B, F - hop], lengths, emitted [B].

    samples = sum_t window * frame_t / sum_t window^2, each at offset t * hop ("same": (F - hop) / 2
    samples are trimmed at both ends). Unless a row ends, the F - hop samples that later frames
    still reach are carried instead of emitted.
    """
    T, size = frames.shape[1:]
    window = window.to(wide(frames).dtype)
    carried, parts = size - hop, -(-size // hop)
    trim = carried // 2
    seen, new, done = stream_progress(frames, lengths, valid, ended, last, T)
    step = torch.arange(1 - parts, T, device=frames.device)
    had = (step >= -seen.unsqueeze(1)) & (step < new.unsqueeze(1))  # frames that there are
    own = torch.where(had[:, parts - 1 :].unsqueeze(2), wide(frames) * window, 0)
    if numerator is not None:
        numerator = torch.where((seen > 0).unsqueeze(1), numerator, 0)
    total = _add_at_hop(own, hop, numerator)
    norm = _add_at_hop(had.unsqueeze(2) * window.square(), hop, None)[:, (parts - 1) * hop :]

    skip = (trim - seen * hop).clamp(min=0)
    end = new * hop + torch.where(done & (seen + new > 0), carried - trim, 0)
    emitted = (end - skip).clamp(min=0)
    index = skip.unsqueeze(1) + torch.arange(outputs, device=frames.device)
    index = index.clamp(max=max(total.shape[1] - 1, 0))
    live = torch.arange(outputs, device=frames.device) < emitted.unsqueeze(1)
    samples = total.new_zeros(total.shape[0], outputs)
    if total.shape[1]:
        samples = torch.where(live, total.gather(1, index) / norm.gather(1, index), samples)
    rest = (new * hop).unsqueeze(1) + torch.arange(carried, device=frames.device)
    numerator = torch.where(done.unsqueeze(1), 0, total.gather(1, rest))
    return samples, numerator, torch.where(done, 0, seen + new), emitted


def _add_at_hop(frames: Tensor, hop: int, carry: Tensor | None) -> Tensor:
    """Sum of frames [B, T, F], each hop later, on top of carry [B, F-hop] -> [B, T*hop + F-hop].

    Older frames are added first, so that a carried sum has the same bits as one made at once.
    """
    B, T, size = frames.shape
    parts = -(-size // hop)
    frames = F.pad(frames, (0, parts * hop - size)).unflatten(2, (parts, hop))
    out = frames.new_zeros(B, T + parts, hop)
    length = T * hop + size - hop
    if carry is not None:
        out.view(B, -1)[:, : size - hop] = carry
    for part in reversed(range(parts)):
        out[:, part : part + T] += frames[:, :, part]
    return out.view(B, -1)[:, :length]


@SPECTRUM_HEAD.implementation("reference")
def spectrum_head(hidden, weight, bias, layout, n, **stream):
    """hidden [B, T, H] -> Linear -> [log-magnitude | phase] -> irfft -> `overlap_add`."""
    spectrum = linear(wide(hidden), weight, bias, None, "none", layout, n, None, "")
    return overlap_add(inverse_spectrum(spectrum), **stream)


@by_row(spectrum=0)
def inverse_spectrum(spectrum: Tensor) -> Tensor:
    """[B, T, F+2] = [m | p] -> irfft(min(exp m, 100) * (cos p + i sin p)) [B, T, F]."""
    m, p = spectrum.chunk(2, dim=-1)
    size = spectrum.shape[-1] - 2
    if spectrum.shape[1] == 0:  # the transform takes no empty batch
        return spectrum[..., :size]
    return torch.fft.irfft(torch.polar(m.exp().clamp(max=100.0), p), n=size)
