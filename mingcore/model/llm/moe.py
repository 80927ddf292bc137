"""A mixture of experts with shared experts and one router, or one each for text, image, audio."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...config import LLMConfig
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
            name: w.linear(name, E, H, bias=False)
            for name in ("gate", *(("audio_gate", "image_gate") if config.multi_gate else ()))
        }
        gate_up, down = read_experts(w.sub("experts"), E, H, I)
        shared = None
        if config.num_shared_experts:
            width, s = config.num_shared_experts * I, w.sub("shared_experts")
            shared = (
                s.matrix(("gate_proj", "up_proj"), (width, width), H),
                s.matrix(("down_proj",), (H,), width),
            )
        return cls(
            experts=None
            if w.dry
            else ops.pack_experts(gate_up, down, shared=shared, overwrite=True),
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

    def __call__(
        self, x: Tensor, audio_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        """Masks are [B*T,1] bool."""
        B, T, H = x.shape
        flat = x.reshape(B * T, H)
        weights, ids = self.route(flat, audio_mask, image_mask)
        return ops.moe_mlp(flat, self.experts, weights, ids).view(B, T, H)


def read_experts(w: Weights, E: int, H: int, I: int) -> tuple[Tensor, Tensor]:
    """gate_up [E,2I,H] (gate rows first) and down [E,H,I], from any layout of a checkpoint.

    Separate: `experts.0.gate_proj.weight` [I,H], `.up_proj`, `.down_proj` [H,I], and so on.
    Stacked: `experts.gate_proj` [E,I,H], `experts.up_proj`, `experts.down_proj` [E,H,I].
    Fused: `experts.gate_up_proj` [E,2I,H], `experts.down_proj` [E,H,I].
    Stacked and fused names may end in `.weight`.
    """
    gate_up, down = w.new(E, 2 * I, H), w.new(E, H, I)

    def named(name: str) -> str | None:
        return next((n for n in (name, f"{name}.weight") if w.has(n)), None)

    if fused := named("gate_up_proj"):
        w.fill(fused, gate_up)
        w.fill(named("down_proj") or "down_proj", down)
    elif gate := named("gate_proj"):
        w.fill(gate, gate_up[:, :I])
        w.fill(named("up_proj") or "up_proj", gate_up[:, I:])
        w.fill(named("down_proj") or "down_proj", down)
    else:
        for e in range(E):
            w.fill(f"{e}.gate_proj.weight", gate_up[e, :I])
            w.fill(f"{e}.up_proj.weight", gate_up[e, I:])
            w.fill(f"{e}.down_proj.weight", down[e])
    return gate_up, down
