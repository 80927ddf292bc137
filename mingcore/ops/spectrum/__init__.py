"""Frames of samples and their embedding; streamed inverse STFT, alone and behind its spectrum head."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import checks
from .._core.op import InPlaceForm, Op
from .._core.packing import PackedLinear

_BACKENDS = ("reference", "cpu", "triton", "cuda")
_CARRIED = "Tensor? numerator, Tensor? lengths"
_STREAM = "Tensor? valid, Tensor? ended, bool last"
_WRITTEN = "Tensor(a!) out, Tensor(b!) numerator, Tensor(c!) lengths, Tensor(d!) emitted"
_RESULTS = "out next_numerator next_lengths emitted"
_WRITES = {"out": "out", "next_numerator": "numerator", "next_lengths": "lengths", "emitted": "emitted"}


def _results(x: Tensor, outputs: int, carried: int) -> tuple[Tensor, ...]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    samples, numerator = (x.new_empty(x.shape[0], width, dtype=dtype) for width in (outputs, carried))
    lengths, emitted = (x.new_empty(x.shape[0], dtype=torch.int64) for _ in range(2))
    return samples, numerator, lengths, emitted


FRAME_EMBED = Op(
    __name__,
    "frame_embed",
    "Tensor samples, Tensor weight, int hop, str layout, int n -> Tensor",
    results="out",
    fake=lambda samples, hop, n, **_: samples.new_empty(samples.shape[0], (samples.shape[1] + hop - 1) // hop, n),
    backends=_BACKENDS,
)
OVERLAP_ADD = Op(
    __name__,
    "overlap_add",
    f"Tensor frames, Tensor window, int hop, {_CARRIED}, {_STREAM}, SymInt outputs -> (Tensor, Tensor, Tensor, Tensor)",
    results=_RESULTS,
    fake=lambda frames, window, hop, outputs, **_: _results(frames, outputs, window.shape[0] - hop),
    backends=_BACKENDS,
    in_place=InPlaceForm(
        f"Tensor frames, {_WRITTEN}, Tensor window, int hop, {_STREAM} -> ()",
        writes=_WRITES,
        outputs=lambda args: args["out"].shape[1],
    ),
)
SPECTRUM_HEAD = Op(
    __name__,
    "spectrum_head",
    f"Tensor hidden, Tensor weight, Tensor? bias, Tensor window, int hop, {_CARRIED}, {_STREAM}, SymInt outputs, "
    "str layout, int n -> (Tensor, Tensor, Tensor, Tensor)",
    results=_RESULTS,
    fake=lambda hidden, window, hop, outputs, **_: _results(hidden, outputs, window.shape[0] - hop),
    backends=_BACKENDS,
    in_place=InPlaceForm(
        f"Tensor hidden, {_WRITTEN}, Tensor weight, Tensor? bias, Tensor window, int hop, {_STREAM}, str layout, int n "
        "-> ()",
        writes=_WRITES,
        outputs=lambda args: args["out"].shape[1],
    ),
)


@dataclass
class OverlapState:
    """What a streamed inverse STFT carries from one chunk to the next; F = n_fft.

    numerator [B, F - hop]: sums that later frames still add to. lengths [B] int64: frames that each
    row has had; where 0 the numerator is not read. emitted [B] int64: how many samples of the last
    call belong to each row; the rest of it is zeros. skip: samples of the "same" padding that are
    still to be dropped, known to the host while all rows are alike, else None: a call then returns
    as many samples as any row might have.
    """

    numerator: Tensor
    lengths: Tensor
    emitted: Tensor
    skip: int | None

    @classmethod
    def start(
        cls, batch: int, n_fft: int, hop: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "OverlapState":
        """The state before the first frame."""
        carried = n_fft - hop
        numerator = torch.zeros(batch, carried, dtype=dtype, device=device)
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(numerator, lengths, torch.zeros_like(lengths), carried // 2)

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Rows (None: all) begin a new stream, in place."""
        if rows is None:
            self.lengths.zero_()
            self.skip = self.numerator.shape[1] // 2
        else:
            self.lengths[torch.tensor(list(rows), device=self.lengths.device)] = 0
            self.skip = None

    def due(self, T: int, hop: int, last: bool | Tensor = False, valid: Tensor | None = None) -> int:
        """L of the samples [B, L] that the next call gives for T frames: for the in-place forms."""
        return _due(T, hop, self.numerator.shape[1], self.skip, False, last, valid)[0]

    def rows(self, start: int, stop: int) -> "OverlapState":
        """Rows start..stop-1 as a state over the same memory, each at a place of its own."""
        part = (t[start:stop] for t in (self.numerator, self.lengths, self.emitted))
        return OverlapState(*part, None)

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        for tensor in (self.numerator, self.lengths, self.emitted):
            tensor[target] = tensor[source]

    def clone(self) -> "OverlapState":
        tensors = (self.numerator.clone(), self.lengths.clone(), self.emitted.clone())
        return OverlapState(*tensors, self.skip)

    @property
    def nbytes(self) -> int:
        return self.numerator.nbytes + self.lengths.nbytes + self.emitted.nbytes


