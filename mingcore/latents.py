"""Latents in a file: what `mingcore encode` writes and `mingcore decode` reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

FORMAT = "mingcore-latents-1"


def latents_to_bytes(latents: np.ndarray) -> bytes:
    """Latents [T, C] float32 as a safetensors file with one tensor, `latents`."""
    from safetensors.numpy import save

    return save({"latents": np.ascontiguousarray(latents)}, {"format": FORMAT})


def load_latents(source: str) -> np.ndarray:
    """Latents [T, C] of a file that `encode` or `Voice.save` wrote; "-" is standard input.

    Raises InputError for a file that is missing or holds anything else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    label = "latents (standard input)" if source == "-" else f"latents {source!r}"
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        tensors: dict[str, Any] = load(data)
    except SafetensorError as error:
        raise InputError(f"{label}: is no safetensors file ({error})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{label}: cannot be read ({reason})") from None
    if set(tensors) != {"latents"}:
        raise InputError(f"{label}: must hold one tensor, 'latents', got {sorted(tensors)}")
    return tensors["latents"]
