"""The .cu kernels compiled as plain C++ and run on the CPU: emulated_cuda.cpp in place of the CUDA
driver, and for flow_sample, which it does not hold, emulated_flow.cpp."""

import fcntl
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.ops.runners.protocol import ROOT, Worker

HERE = Path(__file__).parent
COMMAND = ["g++", "-O2", "-std=c++17"]
INCLUDE = f"-I{ROOT / 'csrc' / 'cuda'}"
LIBRARY = ("-shared", "-fPIC", "-w")


class Emulator(Worker):
    """A worker with the emulated driver; `log` is where the driver notes its calls."""

    def __init__(self, driver: Path, log: Path, capability: int = 90):
        self.log = log
        environment = {
            "LD_LIBRARY_PATH": str(driver.parent),
            "EMULATED_CUDA_LOG": str(log),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 33),  # the fibers' stacks stay mapped
        }
        super().__init__("tests.ops.runners.emulated_device:pretend", capability, environment=environment)

    def logged(self, function: str, **args: Any) -> tuple[list[dict], list[str]]:
        """What the function reported, and what the driver logged meanwhile."""
        before = len(self.log.read_text()) if self.log.exists() else 0
        lines = self(function, **args)
        return lines, self.log.read_text()[before:].splitlines()


def build(folder: Path, source: str, output: str, *flags: str) -> Path:
    """A source of this folder, compiled once into `folder`, which several processes may share."""
    folder.mkdir(exist_ok=True)
    with open(folder / f"{output}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / output).exists():
            unfinished = folder / f"{output}.{os.getpid()}"
            subprocess.run([*COMMAND, *flags, INCLUDE, "-o", unfinished, HERE / source, "-ldl"], check=True)
            unfinished.rename(folder / output)
    return folder / output


def driver(folder: Path, arch: int = 900) -> Path:
    flags = (*LIBRARY, f"-D__CUDA_ARCH__={arch}", "-Wl,-soname,libcuda.so.1")
    return build(folder / f"driver{arch}", "emulated_cuda.cpp", "libcuda.so.1", *flags)


def flow_library(folder: Path) -> Path:
    return build(folder / "flow", "emulated_flow.cpp", "flow.so", *LIBRARY, "-D__CUDA_ARCH__=900")
