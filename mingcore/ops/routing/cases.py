"""Cases of routing, grouped products and the expert MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._core.cases import Baselines, Draw, baselines_of, case


def expert_ids(d: Draw, T: int, K: int, E: int, only: int | None) -> Tensor:
    """Expert ids; `only` limits the choice to so many experts, so that the others stay empty."""
    if only is None:
        return d.choices(T, K, E)
    return d.choices(1, only, E)[0][d.choices(T, K, only).long()]


def _logits(d: Draw, T: int, E: int, K: int, ties: bool = False, renormalize: bool = True) -> dict[str, Any]:
    logits = d.normal(T, E, scale=2.0)
    if ties:
        logits = logits.round()
    return {"logits": logits, "top_k": K, "renormalize": renormalize}


case("route_topk", "real_t1", _logits, "real", "mid", T=1, E=64, K=6)
case("route_topk", "real_t128", _logits, "real", T=128, E=64, K=6)
case("route_topk", "ties", _logits, T=40, E=16, K=5, ties=True)
case("route_topk", "not_renormalized", _logits, T=9, E=8, K=2, renormalize=False)
case("route_topk", "odd_sizes", _logits, "odd", T=7, E=13, K=3)
case("route_topk", "all_experts", _logits, "edge", T=3, E=4, K=4)
case("route_topk", "one_expert", _logits, "edge", T=2, E=1, K=1)
case("route_topk", "no_tokens", _logits, "edge", T=0, E=8, K=2)


def _sort(d: Draw, T: int, K: int, E: int, only: int | None = None) -> dict[str, Any]:
    return {"ids": expert_ids(d, T, K, E, only), "num_experts": E}


case("sort_by_expert", "real_t1", _sort, "real", "mid", T=1, K=6, E=64)
case("sort_by_expert", "real_t4096", _sort, "real", T=4096, K=6, E=64)
case("sort_by_expert", "odd_sizes", _sort, "odd", T=17, K=3, E=13)
case("sort_by_expert", "all_to_one", _sort, "edge", T=33, K=1, E=5, only=1)
case("sort_by_expert", "empty_groups", _sort, "edge", T=9, K=2, E=40, only=3)
case("sort_by_expert", "one_expert", _sort, "edge", T=4, K=1, E=1)
case("sort_by_expert", "no_tokens", _sort, "edge", T=0, K=2, E=4)


@baselines_of("route_topk")
def _route_topk_baselines(kw: dict[str, Any]) -> Baselines:
    logits, K, renormalize = kw["logits"], kw["top_k"], kw.get("renormalize", True)

    def plain() -> tuple[Tensor, Tensor]:
        weights, ids = logits.float().softmax(-1).topk(K)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, ids.int()

    yield "softmax, topk", plain
