"""Cases, cost and baselines of `linear` and grouped products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from .._core.cases import LARGE, Baselines, Cost, Draw, baselines_of, bytes_of, case, cost_of
from .._core.layouts import strided, transposed
from .._core.packing import PackedLinear


def _linear(
    d: Draw,
    M: tuple[int, ...],
    K: int,
    N: int,
    bias: bool = False,
    activation: str | None = None,
    residual: bool = False,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    float_input: bool = False,
    format: str | None = None,
) -> dict[str, Any]:
    x = d.normal(*M, K, dtype=torch.float32 if float_input else None)
    args: dict[str, Any] = {"x": layout(x), "weight": d.matrix(N, K)}
    if format:
        args["weight"] = ops.pack_linear(args["weight"], format=format, activation=activation)
    if bias:
        args["bias"] = d.normal(N)
    if activation:
        args["activation"] = activation
    if residual:
        n_out = N // 2 if activation == "swiglu" else N
        args["residual"] = layout(d.normal(*M, n_out, dtype=x.dtype))
    return args


def _pack_linear(d: Draw, K: int, N: int) -> dict[str, Any]:
    return {"weight": d.matrix(N, K)}


for _name, _m, _k, _n, _options in [
    ("real_qkv_t1", (1, 1), 2048, 3072, {}),
    ("real_dense_t1", (1, 1), 2048, 2048, {"residual": True}),
    ("real_flow_qkv", (2, 11), 1024, 3072, {"bias": True}),
    ("real_flow_up", (2, 11), 1024, 4096, {"bias": True, "activation": "gelu_tanh"}),
    ("real_flow_down", (2, 11), 4096, 1024, {"bias": True, "residual": True}),
    ("real_semantic_up", (1, 5), 1280, 5120, {"bias": True, "activation": "gelu"}),
    ("real_decoder_gate_up", (1, 5), 896, 9728, {"activation": "swiglu"}),
    ("real_decoder_down", (1, 5), 4864, 896, {"residual": True}),
    ("real_head", (1, 5), 896, 1282, {"bias": True}),
]:
    _tags = ["real"] if _name in ("real_flow_qkv", "real_flow_up") else ["real", "verify"]
    case("linear", _name, _linear, *_tags, M=_m, K=_k, N=_n, **_options)
for _name, _m, _k, _n, _options in [
    ("mid_qkv_t1", (1, 1), 1024, 1536, {}),
    ("mid_dense_t1", (1, 1), 1024, 1024, {"residual": True}),
    ("mid_semantic_up", (1, 5), 512, 2048, {"bias": True, "activation": "gelu"}),
    ("mid_shared_gate_up", (1, 1), 1024, 2816, {"activation": "swiglu"}),
]:
    case("linear", _name, _linear, "mid", M=_m, K=_k, N=_n, **_options)
case("linear", "odd_sizes", _linear, "odd", "verify", M=(3,), K=67, N=45, bias=True, residual=True)
case("linear", "odd_swiglu", _linear, "odd", "verify", M=(5,), K=33, N=70, activation="swiglu", residual=True)
case("linear", "odd_silu", _linear, "odd", "verify", M=(2, 7), K=129, N=31, activation="silu")
case("linear", "wide_silu", _linear, M=(64,), K=64, N=96, activation="silu", bias=True)
case("linear", "many_rows", _linear, "verify", M=(150,), K=96, N=64, bias=True, activation="gelu_tanh")
case("linear", "one_by_one", _linear, "edge", "verify", M=(1,), K=1, N=1, bias=True)
case("linear", "vector", _linear, "edge", M=(), K=40, N=24)
case("linear", "no_rows", _linear, "edge", "verify", M=(0,), K=16, N=24, bias=True)
case("linear", "strided", _linear, "strided", "verify", M=(6,), K=48, N=40, layout=strided, residual=True)
case("linear", "transposed", _linear, "strided", M=(2, 9), K=48, N=40, layout=transposed)
case("linear", "float_input", _linear, "verify", M=(4,), K=80, N=72, bias=True, float_input=True)
case("linear", "float_input_gelu", _linear, M=(4,), K=80, N=72, activation="gelu", float_input=True)
for _format in ("int8", "int8_dyn", "fp8"):
    _f = {"format": _format, "bias": True, "residual": True}
    case("linear", f"{_format}_odd_sizes", _linear, "odd", "verify", M=(3,), K=67, N=45, **_f)
    _f2 = {**_f, "activation": "swiglu"}
    case("linear", f"{_format}_many_rows", _linear, "verify", M=(70,), K=96, N=64, **_f2)

case("pack_linear", "even", _pack_linear, K=64, N=96)
case("pack_linear", "odd_sizes", _pack_linear, "odd", K=67, N=45)
case("pack_linear", "one_by_one", _pack_linear, "edge", K=1, N=1)
case("pack_linear", "mid_qkv", _pack_linear, "mid", K=1024, N=1536)


def _grouped(
    d: Draw, sizes: tuple[int, ...], K: int, N: int, layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous
) -> dict[str, Any]:
    ends = torch.tensor((0, *sizes), device=d.device).cumsum(0).to(torch.int32)
    x = layout(d.normal(sum(sizes), K))
    return {"x": x, "w": d.matrix(len(sizes), N, K), "offsets": ends}


case("grouped_gemm", "even", _grouped, sizes=(8, 8, 8, 8), K=64, N=48)
case("grouped_gemm", "odd_sizes", _grouped, "odd", sizes=(3, 1, 7, 2, 5), K=37, N=29)
case("grouped_gemm", "empty_groups", _grouped, "edge", sizes=(0, 4, 0, 0, 9, 0), K=32, N=24)
case("grouped_gemm", "all_to_one", _grouped, "edge", sizes=(0, 0, 21, 0), K=32, N=24)
case("grouped_gemm", "one_row", _grouped, "edge", sizes=(0, 1, 0), K=16, N=8)
case("grouped_gemm", "one_group", _grouped, "edge", sizes=(70,), K=48, N=40)
case("grouped_gemm", "no_rows", _grouped, "edge", sizes=(0, 0), K=16, N=8)
case("grouped_gemm", "strided", _grouped, "strided", sizes=(5, 6), K=24, N=16, layout=strided)
case("grouped_gemm", "mid", _grouped, "mid", LARGE, sizes=(1, 2) * 32, K=1024, N=1408)


@cost_of("linear")
def _linear_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    x, (N, K) = kwargs["x"], kwargs["weight"].shape
    return Cost(bytes_of(kwargs) + written, 2 * x.numel() // max(K, 1) * N * K)


@cost_of("grouped_gemm")
def _grouped_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    x, w, offsets = kwargs["x"], kwargs["w"], kwargs["offsets"]
    groups = int((offsets[1:] > offsets[:-1]).sum())
    weights = groups * w[0].numel() * w.element_size()
    return Cost(x.nbytes + weights + offsets.nbytes + written, 2 * x.shape[0] * w[0].numel())


_ACT = {
    None: lambda y: y,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "swiglu": lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
}


@baselines_of("linear")
def _linear_baselines(kw: dict[str, Any]) -> Baselines:
    x, w, b = kw["x"], kw["weight"], kw.get("bias")
    act, residual = _ACT[kw.get("activation")], kw.get("residual")
    if isinstance(w, PackedLinear):
        if w.format == "int8_dyn":
            return  # PyTorch has no such product of one scale per row
        w = w.unpack().to(x.dtype)

    def finish(y: Tensor) -> Tensor:
        y = act(y)
        return y if residual is None else y + residual

    yield "F.linear", lambda: finish(F.linear(x, w, b))
    if x.is_cpu and takes_prepacked(w.dtype):
        rows = x.numel() // x.shape[-1]
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        product = torch.ops.mkldnn._linear_pointwise
        yield "oneDNN prepacked", lambda: finish(product(x, packed, b, "none", [], ""))


@baselines_of("grouped_gemm")
def _grouped_baselines(kw: dict[str, Any]) -> Baselines:
    x, w, offsets = kw["x"], kw["w"], kw["offsets"]
    bounds = offsets.tolist()

    def loop() -> Tensor:
        spans = zip(range(len(w)), bounds, bounds[1:])
        return torch.cat([F.linear(x[a:b], w[e]) for e, a, b in spans if b > a])

    yield "loop", loop
    if takes_grouped_mm(x, w):
        yield "F.grouped_mm", lambda: F.grouped_mm(x, w.transpose(1, 2), offs=offsets[1:])


def takes_prepacked(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this processor: bfloat16 needs AVX-512."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype not in supported or getattr(torch.ops.mkldnn, supported[dtype])()


def takes_grouped_mm(*tensors: Tensor) -> bool:
    """PyTorch's own grouped product wants rows of whole 16 bytes."""
    rows = (t.shape[-1] * t.element_size() for t in tensors)
    return hasattr(F, "grouped_mm") and all(row % 16 == 0 for row in rows)
