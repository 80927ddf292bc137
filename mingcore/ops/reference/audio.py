"""The AudioVAE's convolutions: framing + Linear, and the streaming inverse STFT."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register
from .common import wide
from .linear import linear


@register("frame_embed", "reference")
def frame_embed(samples: Tensor, weight: Tensor, hop: int, layout: str, n: int) -> Tensor:
    """samples [B, L], zero-padded to frames of hop, weight [H, hop] -> [B, ceil(L/hop), H]."""
    return linear(frames(samples, hop), weight, None, None, "none", layout, n)


def frames(samples: Tensor, hop: int) -> Tensor:
    """[B, L] -> [B, ceil(L / hop), hop], zeros at the end."""
    return F.pad(samples, (0, -samples.shape[1] % hop)).unflatten(1, (-1, hop))


@register("overlap_add", "reference")
def overlap_add(
    frames: Tensor,
    window: Tensor,
    hop: int,
    numerator: Tensor | None,
    envelope: Tensor | None,
    skip: int,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """frames [B, T, F] -> samples [B, L], and the carried numerator [B, F-hop], envelope [F-hop].

    samples = sum_t window * frame_t / sum_t window^2, each at offset t * hop ("same": (F-hop)/2
    samples are trimmed at both ends). The first `skip` samples are dropped; unless `last`, the
    F - hop samples that later frames still reach are carried instead of emitted.
    """
    T = frames.shape[1]
    window = window.to(wide(frames).dtype)
    carried = window.shape[0] - hop
    total = _add_at_hop(wide(frames) * window, hop, numerator)
    norm = _add_at_hop(
        window.square().expand(1, T, -1), hop, None if envelope is None else envelope.unsqueeze(0)
    )
    end = T * hop + (carried - carried // 2 if last else 0)
    samples = total[:, skip:end] / norm[:, skip:end]
    return samples, total[:, T * hop :].clone(), norm[0, T * hop :].clone()


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


@register("spectrum_head", "reference")
def spectrum_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Tensor,
    hop: int,
    numerator: Tensor | None,
    envelope: Tensor | None,
    skip: int,
    last: bool,
    layout: str,
    n: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, T, H] -> Linear -> [log-magnitude | phase] -> irfft -> `overlap_add`."""
    spectrum = linear(wide(hidden), weight, bias, None, "none", layout, n)
    waves = inverse_spectrum(spectrum)
    return overlap_add(waves, window, hop, numerator, envelope, skip, last)


def inverse_spectrum(spectrum: Tensor) -> Tensor:
    """[B, T, F+2] = [m | p] -> irfft(min(exp m, 100) * (cos p + i sin p)) [B, T, F]."""
    m, p = spectrum.chunk(2, dim=-1)
    size = spectrum.shape[-1] - 2
    if spectrum.shape[1] == 0:  # the transform takes no empty batch
        return spectrum[..., :size]
    return torch.fft.irfft(torch.polar(m.exp().clamp(max=100.0), p), n=size)
