"""Argument checks: one clear error that names the op, the argument, what was expected and got.

They look at shapes, types and devices only, never at values, so nothing waits for a GPU.
"""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ...errors import InputError

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
WIDE = frozenset((torch.float32, torch.float64))


def fail(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise InputError(f"{op}: {argument} must be {expected}, got {got}")


def shape(op: str, argument: str, tensor: Tensor, dims: str, expected: Sequence[int]) -> None:
    """`dims` names the dimensions, e.g. "[E, H, I]"."""
    if tensor.shape != torch.Size(expected):
        fail(op, argument, f"{dims} = {list(expected)}", list(tensor.shape))


def rank(op: str, argument: str, tensor: Tensor, dims: str, ndim: int) -> None:
    if tensor.dim() != ndim:
        fail(op, argument, dims, list(tensor.shape))


def floating(op: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        fail(op, argument, "float32, bfloat16, float16 or float64", _name(tensor.dtype))


def wide(op: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in WIDE:
        fail(op, argument, "float32 (or float64)", _name(tensor.dtype))


def dtype(op: str, argument: str, tensor: Tensor, expected: torch.dtype) -> None:
    if tensor.dtype != expected:
        fail(op, argument, _name(expected), _name(tensor.dtype))


def device(op: str, x: Tensor, argument: str, tensor: Tensor) -> None:
    if tensor.device != x.device:
        fail(op, argument, f"on {x.device}, where the first argument is", tensor.device)


def positive(op: str, argument: str, value: int) -> None:
    if value < 1:
        fail(op, argument, ">= 1", value)


def window(op: str, value: int | None) -> int:
    """The flat form of an optional window: 0 is none."""
    if value is None:
        return 0
    positive(op, "window", value)
    return value


def head_groups(op: str, num_heads: int, num_kv_heads: int) -> None:
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        fail(op, "the number of query heads", f"a multiple of {num_kv_heads} KV heads", num_heads)


def stream_arguments(op: str, x: Tensor, valid: Tensor | None, last: bool | Tensor) -> dict:
    """The schema's arguments for which rows of x [B, ...] take part and which end: valid, ended, last."""
    if valid is None and not isinstance(last, Tensor):
        return {"valid": None, "ended": None, "last": bool(last)}
    B = x.shape[0]
    if valid is not None:
        shape(op, "valid", valid, "[B]", (B,))
        dtype(op, "valid", valid, torch.int64)
        device(op, x, "valid", valid)
    if not isinstance(last, Tensor):
        return {"valid": valid, "ended": None, "last": bool(last)}
    shape(op, "last", last, "[B]", (B,))
    dtype(op, "last", last, torch.bool)
    device(op, x, "last", last)
    return {"valid": valid, "ended": last, "last": False}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
