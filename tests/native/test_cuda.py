"""The CUDA kernels without a GPU: compiled by nvcc and by NVRTC, launched on an emulated driver."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings")

from mingcore.errors import BackendError
from mingcore.ops import launch

ROOT = Path(__file__).parents[2]
OPS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Compiled kernels of a test go nowhere else."""
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path))
    return tmp_path


def targets(op: str) -> list[str]:
    named = launch.architectures(op)
    generic = any(target.startswith("compute_") for target in named)
    return ["sm_80", "sm_90a", "sm_100"] if generic else [t for t in named if t.startswith("sm_")]


def test_there_are_kernels():
    assert "flow_step" in OPS


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("op", OPS)
def test_nvcc_compiles_without_spills_or_local_memory(op, tmp_path):
    for target in targets(op):
        cubin = tmp_path / f"{op}.{target}.cubin"
        command = [NVCC, "-O3", "-std=c++17", "-cubin", f"-arch={target}", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "-Werror", "all-warnings", "-o", cubin, launch.source(op)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        functions = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", done.stderr)
        usage = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
            done.stderr,
        )
        assert len(functions) == len(usage) > 0
        for function, numbers in zip(functions, usage):
            assert numbers == ("0", "0", "0"), f"{function}: stack, spills: {numbers}"


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_fatbin_of_the_build_is_found_by_its_text(tmp_path, monkeypatch):
    """setup.py's name for a fatbin is what launch.py looks for; another text finds none."""
    for name in ("csrc", "kernels", "mingcore", "setup.py", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = (
        "import setuptools; setuptools.setup = lambda **k: None; import runpy\n"
        f"made = runpy.run_path({str(ROOT / 'setup.py')!r})\n"
        "build = made['BuildExt'].build_fatbins\n"
        f"print(build(None, made['Path']({str(tmp_path / 'out')!r})))\n"
    )
    (tmp_path / "out" / "mingcore").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "MINGCORE_CUDA": "1"},
    )
    assert done.returncode == 0 and all(op in done.stdout for op in OPS), done.stderr
    folder = tmp_path / "out" / "mingcore" / "_cuda"
    monkeypatch.setattr(launch, "_FOLDERS", (folder, launch._FOLDERS[1]))
    assert all(launch.fatbin(op) is not None for op in OPS)
    monkeypatch.setattr(launch, "digest", lambda op: "0" * 16)
    assert all(launch.fatbin(op) is None for op in OPS)


@pytest.mark.parametrize("op", OPS)
def test_nvrtc_compiles_the_same_source(op, cache):
    for target in targets(op):
        binary = launch.compiled(op, int(re.search(r"\d+", target)[0]))
        assert binary.startswith(b"\x7fELF")
    files = sorted((cache / "cuda").iterdir())
    assert len(files) == len(targets(op)) and all(f"{op}.sm_" in file.name for file in files)
    files[0].write_bytes(b"from the cache")
    first = sorted(targets(op), key=lambda t: f"{op}.{t}")[0]
    assert launch.compiled(op, int(re.search(r"\d+", first)[0])) == b"from the cache"


def test_nvrtc_makes_ptx_for_a_gpu_that_it_does_not_know():
    known = launch.nvrtc.nvrtcGetSupportedArchs()[1]
    assert launch._target("flow_step", 999) == f"compute_{max(known)}"
    assert b".visible .entry" in launch.compiled("flow_step", 999)


def test_a_source_that_does_not_compile_gives_the_log(tmp_path, monkeypatch):
    (tmp_path / "bad.cu").write_text("// arch: sm_80 compute_80\n__global__ void f() { wrong; }\n")
    monkeypatch.setattr(launch, "_FOLDERS", (tmp_path,))
    with pytest.raises(BackendError, match=r'bad.cu: NVRTC for sm_80 .*\n.*"wrong" is undefined'):
        launch.compiled("bad", 80)
    with pytest.raises(BackendError, match=r"absent: there is no absent\.cu"):
        launch.source("absent")


def test_architectures_decide_where_a_kernel_runs():
    assert launch._covered(["sm_90a"], 90) and not launch._covered(["sm_90a"], 100)
    assert not launch._covered(["sm_90a"], 89)
    assert launch._covered(["sm_80", "compute_80"], 120)
    assert not launch._covered(["sm_80", "compute_80"], 75)


def test_launches_on_an_emulated_driver(emulated_driver, tmp_path):
    launch.compiled("flow_step", 90)  # NVRTC asks a real driver more than this one can answer
    log = tmp_path / "log"
    done = emulated_driver("run_emulated.py", log)
    assert done.returncode == 0, done.stderr[-3000:]
    launches, stream = re.fullmatch(r"launches (\d+) stream (\d+)\n", done.stdout).groups()
    lines = log.read_text().splitlines()
    assert lines[:3] == ["retain", "set", "load 1"]  # once each: one context, one library
    assert lines.count("load 1") == 1 and lines.count("set") == 1
    started = [line.split()[1:] for line in lines if line.startswith("launch")]
    assert len(started) == int(launches)
    assert all(parts[1:] == ["256", "0", stream] for parts in started)
    assert lines[-1] == "attribute 8 100000"  # MAX_DYNAMIC_SHARED_SIZE_BYTES
