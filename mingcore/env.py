"""The two environment variables of mingcore, and nothing else that comes from the environment."""

import os
from pathlib import Path

BACKENDS = ("reference", "cpu", "triton", "cuda")


def backend() -> str | None:
    """MINGCORE_BACKEND: the backend of every op whose caller names none; unset or "auto": None.

    Several in order of preference: "triton,reference".
    """
    name = os.environ.get("MINGCORE_BACKEND")
    return None if name is None or name in ("", "auto") else name


def cache_dir() -> Path:
    """MINGCORE_CACHE: where compiled kernels and verified records are kept; ~/.cache/mingcore."""
    name = os.environ.get("MINGCORE_CACHE")
    return Path(name).expanduser() if name else Path.home() / ".cache" / "mingcore"
