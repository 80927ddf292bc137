"""The environment variables that mingcore reads, and the one that its command sets."""

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
    """MINGCORE_CACHE: folder of compiled kernels and verification records; ~/.cache/mingcore if unset."""
    name = os.environ.get("MINGCORE_CACHE")
    return Path(name).expanduser() if name else Path.home() / ".cache" / "mingcore"


def let_idle_threads_sleep() -> None:
    """OMP_WAIT_POLICY=passive for this process, unless it is set; must run before torch is loaded.

    An idle OpenMP thread that spins takes a core from the thread it waits for when the machine is busy. Measured on
    two cores beside one other busy process: `tiny` spoke 10 to 24 times slower with spinning threads. On an idle
    machine sleeping costs time: 1.8 times on `tiny` (0.22 to 0.39 s for 2 s of sound), 8 to 14 % on a chain of
    products of the flow head's real size; OMP_WAIT_POLICY=active avoids that. Set by the command only: a library must
    not change the process's environment.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
