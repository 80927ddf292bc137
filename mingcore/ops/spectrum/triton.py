"""Framing, overlap-add and the spectrum head on the Triton kernels."""

from torch import Tensor

from mingcore_kernels.spectrum import frame_embed as frame_kernels
from mingcore_kernels.spectrum import overlap_add as overlap_kernels
from mingcore_kernels.spectrum import spectrum_head as head_kernels

from .._core.support import Limit, Support
from .._core.triton import KERNELS
from ..conv.triton import MAX_BATCH
from . import FRAME_EMBED, OVERLAP_ADD, SPECTRUM_HEAD

MAX_WINDOW = 4096  # its transform's basis is 64 MB
_WRITTEN = ("out", "next_numerator", "next_lengths", "emitted")


@FRAME_EMBED.implementation(
    "triton",
    Support(
        floats=("samples", "weight"),
        dense_last=("samples", "weight"),
        layouts=("rows",),
        limits=(Limit("the batch is {}", lambda samples, **_: samples.shape[0], MAX_BATCH),),
    ),
    sources=(KERNELS / "spectrum" / "frame_embed.py",),
)
def frame_embed(samples, weight, hop, layout, n, out):
    frame_kernels.frame_embed(samples, weight.contiguous(), hop, out)


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


@OVERLAP_ADD.implementation(
    "triton",
    Support(
        floats=("frames", "window"),
        float32=("numerator",),
        dense_last=("frames", "window", "numerator"),
        contiguous=_WRITTEN,
    ),
    sources=(KERNELS / "spectrum" / "overlap_add.py",),
)
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs, **results):
    numerator, lengths, valid, ended = map(_dense, (numerator, lengths, valid, ended))
    overlap_kernels.overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, **results)


@SPECTRUM_HEAD.implementation(
    "triton",
    Support(
        floats=("hidden", "weight", "bias", "window"),
        float32=("numerator",),
        dense_last=("hidden", "bias", "window", "numerator"),
        contiguous=("weight", *_WRITTEN),
        layouts=("rows",),
        limits=(Limit("the window has {} points", lambda window, **_: window.shape[0], MAX_WINDOW),),
        rule=lambda hidden, **_: "hidden has H = 0; it takes H >= 1" if hidden.shape[-1] == 0 else None,
    ),
    sources=(KERNELS / "spectrum" / "spectrum_head.py",),
)
def spectrum_head(
    hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n, **results
):
    basis = head_kernels.inverse_basis(window.shape[0], hidden.device)
    stream = *map(_dense, (numerator, lengths, valid, ended)), last
    head_kernels.spectrum_head(hidden.contiguous(), weight, bias, window, hop, basis, *stream, **results)
