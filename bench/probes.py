"""What this GPU can do at best, measured: reading, exchanging, launching. Needs a GPU and nvcc.

`python bench/probes.py` prints a table and one JSON line. `--compile-only ARCH` compiles the probes
and stops: no GPU needed.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import reporting
from mingcore.testing.roofline import ceilings
from mingcore.testing.timing import event_s, graph_interleaved

ROOT = Path(__file__).resolve().parents[1]

SOURCES = ("read", "exchange")
TILE_BYTES, STAGES = 16384, 8
ROUNDS = 2000
EXCHANGES = {  # kernel -> (blocks, threads, what one round holds); 0 blocks: one per multiprocessor
    "barrier_counter": (0, 256, "grid barrier, one counter"),
    "barrier_flags": (0, 256, "grid barrier, a flag per block"),
    "flag_fan": (0, 32, "one flag to all blocks, a counter back"),
    "flag_pair": (2, 32, "flag between two blocks, there and back"),
    "barrier_cluster": (8, 256, "cluster barrier, 8 blocks"),
    "flag_cluster": (2, 32, "flag in a cluster, there and back"),
}
HOPPER_ONLY = ("barrier_cluster", "flag_cluster", "read_bulk")


def nvcc() -> str | None:
    """The compiler's path, or None."""
    home = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(home) if home.exists() else None)


def compile_probe(name: str, arch: str, folder: Path) -> bytes:
    """The cubin of bench/probes/<name>.cu for an architecture such as "90a".

    Raises RuntimeError without nvcc, and with its message when it fails.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("probes: nvcc is neither on PATH nor in /usr/local/cuda/bin")
    target = folder / f"{name}.cubin"
    command = [
        compiler,
        "-O3",
        "-std=c++17",
        "-cubin",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-o",
        str(target),
        str(ROOT / "bench" / "probes" / f"{name}.cu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"probes: {name}.cu for sm_{arch}: {done.stderr.strip()}")
    return target.read_bytes()


class Kernels:
    """The compiled probes, launched on PyTorch's current stream."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        torch.zeros(1, device="cuda")  # PyTorch's context becomes current
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.multiprocessors = properties.multi_processor_count
        self.is_hopper = properties.major == 9
        arch = f"{properties.major}{properties.minor}" + ("a" if properties.major >= 9 else "")
        self.driver, self.modules = driver, []
        with tempfile.TemporaryDirectory() as folder:
            for name in SOURCES:
                image = compile_probe(name, arch, Path(folder))
                self.modules.append(self._ok(driver.cuModuleLoadData(image)))

    def _ok(self, answer: tuple) -> Any:
        status, *values = answer
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"probes: the CUDA driver says {status.name}")
        return values[0] if values else None

    def kernel(self, name: str, shared_bytes: int = 0) -> Callable[..., None]:
        """A launcher: call it with (blocks, threads, *arguments); tensors pass their address."""
        driver = self.driver
        missing = driver.CUresult.CUDA_ERROR_NOT_FOUND
        for module in self.modules:
            answer = driver.cuModuleGetFunction(module, name.encode())
            if answer[0] != missing:
                break
        function = self._ok(answer)
        if shared_bytes:
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._ok(driver.cuFuncSetAttribute(function, limit, shared_bytes))

        def launch(blocks: int, threads: int, *arguments: Tensor | int) -> None:
            values, types = [], []
            for argument in arguments:
                is_tensor = isinstance(argument, Tensor)
                values.append(argument.data_ptr() if is_tensor else argument)
                types.append(ctypes.c_void_p if is_tensor else ctypes.c_uint64)
            stream = torch.cuda.current_stream().cuda_stream
            parameters = (tuple(values), tuple(types)) if values else 0
            self._ok(driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, parameters, 0))

        return launch


