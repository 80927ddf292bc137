"""The ops, for everybody: typed functions over plain tensors, each on several backends.

One op has one name in every layer: here, `torch.ops.mingcore.<op>` (what `torch.compile` and
`torch.export` see), `reference/` (the oracle), and the kernels. Every function takes `backend=`:
"reference", "cpu", "triton", "cuda" or None for the choice of `use_backend`, MINGCORE_BACKEND or,
by default, the best backend that can serve. A named backend that cannot serve raises BackendError.
For inference: no gradients. Dimensions: see the glossary in ARCHITECTURE.md.
"""

from ._core.backends import use_backend
from ._core.invariance import batch_invariant
from ._core.packing import PackedExperts, PackedLinear
from ._core.query import selected_backend, supports, unsupported_reason, why_not
from .activation import silu_mul
from .attention import attention_decode, attention_prefill, kv_write_
from .conv import ConvState, causal_conv1d, causal_conv1d_, causal_conv_transpose1d, causal_conv_transpose1d_, pack_conv
from .conv.packing import PackedConv
from .flow import flow_sample, flow_step, flow_step_, pack_flow_head
from .flow.packing import PackedFlowHead
from .flow.schedule import Evaluation, FlowSchedule
from .gemm import grouped_gemm, linear, pack_linear
from .moe import ExpertPacker, moe_mlp, pack_experts
from .norm import add_rms_norm, layer_norm, rms_norm
from .rotary import qkv_rope, rope
from .routing import route_topk, sort_by_expert
from .spectrum import OverlapState, frame_embed, overlap_add, overlap_add_, spectrum_head, spectrum_head_

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
    "selected_backend",
    "silu_mul",
    "sort_by_expert",
    "spectrum_head",
    "spectrum_head_",
    "supports",
    "unsupported_reason",
    "use_backend",
    "why_not",
]
