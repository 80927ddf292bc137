"""Loading and launching CUDA kernels: the one place that touches cuda-python.

A kernel file `csrc/cuda/<family>/<op>.cu` names its architectures in a line `// arch: sm_80 sm_90a
compute_80`, and its headers by their paths in csrc/cuda. Its binary is the fatbin that the build
left in the package, if it was made from this very text; else NVRTC compiles the text, once, into a
folder of `env.cache_dir()`. Either happens when a kernel is first asked for, never inside a graph
capture. Only the driver API of cuda.bindings is used: it is the same in every version from 12.9 on.
"""

import ctypes
import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from cuda.bindings import driver, nvrtc
from torch import Tensor

from ... import env
from ...errors import BackendError

FLAGS = ("--std=c++17", "--extra-device-vectorization")
DEFAULT_SHARED_BYTES = 48 * 1024  # more dynamic shared memory than this must be asked for
_MAP_BYTES, _ENCODE = 128, b"cuTensorMapEncodeTiled"
BARRIER_BYTES = 128
BARRIERS = 8192  # of BARRIER_BYTES, per device

_PACKAGE = Path(__file__).resolve().parents[2]
_FOLDERS = (_PACKAGE / "_cuda", _PACKAGE.parent / "csrc" / "cuda")  # a wheel's, a checkout's
_libraries: list = []  # loaded libraries, alive as long as their kernels
_lock = threading.Lock()
_served: Mapping[str, Path] | None = None  # binaries of a bundle, by op
# (device, size) to (op, stream, capture) to a row of _all_barrier_words
_barriers: dict[tuple, dict[tuple, int]] = {}


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel, ready for `launch` on one device."""

    name: str
    device: int
    function: driver.CUfunction
    shared_bytes: int


def source_folder() -> Path:
    """Where the kernel files are: package data of a wheel, `csrc/cuda` of a checkout."""
    return next(folder for folder in reversed(_FOLDERS) if any(folder.glob("*/*.cu")))


def ops() -> list[str]:
    """Every op that has a kernel file."""
    return sorted(path.stem for path in source_folder().glob("*/*.cu"))


def source(op: str) -> Path:
    """The kernel file of an op, in the folder of whichever family."""
    for folder in _FOLDERS:
        for path in folder.glob(f"*/{op}.cu"):
            return path
    raise BackendError(f"{op}: there is no {op}.cu in {' or '.join(map(str, _FOLDERS))}")


def include_folder(source: Path) -> Path:
    """Where the names in the `#include` lines of a kernel file begin."""
    return source.parents[1]


def _headers(source: Path) -> dict[str, Path]:
    """Every header by the name that `#include` gives it."""
    folder = include_folder(source)
    found = sorted(folder.glob("*/*.cuh"))
    return {path.relative_to(folder).as_posix(): path for path in found}


def architectures(op: str) -> list[str]:
    """The targets that a kernel file names, such as ["sm_80", "sm_90a", "compute_80"]."""
    return re.search(r"^// arch:(.*)$", source(op).read_text(), re.MULTILINE)[1].split()


def digest(op: str) -> str:
    """Identifies a kernel file together with all headers, as setup.py does."""
    path = source(op)
    texts = [path, *_headers(path).values()]
    return hashlib.sha256(b"".join(each.read_bytes() for each in texts)).hexdigest()[:16]


@cache
def unavailable_reason(op: str, device: torch.device) -> str | None:
    """Why the kernels of `op` cannot run on `device`, or None."""
    if device.type != "cuda" or torch.version.hip:
        return f"x is on {device}; it takes tensors on an NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    targets = architectures(op)
    if covers(targets, 10 * major + minor):
        return None
    return f"its kernel is made for {', '.join(targets)}; this GPU is sm_{major}{minor}"


def nvrtc_binary(op: str, code: str) -> bytes:
    """The cubin of an op for an architecture such as "sm_90a", by NVRTC, kept nowhere."""
    return _compile(source(op), code, "cubin")


def covers(targets: Sequence[str], capability: int) -> bool:
    """Whether code for these targets runs on a GPU of this compute capability."""
    if {f"sm_{capability}", f"sm_{capability}a"} & set(targets):
        return True
    return any(capability >= int(t[8:]) for t in targets if t.startswith("compute_"))


def fatbin(op: str) -> Path | None:
    """The fatbin built from the present source of `op`, or None."""
    path = _FOLDERS[0] / f"{op}.{digest(op)}.fatbin"
    return path if path.is_file() else None


def compiled(op: str, capability: int) -> bytes:
    """The binary of `op` for a compute capability such as 90, by NVRTC, kept in the cache.

    A cubin where this NVRTC knows the GPU, else PTX for the newest that it knows, which the driver
    finishes. Raises BackendError with the compiler's log.
    """
    target = _target(op, capability)
    _, major, minor = _nvrtc(nvrtc.nvrtcVersion())
    key = hashlib.sha256(f"{FLAGS} {major}.{minor}".encode()).hexdigest()[:8]
    kind = "cubin" if target.startswith("sm_") else "ptx"
    path = env.cache_dir() / "cuda" / f"{op}.{target}.{digest(op)}.{key}.{kind}"
    if path.is_file():
        return path.read_bytes()
    binary = _compile(source(op), target, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_bytes(binary)
    unfinished.replace(path)
    return binary


def _target(op: str, capability: int) -> str:
    _, count = _nvrtc(nvrtc.nvrtcGetNumSupportedArchs())
    _, known = _nvrtc(nvrtc.nvrtcGetSupportedArchs())
    targets = architectures(op)
    if capability in known[:count]:
        special = f"sm_{capability}a"
        return special if special in targets else f"sm_{capability}"
    older = [each for each in known[:count] if each <= capability]
    if not older or not any(t.startswith("compute_") for t in targets):
        raise BackendError(f"{op}: NVRTC here does not know sm_{capability}; a newer one is needed")
    return f"compute_{max(older)}"


def _compile(path: Path, target: str, kind: str) -> bytes:
    headers = _headers(path)  # NVRTC reads no file: it is given all, by their names
    _, program = _nvrtc(
        nvrtc.nvrtcCreateProgram(
            path.read_bytes(),
            path.name.encode(),
            len(headers),
            [header.read_bytes() for header in headers.values()],
            [name.encode() for name in headers],
        )
    )
    try:
        options = [f"--gpu-architecture={target}".encode(), *(flag.encode() for flag in FLAGS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, size = _nvrtc(nvrtc.nvrtcGetProgramLogSize(program))
            log = bytearray(size)
            _nvrtc(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode()
            raise BackendError(f"{path.name}: NVRTC for {target} says {result.name}:\n{text}")
        size_of, get = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if kind == "cubin"
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        _, size = _nvrtc(size_of(program))
        binary = bytearray(size)
        _nvrtc(get(program, binary))
        return bytes(binary)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def kernel(op: str, name: str, device: int, shared_bytes: int = 0) -> Kernel:
    """Load the kernel `name` of `<op>.cu` on a device; shared_bytes is the dynamic shared memory
    that it will be launched with. Raises BackendError, also inside a graph capture: warm up first.
    """
    if torch.cuda.is_current_stream_capturing():
        raise BackendError(f"{name}: run it once before capturing, so that it is loaded")
    with torch.cuda.device(device):
        _make_current(device)
        library = _library(op, device)
        _, handle = _driver(driver.cuLibraryGetKernel(library, name.encode()), name)
        _, function = _driver(driver.cuKernelGetFunction(handle), name)
        if shared_bytes > DEFAULT_SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _driver(driver.cuFuncSetAttribute(function, attribute, shared_bytes), name)
    return Kernel(name, device, function, shared_bytes)


def serve(binaries: Mapping[str, Path] | None) -> None:
    """From now on take the binary of an op from here, and compile nothing; None: as before.

    What was loaded before stays. An op that is not among them raises BackendError when it is asked
    for.
    """
    global _served
    _served = binaries


@cache
def _library(op: str, device: int):
    path = fatbin(op) if _served is None else _served.get(op)
    if _served is not None and path is None:
        raise BackendError(f"{op}: the bundle of kernels has no binary for this GPU")
    if path is not None:
        image = path.read_bytes()
    else:
        major, minor = torch.cuda.get_device_capability(device)
        image = compiled(op, 10 * major + minor)
    _, library = _driver(driver.cuLibraryLoadData(image, [], [], 0, [], [], 0), op)
    _libraries.append(library)
    return library


def barrier_words(op: str, device: int, size: int = BARRIER_BYTES) -> Tensor:
    """The words [size / 8] int64 by which the blocks of a launch of `op` synchronise (grid barrier,
    flags): zero at first, then left to the kernel. Launches that may overlap have different ones:
    every stream has its own, and every graph capture on it. Raises BackendError when the device's
    are used up, or when the first is asked for inside a capture.
    """
    words = _all_barrier_words(device, size)
    stream = torch.cuda.current_stream(device).cuda_stream
    capture = 0
    if torch.cuda.is_current_stream_capturing():
        answer = _driver(driver.cuStreamGetCaptureInfo(driver.CUstream(stream)), op)
        capture = int(answer[2])
    with _lock:
        rows = _barriers.setdefault((device, size), {})
        row = rows.setdefault((op, stream, capture), len(rows))
    if row >= BARRIERS * BARRIER_BYTES // size:
        raise BackendError(f"{op}: more than {BARRIERS * BARRIER_BYTES // size} streams and graphs in one process")
    return words[row]


@cache
def _all_barrier_words(device: int, size: int) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        raise BackendError("run the op once before capturing, so that its memory is there")
    shape = BARRIERS * BARRIER_BYTES // size, size // 8
    words = torch.zeros(shape, dtype=torch.int64, device=_torch(device))
    torch.cuda.synchronize(device)  # other streams use it too
    return words


@cache
def fault(op: str, device: int) -> Tensor:
    """A word [1] int64 in pinned host memory that the kernels of `op` on a device set when their
    blocks time out waiting for each other: the host can look at it without waiting for the device.
    """
    return torch.zeros(1, dtype=torch.int64, pin_memory=True)


def _torch(device: int) -> torch.device:
    return torch.device("cuda", device)


@lru_cache(maxsize=8192)
def tensor_map(
    device: int,
    dtype: torch.dtype,
    address: int,
    sizes: tuple[int, ...],
    strides_bytes: tuple[int, ...],
    box: tuple[int, ...],
) -> bytes:
    """A tensor map (128 bytes, the start of a kernel's struct) by which kernels copy boxes.

    sizes and box: elements per dimension, the innermost first, whose box is at most 128 bytes;
    strides_bytes: of the others. Copies swizzle 128 bytes, fill with zeros what lies outside, and
    count it. It holds the address alone: for the same tensor it is made once.
    """
    kinds, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    kind = {
        torch.bfloat16: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float16: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    }[dtype]
    room = ctypes.create_string_buffer(_MAP_BYTES + 63)
    start = -ctypes.addressof(room) % 64
    with torch.cuda.device(device):
        _make_current(device)
        status = _encode()(
            ctypes.addressof(room) + start,
            kind,
            len(sizes),
            address,
            (ctypes.c_uint64 * len(sizes))(*sizes),
            (ctypes.c_uint64 * len(strides_bytes))(*strides_bytes),
            (ctypes.c_uint32 * len(box))(*box),
            (ctypes.c_uint32 * len(box))(*[1] * len(box)),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    _driver((driver.CUresult(status),), f"tensor map of {sizes}")
    return room.raw[start : start + _MAP_BYTES]


@cache
def _encode():
    """cuTensorMapEncodeTiled itself: cuda.bindings would have it write to 16-byte aligned memory,
    and the driver wants 64.
    """
    _, entry, _ = _driver(driver.cuGetProcAddress(_ENCODE, 12000, 0), _ENCODE.decode())
    i, n, p = ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
    return ctypes.CFUNCTYPE(i, p, i, n, p, p, p, p, p, i, i, i, i)(int(entry))


def launch(
    kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], params: bytes, *, cooperative: bool = False
) -> None:
    """Launch on PyTorch's current stream of the kernel's device; safe under graph capture.

    params: the bytes of the kernel's one argument, a struct. The driver copies them before it
    returns. cooperative: all blocks must run at once, so that they may wait for each other.
    """
    argument = ctypes.create_string_buffer(params, len(params))
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    with torch.cuda.device(kernel.device):
        _make_current(kernel.device)
        stream = driver.CUstream(torch.cuda.current_stream(kernel.device).cuda_stream)
        shape = (*grid, *block, kernel.shared_bytes)
        where = (stream, ctypes.addressof(arguments))
        if cooperative:
            answer = driver.cuLaunchCooperativeKernel(kernel.function, *shape, *where)
        else:
            answer = driver.cuLaunchKernel(kernel.function, *shape, *where, 0)
        _driver(answer, kernel.name)


def _make_current(device: int) -> None:
    """A thread that has not called the CUDA runtime yet has no context; give it PyTorch's."""
    _, context = _driver(driver.cuCtxGetCurrent(), "cuCtxGetCurrent")
    if int(context) == 0:
        _, handle = _driver(driver.cuDeviceGet(device), "cuDeviceGet")
        _, context = _driver(driver.cuDevicePrimaryCtxRetain(handle), "cuDevicePrimaryCtxRetain")
        _driver(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")


def _driver(answer: tuple, what: str) -> tuple:
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"{what}: the CUDA driver says {answer[0].name}")
    return answer


def _nvrtc(answer: tuple) -> tuple:
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC says {answer[0].name}")
    return answer
