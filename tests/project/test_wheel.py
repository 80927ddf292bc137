"""The wheel holds everything: built here, unpacked elsewhere, it speaks from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "mingcore/py.typed",
    "mingcore/checkpoints/tiny/config.json",
    "mingcore/checkpoints/tiny/model.safetensors",
    "mingcore/checkpoints/tiny/tokenizer.json",
    "mingcore/checkpoints/tiny/voices/default.safetensors",
    "mingcore_kernels/silu_mul.py",
)
SPEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import mingcore, mingcore_kernels
for package in (mingcore, mingcore_kernels):
    assert next(iter(package.__path__)).startswith(sys.argv[1]), package.__path__
from mingcore import MingAudio, ops, _cpu
import torch
ops.silu_mul(torch.randn(3, 64), backend="cpu")
speech = MingAudio.from_pretrained("tiny").tts("hello", max_seconds=2)
print(len(speech.samples))
"""


def tree(folder: Path) -> Path:
    """A copy of what git would keep: a wheel must not need what only this checkout has."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def build(folder: Path, *options: str) -> Path:
    wheels = folder / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", *options, "-w", wheels,
         tree(folder / "tree")],
        check=True, cwd=folder, timeout=280,
    )  # fmt: skip
    (wheel,) = wheels.iterdir()
    return wheel


def check(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder / "site")
    for name in NEEDED:
        assert name in names, name
    assert any(n.startswith("mingcore/_cpu.") and n.endswith(".so") for n in names)
    strays = [n for n in names if n.split("/")[0] in ("tests", "bench", "examples", "csrc")]
    assert not strays, strays
    empty = folder / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, str(folder / "site")],
        cwd=empty, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 10000
    assert not list(empty.iterdir())


def test_wheel(tmp_path):
    check(build(tmp_path, "--no-build-isolation"), tmp_path)


@pytest.mark.slow
def test_wheel_with_build_isolation(tmp_path):
    check(build(tmp_path), tmp_path)
