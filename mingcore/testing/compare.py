"""Errors between results, and their tolerances.

The oracle of an op is its reference in float64 on the same (already quantised) operands. A result passes when its
error against the oracle is at most twice the error of plain PyTorch in the same dtype, plus 1e-5 of the oracle's root
mean square; so the tolerance follows from the dtype and the shape, and no number is tuned per test. Results that are
not floating point must be equal.

Where activations are quantised ("int8_dyn"), a hidden value next to a rounding tie is rounded up or down depending on
the order of a sum; the error of one such value per row is added to plain PyTorch's error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .. import ops
from ..ops._core import reference as common
from ..ops._core.layouts import map_tensors, tensors_in
from ..ops._core.packing import quantise_activations

FACTOR = 2.0
FLOOR = 1e-5  # of the oracle's root mean square
LARGE_BYTES = 64 << 20
TIE = 127 * 2.0**-18  # quantisation steps: how far the order of a float32 sum moves a value near the largest
TIE_OF_MANY = 127 * 2.0**-14  # the same after many layers


def max_relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b| in float64; NaN or infinity in a or b gives NaN or infinity."""
    a, b = _pair(a, b)
    if a.numel() == 0:
        return 0.0
    difference, size = (a - b).abs().max().item(), b.abs().max().item()
    return difference / size if size else (0.0 if difference == 0 else math.inf)


