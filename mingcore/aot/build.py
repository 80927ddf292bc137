"""A bundle from a model's config: what would be launched, compiled, and written down."""

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
from . import cuda_build, identity, manifest, rehearse, triton_build
from .rehearse import Limits, Subject
from .targets import Target


@dataclass(frozen=True)
class Made:
    """What `build` made: kernels by kind, seconds by stage, the bundle's bytes, what is not in it.

    left: CUDA ops without code for some of the GPUs, with the reason.
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


Told = Callable[[str, int, int], None]


def build(
    subject: Subject,
    targets: Sequence[Target],
    folder: str | Path,
    *,
    limits: Limits | None = None,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    jobs: int | None = None,
    cuda_compiler: str = "auto",
    told: Told = lambda stage, done, of: None,
) -> Made:
    """Make a bundle in `folder`, which must be new, empty, or an older bundle: that is replaced.

    Needs no GPU. jobs: processes (None: as many as there are cores). `told` is called with a stage,
    how much of it is done, and of how much. Raises InputError for a folder that holds something
    else, KernelBundleError where a kernel does not compile or this Triton cannot.
    """
    reason = identity.why_not()
    if reason:
        raise KernelBundleError(reason)
    limits, folder = limits or Limits(), _emptied(Path(folder))
    jobs = jobs or os.cpu_count() or 1
    cuda_compiler = cuda_build.choose(cuda_compiler)
    clock, seconds = time.perf_counter, {}

    start = clock()
    tasks, seen, spare = [], 0, {"dtype": dtype, "weights": weights}
    for i, target in enumerate(targets):
        told(f"rehearsing for {target}", i, len(targets))
        found = rehearse.launches(subject, target, limits, **spare)
        tasks += [(launch, target) for launch in sorted(found.launches)]
        seen += found.seen
    seconds["rehearse"] = clock() - start

    start, done = clock(), [0, 0]

    def tick(stage: str, kind: int, of: int) -> Callable[[], None]:
        def count() -> None:
            done[kind] += 1
            told(stage, done[kind], of)

        return count

    entries = triton_build.compile_all(tasks, folder, jobs, tick("Triton", 0, len(tasks)))
    seconds["triton"] = clock() - start
    start, ops = clock(), len(cuda_build.launch.ops())
    cuda, left = cuda_build.compile_all(targets, folder, jobs, cuda_compiler, tick("CUDA", 1, ops))
    seconds["cuda"] = clock() - start

    formats = rehearse.formats(dtype, weights)
    manifest.write(
        folder,
        {
            "mingcore": __version__,
            "triton_version": triton.__version__,
            "triton_compiler": identity.compiler(),
            "torch": torch.__version__,
            "model": subject.name,
            "model_fingerprint": identity.of_model(MingConfig.from_json(subject.config)),
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
    return Made(
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
