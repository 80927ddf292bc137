"""The `flash` backend: flash-attn's attention over fresh keys, where the package is installed.

Importing this module fails without the package (`pip install mingcore[flash-attn]`); the registry
reports the reason and PyTorch's own attention, the reference's, serves instead. Its kernels are its
authors': no verified record is asked of them. Dao 2023, FlashAttention-2.
"""

import torch
from flash_attn import flash_attn_func

from .._core.registry import register

_TYPES = (torch.float16, torch.bfloat16)
_WIDEST = 256
_CAPABILITY = (8, 0)


def _why_not(q, k, v, causal, window, scale):
    if not q.is_cuda:
        return f"q is on {q.device}; it takes tensors on a GPU"
    if q.dtype not in _TYPES:
        return f"q is {q.dtype}; it takes float16 and bfloat16"
    D = q.shape[-1]
    if D > _WIDEST or D % 8:
        return f"heads are {D} wide; it takes multiples of 8 up to {_WIDEST}"
    if v.device != q.device:
        return f"v is on {v.device}, q on {q.device}"
    if window and not causal:
        return f"window is {window} without causal; it takes windows that end at the query"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < _CAPABILITY:
        return "it takes sm_80 and newer"
    return None


@register("attention_prefill", "flash", _why_not)
def attention_prefill(q, k, v, causal, window, scale):
    # their window counts the keys before the query's own, ours includes it; -1 is no bound
    left = window - 1 if window else -1
    out = flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal, window_size=(left, 0 if causal and window else -1)
    )
    return out.contiguous()
