"""A script of this folder in a process of its own, with one version of Triton."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import resources_triton  # noqa: E402

OLDEST = ROOT / ".venv-triton-3.6"  # kept there by test_triton.py and `make test`
MOST_STACK = 32  # bytes that ptxas may spill; which launches do is kept, and held to that


def folder_of(version: str) -> Path | None:
    """What goes in front of PYTHONPATH for "installed" (None: nothing) or "oldest"."""
    if version == "installed":
        return None
    if not (OLDEST / "triton" / "backends").is_dir():
        pytest.skip("the oldest supported Triton is not beside the environment")
    return OLDEST


def run(script: str, cache: Path, folder: Path | None, *mode: str, timeout: int = 280) -> list[dict]:
    """The lines of JSON that the script prints."""
    paths = [*([folder] if folder else []), ROOT, ROOT / "kernels", HERE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(HERE / script), *mode]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def held(op: str, lines: list[dict], *, exact: bool = False) -> None:
    """Fails with what is worse than what bench/results keeps of these kernels, where it was made
    by this Triton; with any difference where `exact`."""
    worse = resources_triton.faults(op, lines, exact=exact)
    assert not worse, "\n".join(worse)
