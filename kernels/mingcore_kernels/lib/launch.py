"""What launchers do around their kernels, and kernels around each other."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """The tensor's GPU as the current one; nothing on a CPU, where kernels are interpreted."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Programmatic dependent launch: nothing that an earlier launch wrote may be read, and nothing
    written, before this."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