@FRAME_EMBED.public_function
def frame_embed(samples: Tensor, weight: Tensor | PackedLinear, *, hop: int, backend: str | None = None) -> Tensor:
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
    return FRAME_EMBED.call(backend, samples=samples, weight=matrix, hop=hop, layout=layout, n=n)


@OVERLAP_ADD.public_function
def overlap_add(
    frames: Tensor,
    window: Tensor,
    hop: int,
    state: OverlapState | None,
    last: bool | Tensor,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, OverlapState]:
    """The windowed overlap-add of an inverse STFT, streamed ("same" padding).

    frames [B, T, F] before the window, any T >= 0; window [F]; state None: a new stream. samples =
    sum(window * frame) / sum(window^2); (F - hop) / 2 samples are trimmed at both ends. A chunk
    that is not the `last` holds back the F - hop samples that later frames reach, so chunks, put
    together, equal the one-shot output; the first may give nothing. valid [B] int64 (None: T each):
    how many frames are a row's own, 0: it sits out; last: bool, or bool [B] row by row.
    Returns samples [B, L] float32 (float64 for float64 frames) and the next state, which after
    `last` is that of a new stream. docs/model.md section 4. Raises InputError.
    """
    args, outputs, skip = _overlap_call("overlap_add", frames, window, hop, state, last, valid)
    numerator, lengths = (None, None) if state is None else (state.numerator, state.lengths)
    samples, *carried = OVERLAP_ADD.call(backend, **args, numerator=numerator, lengths=lengths, outputs=outputs)
    return samples, OverlapState(*carried, skip)


