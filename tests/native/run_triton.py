"""Run by test_triton.py in a process of its own, once per Triton version: `interpret` or `compile`.

Prints one line of JSON per kernel and case.
"""

import os
import sys

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from triton_launches import compiled, say

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.testing import compare

FLOW = dict.fromkeys(("x", "noise", "guidance", "noise_scale", "out"), "*fp32")
FLOW |= {"dt": "fp32", "P": "i32", "C": "i32"}
FLOW |= {f"stride_{t}_{d}": "i32" for t in "xcneo" for d in "bp"}
KERNELS = {  # kernel: (module, types of its arguments, pointers left open, constants)
    "_flow_step_kernel": (
        "flow_step",
        FLOW,
        ("v_cond", "v_null"),
        ({"HAS_NULL": True, "HAS_NOISE": True}, {"HAS_NULL": False, "HAS_NOISE": False}),
    ),
    "_silu_mul_kernel": ("silu_mul", {"I": "i32", "stride_g_m": "i32", "stride_o_m": "i32"}, ("gate_up", "out"), ({},)),
}
NAMED_OPS = ("flow_step", "flow_step_", "silu_mul")


def interpret() -> None:
    for op in NAMED_OPS:
        for dtype in (torch.float32, torch.float16):
            for case in cases.for_op(op):
                kwargs = case.make("cpu", dtype, seed=2)
                if max(t.numel() for t in kwargs.values() if isinstance(t, torch.Tensor)) > 5e4:
                    continue
                with nan_poisoned():
                    got = compare.run(op, kwargs, backend="triton")
                compare.check_op(op, kwargs, got)
                say(op=op, case=case.name, dtype=str(dtype))
    state = torch.randn(2, 3, 5)
    try:
        ops.flow_step_(state[:1].expand(2, 3, 5), state, None, 0.1, 1.0, backend="triton")
    except BackendError as error:
        say(refused=str(error))


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
                    say(element=element, types=[element, None], blocks=[found.BLOCK], **found_in)


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_all}[sys.argv[1]]()
