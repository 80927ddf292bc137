"""A GPU that is not there: PyTorch's answers about it, in a worker of emulated.py."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch

from mingcore import ops
from mingcore.ops._core import cases, launch, op
from mingcore.ops._core.support import anywhere
from mingcore.ops.spectrum import cuda as cuda_spectrum
from tests.ops.runners import named
from tests.ops.runners.protocol import report

SMALL_TILES, LARGE_TILES = 132, 1  # multiprocessors that must all have work
BLOCKS = 4  # multiprocessors, where no test says another number
GPU = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=BLOCKS)
_inverse_blocks = cuda_spectrum.inverse_blocks


def pretend(capability: int, blocks: int = BLOCKS) -> None:
    """CPU tensors now pass for tensors of GPU, whose properties may be changed. Its streams are as
    many as the numbers of multiprocessors that it is given.
    """
    GPU.multi_processor_count, GPU.capability = blocks, capability
    take_any_device()
    fake = launch.torch.cuda
    fake.device = lambda device: nullcontext()
    fake.synchronize = lambda device: None
    fake.current_stream = lambda device: SimpleNamespace(cuda_stream=GPU.multi_processor_count)
    fake.is_current_stream_capturing = lambda: False
    fake.get_device_capability = lambda device: divmod(capability, 10)
    fake.get_device_properties = lambda device: GPU
    launch.unavailable_reason = lambda op, device: None
    launch.fatbin = lambda op: None
    launch.compiled = lambda op, capability: b"\x7fELF"  # the emulated driver has it in C++
    launch._torch = lambda device: torch.device("cpu")
    load, map_of = launch.kernel, launch.tensor_map
    launch.kernel = lambda op, name, device, shared=0: load(op, name, device or 0, shared)
    launch.tensor_map = lambda device, *rest: map_of(device or 0, *rest)
    library = launch._library
    launch._library = lambda op, device: library("spectrum_head", device)  # the emulation is one


def take_any_device() -> None:
    """The adapters that are imported already, and those to come."""
    op._DEVICE["cuda"] = anywhere
    for each in op.OPS.values():
        if isinstance(each, op.Op) and "cuda" in each.implementations:
            found = each.implementations["cuda"]
            fits = found.support.fits(each.first, anywhere, each._lists)
            reason = partial(found.support.reason, each.first, anywhere)
            each.implementations["cuda"] = replace(found, fits=fits, reason=reason)


def run(op: str, name: str, dtypes: list[str], index: int) -> None:
    """A named case in these types; `index` chooses what small shapes would not reach."""
    blocks = GPU.multi_processor_count
    if "conv" in op:
        GPU.multi_processor_count = (SMALL_TILES, LARGE_TILES)[index // 2 % 2]
    several_blocks(index % 3 == 2)
    try:
        for dtype in dtypes:
            report(dtype=dtype, declined=named.check(op, name, "cuda", dtype, seed=index))
    finally:
        several_blocks(False)
        GPU.multi_processor_count = blocks


def several_blocks(on: bool) -> None:
    """Small spectra reach what large ones do: several blocks of a row, frames in groups."""
    cuda_spectrum.FEW_HOPS, cuda_spectrum.HOPS = (1, 2) if on else (16, 8)
    cuda_spectrum.inverse_blocks = (lambda *a: (*_inverse_blocks(*a)[:2], 2)) if on else _inverse_blocks


def as_rows(kwargs: dict) -> dict:
    """Arguments of moe_mlp with experts in the layout that a GPU takes."""
    experts = kwargs["experts"]
    return {**kwargs, "experts": getattr(experts, "as_rows", lambda: experts)()}


def draw(seed, T, K, E, H, I, shared, dtype, format=None, ids=None) -> dict:
    """Arguments of moe_mlp; ids may repeat within a token."""
    d = cases.Draw("cpu", dtype, seed)
    packed = {"gate_up": d.matrix(E, 2 * I, H), "down": d.matrix(E, H, I)}
    if shared:
        packed["shared"] = (d.matrix(2 * shared, H), d.matrix(H, shared))
    random = torch.randint(E, (T, K), generator=d.generator, dtype=torch.int32)
    return {
        "x": d.normal(T, H),
        "experts": ops.pack_experts(**packed, format=format, backend="reference"),
        "weights": d.weights(T, K),
        "ids": random if ids is None else ids,
    }