@OVERLAP_ADD.in_place.public_function
def overlap_add_(
    frames: Tensor,
    out: Tensor,
    window: Tensor,
    hop: int,
    state: OverlapState,
    last: bool | Tensor,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """`overlap_add` into `out` [B, L] float32; `state` is changed in place.

    L is what `overlap_add` would return.
    """
    args, _, skip = _overlap_call("overlap_add_", frames, window, hop, state, last, valid, out)
    carried = {"numerator": state.numerator, "lengths": state.lengths, "emitted": state.emitted}
    OVERLAP_ADD.in_place.call(backend, **args, out=out, **carried)
    state.skip = skip


@SPECTRUM_HEAD.public_function
def spectrum_head(
    hidden: Tensor,
    weight: Tensor | PackedLinear,
    bias: Tensor | None,
    window: Tensor,
    hop: int,
    state: OverlapState | None,
    last: bool | Tensor,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, OverlapState]:
    """Hidden states to samples: Linear, inverse real FFT, `overlap_add`.

    hidden [B, T, H]; weight [F + 2, H] or packed; bias [F + 2] or None; window [F]. The Linear
    gives [log-magnitude m | phase p], S = min(exp m, 100) (cos p + i sin p), frames = irfft(S);
    all in float32. The rest, and what is returned, as `overlap_add`. docs/model.md section 4.
    Raises InputError.
    """
    args, outputs, skip = _head_call("spectrum_head", hidden, weight, bias, window, hop, state, last, valid)
    numerator, lengths = (None, None) if state is None else (state.numerator, state.lengths)
    samples, *carried = SPECTRUM_HEAD.call(backend, **args, numerator=numerator, lengths=lengths, outputs=outputs)
    return samples, OverlapState(*carried, skip)


@SPECTRUM_HEAD.in_place.public_function
def spectrum_head_(
    hidden: Tensor,
    out: Tensor,
    weight: Tensor | PackedLinear,
    bias: Tensor | None,
    window: Tensor,
    hop: int,
    state: OverlapState,
    last: bool | Tensor,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """`spectrum_head` into `out` [B, L] float32; `state` is changed in place."""
    args, _, skip = _head_call("spectrum_head_", hidden, weight, bias, window, hop, state, last, valid, out)
    carried = {"numerator": state.numerator, "lengths": state.lengths, "emitted": state.emitted}
    SPECTRUM_HEAD.in_place.call(backend, **args, out=out, **carried)
    state.skip = skip


def _overlap_call(op, frames, window, hop, state, last, valid, out=None) -> tuple[dict, int, int | None]:
    """What both forms of overlap_add check: the arguments they share, outputs, the next skip."""
    size = _frames(op, frames, window, hop)
    stream = checks.stream_arguments(op, frames, valid, last)
    outputs, skip = _carry(op, state, frames, size, hop, valid, last)
    if out is not None:
        _out(op, out, frames, outputs)
    return {"frames": frames, "window": window, "hop": hop, **stream}, outputs, skip


def _head_call(op, hidden, weight, bias, window, hop, state, last, valid, out=None) -> tuple[dict, int, int | None]:
    """What both forms of spectrum_head check: the arguments they share, outputs, the next skip."""
    matrix, layout, n, size = _head(op, hidden, weight, bias, window, hop)
    stream = checks.stream_arguments(op, hidden, valid, last)
    outputs, skip = _carry(op, state, hidden, size, hop, valid, last)
    if out is not None:
        _out(op, out, hidden, outputs)
    args = {"hidden": hidden, "weight": matrix, "bias": bias, "window": window, "hop": hop}
    return {**args, **stream, "layout": layout, "n": n}, outputs, skip


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


def _head(op, hidden, weight, bias, window, hop) -> tuple[Tensor, str, int, int]:
    size = _window(op, hidden, window, hop)
    checks.rank(op, "hidden", hidden, "[B, T, H]", 3)
    matrix, layout, n, k = _matrix(op, hidden, weight)
    if (n, k) != (size + 2, hidden.shape[2]):
        checks.fail(op, "weight", f"[F + 2, H] = [{size + 2}, {hidden.shape[2]}]", [n, k])
    if bias is not None:
        checks.shape(op, "bias", bias, "[F + 2]", (n,))
    return matrix, layout, n, size


def _frames(op: str, frames: Tensor, window: Tensor, hop: int) -> int:
    size = _window(op, frames, window, hop)
    if not (frames.dim() == 3 and frames.dtype in checks.FLOATS and frames.shape[2] == size):
        checks.rank(op, "frames", frames, "[B, T, F]", 3)
        checks.floating(op, "frames", frames)
        checks.shape(op, "frames", frames, "[B, T, F]", (*frames.shape[:2], size))
    return size


def _window(op: str, x: Tensor, window: Tensor, hop: int) -> int:
    if not (window.dim() == 1 and window.dtype in checks.FLOATS and window.device == x.device):
        checks.rank(op, "window", window, "[F]", 1)
        checks.floating(op, "window", window)
        checks.device(op, x, "window", window)
    size = window.shape[0]
    if not 1 <= hop <= size:
        checks.fail(op, "hop", f"in 1..F = 1..{size}", hop)
    return size


def _carry(op, state, x, size, hop, valid, last):
    """How many samples come; the next state's skip."""
    B, T, _ = x.shape
    carried = size - hop
    if state is None:
        return _due(T, hop, carried, carried // 2, True, last, valid)
    numerator, lengths = state.numerator, state.lengths
    if not (
        numerator.shape == (B, carried)
        and numerator.dtype in checks.WIDE
        and numerator.device == x.device
        and lengths.shape == (B,)
    ):
        checks.shape(op, "state.numerator", numerator, "[B, F - hop]", (B, carried))
        checks.wide(op, "state.numerator", numerator)
        checks.device(op, x, "state.numerator", numerator)
        checks.shape(op, "state.lengths", lengths, "[B]", (B,))
    return _due(T, hop, carried, state.skip, False, last, valid)


def _due(T, hop, carried, skip, fresh, last, valid):
    """How many samples come; the next state's skip. fresh: there was no state."""
    trim = carried // 2
    end = T * hop + (0 if last is False else carried - trim)
    if skip is None or valid is not None or isinstance(last, Tensor):
        return end, None
    if last and T == 0 and (fresh or skip == trim > 0):
        return 0, trim  # nothing came before
    outputs = torch.sym_max(end - skip, 0)
    return outputs, trim if last else torch.sym_max(skip - T * hop, 0)


def _out(op: str, out: Tensor, x: Tensor, outputs: int) -> None:
    checks.shape(op, "out", out, "[B, L]", (x.shape[0], outputs))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    checks.dtype(op, "out", out, wide)
    checks.device(op, x, "out", out)
