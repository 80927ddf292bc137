"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes that can be had now, and of the whole device."""

    available: int
    total: int


def device_memory(device: torch.device) -> Memory | None:
    """Of a GPU by its driver, of a CPU by the system and the group's limit; None if unknown."""
    if device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(device)) if torch.cuda.is_available() else None
    found = [m for m in (_system(), _group()) if m is not None]
    if not found:
        return None
    return Memory(min(m.available for m in found), min(m.total for m in found))


def _system() -> Memory | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if ":" in line}
        return Memory(sizes["MemAvailable"], sizes["MemTotal"])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _group() -> Memory | None:
    """The control group's limit (version 2), less what it uses and cannot give back."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = next(int(x.split()[1]) for x in lines if x.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration, IndexError):
        return None
    return Memory(max(0, limit - used + cached), limit)
