"""The CUDA kernels of a bundle: a fatbin of each op by nvcc, or cubins by NVRTC."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import InputError, KernelBundleError
from ..ops._core import launch
from .manifest import file_digest
from .targets import Target
from .triton_build import usage

COMPILERS = ("auto", "nvcc", "nvrtc")
NVCC_FLAGS = ("-O3", "-std=c++17", "--fatbin")


def choose(compiler: str) -> str:
    """ "nvcc" or "nvrtc"; "auto" takes nvcc where it is on PATH. Raises InputError."""
    if compiler not in COMPILERS:
        raise InputError(f"cuda_compiler: must be one of {', '.join(COMPILERS)}, got {compiler!r}")
    has_nvcc = shutil.which("nvcc") is not None
    if compiler == "nvcc" and not has_nvcc:
        raise InputError("cuda_compiler: there is no nvcc on PATH")
    return ("nvcc" if has_nvcc else "nvrtc") if compiler == "auto" else compiler


def covered(op: str, targets: Sequence[Target]) -> tuple[list[Target], str | None]:
    """The targets that an op has kernels for, and the reason why the others have none, or None."""
    named = launch.architectures(op)
    found = [t for t in targets if launch.covers(named, t.capability)]
    if len(found) == len(targets):
        return found, None
    rest = ", ".join(str(t) for t in targets if t not in found)
    return found, f"not for {rest}: it is made for {', '.join(named)}"


def _code(op: str, target: Target) -> str:
    special = f"sm_{target.capability}a"
    return special if special in launch.architectures(op) else f"sm_{target.capability}"


def compile_op(op: str, targets: Sequence[Target], root: Path, compiler: str) -> list[dict]:
    """Compiles an op into the bundle: one fatbin by nvcc, or a cubin per architecture by NVRTC -> manifest entries.

    Raises KernelBundleError with nvcc's messages.
    """
    folder = root / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    if compiler == "nvcc":
        path = folder / f"{op}.fatbin"
        codes = sorted({_code(op, t) for t in targets})
        flags = [f"-gencode=arch=compute_{c.removeprefix('sm_')},code={c}" for c in codes]
        source = launch.source(op)
        include = f"-I{launch.include_folder(source)}"
        command = ["nvcc", *NVCC_FLAGS, *flags, include, "-o", str(path), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise KernelBundleError(f"{op}: nvcc says\n{done.stderr.strip()}")
        return [_entry(op, targets, path, root, "nvcc", codes)]
    entries = []
    for target in targets:
        code = _code(op, target)
        path = folder / f"{op}.{code}.cubin"
        if not path.is_file():
            path.write_bytes(launch.nvrtc_binary(op, code))
        entries.append(_entry(op, [target], path, root, "nvrtc", [code]))
    return entries


def _entry(op, targets, path, root, compiler, codes) -> dict[str, Any]:
    kernels = usage(path.read_bytes())
    return {
        "op": op,
        "targets": [str(t) for t in targets],
        "codes": codes,
        "compiler": compiler,
        "kernels": {name: kernels[name] for name in sorted(kernels)},
        "files": {str(path.relative_to(root)): file_digest(path)},
    }


def compile_all(
    targets: Sequence[Target], root: Path, jobs: int, compiler: str, on_done: Callable[[], None] = lambda: None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The manifest's entries of every op, and why some have no code for some target, by op.

    `jobs` threads; `on_done` is called as each op is done. Raises KernelBundleError with nvcc's messages.
    """
    found, left = {}, {}
    for op in launch.ops():
        found[op], reason = covered(op, targets)
        if reason:
            left[op] = reason

    def one(op: str) -> list[dict]:
        made = compile_op(op, found[op], root, compiler)
        on_done()
        return made

    ops = [op for op in found if found[op]]
    with ThreadPoolExecutor(jobs) as pool:  # nvcc is another process, and NVRTC releases the GIL
        return [entry for made in pool.map(one, ops) for entry in made], left
