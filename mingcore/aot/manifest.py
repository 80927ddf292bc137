"""What a bundle says of itself, and the checks that need nothing but its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mingcore_kernels

from ..errors import KernelBundleError

FORMAT = 1
NAME = "manifest.json"
_SEAL = "sha256"
_KERNELS = Path(mingcore_kernels.__file__).parent


def sources() -> dict[str, str]:
    """SHA-256 of every file that a kernel is made of, by its name in a checkout."""
    from ..ops._core import launch

    cuda = launch.source_folder()
    named = {f"kernels/{p.name}": p for p in _KERNELS.glob("*.py")}
    named |= {f"csrc/cuda/{p.relative_to(cuda).as_posix()}": p for p in cuda.glob("*/*.cu*")}
    return {name: file_digest(named[name]) for name in sorted(named)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest, with a seal over itself: the last file of a bundle to be written."""
    whole = {"format": FORMAT, **manifest}
    whole = json.loads(json.dumps(whole))  # as it will be read
    path, unfinished = folder / NAME, folder / f"{NAME}.tmp"
    unfinished.write_text(json.dumps({**whole, _SEAL: _seal(whole)}, indent=1) + "\n")
    unfinished.replace(path)
    return path


def read(folder: str | Path) -> dict[str, Any]:
    """A bundle's manifest. Raises KernelBundleError where there is none, or it was changed."""
    path = Path(folder) / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KernelBundleError(f"kernels: {folder} is no bundle, it has no {NAME}") from None
    except (OSError, ValueError) as error:
        raise KernelBundleError(f"kernels: {path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise KernelBundleError(f"kernels: {path} has format {found}, this version of mingcore reads {FORMAT}")
    if manifest.get(_SEAL) != _seal(manifest):
        raise KernelBundleError(f"kernels: {path} was changed after it was written")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises KernelBundleError where a file of the bundle is missing or damaged."""
    for entry in (*manifest["triton"], *manifest["cuda"]):
        for name, expected in entry["files"].items():
            try:
                found = file_digest(folder / name)
            except OSError:
                raise KernelBundleError(f"kernels: {folder / name} is missing") from None
            if found != expected:
                raise KernelBundleError(
                    f"kernels: {folder / name} is damaged: its SHA-256 is {found[:12]}..., the "
                    f"manifest has {expected[:12]}..."
                )


def check_sources(manifest: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raises KernelBundleError where the kernels' sources are others than those it was made of."""
    then = manifest["sources"]
    other = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise KernelBundleError(
            f"kernels: the bundle is stale: {', '.join(other[:3])}{more} changed since; run mingcore compile again"
        )
