"""Latents in a file or a stream: what `mingcore encode` writes and `mingcore decode` reads.

A file is safetensors with one tensor, `latents` [T, C] float32. A stream is a sequence of such files, each of which
holds its own length; `more` in the metadata is "yes" in all but the last. So a file is a stream of one piece, and a
truncated stream is recognised. The last piece of a stream may hold no frames.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import InputError
from .pcm import exactly

FORMAT = "mingcore-latents-1"
_DTYPES = ("F32", "F16", "F64")
MAX_HEADER, MAX_PIECE = 1 << 20, 1 << 32


def latents_to_bytes(latents: np.ndarray, *, more: bool = False) -> bytes:
    """Latents [T, C] float32 as a safetensors file; `more`: another piece of a stream follows."""
    metadata = {"format": FORMAT} | ({"more": "yes"} if more else {})
    return save({"latents": np.ascontiguousarray(latents)}, metadata)


def load_latents(source: str) -> np.ndarray:
    """Latents [T, C] of a file that `encode` or `Voice.save` wrote; "-" is standard input.

    Raises InputError for a file that is missing or holds anything else.
    """
    if source == "-":
        parts = list(read_latents(sys.stdin.buffer))
    else:
        label = f"latents {source!r}"
        try:
            with Path(source).open("rb") as file:
                parts = list(read_latents(file, label))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{label}: cannot be read ({reason})") from None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_latents(pipe: BinaryIO, label: str = "latents (standard input)") -> Iterator[np.ndarray]:
    """The pieces [t, C] of a stream of latents as they arrive.

    Raises InputError for other content, and for a truncated stream after its complete pieces.
    """
    more, first, channels = True, True, []
    while more:
        data, header = _one(pipe, label, first)
        names = sorted(name for name in header if name != "__metadata__")
        if names != ["latents"]:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(f"{label}: must hold one tensor, 'latents', got {shown or 'none'}")
        if header["latents"].get("dtype") not in _DTYPES:
            wanted = ", ".join(_DTYPES)
            raise InputError(f"{label}: latents must be one of {wanted}, got {header['latents'].get('dtype')!r}")
        try:
            latents = load(data)["latents"]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{label}: is no safetensors file ({error})") from None
        more = header.get("__metadata__", {}).get("more") == "yes"
        shape = list(latents.shape)
        channels = channels or shape[-1:]
        if len(shape) != 2 or shape[1:] != channels:
            raise InputError(f"{label}: must be [T, C], C the same in all pieces, got {shape}")
        first = False
        yield latents
    if exactly(pipe, 1):
        raise InputError(f"{label}: goes on after its last piece")


def _one(pipe: BinaryIO, label: str, first: bool) -> tuple[bytes, dict]:
    """The bytes of the next safetensors file, and its header."""
    start = exactly(pipe, 8)
    cut = InputError(f"{label}: is cut off, its last piece is missing")
    if first and len(start) < 8:
        raise InputError(f"{label}: is no safetensors file, {len(start)} bytes")
    if len(start) < 8:
        raise cut
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise InputError(f"{label}: is no safetensors file (a header of {length} bytes)")
    head = exactly(pipe, length)
    if len(head) < length:
        raise cut if not first else InputError(f"{label}: is cut off within its header")
    try:
        header = json.loads(head)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        size = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        header.get("__metadata__", {}).get("more")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise InputError(f"{label}: is no safetensors file (its header is damaged)") from None
    if not 0 <= size <= MAX_PIECE:
        raise InputError(f"{label}: a piece of {size} bytes")
    data = exactly(pipe, size)
    if len(data) < size:
        raise InputError(f"{label}: is cut off, {size - len(data)} of {size} bytes are missing")
    return start + head + data, header
