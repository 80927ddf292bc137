"""Cases of framing, overlap-add and the spectrum head, with and without a state to continue; cost and baselines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from .._core.cases import LARGE, Baselines, Cost, Draw, baselines_of, bytes_of, case, cost_of
from .._core.layouts import strided

Layout = Callable[[Tensor], Tensor]


def _frame_embed(d: Draw, B: int, L: int, hop: int, H: int, layout: Layout = torch.Tensor.contiguous) -> dict[str, Any]:
    samples = layout(d.normal(B, L, scale=0.3))
    return {"samples": samples, "weight": d.matrix(H, hop), "hop": hop}


_EMBED = {"hop": 320, "H": 896}
_FRAMES: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("real_1s", ("real", "mid"), {"B": 1, "L": 16000, **_EMBED}),
    ("real_patch", ("real",), {"B": 1, "L": 1600, **_EMBED}),
    ("odd_sizes", ("odd",), {"B": 3, "L": 1037, "hop": 96, "H": 45}),
    ("short", ("edge",), {"B": 2, "L": 5, "hop": 16, "H": 24}),
    ("one_sample", ("edge",), {"B": 1, "L": 1, "hop": 8, "H": 8}),
    ("strided", ("strided",), {"B": 2, "L": 100, "hop": 16, "H": 8, "layout": strided}),
    # with all of the above, what proves a GPU kernel: many streams at once, and a minute
    ("proof_any_hop", (LARGE, "odd"), {"B": 2, "L": 16001, "hop": 99, "H": 301}),
    ("proof_rows", (LARGE,), {"B": 2, "L": 15990, **_EMBED}),
    ("proof_streams", (LARGE,), {"B": 32, "L": 1600, **_EMBED}),
    ("proof_minute", (LARGE,), {"B": 1, "L": 959990, **_EMBED}),
)

for _name, _tags, _sizes in _FRAMES:
    case("frame_embed", _name, _frame_embed, "verify", *_tags, **_sizes)


def _state(d: Draw, B: int, window: Tensor, hop: int, frames: int) -> Any:
    """What is carried after `frames` earlier random frames; None before the first."""
    if frames == 0:
        return None
    earlier = d.normal(B, frames, window.shape[0], dtype=torch.float32)
    return ops.overlap_add(earlier, window, hop, None, False, backend="reference")[1]


def _window(d: Draw, n_fft: int) -> Tensor:
    return torch.hann_window(n_fft, periodic=True, device=d.device)


def _mixed(d: Draw, args: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Rows at different places: one sits out, one ends, one begins."""
    B, T, _ = x.shape
    args["state"].reset([B - 1])
    valid = torch.tensor([0, *range(T, T - B + 1, -1)], device=d.device).clamp(min=0)
    last = torch.arange(B, device=d.device) == 1
    return {**args, "valid": valid, "last": last}


def _into(d: Draw, args: dict[str, Any], op: str) -> dict[str, Any]:
    """The arguments of the in-place form: a state, and where the samples go."""
    first = next(iter(args))
    x, F, hop = args[first], args["window"].shape[0], args["hop"]
    if args["state"] is None:
        args["state"] = state = ops.OverlapState.start(x.shape[0], F, hop, device=d.device)
        state.numerator.copy_(d.normal(*state.numerator.shape, dtype=torch.float32))  # not read
    shape = getattr(ops, op)(**args, backend="reference")[0].shape
    return {first: x, "out": d.normal(*shape, dtype=torch.float32), **args}


def _overlap_add(
    d: Draw,
    B: int,
    T: int,
    n_fft: int,
    hop: int,
    before: int = 0,
    last: bool = False,
    layout: Layout = torch.Tensor.contiguous,
    mixed: bool = False,
    in_place: bool = False,
) -> dict[str, Any]:
    window = _window(d, n_fft)
    frames = layout(d.normal(B, T, n_fft, dtype=torch.float32))
    state = _state(d, B, window, hop, before)
    args = {"frames": frames, "window": window, "hop": hop, "state": state, "last": last}
    args = _mixed(d, args, frames) if mixed else args
    return _into(d, args, "overlap_add") if in_place else args


def _spectrum_head(
    d: Draw,
    B: int,
    T: int,
    H: int,
    n_fft: int,
    hop: int,
    before: int = 0,
    last: bool = False,
    layout: Layout = torch.Tensor.contiguous,
    mixed: bool = False,
    in_place: bool = False,
) -> dict[str, Any]:
    window = _window(d, n_fft)
    args: dict[str, Any] = {"hidden": layout(d.normal(B, T, H)), "weight": d.matrix(n_fft + 2, H)}
    args["bias"] = d.normal(n_fft + 2)
    state = _state(d, B, window, hop, before)
    args |= {"window": window, "hop": hop, "state": state, "last": last}
    args = _mixed(d, args, args["hidden"]) if mixed else args
    return _into(d, args, "spectrum_head") if in_place else args


