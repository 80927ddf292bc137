import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingcore import _cpu


@pytest.fixture(params=_cpu.isas())
def isa(request):
    """Every instruction set that this build holds and this CPU runs, one after the other."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory):
    """run(script, log, *arguments, arch=900): a script of this folder with the CUDA driver replaced
    by emulated_cuda.cpp, which runs the kernels as they are compiled for `arch`.
    """
    here, root, built = Path(__file__).parent, Path(__file__).parents[2], {}

    def build(arch):
        folder = tmp_path_factory.mktemp(f"emulated{arch}")
        flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-w", f"-D__CUDA_ARCH__={arch}"]
        paths = [f"-I{root / 'csrc' / 'cuda'}", "-o", folder / "libcuda.so.1"]
        command = ["g++", *flags, *paths, "-Wl,-soname,libcuda.so.1", here / "emulated_cuda.cpp"]
        subprocess.run([*command, "-ldl"], check=True)
        return folder

    def run(script, log, *arguments, arch=900):
        if arch not in built:
            built[arch] = build(arch)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(built[arch]),
            "EMULATED_CUDA_LOG": str(log),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 33),  # the fibers' stacks stay mapped
            "PYTHONPATH": os.pathsep.join((str(root), str(root / "kernels"))),
        }
        return subprocess.run(
            [sys.executable, here / script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )

    return run
