"""Named inputs for every op: the real model's shapes, the middle size, and the awkward ones.

`for_op("linear")` lists the cases of an op; `case.make(device, dtype, seed)` draws its keyword
arguments for the public function of the same name in `mingcore.ops`. Inputs are random, never
zeros. Sizes follow the glossary: T tokens, K experts per token (or inner size), E experts,
H hidden, I expert width, B batch, P frames per patch, S slots or frames, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layouts import strided, transposed
from .synthetic import model_config, random_state_dict, write_checkpoint

__all__ = [
    "Case",
    "Draw",
    "for_op",
    "model_config",
    "ops_with_cases",
    "random_state_dict",
    "write_checkpoint",
]

LARGE = "large"  # more than about 64 MB: for benches and machines with room


class Draw:
    """Random tensors of one device, dtype and seed."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int):
        self.device, self.dtype = torch.device(device), dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Gaussian values in `dtype`, or in the dtype of the draw."""
        dtype = dtype or self.dtype
        x = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype)
        return x.mul_(scale)

    def matrix(self, *shape: int) -> Tensor:
        """A weight whose products keep the size of their input."""
        return self.normal(*shape, scale=shape[-1] ** -0.5)

    def near_one(self, n: int) -> Tensor:
        """The weight of a norm."""
        return (1 + self.normal(n, scale=0.2, dtype=torch.float32)).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Float32 values in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def angles(self, B: int, T: int, half: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, half] float32 of random angles."""
        turn = 2 * math.pi * self.uniform(B, T, half)
        return turn.cos(), turn.sin()

    def choices(self, T: int, K: int, E: int) -> Tensor:
        """K different experts of E for each of T tokens, int32."""
        return self.uniform(T, E).argsort(dim=1)[:, :K].to(torch.int32)

    def weights(self, T: int, K: int) -> Tensor:
        """Positive routing weights [T, K] float32 that sum to one."""
        w = 0.1 + self.uniform(T, K)
        return w / w.sum(1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """One named input of one op."""

    op: str
    name: str
    build: Callable[..., dict[str, Any]] = field(repr=False)
    dims: dict[str, Any]
    tags: frozenset[str]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def make(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Fresh keyword arguments for `getattr(mingcore.ops, op)`, by name."""
        return self.build(Draw(device, dtype, seed), **self.dims)


_CASES: dict[str, list[Case]] = {}


def case(op: str, name: str, build: Callable[..., dict], *tags: str, **dims: Any) -> None:
    """Add a case; `name` is unique within the op."""
    cases = _CASES.setdefault(op, [])
    if any(c.name == name for c in cases):
        raise ValueError(f"case: {op} has a case named {name!r} already")
    cases.append(Case(op, name, build, dims, frozenset(tags)))


def ops_with_cases() -> list[str]:
    """Every op that has cases."""
    _load()
    return sorted(_CASES)


def for_op(op: str, *, tag: str | None = None, large: bool = False) -> list[Case]:
    """The cases of an op, without those of more than about 64 MB unless `large`.

    `tag` keeps those with one tag: "real" (the released model's shapes), "mid" (the middle size),
    "odd", "strided", "edge"; "verify": the ones that prove a GPU kernel, of ops where not all do.
    Raises ValueError for an op without cases.
    """
    _load()
    if op not in _CASES:
        raise ValueError(f"for_op: op must be one of {sorted(_CASES)}, got {op!r}")
    return [
        c for c in _CASES[op] if (large or LARGE not in c.tags) and (tag is None or tag in c.tags)
    ]


def _load() -> None:
    from . import (  # noqa: F401  they register on import
        cases_attention,
        cases_audio,
        cases_conv,
        cases_flow,
        cases_moe,
    )


# linear and the small fused ones


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
        from mingcore import ops

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
_V = "verify"
case("linear", "odd_sizes", _linear, "odd", _V, M=(3,), K=67, N=45, bias=True, residual=True)
case("linear", "odd_swiglu", _linear, "odd", _V, M=(5,), K=33, N=70, activation="swiglu",
     residual=True)  # fmt: skip
case("linear", "odd_silu", _linear, "odd", _V, M=(2, 7), K=129, N=31, activation="silu")
case("linear", "wide_silu", _linear, M=(64,), K=64, N=96, activation="silu", bias=True)
case("linear", "many_rows", _linear, _V, M=(150,), K=96, N=64, bias=True, activation="gelu_tanh")
case("linear", "one_by_one", _linear, "edge", _V, M=(1,), K=1, N=1, bias=True)
case("linear", "vector", _linear, "edge", M=(), K=40, N=24)
case("linear", "no_rows", _linear, "edge", _V, M=(0,), K=16, N=24, bias=True)
case("linear", "strided", _linear, "strided", _V, M=(6,), K=48, N=40, layout=strided, residual=True)
case("linear", "transposed", _linear, "strided", M=(2, 9), K=48, N=40, layout=transposed)
case("linear", "float_input", _linear, _V, M=(4,), K=80, N=72, bias=True, float_input=True)
case("linear", "float_input_gelu", _linear, M=(4,), K=80, N=72, activation="gelu", float_input=True)
for _format in ("int8", "int8_dyn", "fp8"):
    _f = {"format": _format, "bias": True, "residual": True}
    case("linear", f"{_format}_odd_sizes", _linear, "odd", _V, M=(3,), K=67, N=45, **_f)
    case("linear", f"{_format}_many_rows", _linear, _V, M=(70,), K=96, N=64, activation="swiglu",
         **_f)  # fmt: skip

case("pack_linear", "even", _pack_linear, K=64, N=96)
case("pack_linear", "odd_sizes", _pack_linear, "odd", K=67, N=45)
case("pack_linear", "one_by_one", _pack_linear, "edge", K=1, N=1)
case("pack_linear", "mid_qkv", _pack_linear, "mid", K=1024, N=1536)


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


def _rms_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    return {"x": layout(d.normal(*M, H, scale=2.0)), "weight": d.near_one(H), "eps": 1e-6}


def _add_rms_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    return {**_rms_norm(d, M, H, layout), "residual": layout(d.normal(*M, H))}


def _layer_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    x = layout(d.normal(*M, H, scale=2.0) + 0.5)
    return {"x": x, "weight": d.near_one(H), "bias": d.normal(H), "eps": 1e-5}


for _op, _build in (
    ("rms_norm", _rms_norm), ("add_rms_norm", _add_rms_norm), ("layer_norm", _layer_norm),
):  # fmt: skip
    case(_op, "real_llm", _build, "real", M=(1, 1), H=2048)
    case(_op, "real_flow", _build, "real", M=(2, 11), H=1024)
    case(_op, "real_semantic", _build, "real", M=(1, 5), H=1280)
    case(_op, "mid_llm", _build, "mid", M=(1, 1), H=1024)
    case(_op, "odd_sizes", _build, "odd", M=(3, 5), H=67)
    case(_op, "one_row", _build, "edge", M=(1,), H=16)
    case(_op, "no_rows", _build, "edge", M=(0,), H=16)
    case(_op, "strided", _build, "strided", M=(7,), H=48, layout=strided)
    case(_op, "long_rows", _build, M=(2,), H=9001)


def _flow_step(
    d: Draw,
    B: int,
    P: int,
    C: int,
    guided: bool = True,
    noisy: bool = True,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
) -> dict[str, Any]:
    args: dict[str, Any] = {
        "x": layout(d.normal(B, P, C, dtype=torch.float32)),
        "v_cond": layout(d.normal(B, P, C)),
        "v_null": layout(d.normal(B, P, C)) if guided else None,
        "dt": 0.137,
        "guidance": 1.5 + d.uniform(B),
    }
    if noisy:
        args["noise"] = layout(d.normal(B, P, C, dtype=torch.float32))
        args["noise_scale"] = 0.1 + d.uniform(B)
    return args


for _op in ("flow_step", "flow_step_"):
    case(_op, "real_b1", _flow_step, "real", "mid", B=1, P=5, C=64)
    case(_op, "real_b64", _flow_step, "real", B=64, P=5, C=64)
    case(_op, "no_noise", _flow_step, B=2, P=5, C=64, noisy=False)
    case(_op, "unguided", _flow_step, B=2, P=5, C=64, guided=False)
    case(_op, "odd_sizes", _flow_step, "odd", B=3, P=7, C=13)
    case(_op, "one", _flow_step, "edge", B=1, P=1, C=1)
    case(_op, "strided", _flow_step, "strided", B=2, P=4, C=24, layout=strided)
