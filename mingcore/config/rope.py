"""How positions become angles: `rope_scaling` of `config.json`, as a validated dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .sections import Section, positive, require

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "3d")
MROPE_SECTIONS = (16, 24, 24)


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles. `kind` is one of `ROPE_KINDS` ("3d": three position streams).

    `factor`, `original_max_positions`, `beta_fast`, `beta_slow` and `attention_factor` (scales cos
    and sin) have the meanings of LLaMA's rope_scaling.
    """

    theta: float
    head_dim: int
    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    sections: tuple[int, ...] = MROPE_SECTIONS

    def __post_init__(self) -> None:
        positive("rope", self, "theta", "head_dim", "original_max_positions")
        require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {self.head_dim}")
        require(
            self.kind in ROPE_KINDS,
            f"llm_config.rope_scaling.type must be one of {', '.join(ROPE_KINDS)}, got {self.kind!r}",
        )
        require(self.factor >= 1.0, f"llm_config.rope_scaling.factor must be at least 1, got {self.factor}")
        if self.kind == "3d":
            require(
                sum(self.sections) == self.head_dim // 2 and len(self.sections) == 3,
                f"llm_config.rope_scaling 3D has sections {list(self.sections)} and needs head_dim "
                f"{2 * sum(self.sections)}, got {self.head_dim}",
            )

    @classmethod
    def from_json(cls, values: Mapping | None, theta: float, head_dim: int, max_positions: int) -> RopeConfig:
        if not values:
            return cls(theta, head_dim, original_max_positions=max_positions)
        s = Section("llm_config.rope_scaling", values)
        kind = s.get("type", str, None) or s.get("rope_type", str)
        kind = kind.lower()
        sections = s.get("mrope_section", list, list(MROPE_SECTIONS))
        if kind in ("linear", "dynamic", "yarn"):
            factor = s.get("factor", float)
        else:
            factor = s.get("factor", float, 1.0)
            require(factor == 1.0, f"llm_config.rope_scaling.factor has no meaning for type {kind!r}, got {factor}")
        rope = cls(
            theta=theta,
            head_dim=head_dim,
            kind=kind,
            factor=factor,
            original_max_positions=s.get("original_max_position_embeddings", int, max_positions),
            beta_fast=s.get("beta_fast", float, 32.0),
            beta_slow=s.get("beta_slow", float, 1.0),
            attention_factor=s.get("attention_factor", float, None),
            mscale=s.get("mscale", float, None),
            mscale_all_dim=s.get("mscale_all_dim", float, None),
            sections=tuple(sections),
        )
        s.done()
        return rope
