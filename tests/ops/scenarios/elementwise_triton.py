"""Triton's flow_step and silu_mul without a GPU: what is refused, and every kernel compiled."""

import torch

from mingcore import ops
from mingcore.errors import BackendError
from tests.ops.runners.triton_launches import compiled, report

FLOW = dict.fromkeys(("x", "noise", "guidance", "noise_scale", "out"), "*fp32")
FLOW |= {"dt": "fp32", "P": "i32", "C": "i32"}
FLOW |= {f"stride_{t}_{d}": "i32" for t in "xcneo" for d in "bp"}
KERNELS = {  # kernel: (module, types of its arguments, pointers left open, constants)
    "_flow_step_kernel": (
        "flow.flow_step",
        FLOW,
        ("v_cond", "v_null"),
        ({"HAS_NULL": True, "HAS_NOISE": True}, {"HAS_NULL": False, "HAS_NOISE": False}),
    ),
    "_silu_mul_kernel": (
        "activation.silu_mul",
        {"I": "i32", "stride_g_m": "i32", "stride_o_m": "i32"},
        ("gate_up", "out"),
        ({},),
    ),
}


def refused() -> None:
    state = torch.randn(2, 3, 5)
    try:
        ops.flow_step_(state[:1].expand(2, 3, 5), state, None, 0.1, 1.0, backend="triton")
    except BackendError as error:
        report(refused=str(error))


def compile_all() -> None:
    for name, (module, types, open_types, variants) in KERNELS.items():
        found = __import__(f"mingcore_kernels.{module}", fromlist=[name])
        kernel = getattr(found, name)
        for capability in (80, 90, 100):
            for element in ("*fp32", "*bf16", "*fp16"):
                for constants in variants:
                    constants = {**constants, "BLOCK": found.BLOCK}
                    signature = {**types, **dict.fromkeys(open_types, element)}
                    signature |= dict.fromkeys(constants, "constexpr")
                    signature = {arg: signature[arg] for arg in kernel.arg_names}
                    aligned = {
                        (i,): [["tt.divisibility", 16]]
                        for i, arg in enumerate(kernel.arg_names)
                        if signature[arg].startswith("*")
                    }
                    launch = kernel, signature, constants, aligned, {"num_warps": 4}
                    _, found_in = compiled(*launch, capability=capability)
                    report(element=element, types=[element, None], blocks=[found.BLOCK], **found_in)
