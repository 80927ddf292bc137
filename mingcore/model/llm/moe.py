"""A mixture of experts with shared experts and one router, or one each for text, image, audio."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...config.model_config import LLMConfig
from ...ops._core.packing import QUANTISED
from ..declared import Build, Declared, Reader, Stacked
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
    def declare(cls, w: Weights, config: LLMConfig) -> Declared[MoE]:
        E, H, I = config.num_experts, config.hidden_size, config.moe_intermediate_size
        gates = {
            name: w.linear(name, E, H, bias=False, role="router")
            for name in ("gate", *(("audio_gate", "image_gate") if config.multi_gate else ()))
        }
        return Build(
            cls,
            **gates,
            experts=declare_experts(w, E, H, I, config.num_shared_experts * I),
            top_k=config.top_k,
            renormalize=config.norm_topk_prob and config.top_k > 1,
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


class ExpertByExpert(Declared[ops.PackedExperts]):
    """Experts in a quantised format, packed while reading: only one is ever held unquantised.

    experts: gate_up [2I,H] and down [H,I] of each; shared: the same of the shared ones, or None.
    """

    def __init__(self, experts: list[tuple[Stacked, Stacked]], shared: tuple[Stacked, Stacked] | None, format: str):
        self.experts, self.shared, self.format = experts, shared, format

    def read(self, reader: Reader) -> ops.PackedExperts:
        (gate_up, down), *_ = self.experts
        dtype = reader.dtype("block", (*gate_up.keys, *down.keys))
        room = reader.empty(gate_up.shape, dtype), reader.empty(down.shape, dtype)
        packer = ops.ExpertPacker(len(self.experts), *down.shape, self.format, reader.device)
        for expert in self.experts:
            for part, dest in zip(expert, room):
                part.fill(reader, dest)
            packer.add(*room)
        return packer.finish(None if self.shared is None else tuple(part.read(reader) for part in self.shared))


def declare_experts(w: Weights, E: int, H: int, I: int, shared: int) -> Declared[ops.PackedExperts]:
    """All experts of a layer, and the shared one of width `shared` (0: none).

    Quantised formats are packed expert by expert, others where they were read.
    """
    x, s = w.sub("experts"), w.sub("shared_experts")
    _stores(x, (E,), H, I)
    quantised = w.formats.of("block") in QUANTISED
    experts = [declare_expert(x, e, E, H, I, stacked=not quantised) for e in range(E)]
    alone = None
    if shared:
        _stores(s, (), H, shared)
        alone = (
            s.rows(("gate_proj", "up_proj"), (shared, shared), H, "block"),
            s.rows(("down_proj",), (H,), shared, "block"),
        )
    if quantised:
        return ExpertByExpert(experts, alone, w.formats.of("block"))
    gate_up, down = (tuple(piece for part in side for piece in part.pieces) for side in zip(*experts))
    return Build(
        ops.pack_experts,
        Stacked((E, 2 * I, H), "block", gate_up),
        Stacked((E, H, I), "block", down),
        shared=alone,
        overwrite=True,
    )


def _stores(w: Weights, stack: tuple[int, ...], H: int, I: int) -> None:
    w.stores((*stack, 2 * I, H), "block", packed=True, activation="swiglu")
    w.stores((*stack, H, I), "block", packed=True)


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


def declare_expert(w: Weights, e: int, E: int, H: int, I: int, *, stacked: bool) -> tuple[Stacked, Stacked]:
    """Expert e of E, from any layout of a checkpoint: gate_up [2I,H] (gate first), down [H,I].

    stacked: its pieces have their places in a stack of all experts.
    """
    in_stack, names = expert_names(w, e)
    place, entry = ((e,) if stacked else ()), {"entry": e, "count": E} if in_stack else {}
    *first, last = names
    rows = 2 * I // len(first)
    gate_up = [
        w.piece(name, (rows, H), (*place, slice(i * rows, (i + 1) * rows)), **entry) for i, name in enumerate(first)
    ]
    down = w.piece(last, (H, I), place, **entry)
    return Stacked((2 * I, H), "block", tuple(gate_up)), Stacked((H, I), "block", (down,))
