"""The CUDA kernels without a GPU: compiled by nvcc and by NVRTC, launched on an emulated driver."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings")

from types import SimpleNamespace

import resources
from mingcore.errors import BackendError
from mingcore.ops._core import launch
from mingcore.ops._core import records as verified
from resources import OPS, targets

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc")
LONG = ("causal_conv",)  # seconds per target


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Compiled kernels of a test go nowhere else."""
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path))
    return tmp_path


def test_there_are_kernels():
    assert "flow_step" in OPS


@pytest.mark.parametrize("op", OPS)
def test_the_fingerprint_of_a_kernel_follows_its_includes(op):
    """Into lib/ and beside it: every header that is named, and no other."""
    source = launch.source(op)
    found = verified.source_files(SimpleNamespace(sources=(source,), packed=False))
    assert source in found and any(path.parent.name == "lib" for path in found)
    named = {name for path in found for name in re.findall(r'#include "(.+)"', path.read_text())}
    assert {launch.include_folder(source) / name for name in named} == {*found} - {source}


def ops_and_targets():
    """Every op for all its targets; of what takes long to compile only one in the fast tests."""
    for op in OPS:
        if op not in LONG:
            yield pytest.param(op, targets(op), id=op)
            continue
        for target in targets(op):
            marks = [] if target == "sm_90a" else [pytest.mark.slow]
            yield pytest.param(op, [target], id=f"{op}-{target}", marks=marks)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize(("op", "chosen"), list(ops_and_targets()))
def test_nvcc_compiles_without_spills_or_local_memory(op, chosen):
    """And to no more than what is kept, where it was made with this nvcc."""
    made = [kernel for target in chosen for kernel in resources.compiled(op, target)]
    assert made
    for kernel in made:
        assert kernel.spilled == 0 and not kernel.local, kernel
        if kernel.name.startswith(("moe_prefill_up", "moe_prefill_down")):
            assert kernel.products.startswith("wgmma m64n16..192k16 "), kernel
            assert {"tensor boxes", "stmatrix"} <= set(kernel.copies.split(", ")), kernel
    if not resources.kept():
        pytest.skip(f"what is kept was not made with nvcc {resources.version()}")
    worse = resources.faults(made)
    assert not worse, "\n".join(worse)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_fatbin_of_the_build_is_found_by_its_text(tmp_path, monkeypatch):
    """setup.py's name for a fatbin is what launch.py looks for; another text finds none."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    op, folder = "flow_step", tmp_path / "csrc" / "cuda"  # one is enough: the others take long
    folder.mkdir(parents=True)
    for path in (ROOT / "csrc" / "cuda").glob("*/*.cu*"):
        if path.suffix == ".cuh" or path.stem == op:
            copy = folder / path.parent.name / path.name
            copy.parent.mkdir(exist_ok=True)
            copy.symlink_to(path)
    script = (
        "import setuptools; setuptools.setup = lambda **k: None; import runpy\n"
        f"made = runpy.run_path({str(tmp_path / 'setup.py')!r})\n"
        "build = made['BuildExt'].build_fatbins\n"
        f"print(build(None, made['Path']({str(tmp_path / 'out')!r})))\n"
    )
    (tmp_path / "out" / "mingcore").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "MINGCORE_CUDA": "1"}
    )
    assert done.returncode == 0 and done.stdout == f"{op}\n", done.stderr
    folder = tmp_path / "out" / "mingcore" / "_cuda"
    monkeypatch.setattr(launch, "_FOLDERS", (folder, launch._FOLDERS[1]))
    assert launch.fatbin(op) is not None
    monkeypatch.setattr(launch, "digest", lambda op: "0" * 16)
    assert launch.fatbin(op) is None


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", OPS)
def test_nvrtc_compiles_the_same_source(op, few, cache):
    """For one target here, since nvcc has compiled it for all; for all of them where slow."""
    wanted = targets(op)[:1] if few else targets(op)
    for target in wanted:
        binary = launch.compiled(op, int(re.search(r"\d+", target)[0]))
        assert binary.startswith(b"\x7fELF")
    files = sorted((cache / "cuda").iterdir())
    assert len(files) == len(wanted) and all(f"{op}.sm_" in file.name for file in files)
    files[0].write_bytes(b"from the cache")
    first = sorted(wanted, key=lambda t: f"{op}.{t}")[0]
    assert launch.compiled(op, int(re.search(r"\d+", first)[0])) == b"from the cache"


def test_nvrtc_makes_ptx_for_a_gpu_that_it_does_not_know():
    known = launch.nvrtc.nvrtcGetSupportedArchs()[1]
    assert launch._target("flow_step", 999) == f"compute_{max(known)}"
    assert b".visible .entry" in launch.compiled("flow_step", 999)


def test_a_source_that_does_not_compile_gives_the_log(tmp_path, monkeypatch):
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "bad.cu").write_text("// arch: sm_80 compute_80\n__global__ void f() { wrong; }\n")
    monkeypatch.setattr(launch, "_FOLDERS", (tmp_path,))
    with pytest.raises(BackendError, match=r'bad.cu: NVRTC for sm_80 .*\n.*"wrong" is undefined'):
        launch.compiled("bad", 80)
    with pytest.raises(BackendError, match=r"absent: there is no absent\.cu"):
        launch.source("absent")


def test_architectures_decide_where_a_kernel_runs():
    assert launch.covers(["sm_90a"], 90) and not launch.covers(["sm_90a"], 100)
    assert not launch.covers(["sm_90a"], 89)
    assert launch.covers(["sm_80", "compute_80"], 120)
    assert not launch.covers(["sm_80", "compute_80"], 75)


def test_launches_on_an_emulated_driver(workers, tmp_path):
    with workers.new_emulator(tmp_path / "log") as emulator:
        (done,), lines = emulator.logged("tests.ops.scenarios.flow_step_emulated:launches")
    assert lines[:3] == ["retain", "set", "load 1"]  # once each: one context, one library
    assert lines.count("load 1") == 1 and lines.count("set") == 1
    started = [line.split()[1:] for line in lines if line.startswith("launch")]
    assert len(started) == done["launches"]
    assert all(parts[1:] == ["256", "0", str(done["stream"])] for parts in started)
    assert lines[-1] == "attribute 8 100000"  # MAX_DYNAMIC_SHARED_SIZE_BYTES
