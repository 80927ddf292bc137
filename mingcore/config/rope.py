"""How positions become angles: `rope_theta`, `rope_scaling` and `rope_parameters` of `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
            f"llm_config: the type of RoPE must be one of {', '.join(ROPE_KINDS)}, got {self.kind!r}",
        )
        require(self.factor >= 1.0, f"llm_config: the factor of RoPE must be at least 1, got {self.factor}")
        if self.kind == "3d":
            require(
                sum(self.sections) == self.head_dim // 2 and len(self.sections) == 3,
                f"llm_config: 3D RoPE has sections {list(self.sections)} and needs head_dim "
                f"{2 * sum(self.sections)}, got {self.head_dim}",
            )

    @classmethod
    def from_json(cls, s: Section, head_dim: int) -> RopeConfig:
        """From the section that holds `rope_theta` and `rope_scaling`, or `rope_parameters`."""
        theta, r = rope_entries(s)
        max_positions = s.get("max_position_embeddings", int, 0)
        if r is None:
            return cls(theta, head_dim, original_max_positions=max_positions or 1)
        kind = rope_kind(r)
        if kind in ("linear", "dynamic", "yarn"):
            factor = r.get("factor", float)
        else:
            factor = r.get("factor", float, 1.0)
            require(factor == 1.0, f"{r.name}.factor has no meaning for type {kind!r}, got {factor}")
        original = r.get("original_max_position_embeddings", int, 0) or max_positions
        if kind in ("dynamic", "yarn"):
            require(
                original > 0,
                f"{r.name}.original_max_position_embeddings is required for type {kind!r} and missing, "
                f"as is {s.name}.max_position_embeddings",
            )
        rope = cls(
            theta=theta,
            head_dim=head_dim,
            kind=kind,
            factor=factor,
            original_max_positions=original or 1,
            beta_fast=r.get("beta_fast", float, 32.0),
            beta_slow=r.get("beta_slow", float, 1.0),
            attention_factor=r.get("attention_factor", float, None),
            mscale=r.get("mscale", float, None),
            mscale_all_dim=r.get("mscale_all_dim", float, None),
            sections=tuple(r.get("mrope_section", list, list(MROPE_SECTIONS))),
        )
        require_known(r)
        return rope


def rope_entries(s: Section, default_theta: float | None = None) -> tuple[float, Section | None]:
    """theta, and what else says how angles are made (None: nothing does).

    `rope_parameters`, which transformers writes from version 5 on, holds theta and scaling; before,
    they were `rope_theta` and `rope_scaling`. Where a config has both they must agree.
    default_theta: where it states none. Raises CheckpointError.
    """
    old_theta, old = s.get("rope_theta", float, None), s.get("rope_scaling", Mapping, None)
    new = _of_one_kind(s, s.get("rope_parameters", Mapping, None))
    if new is None:
        theta = old_theta if old_theta is not None else default_theta
        if theta is None:
            theta = s.get("rope_theta", float)  # which raises
        section = Section(f"{s.name}.rope_scaling", old) if old else None
        if section is not None:
            stated = section.get("rope_theta", float, theta)
            require(stated == theta, f"{section.name}.rope_theta ({stated}) must equal {s.name}.rope_theta ({theta})")
        return theta, section
    section = Section(f"{s.name}.rope_parameters", new)
    theta = section.get("rope_theta", float, old_theta if old_theta is not None else default_theta)
    if theta is None:
        theta = section.get("rope_theta", float)
    if old_theta is not None:
        require(old_theta == theta, f"{s.name}.rope_theta ({old_theta}) must equal {section.name}.rope_theta ({theta})")
    if old:
        same = _without_theta(old) == _without_theta(new)
        require(same, f"{s.name}.rope_scaling {dict(old)!r} must agree with {section.name} {dict(new)!r}")
    return theta, section if _without_theta(new) else None


def rope_kind(r: Section) -> str:
    """The type, in lower case; "default" where none is stated and nothing is scaled."""
    old, new = r.get("type", str, None), r.get("rope_type", str, None)
    if old is not None and new is not None:
        require(old.lower() == new.lower(), f"{r.name}.type ({old!r}) must equal rope_type ({new!r})")
    kind = old if old is not None else new
    if kind is None:
        kind = r.get("rope_type", str)  # which raises
    return kind.lower()


# keys whose other values would change the angles in ways that are not built here
_FIXED = {"partial_rotary_factor": 1.0, "truncate": True, "mrope_interleaved": False}


def require_known(r: Section) -> None:
    """Raises CheckpointError for an entry that nobody read: it would change the angles unnoticed."""
    for key, value in _FIXED.items():
        got = r.get(key, type(value), value)
        require(got == value, f"{r.name}.{key} must be {value}, got {got}")
    unknown = sorted(key for key, value in r.values.items() if key not in r.seen and value is not None)
    require(not unknown, f"{r.name} has entries that are not known: {', '.join(unknown)}")


def _of_one_kind(s: Section, values: Mapping | None) -> Mapping | None:
    """`rope_parameters`, where they are given by type of layer those of the only one."""
    if not values or not all(isinstance(value, Mapping) for value in values.values()):
        return values or None
    first, *others = values.values()
    require(
        all(other == first for other in others),
        f"{s.name}.rope_parameters differ between {', '.join(values)}; one RoPE for all layers is built here",
    )
    return first


def _without_theta(values: Mapping) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in ("rope_theta", "type", "rope_type")}
    kind = values.get("rope_type", values.get("type"))
    kept["type"] = kind.lower() if isinstance(kind, str) else kind
    return {key: value for key, value in kept.items() if value is not None and (key, value) != ("type", "default")}
