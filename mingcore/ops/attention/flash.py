"""The `flash` backend: flash-attn's attention over fresh keys, where the package is installed.

Importing this module fails without the package (`pip install mingcore[flash-attn]`); the registry
reports the reason and PyTorch's own attention, the reference's, serves instead. Its kernels are its
authors': no verified record is asked of them. Dao 2023, FlashAttention-2.
"""

import torch
from flash_attn import flash_attn_func

from .._core.support import Limit, Support
from . import ATTENTION_PREFILL

_TYPES = (torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)


def _rule(q, causal, window, **_) -> str | None:
    if not q.is_cuda:
        return f"q is on {q.device}; it takes tensors on a GPU"
    if q.shape[-1] % 8:
        return f"heads are {q.shape[-1]} wide; it takes multiples of 8"
    if window and not causal:
        return f"window is {window} without causal; it takes windows that end at the query"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < _CAPABILITY:
        return "it takes sm_80 and newer"
    return None


@ATTENTION_PREFILL.implementation(
    "flash",
    Support(
        types={"q": _TYPES, "k": _TYPES, "v": _TYPES},
        limits=(Limit("heads are {} wide", lambda q, **_: q.shape[-1], 256),),
        rule=_rule,
    ),
)
def attention_prefill(q, k, v, causal, window, scale):
    # their window counts the keys before the query's own, ours includes it; -1 is no bound
    left = window - 1 if window else -1
    out = flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal, window_size=(left, 0 if causal and window else -1)
    )
    return out.contiguous()
