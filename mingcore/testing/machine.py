"""Describes what a result was measured on: machine, versions and commit, for every result file."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

try:
    from .. import _cpu as native
except ImportError:  # the CPU kernels are not built
    native = None

_PACKAGES = ("mingcore", "torch", "triton", "numpy", "cuda-bindings", "safetensors")


def describe() -> dict[str, Any]:
    """A JSON-ready mapping: processor, its instructions, caches, memory, GPU, versions, commit and
    time (UTC)."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": gpu(),
        "versions": versions(),
        "commit": commit(),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def isa() -> str:
    """The instruction set that the CPU kernels use here and its relevant extensions, such as "avx512 vnni bf16"; "no
    native kernels" if they are not built."""
    if native is None:
        return "no native kernels"
    return " ".join([native.isa(), *["vnni"] * native.vnni(), *["bf16"] * native.bf16()])


def slug() -> str:
    """A folder name for this machine: GPU, or processor, cores and instruction set; no host."""
    here = gpu()
    name = here["name"] if here else f"{cpu_name()} {len(os.sched_getaffinity(0))} cores {isa()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def last_level_cache_bytes(default: int = 32 << 20) -> int:
    """Size of the largest data cache of the first processor; `default` where the system does not report it."""
    largest = 0
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            digits, unit = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip()).groups()
        except (OSError, AttributeError):
            continue
        largest = max(largest, int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return largest or default


def gpu() -> dict[str, Any] | None:
    """Name, architecture, multiprocessors, memory and L2 of the current GPU, or None."""
    if not torch.cuda.is_available():
        return None
    p = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": p.name,
        "arch": f"sm_{p.major}{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; packages that are absent are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


def commit() -> str | None:
    """The commit of the source tree, with "+" when tracked files differ from it; None outside git. Files of
    bench/results are ignored, because the parts of one run rewrite them one after the other."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        sources = ("--", ".", ":(exclude)bench/results")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no", *sources)
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
