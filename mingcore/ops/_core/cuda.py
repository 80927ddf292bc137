"""What the adapters of the `cuda` backend share."""

import torch
from torch import Tensor

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
COPY_BYTES = 16


def rows_of_copies(x: Tensor) -> Tensor:
    """x [T, H] with dense rows at addresses that 16-byte copies can start from."""
    pitch = x.stride(0) * x.element_size() if x.shape[0] > 1 else 0
    dense = x.stride(1) == 1 or x.shape[1] == 1
    if dense and pitch % COPY_BYTES == 0 and x.data_ptr() % COPY_BYTES == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
