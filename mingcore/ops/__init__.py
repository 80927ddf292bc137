"""The ops, for everybody: typed functions over plain tensors, each on several backends.

One op has one name in every layer: here, `torch.ops.mingcore.<op>` (what `torch.compile` and
`torch.export` see), `reference/` (the oracle), and the kernels. Every function takes `backend=`:
"reference", "cpu", "triton", "cuda" or None for the choice of `use_backend`, MINGCORE_BACKEND or,
by default, the best backend that can serve. A named backend that cannot serve raises BackendError.
For inference: no gradients. Dimensions: see the glossary in ARCHITECTURE.md.
"""

from .attention import attention_decode, attention_prefill, kv_write_
from .audio import (
    OverlapState,
    frame_embed,
    overlap_add,
    overlap_add_,
    spectrum_head,
    spectrum_head_,
)
from .conv import (
    ConvState,
    causal_conv1d,
    causal_conv1d_,
    causal_conv_transpose1d,
    causal_conv_transpose1d_,
    pack_conv,
)
from .dense import (
    add_rms_norm,
    layer_norm,
    linear,
    pack_linear,
    qkv_rope,
    rms_norm,
    rope,
    silu_mul,
)
from .experts import (
    ExpertPacker,
    grouped_gemm,
    moe_mlp,
    pack_experts,
    route_topk,
    sort_by_expert,
)
from .flow import flow_step, flow_step_
from .flow_sampler import flow_sample, pack_flow_head
from .invariance import batch_invariant
from .packed import PackedExperts, PackedLinear
from .packed_conv import PackedConv
from .packed_flow import PackedFlowHead
from .registry import use_backend, why_not
from .schedule import Evaluation, FlowSchedule

__all__ = [
    "Evaluation",
    "ConvState",
    "ExpertPacker",
    "FlowSchedule",
    "OverlapState",
    "PackedConv",
    "PackedExperts",
    "PackedFlowHead",
    "PackedLinear",
    "add_rms_norm",
    "attention_decode",
    "attention_prefill",
    "batch_invariant",
    "flow_sample",
    "causal_conv1d",
    "causal_conv1d_",
    "causal_conv_transpose1d",
    "causal_conv_transpose1d_",
    "flow_step",
    "flow_step_",
    "frame_embed",
    "grouped_gemm",
    "kv_write_",
    "layer_norm",
    "linear",
    "moe_mlp",
    "overlap_add",
    "overlap_add_",
    "pack_conv",
    "pack_experts",
    "pack_flow_head",
    "pack_linear",
    "qkv_rope",
    "rms_norm",
    "rope",
    "route_topk",
    "silu_mul",
    "sort_by_expert",
    "spectrum_head",
    "spectrum_head_",
    "use_backend",
    "why_not",
]
