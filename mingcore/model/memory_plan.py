"""Memory plan: what a model and its requests will take, before a byte of its weights is read.

Weights and caches are not estimated: the weights are what a `LoadPlan` says will stay in memory, the
caches are made on the meta device by the code that makes them for a request. Workspaces are: the
largest tensors that are alive at once in a prompt, in the encoder and in a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..config.model_config import MingConfig
from ..errors import NotEnoughMemory
from .formats import Formats, resolve
from .llm.model import llm_state
from .load_plan import LoadPlan
from .memory import Memory, device_memory
from .ming import declare_parts
from .parts import PARTS, part_of
from .sources import Source
from .vae.decoder import decoder_state
from .vae.model import BLOCK, STREAM_BLOCK
from .vae.semantic import semantic_state
from .weights import plan_load

PROMPT_TOKENS = 512  # of text, instruction and placeholders, that a request is planned with
SMALLER = {"cpu": ("bf16", "int8"), "cuda": ("bf16", "fp8", "int8")}  # what may fit instead
RESERVE = 64 << 20  # blocks of files, the matrix in hand, tables


@dataclass(frozen=True)
class PartSize:
    """Bytes of one part's weights in one format."""

    part: str
    format: str
    bytes: int


@dataclass(frozen=True)
class Requests:
    """Bytes of `batch` requests at once, each of so many minutes of sound, its voice included."""

    batch: int
    minutes: float
    llm_cache: int
    semantic_cache: int
    vae_states: int
    workspace: int

    @property
    def bytes(self) -> int:
        return self.llm_cache + self.semantic_cache + self.vae_states + self.workspace


@dataclass(frozen=True)
class MemoryPlan:
    """`weights` by part and format; `requests`: what comes on top, for each load asked about.

    memory: what the device has, None where that is not known (a GPU that is not here).
    """

    formats: Formats
    device: torch.device
    weights: tuple[PartSize, ...]
    requests: tuple[Requests, ...]
    memory: Memory | None

    @property
    def weights_bytes(self) -> int:
        return sum(part.bytes for part in self.weights)

    def total(self, requests: Requests) -> int:
        return self.weights_bytes + requests.bytes + RESERVE

    def fits(self, requests: Requests) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.memory is None else self.total(requests) <= self.memory.available

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; sizes in bytes."""
        memory = self.memory
        return {
            "device": str(self.device),
            "weights_format": self.formats.weights,
            "weights": [asdict(part) for part in self.weights],
            "weights_bytes": self.weights_bytes,
            "reserve_bytes": RESERVE,
            "available_bytes": None if memory is None else memory.available,
            "device_bytes": None if memory is None else memory.total,
            "requests": [asdict(r) | {"total_bytes": self.total(r), "fits": self.fits(r)} for r in self.requests],
        }


def make(
    source: Source,
    config: MingConfig,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    batches: Sequence[int] = (1,),
    minutes: Sequence[float] = (1.0,),
    context: Mapping[str, Any] | None = None,
) -> MemoryPlan:
    """The plan of a checkpoint by its headers; dtype and weights as in `load`.

    context: keywords of `AudioVAE.new_semantic_state`, for caches that depart from the reference.
    Raises CheckpointError where the tensors do not fit the config.
    """
    formats = resolve(weights, dtype, device)
    plan = plan_load(source, lambda w: declare_parts(w, config), device=device, formats=formats)
    plan.require_complete()
    return of_load(plan, config, batches=batches, minutes=minutes, context=context)


def of_load(
    plan: LoadPlan,
    config: MingConfig,
    formats: Formats | None = None,
    *,
    batches: Sequence[int] = (1,),
    minutes: Sequence[float] = (1.0,),
    context: Mapping[str, Any] | None = None,
) -> MemoryPlan:
    """`make` from a `LoadPlan`; formats: instead of the plan's own."""
    formats = formats or plan.formats
    sizes: Counter[tuple[str, str]] = Counter()
    for (name, format), nbytes in plan.sizes(formats).items():
        sizes[part_of(name), format] += nbytes
    order = {part: i for i, part in enumerate(PARTS)}
    parts = sorted(sizes.items(), key=lambda item: (order.get(item[0][0], len(order)), -item[1]))
    dtype = formats.activation_dtype
    return MemoryPlan(
        formats,
        plan.device,
        tuple(PartSize(part, format, nbytes) for (part, format), nbytes in parts),
        tuple(_requests(config, dtype, b, m, context or {}) for b in batches for m in minutes),
        device_memory(plan.device),
    )


def _requests(
    config: MingConfig, dtype: torch.dtype, batch: int, minutes: float, context: Mapping[str, Any]
) -> Requests:
    frames = max(1, round(60 * minutes * config.sample_rate / config.hop_samples))
    tokens = -(-frames // config.patch_frames) + PROMPT_TOKENS
    kinds = {"dtype": dtype, "device": torch.device("meta")}
    block = min(frames, BLOCK)
    return Requests(
        batch,
        minutes,
        llm_state(config.llm, batch, tokens, **kinds).nbytes,
        semantic_state(config.audio, batch, frames, block=block, **context, **kinds).nbytes,
        decoder_state(config.audio, batch, STREAM_BLOCK, **kinds).nbytes,
        _workspace(config, batch, dtype.itemsize),
    )


def _workspace(config: MingConfig, batch: int, width: int) -> int:
    """Peak of activations: the largest of a prompt's, the encoder's and a decode step's."""
    llm, audio = config.llm, config.audio
    heads = (llm.num_heads + 2 * llm.num_kv_heads) * llm.head_dim
    chosen = max(llm.top_k, 1)
    shared = 2 * llm.num_shared_experts * llm.moe_intermediate_size
    inner = max(chosen * 2 * llm.moe_intermediate_size + shared, 2 * llm.intermediate_size)
    per_token = 6 * llm.hidden_size + heads + inner + chosen * llm.hidden_size
    prompt = PROMPT_TOKENS * per_token * width
    frame = max(6 * b.hidden_size + 3 * b.intermediate_size for b in (audio.encoder, audio.decoder))
    encoder = BLOCK * max(frame, 12 * audio.semantic_hidden) * width
    step = batch * (per_token + config.patch_frames * frame) * width
    return max(prompt, encoder, step) + batch * llm.vocab_size * 4


def require_memory(load: LoadPlan, config: MingConfig) -> None:
    """Raises NotEnoughMemory where the weights and one request of a minute do not fit.

    The message says what is needed, what there is, and which format would fit.
    """
    plan, device = of_load(load, config), load.device
    (one,) = plan.requests
    if plan.fits(one) is not False:
        return
    smaller = {}
    for format in SMALLER.get(device.type, ()):
        other = of_load(load, config, resolve(format, None, device))
        if other.weights_bytes < plan.weights_bytes:
            smaller[format] = other
    fitting = [f for f, other in smaller.items() if other.fits(other.requests[0])]
    if fitting:
        advice = " or ".join(f"weights={f} ({_gb(smaller[f].total(smaller[f].requests[0]))})" for f in fitting)
        advice = f"{advice} would fit"
    elif smaller:
        smallest = min(smaller, key=lambda f: smaller[f].weights_bytes)
        total = smaller[smallest].total(smaller[smallest].requests[0])
        advice = f"no format fits, the smallest is weights={smallest} with {_gb(total)}"
    else:
        advice = "no smaller format would fit"
    raise NotEnoughMemory(
        f"{load.source.what}: weights in {plan.formats.weights} and a request of one minute need "
        f"{_gb(plan.total(one))} on {device}, {_gb(plan.memory.available)} are available; {advice}"
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