def reads(kernels: Kernels, nbytes: int) -> dict[str, Any]:
    """GB/s of both readers over `nbytes`, checked on a small buffer first."""
    x = torch.randint(-(2**31), 2**31 - 1, (nbytes // 4,), dtype=torch.int32, device="cuda")
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    loads = kernels.kernel("read_loads")
    blocks = 4 * kernels.multiprocessors
    calls = {"loads": lambda n=nbytes: loads(blocks, 512, x, n, out)}
    if kernels.is_hopper:
        bulk = kernels.kernel("read_bulk", TILE_BYTES * STAGES)
        calls["bulk"] = lambda n=nbytes: bulk(kernels.multiprocessors, 32, x, n, out)
    small = 1000 * TILE_BYTES
    words = x[: small // 4].cpu()
    for name, call in calls.items():
        out.zero_()
        call(small)
        expected = _xor(words if name == "loads" else words[:: TILE_BYTES // 4])
        if out.item() != expected:
            raise RuntimeError(f"probes: read_{name} read something else than what is there")
    measured = graph_interleaved(calls, rounds=9)
    found: dict[str, Any] = {f"read_{name}_gbs": nbytes / min(measured.samples[name]) / 1e9 for name in calls}
    sizes = [s << 20 for s in (8, 16, 24, 32, 40, 48, 64, 96, 128, 256) if s << 20 <= nbytes]
    found["read_by_size_gbs"] = {
        str(size >> 20): size / _graph_s(lambda n=size: calls["loads"](n)) / 1e9 for size in sizes
    }
    return found


def _xor(words: Tensor) -> int:
    import numpy

    return int(numpy.bitwise_xor.reduce(words.numpy()))


def _graph_s(call: Callable[[], None]) -> float:
    return min(graph_interleaved({"probe": call}, rounds=5).samples["probe"])


def exchanges(kernels: Kernels) -> dict[str, Any]:
    """Microseconds of one launch in a graph, and of one exchange of each kind."""
    nothing = kernels.kernel("nothing")
    found: dict[str, Any] = {"launch_in_graph_us": _graph_s(lambda: nothing(1, 32)) * 1e6}
    full = kernels.multiprocessors
    found["full_launch_in_graph_us"] = _graph_s(lambda: nothing(full, 256)) * 1e6
    words = torch.zeros(64 + 32 * 1024, dtype=torch.int32, device="cuda")
    for name, (blocks, threads, _) in EXCHANGES.items():
        if name in HOPPER_ONLY and not kernels.is_hopper:
            continue
        launch = kernels.kernel(name)

        arguments = (blocks or full, threads, words)
        _timed_s(name, launch, arguments, ROUNDS)
        many, none = (median(_timed_s(name, launch, arguments, rounds) for _ in range(7)) for rounds in (ROUNDS, 0))
        found[f"{name}_us"] = (many - none) / ROUNDS * 1e6
    return found


def _timed_s(name: str, launch: Callable[..., None], arguments: tuple, rounds: int) -> float:
    words = arguments[-1]
    words.zero_()
    seconds = event_s(lambda: launch(*arguments, rounds))
    if words[0].item():
        raise RuntimeError(f"probes: {name} waited too long and gave up")
    return seconds


def measure(quick: bool) -> dict[str, Any]:
    kernels = Kernels()
    found = reads(kernels, (1 << 28) if quick else (4 << 30))
    found.update(exchanges(kernels))
    found["ceilings"] = ceilings("cuda", quick=quick).as_dict()
    return found


def show(found: dict[str, Any]) -> None:
    ceiling = found["ceilings"]
    rows: list[tuple[str, Any, str]] = [
        (f"read, {key.split('_')[1]}", found[key], "GB/s")
        for key in ("read_loads_gbs", "read_bulk_gbs")
        if key in found
    ]
    rows += [("read, torch sum", ceiling["read_gbs"], "GB/s"), ("copy", ceiling["copy_gbs"], "GB/s")]
    rows += [(f"read of {mb} MB again", v, "GB/s") for mb, v in found["read_by_size_gbs"].items()]
    rows += [(f"matrix product {n}", v, "TFLOP/s") for n, v in ceiling["gemm_tflops"].items()]
    rows += [
        ("empty kernel in a graph, 1 block", found["launch_in_graph_us"], "us"),
        ("empty kernel in a graph, all blocks", found["full_launch_in_graph_us"], "us"),
    ]
    rows += [(what, found[f"{name}_us"], "us") for name, (_, _, what) in EXCHANGES.items() if f"{name}_us" in found]
    print(reporting.table(("probe", "value", "unit"), rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-only", metavar="ARCH", help='such as "90a"')
    parser.add_argument("--quick", action="store_true", help="smaller buffers")
    parser.add_argument("--out", type=Path, help="folder for probes.json")
    options = parser.parse_args(arguments)
    if options.compile_only:
        with tempfile.TemporaryDirectory() as folder:
            for name in SOURCES:
                size = len(compile_probe(name, options.compile_only, Path(folder)))
                print(f"{name}.cu compiled for sm_{options.compile_only}: {size} bytes")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("probes: no GPU here that PyTorch can use")
    found = measure(options.quick)
    show(found)
    content = reporting.result("probes", **found)
    if options.out:
        reporting.keep("probes", content, options.out)
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