_REAL, _SMALL = {"n_fft": 1280, "hop": 320}, {"n_fft": 32, "hop": 8}
_STREAMS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("real_first", ("real",), {"B": 1, "T": 5, **_REAL}),
    ("real_middle", ("real", "mid"), {"B": 1, "T": 5, "before": 5, **_REAL}),
    ("real_last", ("real",), {"B": 1, "T": 5, "before": 5, "last": True, **_REAL}),
    ("real_one_shot", ("real",), {"B": 1, "T": 50, "last": True, **_REAL}),
    ("batch", (), {"B": 3, "T": 4, "before": 2, **_SMALL}),
    ("mixed_rows", (), {"B": 4, "T": 5, "before": 2, "mixed": True, **_SMALL}),
    ("no_frames", ("edge",), {"B": 2, "T": 0, "before": 2, **_SMALL}),
    ("odd_sizes", ("odd",), {"B": 2, "T": 7, "n_fft": 36, "hop": 12, "before": 1}),
    ("one_frame_first", ("edge",), {"B": 1, "T": 1, **_SMALL}),
    ("one_frame_last", ("edge",), {"B": 1, "T": 1, "before": 1, "last": True, **_SMALL}),
    ("one_frame_in_all", ("edge",), {"B": 2, "T": 1, "last": True, **_SMALL}),
    ("strided", ("strided",), {"B": 2, "T": 3, "layout": strided, **_SMALL}),
    # with all of the above, what proves a GPU kernel: many streams at once, and a minute
    ("proof_streams", (LARGE,), {"B": 32, "T": 5, "before": 3, "mixed": True, **_REAL}),
    ("proof_minute", (LARGE,), {"B": 1, "T": 3000, "before": 2, "last": True, **_REAL}),
)

for _name, _tags, _sizes in _STREAMS:
    for _own in ({}, {"in_place": True}):
        _op = f"overlap_add{'_' if _own else ''}"
        case(_op, _name, _overlap_add, "verify", *_tags, **_sizes, **_own)
        _op = f"spectrum_head{'_' if _own else ''}"
        _width = 896 if _sizes["n_fft"] == 1280 else 24
        case(_op, _name, _spectrum_head, "verify", *_tags, H=_width, **_sizes, **_own)


# the sweep of `bench/run.py --sweep conv`: a patch of a stream, seconds in one shot
for _name, _frames, _stream in (
    ("sweep_patch", 5, {"before": 5}),
    ("sweep_10s", 500, {"last": True}),
    ("sweep_60s", 3000, {"last": True}),
):
    case("frame_embed", _name, _frame_embed, "sweep", LARGE, B=1, L=320 * _frames, **_EMBED)
    case("overlap_add", _name, _overlap_add, "sweep", LARGE, B=1, T=_frames, **_stream, **_REAL)
    case("spectrum_head", _name, _spectrum_head, "sweep", LARGE, B=1, T=_frames, H=896, **_stream, **_REAL)


@cost_of("frame_embed")
def _frame_embed_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    return Cost(bytes_of(kwargs) + written, 2 * outputs[0].numel() * kwargs["hop"])


@cost_of("spectrum_head")
def _spectrum_head_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    B, T, H = kwargs["hidden"].shape
    n_fft = kwargs["window"].shape[0]
    fft = 2.5 * n_fft * math.log2(n_fft)
    return Cost(bytes_of(kwargs) + written, round(B * T * (2 * H * (n_fft + 2) + fft + 4 * n_fft)))


def _folded(kw: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Frames [B, T, n_fft] to samples by F.fold: numerator and envelope, with what a state carries."""
    window, hop, state = kw["window"], kw["hop"], kw["state"]
    n_fft = len(window)
    tail = n_fft - hop

    def fold(x: Tensor) -> Tensor:
        length = (x.shape[1] - 1) * hop + n_fft
        return F.fold(x.transpose(1, 2), (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]

    if state is not None:  # what the frames before leave, kept from chunk to chunk
        earlier = fold(window.square().expand(1, int(state.lengths.max()), -1))[:, -tail:]

    def plain(frames: Tensor) -> Tensor:
        numerator = fold(frames * window)
        envelope = fold(window.square().expand(1, frames.shape[1], -1))
        if state is not None:
            numerator[:, :tail] += state.numerator
            envelope[:, :tail] += earlier
        end = numerator.shape[1] - (tail // 2 if kw["last"] else tail)
        skip = tail // 2 if state is None else state.skip
        return numerator[:, skip:end] / envelope[:, skip:end]

    return plain


@baselines_of("overlap_add")
def _overlap_add_baselines(kw: dict[str, Any]) -> Baselines:
    folded = _folded(kw)
    yield "F.fold", lambda: folded(kw["frames"])


@baselines_of("spectrum_head")
def _spectrum_head_baselines(kw: dict[str, Any]) -> Baselines:
    hidden, weight, bias, window, hop = (kw[name] for name in ("hidden", "weight", "bias", "window", "hop"))
    n_fft, folded = len(window), _folded(kw)

    def spectrum() -> Tensor:
        magnitude, phase = F.linear(hidden, weight, bias).float().chunk(2, dim=-1)
        return torch.polar(magnitude.exp().clamp(max=100.0), phase)

    yield "irfft, F.fold", lambda: folded(torch.fft.irfft(spectrum(), n=n_fft))
    if kw["state"] is None and kw["last"] is True:  # centred: it begins half a hop later and ends earlier
        yield "torch.istft", lambda: torch.istft(spectrum().transpose(1, 2), n_fft, hop, window=window)


@baselines_of("frame_embed")
def _frame_embed_baselines(kw: dict[str, Any]) -> Baselines:
    x, w, hop = kw["samples"], kw["weight"], kw["hop"]
    if x.shape[1] % hop:
        return  # the last frame is padded
    yield "F.linear", lambda: F.linear(x.reshape(len(x), -1, hop), w)
    yield "F.conv1d", lambda: F.conv1d(x[:, None], w[:, None], stride=hop).transpose(1, 2)
