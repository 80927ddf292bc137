"""The two environment variables of mingcore, and the one that it sets for its command."""

import os
from pathlib import Path

BACKENDS = ("reference", "cpu", "triton", "cuda", "flash")


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


def let_idle_threads_sleep() -> None:
    """OMP_WAIT_POLICY=passive for this process, unless the user has chosen; before torch loads.

    A spinning OpenMP thread keeps a busy core from the very thread it waits for. Measured on two
    cores: with one other process at work, `tiny` spoke 10 to 24 times slower with spinning threads.
    Alone, sleeping costs: 1.8 times on `tiny` (0.22 to 0.39 s for 2 s of sound), 8 to 14 % on a
    chain of products of the flow head's real size. OMP_WAIT_POLICY=active takes that back.
    A program may choose this, a library may not.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
