"""Devices and types by their names."""

import torch

from ..errors import InputError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def as_device(device: str | torch.device | None) -> torch.device:
    """What `device` names, None a GPU if there is one. Raises InputError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        known = device.type in ("cpu", "cuda")
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise InputError(f"device: must be cpu, cuda or a GPU such as cuda:1, got {str(device)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {device} is not here, there are {torch.cuda.device_count()} GPUs")
    return device


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """What `dtype` names, None for None. Raises InputError."""
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]
