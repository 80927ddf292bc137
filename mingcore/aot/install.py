"""Installs a bundle in this process: its kernels are loaded before the first request, and nothing is compiled.

Triton's kernels are loaded by `JITFunction.preload`, with the bundle as Triton's cache, so launches run Triton's own
code at its usual cost. For a kernel that is not in the bundle the hook that Triton calls before it compiles
(`jit_cache_hook`) raises an error. CUDA binaries are handed to `ops._core.launch`. Not run on a GPU yet; see
docs/ahead_of_time.md.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime.driver import driver

from ..errors import InputError, KernelBundleError
from ..ops._core import launch
from ..runtime.stats import report_kernels
from . import identity, manifest
from .targets import Target
from .trace import Launch
from .triton_build import BundleCache, kernel_of

_KERNELS = "mingcore_kernels"
_lock = threading.Lock()


@dataclass
class InstalledBundle:
    """The bundle that this process uses. loaded: Triton kernels of it; cuda: ops with a binary; compiled: kernels
    compiled since, which must stay 0; refused: kernels that were launched and are not in it."""

    folder: Path
    target: Target
    loaded: int
    cuda: int
    compiled: int = 0
    refused: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `Stats.kernels` of a request."""
        return {
            "bundle": str(self.folder),
            "target": str(self.target),
            "triton": self.loaded,
            "cuda": self.cuda,
            "compiled": self.compiled,
        }

    def __str__(self) -> str:
        return f"kernels from {self.folder}: {self.loaded} of Triton, {self.cuda} ops of CUDA, {self.compiled} compiled"


_installed: InstalledBundle | None = None


def installed() -> InstalledBundle | None:
    """The bundle that this process uses, or None."""
    return _installed


class _ReadOnlyCache(BundleCache):
    """The bundle as Triton's cache: read, never written."""

    def get_group(self, filename: str) -> dict[str, str] | None:
        paths = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        if not any(path.name == filename for path in paths):
            raise KernelBundleError(
                f"kernels: {type(self).root.parents[1]} has no {Path(filename).stem} as Triton "
                "would make it here: TRITON_* variables differ from those it was made with"
            )
        return {path.name: str(path) for path in paths}

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:
        raise KernelBundleError(f"kernels: {filename} would be compiled")


def target_of(device: torch.device) -> Target:
    """The target that a GPU is."""
    p = torch.cuda.get_device_properties(device)
    return Target(10 * p.major + p.minor, p.multi_processor_count)


def check(folder: Path, target: Target, *, model_fingerprint: str, weights: str, dtype: torch.dtype) -> dict[str, Any]:
    """A bundle's manifest. Raises KernelBundleError where the bundle does not fit: its sources, Triton, the target,
    the model's shapes and formats, and the checksum of every file."""
    reason = identity.unsupported_reason()
    if reason:
        raise KernelBundleError(reason)
    found = manifest.read(folder)
    manifest.check_sources(found, manifest.sources())
    if found["triton_compiler"] != identity.compiler():
        raise KernelBundleError(
            f"kernels: {folder} was made by Triton {found['triton_version']}, here is "
            f"{triton.__version__}{_same_number(found)}"
        )
    targets = [Target(**each) for each in found["targets"]]
    if target not in targets:
        raise KernelBundleError(
            f"kernels: {folder} is for {', '.join(map(str, targets))}, this GPU is {target}; "
            f"run mingcore compile --arch {target}"
        )
    if found["model_fingerprint"] != model_fingerprint:
        raise KernelBundleError(
            f"kernels: {folder} was made for the shapes of {found['model']}, which this checkpoint's are not"
        )
    wanted = {"weights": weights, "dtype": str(dtype)}
    for name, value in wanted.items():
        if found[name] != value:
            raise KernelBundleError(f"kernels: {folder} is for {name} {found[name]}, got {value}")
    manifest.check_files(folder, found)
    return found


def _same_number(found: Mapping[str, Any]) -> str:
    same = found["triton_version"] == triton.__version__
    return ", of the same version but another build" if same else ""


def install(folder: str | Path, model: Any) -> InstalledBundle:
    """Take a model's kernels from a bundle from now on, in the whole process; compile none.

    Raises InputError for a model that is not on a GPU, KernelBundleError with the reason where the bundle does not
    fit, or where this process uses another one.
    """
    device = torch.device(model.device)
    if device.type != "cuda":
        raise InputError(f"kernels: a bundle holds kernels of a GPU, the device is {device}")
    found = check(
        Path(folder),
        target_of(device),
        model_fingerprint=identity.of_model(model.config),
        weights=model.weights,
        dtype=model.dtype,
    )
    with torch.cuda.device(device):
        return install_checked(Path(folder), found, target_of(device))


def install_checked(folder: Path, found: Mapping[str, Any], target: Target) -> InstalledBundle:
    """Load the kernels of a bundle whose manifest is `found`, for Triton's current device."""
    global _installed
    folder = folder.resolve()
    with _lock:
        if _installed is not None:
            if (_installed.folder, _installed.target) == (folder, target):
                return _installed
            raise KernelBundleError(f"kernels: this process uses {_installed.folder} for {_installed.target} already")
        entries = [entry for entry in found["triton"] if entry["target"] == str(target)]
        _preload(entries, folder / "triton" / target.slug)
        binaries = {
            entry["op"]: folder / name
            for entry in found["cuda"]
            if str(target) in entry["targets"]
            for name in entry["files"]
        }
        launch.serve(binaries)
        _installed = InstalledBundle(folder, target, len(entries), len(binaries))
        _refuse_others(_installed)
        report_kernels("cuda", _installed.as_dict)
        return _installed


def _preload(entries: list[Mapping[str, Any]], root: Path) -> None:
    cache = type("Cache", (_ReadOnlyCache,), {"root": root})
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.manager_class = cache
        knobs.compilation.always_compile = False
        for entry in entries:
            recorded = Launch(entry["module"], entry["kernel"], entry["specialization"])
            kernel_of(recorded).preload(recorded.specialization)


def _refuse_others(bundle: InstalledBundle) -> None:
    """From now on Triton's hook before compilation raises KernelBundleError for our kernels."""
    earlier_hook, earlier_listener = knobs.runtime.jit_cache_hook, knobs.compilation.listener
    device = driver.active.get_current_device()

    def refuse(*, fn, compile, **rest):
        if fn.module.startswith(_KERNELS) and compile["device"] == device:
            name = fn.name.rpartition(".")[2]
            bundle.refused.append(name)
            raise KernelBundleError(
                f"kernels: {bundle.folder} has no {name} for "
                f"{_describe(compile)}; make it anew with mingcore compile, with larger --rows, "
                "--tokens or other --steps"
            )
        return earlier_hook(fn=fn, compile=compile, **rest) if earlier_hook else None

    def listen(*, src, cache_hit, **rest):
        if not cache_hit and getattr(src.fn, "module", "").startswith(_KERNELS):
            bundle.compiled += 1
        if earlier_listener:
            earlier_listener(src=src, cache_hit=cache_hit, **rest)

    knobs.runtime.jit_cache_hook, knobs.compilation.listener = refuse, listen


def _describe(compile: Mapping[str, Any]) -> str:
    constants = ", ".join(str(value) for value in compile["constants"].values())
    return f"{tuple(compile['signature'].values())} and constants ({constants})"


def uninstall() -> None:
    """Forget the bundle, for tests. Preloaded kernels stay in Triton's memory."""
    global _installed
    with _lock:
        _installed = None
        knobs.runtime.jit_cache_hook = knobs.compilation.listener = None
        launch.serve(None)
        report_kernels("cuda", None)
