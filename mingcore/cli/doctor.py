"""The facts of `mingcore doctor`: this machine, its packages, and which kernels run on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from .. import __version__, env

_PACKAGES = (
    "torch",
    "triton",
    "cuda-bindings",
    "flash-attn",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "soundfile",
    "soxr",
    "wetext",
)
MISSING, NO_GPU = "not written", "no GPU"


def examine() -> dict[str, Any]:
    """Everything, as JSON-ready data.

    Keys: `mingcore`, `python`, `platform`, `packages` {name: version or None}, `cpu`, `gpus`,
    `nvcc`, `backends` {backend: None or why it cannot be loaded}, `ops` {op: {backend: None or why
    it is not selected automatically here}}, `cache`, `environment` and `advice` [one line each].
    """
    from ..ops._core import backends

    gpus = _gpus()
    ops = _ops()
    packages = {name: _version(name) for name in _PACKAGES}
    cpu = _cpu()
    return {
        "mingcore": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "cpu": cpu,
        "gpus": gpus,
        "nvcc": shutil.which("nvcc"),
        "backends": {name: backends.missing(name) for name in env.BACKENDS},
        "ops": ops,
        "cache": str(env.cache_dir()),
        "environment": {
            name: os.environ[name] for name in ("MINGCORE_BACKEND", "MINGCORE_CACHE") if name in os.environ
        },
        "advice": _advice(packages, cpu, gpus, ops),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"name": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    try:
        from .. import _cpu as native
    except ImportError as error:
        return facts | {"isa": None, "isas": [], "why_not": str(error)}
    return facts | {"isa": native.isa(), "isas": list(native.isas()), "pool": native.thread_pool()}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    rows = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        rows.append(
            {
                "name": properties.name,
                "architecture": f"sm_{properties.major}{properties.minor}",
                "memory": properties.total_memory,
                "cuda": torch.version.cuda,
            }
        )
    return rows


def _ops() -> dict[str, dict[str, str | None]]:
    """op -> {backend: None when the automatic selection may choose it on this machine, else the reason}.

    Limits that depend on the arguments of a call are not checked.
    """
    import torch

    from ..ops._core import backends
    from ..ops._core.op import OPS, unproven

    backends.load_all()
    table: dict[str, dict[str, str | None]] = {}
    for op in sorted(OPS):
        row = table[op] = {}
        for backend in env.BACKENDS:
            implementation = OPS[op].implementations.get(backend)
            if implementation is None:
                row[backend] = backends.missing(backend) or MISSING
            elif backend in ("reference", "cpu"):
                row[backend] = None
            elif not torch.cuda.is_available():
                row[backend] = NO_GPU
            elif backend == "flash":
                row[backend] = None
            else:
                row[backend] = unproven(implementation, torch.device("cuda"))
    return table


def _advice(packages: dict, cpu: dict, gpus: list, ops: dict) -> list[str]:
    lines = []
    if cpu["isa"] is None:
        lines.append(f"the native CPU kernels are not built: {cpu['why_not']}; pip install . again")
    missing = [n for n in ("triton", "cuda-bindings") if packages[n] is None]
    if gpus and missing:
        lines.append(f"a GPU without {' and '.join(missing)}: pip install 'mingcore[gpu]'")
    unproven = [op for op, row in ops.items() if any(is_unproven(r) for r in row.values())]
    if gpus and unproven:
        lines.append(
            f"{len(unproven)} ops have GPU kernels that are not proven on this GPU and are not "
            "used: run `mingcore verify` (about a minute)"
        )
    return lines


def is_unproven(reason: str | None) -> bool:
    """Whether a kernel is not selected only because it has no verification record."""
    from ..ops._core.records import NOT_VERIFIED

    return reason is not None and reason.startswith(NOT_VERIFIED.partition("(")[0])
