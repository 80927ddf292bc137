"""Compiles recorded launches of Triton kernels for GPUs that are not present, in several processes."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.runtime.cache import CacheManager
from triton.runtime.jit import JITFunction

from .manifest import file_digest
from .targets import Target
from .trace import Launch, NoDriver, acting_as

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_EXTENSIONS = (".cubin", ".json")  # of what Triton needs again


class BundleCache(CacheManager):
    """Triton's cache in the bundle, a folder for each kernel: `root/<key>/`.

    Triton constructs its cache managers itself, from a key alone; so `root` is an attribute of the class.
    """

    root: Path

    def __init__(self, key: str, override: bool = False, dump: bool = False):
        self._folder = type(self).root / key

    def get_file(self, filename: str) -> str | None:
        path = self._folder / filename
        return str(path) if path.is_file() else None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / filename
        path.write_bytes(data if isinstance(data, bytes) else str(data).encode())
        return str(path)

    def get_group(self, filename: str) -> dict[str, str] | None:
        return None

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """Nothing to do: the folder is the group."""


def kernel_of(launch: Launch) -> JITFunction:
    """The kernel's function in its module, such as `mingcore_kernels.activation.silu_mul`."""
    return getattr(import_module(launch.module), launch.name)


def compile_one(launch: Launch, target: Target, root: Path) -> dict[str, Any]:
    """Compile one kernel into the bundle -> its entry in the manifest."""
    folder = root / "triton" / target.slug
    cache = type("Cache", (BundleCache,), {"root": folder})
    with acting_as(NoDriver(target.capability)), knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.manager_class = cache
        knobs.compilation.store_binary_only = True
        kernel = kernel_of(launch).preload(launch.specialization)
    paths = sorted(Path(path) for path in kernel.metadata_group.values())
    for path in paths:
        if path.suffix not in _EXTENSIONS:
            path.unlink()
    values, metadata = json.loads(launch.specialization), kernel.metadata
    return {
        "kernel": launch.name,
        "module": launch.module,
        "target": str(target),
        "constants": _constants(kernel_of(launch), values),
        "signature": {n: t for n, t in values["signature"].items() if t != "constexpr"},
        "warps": metadata.num_warps,
        "stages": metadata.num_stages,
        "shared_bytes": metadata.shared,
        **usage(kernel.asm["cubin"])[kernel.name],
        "files": {str(p.relative_to(root)): file_digest(p) for p in paths if p.is_file()},
        "specialization": launch.specialization,
    }


def _constants(kernel: JITFunction, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a kernel's constexpr parameters, by name."""
    pairs = zip(values["constant_keys"], values["constant_vals"])
    return {kernel.arg_names[path[0]]: value for path, value in pairs if len(path) == 1}


def usage(binary: bytes) -> dict[str, dict[str, int]]:
    """{kernel: {"registers", "spilled_bytes"}} of a cubin or fatbin, by Triton's cuobjdump.

    Spilled bytes are stack and local memory. In a binary for several architectures, the largest of them.
    """
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(binary)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, int]] = {}
    for name, line in re.findall(r"Function (\S+):\s*\n(.*)", text):
        of = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", line)}
        entry = {"registers": of["REG"], "spilled_bytes": of["STACK"] + of["LOCAL"]}
        known = found.setdefault(name, entry)
        found[name] = {key: max(known[key], value) for key, value in entry.items()}
    return found


def _task(task: tuple[Launch, Target, Path]) -> dict[str, Any]:
    return compile_one(*task)


def compile_all(
    tasks: Sequence[tuple[Launch, Target]], root: Path, jobs: int, on_done: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """The manifest's entries of all kernels, in the order of `tasks`; in `jobs` processes where that is more than one.

    `on_done` is called as each kernel is done.
    """
    arguments = [(launch, target, root) for launch, target in tasks]

    def collect(entries: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for entry in entries:
            found.append(entry)
            on_done()
        return found

    if jobs == 1 or len(arguments) < 2:
        return collect(map(_task, arguments))
    # spawned, not forked: a forked process would inherit PyTorch's thread pools
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(arguments))) as pool:
        return collect(pool.imap(_task, arguments, chunksize=4))
