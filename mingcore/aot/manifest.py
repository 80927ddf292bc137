"""The manifest of a bundle, and the checks that need nothing but its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mingcore_kernels

from ..errors import KernelBundleError
from ..ops._core import launch

FORMAT = 1
NAME = "manifest.json"
_CHECKSUM = "sha256"
_KERNELS = Path(mingcore_kernels.__file__).parent


def sources() -> dict[str, str]:
    """SHA-256 of every source file of a kernel, sub-packages included, by its path in a checkout."""
    folders = {"kernels/mingcore_kernels": (_KERNELS, "*.py"), "csrc/cuda": (launch.source_folder(), "*.cu*")}
    named = {
        f"{prefix}/{path.relative_to(folder).as_posix()}": path
        for prefix, (folder, pattern) in folders.items()
        for path in folder.rglob(pattern)
    }
    return {name: file_digest(named[name]) for name in sorted(named)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest, the last file of a bundle, with its own SHA-256 in it."""
    content = json.loads(json.dumps({"format": FORMAT, **manifest}))  # as `read` will see it
    path, unfinished = folder / NAME, folder / f"{NAME}.tmp"
    unfinished.write_text(json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=1) + "\n")
    unfinished.replace(path)
    return path


def read(folder: str | Path) -> dict[str, Any]:
    """A bundle's manifest. Raises KernelBundleError where it is missing, or was edited."""
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
    if manifest.get(_CHECKSUM) != _checksum(manifest):
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


def check_sources(manifest: Mapping[str, Any], current: Mapping[str, str]) -> None:
    """Raises KernelBundleError where the kernels' sources, by `sources`, changed since the bundle was made."""
    recorded = manifest["sources"]
    changed = sorted(name for name in {*current, *recorded} if current.get(name) != recorded.get(name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise KernelBundleError(
            f"kernels: the bundle is stale: {', '.join(changed[:3])}{more} changed since; run mingcore compile again"
        )
