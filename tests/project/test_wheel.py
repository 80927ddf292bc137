"""The wheel is complete: built here and unpacked elsewhere, it speaks from an empty folder."""

import importlib.metadata
import json
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
    "mingcore_kernels/activation/silu_mul.py",
    "mingcore/_cuda/flow/flow_step.cu",
    "mingcore/_cuda/lib/mma.cuh",
)
SPEAK = """
import json, os, site, sys
sys.path[:] = [p for p in sys.path if p]
for path in json.loads(sys.argv[1]):
    sys.path.insert(0, path)
    site.addsitedir(path)  # an editable install is a .pth file
import mingcore, mingcore_kernels
from mingcore import MingAudio, ops, _cpu
import torch
ops.silu_mul(torch.randn(3, 64), backend="cpu")
speech = MingAudio.from_pretrained("tiny").tts("hello", max_seconds=2)
places = [os.path.realpath(list(m.__path__)[0]) for m in (mingcore, mingcore_kernels)]
print(json.dumps({"samples": len(speech.samples), "places": places}))
"""


def speak(folder: Path, *paths: Path) -> list[Path]:
    """Speaks in a new process in an empty folder, `paths` first on sys.path; where it came from."""
    empty = folder / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, json.dumps([str(p) for p in paths])],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["samples"] > 10000
    assert not list(empty.iterdir())
    return [Path(p) for p in said["places"]]


def tree(folder: Path) -> Path:
    """A copy of what git would keep: a wheel must not need what only this checkout has."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def build(folder: Path, *options: str) -> Path:
    wheels = folder / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", *options, "-w", wheels, tree(folder / "tree")],
        check=True,
        cwd=folder,
        timeout=280,
    )
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
    site = folder / "site"
    assert speak(folder, site) == [site / "mingcore", site / "mingcore_kernels"]


def test_wheel(tmp_path):
    check(build(tmp_path, "--no-build-isolation"), tmp_path)


@pytest.mark.slow
def test_wheel_with_build_isolation(tmp_path):
    check(build(tmp_path), tmp_path)


def test_editable(tmp_path):
    """The editable install that is there, as `make` leaves it, else one made for this test."""
    if installed_editable():
        assert speak(tmp_path) == [ROOT / "mingcore", ROOT / "kernels" / "mingcore_kernels"]
        return
    source = tree(tmp_path / "tree")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qI",
            "--no-deps",
            "--no-build-isolation",
            "--prefix",
            tmp_path / "prefix",
            "-e",
            source,
        ],
        check=True,
        timeout=280,
    )
    (site,) = (tmp_path / "prefix").glob("lib/python*/site-packages")
    places = speak(tmp_path, site)
    assert places == [source / "mingcore", source / "kernels" / "mingcore_kernels"]


def installed_editable() -> bool:
    try:
        text = importlib.metadata.distribution("mingcore").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    origin = json.loads(text or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    return editable and origin["url"] == ROOT.as_uri()
