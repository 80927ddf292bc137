"""Cases of norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .._core.cases import Baselines, Draw, baselines_of, case
from .._core.layouts import strided


def _rms_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    return {"x": layout(d.normal(*M, H, scale=2.0)), "weight": d.near_one(H), "eps": 1e-6}


def _add_rms_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    return {**_rms_norm(d, M, H, layout), "residual": layout(d.normal(*M, H))}


def _layer_norm(d: Draw, M: tuple[int, ...], H: int, layout=torch.Tensor.contiguous) -> dict:
    x = layout(d.normal(*M, H, scale=2.0) + 0.5)
    return {"x": x, "weight": d.near_one(H), "bias": d.normal(H), "eps": 1e-5}


for _op, _build in (("rms_norm", _rms_norm), ("add_rms_norm", _add_rms_norm), ("layer_norm", _layer_norm)):
    case(_op, "real_llm", _build, "real", M=(1, 1), H=2048)
    case(_op, "real_flow", _build, "real", M=(2, 11), H=1024)
    case(_op, "real_semantic", _build, "real", M=(1, 5), H=1280)
    case(_op, "mid_llm", _build, "mid", M=(1, 1), H=1024)
    case(_op, "odd_sizes", _build, "odd", M=(3, 5), H=67)
    case(_op, "one_row", _build, "edge", M=(1,), H=16)
    case(_op, "no_rows", _build, "edge", M=(0,), H=16)
    case(_op, "strided", _build, "strided", M=(7,), H=48, layout=strided)
    case(_op, "long_rows", _build, M=(2,), H=9001)


@baselines_of("rms_norm")
def _rms_norm_baselines(kw: dict[str, Any]) -> Baselines:
    x, w, eps = kw["x"], kw["weight"], kw["eps"]
    yield "F.rms_norm", lambda: F.rms_norm(x, w.shape, w, eps)


@baselines_of("add_rms_norm")
def _add_rms_norm_baselines(kw: dict[str, Any]) -> Baselines:
    x, r, w, eps = kw["x"], kw["residual"], kw["weight"], kw["eps"]
    yield "add, F.rms_norm", lambda: F.rms_norm(x + r, w.shape, w, eps)


@baselines_of("layer_norm")
def _layer_norm_baselines(kw: dict[str, Any]) -> Baselines:
    x, w, b, eps = kw["x"], kw["weight"], kw["bias"], kw["eps"]
    yield "F.layer_norm", lambda: F.layer_norm(x, w.shape, w, b, eps)
