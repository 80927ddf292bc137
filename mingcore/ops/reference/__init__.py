"""The oracle: every op in plain PyTorch, close to its formula.

Computes in float32 (float64 for float64 inputs, which is the yardstick of the tests) and returns
the input's type. Works on any device; on a GPU without reading anything back to the host.
"""

from . import (  # noqa: F401  (importing registers)
    attention,
    audio,
    conv,
    flow_sample,
    flow_step,
    grouped_gemm,
    linear,
    moe_mlp,
    norms,
    rope,
    routing,
    silu_mul,
)
