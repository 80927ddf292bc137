"""What a request may set, validated by name before anything expensive starts."""

import math
import operator
import secrets
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..ops.flow.schedule import FlowSchedule
from .noise import MAX_SEED, ORDERS

# steps counted from 0 end after 16 in speech, from 1 in editing (docs/model.md section 5)
MIN_TTS_PATCHES, MIN_EDIT_PATCHES = 18, 17
MAX_STEPS = 1000


def number(name: str, value: Any, minimum: float, maximum: float = math.inf) -> float:
    """`value` as a float in [minimum, maximum]; InputError naming `name` for anything else."""
    wanted = f"a number from {minimum:g}" + (f" to {maximum:g}" if math.isfinite(maximum) else " on")
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise InputError(f"{name}: must be {wanted}, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and minimum <= number <= maximum):
        raise InputError(f"{name}: must be {wanted}, got {value!r}")
    return number


def whole(name: str, value: Any, minimum: int, maximum: int) -> int:
    """`value` as an int in [minimum, maximum]; InputError naming `name` for anything else."""
    wanted = f"a whole number from {minimum} to {maximum}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: must be {wanted}, got {value!r}") from None
    if not minimum <= number <= maximum:
        raise InputError(f"{name}: must be {wanted}, got {value!r}")
    return number


def draw_seed(seed: int | None) -> int:
    """`seed` checked, or a drawn one of 32 bits, short enough to be typed again."""
    return secrets.randbits(32) if seed is None else whole("seed", seed, 0, MAX_SEED)


@dataclass(frozen=True)
class FlowParams:
    """The sampler's settings: Euler `steps`, `guidance` ≥ 0, noise `temperature` and `sigma`.

    `noise`: the order of its draws, "reference" or "per_request" (noise.py).
    """

    steps: int = 10
    guidance: float = 2.0
    temperature: float = 1.5
    sigma: float = 0.25
    noise: str = "reference"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "steps", whole("steps", self.steps, 1, MAX_STEPS))
        for name in ("guidance", "temperature", "sigma"):
            set_field(self, name, number(name, getattr(self, name), 0, 1000))
        if self.noise not in ORDERS:
            raise InputError(f"noise: must be one of {', '.join(ORDERS)}, got {self.noise!r}")

    @property
    def schedule(self) -> FlowSchedule:
        """Time grid, step sizes and noise scales."""
        return FlowSchedule.make(self.steps, sigma=self.sigma, temperature=self.temperature)


@dataclass(frozen=True)
class ContextParams:
    """The semantic module's KV cache in long sound; by default as the reference has it.

    keep: it goes on from segment to segment, instead of starting anew at the voice. seconds: a window over the newest
    so many, the voice among them at first; None: all. format: "int8" quantises the cache; None: as it is.
    docs/model.md section 7.
    """

    keep: bool = False
    seconds: float | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        if not isinstance(self.keep, bool):
            raise InputError(f"keep_context: must be True or False, got {self.keep!r}")
        if self.seconds is not None:
            set_field(self, "seconds", number("context_seconds", self.seconds, 0.1, 36000))
        if self.format not in (None, "int8"):
            raise InputError(f"context_format: must be None or 'int8', got {self.format!r}")

    def kinds(self, config: Any) -> dict[str, Any]:
        """The arguments of `AudioVAE.new_semantic_state`."""
        window = None
        if self.seconds is not None:
            window = max(1, round(self.seconds * config.sample_rate / config.hop_samples))
        return {"window": window, "format": self.format}

    def state(self, model: Any, frames: int) -> Any:
        """An empty semantic state of one row with room for `frames`; it grows."""
        return model.vae.new_semantic_state(1, frames, **self.kinds(model.config))


AS_REFERENCE = ContextParams()


@dataclass(frozen=True)
class PatchLimits:
    """How many patches there may be: the stop head counts from `min_patches` on, and `max_patches` ends them anyway.

    `expected` sizes the caches at the start; they grow when it proves too small.
    """

    min_patches: int
    max_patches: int
    expected: int = 64

    @classmethod
    def from_seconds(
        cls,
        min_seconds: float | None,
        max_seconds: float,
        patch_seconds: float,
        *,
        min_patches: int,
        expected_seconds: float = 6.4,
    ) -> "PatchLimits":
        """Limits in seconds of audio as patches; `min_patches` holds where `min_seconds` is None."""
        max_patches = max(1, math.floor(max_seconds / patch_seconds + 1e-6))
        if min_seconds is not None:
            min_patches = max(1, math.ceil(min_seconds / patch_seconds - 1e-6))
        expected = max(1, math.ceil(expected_seconds / patch_seconds))
        return cls(min_patches, max_patches, min(expected, max_patches))


def seconds_range(min_seconds: Any, max_seconds: Any) -> tuple[float | None, float | None]:
    """Both limits checked, either of them None when not given."""
    low = None if min_seconds is None else number("min_seconds", min_seconds, 0, 36000)
    high = None if max_seconds is None else number("max_seconds", max_seconds, 0, 36000)
    if high == 0:
        raise InputError("max_seconds: must be more than 0, got 0")
    if low is not None and high is not None and low > high:
        raise InputError(f"min_seconds: must not exceed max_seconds, got {low:g} and {high:g}")
    return low, high


@dataclass(frozen=True)
class TextParams:
    """How text is decoded: at most `max_new_tokens`, the likeliest at `temperature` 0."""

    max_new_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "max_new_tokens", whole("max_new_tokens", self.max_new_tokens, 1, 1_000_000))
        set_field(self, "temperature", number("temperature", self.temperature, 0, 1000))
