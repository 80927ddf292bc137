"""What the scripts that check Triton kernels without a GPU share: launches recorded, not run."""

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.ops.runners import protocol

OPTIONS = ("num_warps", "num_stages", "launch_pdl")
FUSION = "enable_fp_fusion"  # every launch names it, so it tells none from another
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.int64: "i64",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
}


def recorded(launch) -> list[tuple]:
    """The distinct kernels that launch(), called with meta tensors, would start: as `binary` takes
    them, specialised as Triton specialises its arguments."""
    found = {}

    def record(kernel, *args, grid, warmup, **named):
        options = {name: named.pop(name) for name in (*OPTIONS, FUSION) if name in named}
        given = dict(zip(kernel.arg_names, args)) | named
        signature, constants, divisible = {}, {}, {}
        for i, name in enumerate(kernel.arg_names):
            value = given[name]
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + TYPES[value.dtype]
                divisible[(i,)] = [["tt.divisibility", 16]]
                continue
            plain = kernel.params[i].do_not_specialize
            if value is None or (value == 1 and not plain) or kernel.params[i].is_constexpr:
                signature[name], constants[name] = "constexpr", value
                continue
            if isinstance(value, float):
                signature[name] = "fp32"
                continue
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
            if value % 16 == 0 and not plain:
                divisible[(i,)] = [["tt.divisibility", 16]]
        key = kernel.__name__, str(signature), str(constants), str(divisible), str(options)
        found[key] = (kernel, signature, constants, divisible, options)

    JITFunction.run, original = record, JITFunction.run
    try:
        launch()
    finally:
        JITFunction.run = original
    return list(found.values())


def binary(kernel, signature: dict, constants: dict, divisible: dict, options: dict, capability: int):
    """A recorded kernel, compiled for a GPU such as 90. options: "maxnreg" too."""
    source = ASTSource(kernel, signature, constants, divisible)
    return triton.compile(source, GPUTarget("cuda", capability, 32), options=options)


def compiled(kernel, signature: dict, constants: dict, *rest, capability: int) -> tuple[str, dict]:
    """A recorded kernel's PTX, and what is kept of its binary (bench/resources_triton.py)."""
    made = binary(kernel, signature, constants, *rest, capability)
    ptx = made.asm["ptx"]
    return ptx, {
        "kernel": kernel.__name__,
        "sm": capability,
        "launch": launch_name(signature, constants, *rest),
        "usage": resources(made.asm["cubin"]),
        "shared": made.metadata.shared,
        "matrix": next((n for n in ("tcgen05.mma", "wgmma", "mma.sync") if n in ptx), ""),
        "products": products(ptx),
    }


def launch_name(signature: dict, constants: dict, divisible: dict, options: dict) -> str:
    """What tells a launch of a kernel from its others, and is the same in the next run."""
    plain = {name: getattr(value, "__name__", value) for name, value in constants.items()}
    own = {name: value for name, value in options.items() if name in OPTIONS}
    parts = (sorted(part.items()) for part in (signature, plain, divisible, own))
    return hashlib.sha256(str(list(parts)).encode()).hexdigest()[:12]


def products(ptx: str) -> dict[str, int]:
    """Instructions of the matrix unit, such as "wgmma m64n64k16 bf16", and how many there are."""
    found: dict[str, int] = {}
    shape = r"\b(wgmma|mma)\.\S*?\.(m\d+n\d+k\d+)(?:\.row\.col)?(?:\.satfinite)?\.[fs]\d+\.(\w+)"
    newer = r"\b(tcgen05)\.(mma)\.\S*?kind::(\w+)"
    for pattern in (shape, newer):
        for parts in re.findall(pattern, ptx):
            found[" ".join(parts)] = found.get(" ".join(parts), 0) + 1
    return dict(sorted(found.items()))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory, by the cuobjdump that Triton ships."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)
    return {key: int(value) for key, value in found}


def report(**fields) -> None:
    protocol.report(triton=triton.__version__, **fields)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def loops_with_new_numpy() -> None:
    """Triton 3.6 interprets a loop's bound as int(array of one), which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched
