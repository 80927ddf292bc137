"""The mixture of experts on the Triton kernels."""

import torch

from mingcore_kernels.moe import moe_mlp as kernels

from .._core.support import Support
from .._core.triton import KERNELS
from ..gemm.triton import WEIGHTS, weights_unsupported_reason
from ..routing.triton import experts_limit
from . import MATRICES, MOE_MLP, SCALES


def _unsupported_reason(x, gate_up, ids, gate_up_scale, format, **_):
    if ids.shape[1] == 0:
        return "ids name no expert; it takes at least one per token"
    return weights_unsupported_reason(x, gate_up, gate_up_scale, format)


@MOE_MLP.implementation(
    "triton",
    Support(
        floats=("x",),
        float32=("weights", *SCALES),
        types={**dict.fromkeys(MATRICES, WEIGHTS), "ids": (torch.int32,)},
        dense_last=("x", *MATRICES),
        contiguous=SCALES,
        layouts=("rows",),
        limits=(experts_limit(lambda gate_up, **_: gate_up.shape[0]),),
        rule=_unsupported_reason,
    ),
    sources=(KERNELS / "moe" / "moe_mlp.py",),
)
def moe_mlp(weights, ids, layout, format, out, **operands):
    kernels.moe_mlp(
        **operands, weights=weights.contiguous(), ids=ids.contiguous(), dynamic=format == "int8_dyn", out=out
    )
