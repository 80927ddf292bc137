"""A mixture of experts with shared experts and one router, or one each for text, image, audio."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...config.model_config import LLMConfig
from ..layers import Linear
from ..weights import Weights


class MoE:
    """x [B,T,H] -> routed sum + shared experts [B,T,H] (docs/model.md section 2).

    With several routers a per-token mask picks one: audio and image tokens have their own, and a
    token in both masks is an audio token.
    """

    __slots__ = ("audio_gate", "experts", "gate", "image_gate", "renormalize", "top_k")

    def __init__(
        self,
        gate: Linear,
        experts: ops.PackedExperts,
        *,
        top_k: int,
        renormalize: bool,
        audio_gate: Linear | None = None,
        image_gate: Linear | None = None,
    ):
        self.gate, self.audio_gate, self.image_gate = gate, audio_gate, image_gate
        self.experts, self.top_k, self.renormalize = experts, top_k, renormalize

    @classmethod
    def from_weights(cls, w: Weights, config: LLMConfig) -> MoE:
        E, H, I = config.num_experts, config.hidden_size, config.moe_intermediate_size
        gates = {
            name: w.linear(name, E, H, bias=False, dtype=w.formats.router_dtype)
            for name in ("gate", *(("audio_gate", "image_gate") if config.multi_gate else ()))
        }
        return cls(
            experts=read_experts(w, E, H, I, config.num_shared_experts * I),
            top_k=config.top_k,
            renormalize=config.norm_topk_prob and config.top_k > 1,
            **gates,
        )

    def logits(self, x: Tensor, audio_mask: Tensor | None, image_mask: Tensor | None) -> Tensor:
        """x [T,H], masks [T,1] bool -> [T,E] in the dtype of x."""
        logits = self.gate(x)
        if image_mask is not None and self.image_gate is not None:
            logits = self.image_gate(x).where(image_mask, logits)
        if audio_mask is not None and self.audio_gate is not None:
            logits = self.audio_gate(x).where(audio_mask, logits)
        return logits

    def route(
        self, x: Tensor, audio_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [T,H] -> weights [T,K] float32, expert ids [T,K] int32."""
        logits = self.logits(x, audio_mask, image_mask)
        return ops.route_topk(logits, self.top_k, renormalize=self.renormalize)

    def __call__(self, x: Tensor, audio_mask: Tensor | None = None, image_mask: Tensor | None = None) -> Tensor:
        """Masks are [B*T,1] bool."""
        B, T, H = x.shape
        flat = x.reshape(B * T, H)
        weights, ids = self.route(flat, audio_mask, image_mask)
        return ops.moe_mlp(flat, self.experts, weights, ids).view(B, T, H)


def read_experts(w: Weights, E: int, H: int, I: int, shared: int) -> ops.PackedExperts | None:
    """All experts of a layer, and the shared one of width `shared` (0: none); None when dry.

    Quantised formats are packed expert by expert, others where they were read.
    """
    format = w.formats.weights
    for shape, activation in (((E, 2 * I, H), "swiglu"), ((E, H, I), None)):
        w.sub("experts").keeps_packed(shape, format, activation=activation)
    if shared:
        for shape, activation in (((2 * shared, H), "swiglu"), ((H, shared), None)):
            w.sub("shared_experts").keeps_packed(shape, format, activation=activation)
    if w.formats.quantised:
        return _quantised_experts(w, E, H, I, shared)
    gate_up, down = w.staged(E, 2 * I, H), w.staged(E, H, I)
    for e in range(E):
        fill_expert(w.sub("experts"), e, E, gate_up[e], down[e])
    pair = None
    if shared:
        s = w.sub("shared_experts")
        pair = w.staged(2 * shared, H), w.staged(H, shared)
        for name, part in zip(("gate_proj", "up_proj", "down_proj"), (*pair[0].chunk(2), pair[1])):
            s.fill(f"{name}.weight", part)
    if w.dry:
        return None
    return ops.pack_experts(gate_up, down, shared=pair, overwrite=True)


def _quantised_experts(w: Weights, E: int, H: int, I: int, shared: int) -> ops.PackedExperts | None:
    x, s = w.sub("experts"), w.sub("shared_experts")
    dtype = x.stored_dtype(*expert_names(x, 0)[1])
    gate_up, down = w.staged(2 * I, H, dtype=dtype), w.staged(H, I, dtype=dtype)
    packer = None if w.dry else ops.ExpertPacker(E, H, I, w.formats.weights, w.device)
    for e in range(E):
        fill_expert(x, e, E, gate_up, down)
        x.finite(*expert_names(x, e)[1], format=w.formats.weights)
        if packer is not None:
            packer.add(gate_up, down)
    pair = None
    if shared:
        pair = (
            s.to_quantise(("gate_proj", "up_proj"), (shared, shared), H),
            s.to_quantise(("down_proj",), (H,), shared),
        )
    return None if packer is None else packer.finish(pair)


def expert_names(w: Weights, e: int) -> tuple[bool, tuple[str, ...]]:
    """Whether a checkpoint stacks its experts, and the names that hold expert e.

    Separate: `experts.0.gate_proj.weight` [I,H], `.up_proj`, `.down_proj` [H,I], and so on.
    Stacked: `experts.gate_proj` [E,I,H], `experts.up_proj`, `experts.down_proj` [E,H,I].
    Fused: `experts.gate_up_proj` [E,2I,H], `experts.down_proj` [E,H,I].
    Stacked and fused names may end in `.weight`.
    """

    def named(name: str) -> str | None:
        return next((n for n in (name, f"{name}.weight") if w.has(n)), None)

    down = named("down_proj") or "down_proj"
    if fused := named("gate_up_proj"):
        return True, (fused, down)
    if gate := named("gate_proj"):
        return True, (gate, named("up_proj") or "up_proj", down)
    return False, tuple(f"{e}.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj"))


def fill_expert(w: Weights, e: int, E: int, gate_up: Tensor, down: Tensor) -> None:
    """Expert e of E, from any layout of a checkpoint: gate_up [2I,H] (gate first), down [H,I]."""
    stacked, names = expert_names(w, e)
    parts = (gate_up, down) if len(names) == 2 else (*gate_up.chunk(2), down)
    for name, part in zip(names, parts):
        if stacked:
            w.fill(name, part, index=e, count=E)
        else:
            w.fill(name, part)
