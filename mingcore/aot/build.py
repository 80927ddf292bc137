"""Makes a bundle from a model's config: dry run, compilation, manifest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from .. import __version__
from ..config.model_config import MingConfig
from ..errors import InputError, KernelBundleError
from . import cuda_build, dry_run, identity, manifest, triton_build
from .dry_run import Limits, ModelSpec
from .targets import Target


@dataclass(frozen=True)
class BuildResult:
    """What `build` made: kernels by kind, seconds by stage, the bundle's bytes, what is not in it.

    launches_seen: of Triton kernels in the dry runs, repeated ones included. left: CUDA ops without code for some of
    the GPUs, with the reason. spilled: Triton kernels that spill registers.
    """

    folder: Path
    triton: int
    cuda: int
    launches_seen: int
    seconds: dict[str, float]
    nbytes: int
    left: dict[str, str]
    spilled: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


Progress = Callable[[str, int, int], None]  # stage, how much of it is done, of how much


def build(
    spec: ModelSpec,
    targets: Sequence[Target],
    folder: str | Path,
    *,
    limits: Limits | None = None,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    jobs: int | None = None,
    cuda_compiler: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> BuildResult:
    """Make a bundle in `folder`, which must be new, empty, or an older bundle: that is replaced.

    Needs no GPU. dtype, weights: as in `MingAudio.from_pretrained` on a GPU. jobs: processes (None: one per core).
    cuda_compiler: "auto", "nvcc" or "nvrtc". Raises InputError for a folder that holds something else,
    KernelBundleError where a kernel does not compile or this version of Triton cannot make bundles.
    """
    reason = identity.unsupported_reason()
    if reason:
        raise KernelBundleError(reason)
    limits, folder = limits or Limits(), _emptied(Path(folder))
    jobs = jobs or os.cpu_count() or 1
    cuda_compiler = cuda_build.choose(cuda_compiler)
    clock, seconds = time.perf_counter, {}

    start = clock()
    tasks, seen = [], 0
    for i, target in enumerate(targets):
        progress(f"dry run for {target}", i, len(targets))
        found = dry_run.launches(spec, target, limits, dtype=dtype, weights=weights)
        tasks += [(launch, target) for launch in sorted(found.launches)]
        seen += found.seen
    seconds["rehearse"] = clock() - start

    start, done = clock(), [0, 0]

    def counter(stage: str, kind: int, total: int) -> Callable[[], None]:
        def count() -> None:
            done[kind] += 1
            progress(stage, done[kind], total)

        return count

    entries = triton_build.compile_all(tasks, folder, jobs, counter("Triton", 0, len(tasks)))
    seconds["triton"] = clock() - start
    start, ops = clock(), len(cuda_build.launch.ops())
    cuda, left = cuda_build.compile_all(targets, folder, jobs, cuda_compiler, counter("CUDA", 1, ops))
    seconds["cuda"] = clock() - start

    formats = dry_run.formats(dtype, weights)
    manifest.write(
        folder,
        {
            "mingcore": __version__,
            "triton_version": triton.__version__,
            "triton_compiler": identity.compiler(),
            "torch": torch.__version__,
            "model": spec.name,
            "model_fingerprint": identity.of_model(MingConfig.from_json(spec.config)),
            "weights": formats.weights,
            "dtype": str(formats.dtype),
            "limits": asdict(limits),
            "targets": [asdict(target) for target in targets],
            "sources": manifest.sources(),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "jobs": jobs,
            "not_made": left,
            "triton": entries,
            "cuda": cuda,
        },
    )
    return BuildResult(
        folder=folder,
        triton=len(entries),
        cuda=sum(len(entry["kernels"]) for entry in cuda),
        launches_seen=seen,
        seconds=seconds,
        nbytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        left=left,
        spilled=sorted({e["kernel"] for e in entries if e["spilled_bytes"]}),
    )


def _emptied(folder: Path) -> Path:
    """The folder, without an older bundle in it. Raises InputError for other contents."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; a bundle is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir()}
    if names - {manifest.NAME, "triton", "cuda"}:
        raise InputError(f"out: {folder} holds something else than a bundle; name a new folder")
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder
