"""Triton's kernels without a GPU, by two versions of Triton: which folder has which, and what is
kept of the binaries."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import resources_triton
from tests.ops.runners.protocol import ROOT, Worker

VERSIONS = ("installed", "oldest")
OLDEST = "3.6.0"
FOLDER = ROOT / ".venv-triton-3.6"  # kept there by this and by `make test`
MAX_STACK = 32  # bytes that ptxas may spill; which launches do is kept, and held to that


@cache
def folder_of(version: str) -> tuple[Path, ...]:
    """What goes in front of PYTHONPATH for a version."""
    if version == "installed":
        return ()
    if not (FOLDER / "triton" / "backends").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*command, str(FOLDER), f"triton=={OLDEST}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"triton {OLDEST} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return (FOLDER,)


def interpreter(version: str) -> Worker:
    """A process in which kernels are interpreted; the variable is read when Triton is imported."""
    environment = {"TRITON_INTERPRET": "1"}
    return Worker("tests.ops.runners.interpreted:set_up", environment=environment, paths=folder_of(version))


def compiler(version: str, cache: Path) -> Worker:
    """A process in which launches are recorded and compiled."""
    return Worker(environment={"TRITON_CACHE_DIR": str(cache)}, paths=folder_of(version))


def held(op: str, lines: list[dict], *, exact: bool = False) -> None:
    """Fails with what is worse than what bench/results keeps of these kernels, where it was made
    by this Triton; with any difference where `exact`."""
    worse = resources_triton.faults(op, lines, exact=exact)
    assert not worse, "\n".join(worse)
