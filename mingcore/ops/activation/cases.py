"""Cases and baselines of SwiGLU's product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.cases import Baselines, Draw, baselines_of, case
from .._core.layouts import strided


def _silu_mul(d: Draw, M: tuple[int, ...], I: int, layout=torch.Tensor.contiguous) -> dict:
    return {"gate_up": layout(d.normal(*M, 2 * I, scale=3.0))}


case("silu_mul", "real_expert", _silu_mul, "real", M=(6,), I=1408)
case("silu_mul", "real_decoder", _silu_mul, "real", M=(1, 5), I=4864)
case("silu_mul", "real_prefill", _silu_mul, "real", M=(1024,), I=1408)
case("silu_mul", "mid_expert", _silu_mul, "mid", M=(6,), I=704)
case("silu_mul", "odd_sizes", _silu_mul, "odd", M=(3, 2), I=37)
case("silu_mul", "one", _silu_mul, "edge", M=(1,), I=1)
case("silu_mul", "no_rows", _silu_mul, "edge", M=(0,), I=8)
case("silu_mul", "strided", _silu_mul, "strided", M=(5,), I=24, layout=strided)


@baselines_of("silu_mul")
def _silu_mul_baselines(kw: dict[str, Any]) -> Baselines:
    x = kw["gate_up"]

    def plain() -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    yield "F.silu * up", plain