def relative_l2(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float64."""
    a, b = _pair(a, b)
    if a.numel() == 0:
        return 0.0
    difference, size = (a - b).norm().item(), b.norm().item()
    return difference / size if size else (0.0 if difference == 0 else math.inf)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    return a.detach().double().cpu(), b.detach().double().cpu()


@dataclass(frozen=True)
class Error:
    """Largest and root-mean-square absolute error."""

    largest: float
    rms: float

    @staticmethod
    def between(a: Tensor, b: Tensor) -> Error:
        a, b = _pair(a, b)
        if a.numel() == 0:
            return Error(0.0, 0.0)
        difference = a - b
        return Error(difference.abs().max().item(), difference.square().mean().sqrt().item())

    def within(self, limit: Error) -> bool:
        """Whether both errors are at most the limit's; NaN never is."""
        return self.largest <= limit.largest and self.rms <= limit.rms


NO_ERROR = Error(0.0, 0.0)


def tolerance(plain: Tensor, oracle: Tensor, min_error: Error = NO_ERROR) -> Error:
    """FACTOR · max(error of `plain`, rounding of the oracle, min_error) + FLOOR · rms(oracle), for both errors.

    `plain` is plain PyTorch's result, in the dtype of the result that is compared. The error of rounding the oracle to
    that dtype counts too, because on few elements plain PyTorch may be exact by chance.
    """
    error = Error.between(plain, oracle)
    rounding = Error.between(oracle.to(plain.dtype), oracle)
    scale = oracle.detach().double().square().mean().sqrt().item() if oracle.numel() else 0.0
    return Error(
        FACTOR * max(error.largest, rounding.largest, min_error.largest) + FLOOR * scale,
        FACTOR * max(error.rms, rounding.rms, min_error.rms) + FLOOR * scale,
    )


def assert_within(
    got: Tensor, plain: Tensor, oracle: Tensor, what: str = "result", min_error: Error = NO_ERROR
) -> None:
    """Raise AssertionError, with the error and the limit, when `got` is not within `tolerance` of `oracle`."""
    if got.dtype != plain.dtype:
        raise AssertionError(f"{what}: dtype must be {plain.dtype}, got {got.dtype}")
    if got.shape != oracle.shape:
        raise AssertionError(f"{what}: shape must be {list(oracle.shape)}, got {list(got.shape)}")
    if not got.dtype.is_floating_point:
        if not torch.equal(got.cpu(), oracle.to(got.dtype).cpu()):
            raise AssertionError(f"{what}: {(got.cpu() != oracle.cpu()).sum()} values differ")
        return
    error, limit = Error.between(got, oracle), tolerance(plain, oracle, min_error)
    if not error.within(limit):
        raise AssertionError(
            f"{what}: error {error.largest:.3e} (rms {error.rms:.3e}) against the oracle, "
            f"limit {limit.largest:.3e} (rms {limit.rms:.3e})"
        )


def widened(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating-point tensor in float64, on the CPU.

    On a GPU, arguments of at most 16 bits per element and more than 64 MB in all become float32 on the GPU, because
    float64 on the CPU would take too long. Routing weights stay float32, as the ops require. Quantised experts stay
    quantised: their values and scales are the operands.
    """
    kwargs = _unpacked(kwargs)
    found = list(tensors_in(kwargs))
    on_gpu = sum(t.nbytes for t in found if t.is_cuda and t.element_size() <= 2) > LARGE_BYTES
    wide = map_tensors(kwargs, _to_float32 if on_gpu else _widen)
    if "ids" in wide and "weights" in wide:
        wide["weights"] = wide["weights"].float()
    return wide


def _widen(x: Tensor) -> Tensor:
    return x.detach().cpu().double() if x.dtype.is_floating_point else x.detach().cpu().clone()


def _to_float32(x: Tensor) -> Tensor:
    return x.detach().float() if x.dtype.is_floating_point else x.detach().clone()


def _unpacked(value: Any) -> Any:
    """The arguments with packed weights unpacked to plain matrices of the same format."""
    if isinstance(value, dict):
        return {key: _unpacked(part) for key, part in value.items()}
    if hasattr(value, "as_rows"):
        return value.as_rows()
    if hasattr(value, "unpack"):
        return value.unpack()
    return value


def run(op: str, kwargs: dict[str, Any], backend: str | None = None) -> tuple[Tensor, ...]:
    """Call the public op and return its results; of an in-place op the tensors that it wrote.

    The arguments are not modified: tensors that the op writes are copied first.
    """
    kwargs = dict(kwargs)
    written = _WRITTEN.get(op, ())
    kwargs.update({name: kwargs[name].clone() for name in written})
    out = getattr(ops, op)(**kwargs, backend=backend)
    return tuple(written_by(op, kwargs)) or tuple(tensors_in(out))


def written_by(op: str, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments that an in-place op writes."""
    return tensors_in([kwargs[name] for name in _WRITTEN.get(op, ())])


_WRITTEN = {
    "kv_write_": ("k_cache", "v_cache"),
    "flow_step_": ("x",),
    "causal_conv1d_": ("out", "state"),
    "causal_conv_transpose1d_": ("out", "state"),
    "overlap_add_": ("out", "state"),
    "spectrum_head_": ("out", "state"),
}


def oracle(op: str, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The op's reference in float64 on the CPU, on the same operands."""
    return run(op, widened(kwargs), backend="reference")


def check_op(
    op: str, kwargs: dict[str, Any], got: tuple[Tensor, ...] | None = None, *, backend: str | None = None
) -> None:
    """Check an op on `backend` (or its results `got`) against the oracle.

    Raises AssertionError with the error and the limit.
    """
    if got is None:
        got = run(op, kwargs, backend=backend)
    plain = run(op, map_tensors(_unpacked(kwargs), lambda t: t), backend="reference")
    exact = oracle(op, kwargs)
    if len(got) != len(exact):
        raise AssertionError(f"{op}: expected {len(exact)} results, got {len(got)}")
    min_error = _tie_error(op, kwargs, exact)
    for i, (a, b, c) in enumerate(zip(got, plain, exact, strict=True)):
        assert_within(a, b, c, what=op if len(exact) == 1 else f"{op}[{i}]", min_error=min_error)


def _tie_error(op: str, kwargs: dict[str, Any], exact: tuple[Tensor, ...]) -> Error:
    """The error when in every hidden row the value nearest to a rounding tie is rounded the other way; "int8_dyn" only.

    Rows of x are excluded: their quantisation is specified bit for bit.
    """
    packed = kwargs.get("experts", kwargs.get("head"))
    if getattr(packed, "format", None) != "int8_dyn":
        return NO_ERROR
    tie, given = (TIE_OF_MANY, None) if op == "flow_sample" else (TIE, packed.hidden)

    def other_way(x: Tensor) -> tuple[Tensor, Tensor]:
        stored, scale = quantise_activations(x)
        if x.shape[-1] == given:
            return stored, scale
        rest = x.float() / scale.unsqueeze(-1).clamp_min(1e-30) - stored
        distance, nearest = (0.5 - rest.abs()).abs().min(dim=-1, keepdim=True)
        step = rest.gather(-1, nearest).sign() * (distance < tie)
        step = (stored.gather(-1, nearest) + step).to(stored.dtype)
        return stored.scatter(-1, nearest, step), scale

    with patch.object(common, "quantise_activations", other_way):
        return Error.between(oracle(op, kwargs)[0], exact[0])


def quantisation_error(kwargs: dict[str, Any], format: str) -> tuple[float, float]:
    """The error of quantising `moe_mlp` to `format`: `max_relative` and `relative_l2`.

    kwargs: arguments of `ops.moe_mlp` with the pair of unquantised weights. Both sides are the reference in float64,
    so that only the format differs.
    """
    shared, rest = kwargs.get("shared"), {k: v for k, v in kwargs.items() if k != "shared"}
    packed = ops.pack_experts(*kwargs["experts"], shared=shared, format=format, backend="reference")
    (got,), (exact,) = (oracle("moe_mlp", kw) for kw in ({**rest, "experts": packed}, kwargs))
    return max_relative(got, exact), relative_l2(got, exact)


def edit_distance(expected: Sequence[Any], got: Sequence[Any]) -> int:
    """The Levenshtein distance: the minimum number of insertions, deletions and substitutions."""
    row = list(range(len(got) + 1))
    for i, a in enumerate(expected, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
