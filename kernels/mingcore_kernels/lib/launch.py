"""What every launcher does around its kernels."""

import contextlib

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """The tensor's GPU as the current one; nothing on a CPU, where kernels are interpreted."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
