"""A GPU that is not there: PyTorch's answers about it, for scripts run on emulated_cuda.cpp."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from mingcore import ops
from mingcore.ops._core import cases, launch, op
from mingcore.ops._core.support import anywhere

op._DEVICE["cuda"] = anywhere  # before adapters are imported


def pretend(capability: int, blocks: int) -> SimpleNamespace:
    """CPU tensors now pass for tensors of a GPU; its properties, which may be changed. Its streams
    are as many as the numbers of multiprocessors that it is given.
    """
    gpu = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=blocks)
    fake = launch.torch.cuda
    fake.device = lambda device: nullcontext()
    fake.synchronize = lambda device: None
    fake.current_stream = lambda device: SimpleNamespace(cuda_stream=gpu.multi_processor_count)
    fake.is_current_stream_capturing = lambda: False
    fake.get_device_capability = lambda device: divmod(capability, 10)
    fake.get_device_properties = lambda device: gpu
    launch.unavailable_reason = lambda op, device: None
    launch.fatbin = lambda op: None
    launch.compiled = lambda op, capability: b"\x7fELF"  # the emulated driver has it in C++
    launch._torch = lambda device: torch.device("cpu")
    load, map_of = launch.kernel, launch.tensor_map
    launch.kernel = lambda op, name, device, shared=0: load(op, name, device or 0, shared)
    launch.tensor_map = lambda device, *rest: map_of(device or 0, *rest)
    return gpu


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
