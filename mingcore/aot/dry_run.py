"""Runs a model without weights through everything it can do, to record what it would launch.

The model is built on the meta device by the code that loads it, with one layer of each kind, and the functions of
`runtime` are called with every size within the limits: sequences in a batch, tokens, frames and cache slots. Nothing
is computed.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mingcore_kernels.attention.attention_decode import choose, shares_of

from .. import ops
from ..config.model_config import MingConfig
from ..errors import CheckpointError, InputError
from ..model.context import ContextCache
from ..model.formats import Formats, resolve
from ..model.headers import read_headers
from ..model.ming import MingModel, declare_parts
from ..model.sources import HeaderTensors
from ..model.state import VIEW
from ..model.vae.model import BLOCK, STREAM_BLOCK
from ..model.weights import plan_load
from ..ops import use_backend
from ..runtime.params import FlowParams
from ..runtime.sampling import sample_tokens
from ..runtime.state import BatchState
from ..runtime.step import FlowGroup, advance, generate_patch
from ..testing.checkpoint_layout import tensor_shapes
from .targets import Target
from .trace import Trace, tracing

META = torch.device("meta")
BACKENDS = "triton,reference"
MAX_SLOTS = 4096 + VIEW  # of a cache; longer ones change no launch configuration

Headers = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Limits:
    """The largest sizes that a bundle is made for. rows: requests in a batch; tokens: of a prompt, text and voice
    together; steps: of the flow sampler. Raises InputError for a size out of range."""

    rows: int = 8
    tokens: int = 1024
    steps: tuple[int, ...] = (10,)

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("tokens", self.tokens), *_each(self.steps)):
            if not 1 <= value <= 1 << 16:
                raise InputError(f"{name}: must be a number from 1 to {1 << 16}, got {value}")


def _each(steps: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    return (("steps", n) for n in steps)


@dataclass(frozen=True)
class ModelSpec:
    """A checkpoint's config.json, and the dtypes and shapes of its tensors by name."""

    name: str
    config: Mapping[str, Any]
    headers: Headers

    @classmethod
    def of(cls, path: str | Path) -> ModelSpec:
        """Of a checkpoint's folder, or of a config.json alone: then the tensors are those of the official layout, in
        bfloat16. Raises InputError, CheckpointError."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"model: {path} has no config.json that can be read: {error}") from None
        if path.is_dir():
            found = {name: (i.dtype, i.shape) for name, i in read_headers(path).items()}
            return cls(str(path), config, found)
        MingConfig.from_json(config)  # raises for a missing key
        shapes = tensor_shapes(config)
        return cls(str(path), config, {n: (torch.bfloat16, s) for n, s in shapes.items()})


_LAYERS = re.compile(
    r"model\.model\.layers|audio\.(?:encoder\.encoder|decoder\.decoder)\.layers"
    r"|audio\.decoder\.semantic_model\.blocks"
)


def shortened(spec: ModelSpec) -> ModelSpec:
    """The same model with one layer of each kind; every other layer launches what one of these does."""
    config = copy.deepcopy(dict(spec.config))
    llm, audio = config["llm_config"], config["audio_tokenizer_config"]
    keep = {"model.model.layers": min(llm["num_hidden_layers"], _first_moe(llm) + 1)}
    llm["num_hidden_layers"] = keep["model.model.layers"]
    for kind, prefix in (("enc", "audio.encoder.encoder"), ("dec", "audio.decoder.decoder")):
        backbone = audio[f"{kind}_kwargs"]["backbone"]
        first_window = backbone.get("max_window_layers") or 0
        n = min(backbone["num_hidden_layers"], first_window + 1)
        backbone["num_hidden_layers"] = keep[f"{prefix}.layers"] = n
    whisper = audio["semantic_module_kwargs"]["whisper_encoder"]
    whisper["n_layer"] = keep["audio.decoder.semantic_model.blocks"] = 1

    def is_kept(name: str) -> bool:
        found = _LAYERS.match(name)
        return not found or int(name[found.end() + 1 :].split(".", 1)[0]) < keep[found[0]]

    headers = {name: entry for name, entry in spec.headers.items() if is_kept(name)}
    return ModelSpec(spec.name, config, headers)


def _first_moe(llm: Mapping[str, Any]) -> int:
    return llm.get("first_k_dense_replace") or 0 if llm.get("num_experts") else 0


def formats(dtype: torch.dtype | None, weights: str | None) -> Formats:
    """What `dtype` and `weights` mean on a GPU."""
    return resolve(weights, dtype, torch.device("cuda"))


def build(spec: ModelSpec, *, dtype: torch.dtype | None, weights: str | None) -> MingModel:
    """The model on the meta device, in the formats that it would have on a GPU. Raises CheckpointError."""
    config, kept = MingConfig.from_json(spec.config), formats(dtype, weights)
    source = HeaderTensors(spec.headers, spec.name)
    plan = plan_load(source, lambda w: declare_parts(w, config), device=META, formats=kept)
    if plan.report.missing:
        raise CheckpointError(f"{spec.name} lacks {', '.join(sorted(plan.report.missing)[:4])}")
    return MingModel(
        config=config,
        tokenizer=None,
        load_report=plan.report,
        device=META,
        dtype=kept.dtype,
        weights=kept.weights,
        **plan.read(),
    )


Progress = Callable[[str], None]


def launches(
    spec: ModelSpec,
    target: Target,
    limits: Limits,
    *,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Every Triton launch that the model would make on `target` within `limits`; `progress` gets each part's name."""
    with tracing(target) as found, use_backend(BACKENDS), torch.no_grad():
        model = build(shortened(spec), dtype=dtype, weights=weights)
        for name, part in _PARTS.items():
            if progress is not None:
                progress(name)
            part(model, limits)
    return found


def _steps(model: MingModel, limits: Limits) -> None:
    """Patches of 1 to `limits.rows` sequences, with every schedule, as one step and as separate parts; text tokens."""
    frames, channels = model.config.patch_frames, model.config.latent_dim
    for n in range(1, limits.rows + 1):
        rows = BatchState.create(model, max(n, 2), tokens=64, frames=64, text=True)
        for steps in limits.steps:
            schedule = FlowParams(steps=steps).schedule
            noise = torch.zeros(steps + 1, max(n, 2), frames, channels, dtype=torch.float32, device=META)
            for guided in (True, False):
                group = FlowGroup(schedule, guided, noise[:, :n])
                view = rows.rows(0, n)
                generate_patch(model, view, [group])
                generate_patch(model, view, [group], full=True)
            advance(model, view)
            advance(model, view, full=True)
        sample_tokens(model, view, None)
        advance(model, view, tokens=True)
    alone = BatchState.create(model, 1, tokens=64, frames=64)
    group = FlowGroup(schedule, True, torch.zeros(steps + 1, 1, frames, channels, dtype=torch.float32, device=META))
    generate_patch(model, alone, [group])
    advance(model, alone)
    advance(model, alone, full=True)


def _caches(model: MingModel, limits: Limits) -> None:
    """A step over caches of every length up to MAX_SLOTS."""
    for slots in range(VIEW, MAX_SLOTS + 1, VIEW):
        rows = BatchState.create(model, 1, tokens=slots, frames=slots)
        rows.llm.bounds[:] = [slots - 1]
        rows.semantic.bounds[:] = [slots - model.config.patch_frames]
        advance(model, rows, full=True)


def _attention(model: MingModel, limits: Limits) -> None:
    """Attention of blocks of every length over caches of every length: of a voice, a recording, a stream."""
    vae, growing = model.vae, range(VIEW, MAX_SLOTS + 1, VIEW)
    s, dtype = vae.semantic, model.llm.activation_dtype
    kinds = {(s.heads, s.heads, s.head_dim, None)}
    for backbone in (vae.encoder.backbone, vae.decoder.backbone):
        c = backbone.config
        heads = c.num_heads, c.num_kv_heads, c.hidden_size // c.num_heads
        kinds |= {(*heads, window) for window in c.windows}
    for heads, kv_heads, D, window in sorted(kinds, key=str):
        for T in range(1, BLOCK + 1):
            q = torch.zeros(1, T, heads, D, dtype=dtype, device=META)
            positions = torch.zeros(1, T, dtype=torch.int64, device=META)
            rings = [n for n in (STREAM_BLOCK, BLOCK) if n >= T]
            for slots in growing if window is None else [window - 1 + n for n in rings]:
                cache = torch.zeros(1, slots, kv_heads, D, dtype=dtype, device=META)
                ops.attention_decode(q, cache, cache, positions, window=window)


_WRITTEN = 3


def _contexts(model: MingModel, limits: Limits) -> None:
    """Semantic caches with a window, of 8 bits or both (`context_seconds`, `context_format`)."""
    s, dtype = model.vae.semantic, model.llm.activation_dtype
    for format in (None, "int8") if s.head_dim % 4 == 0 else (None,):
        for T in range(1, BLOCK + 1):
            new = torch.zeros(1, T, s.heads, s.head_dim, dtype=dtype, device=META)
            positions = torch.zeros(1, T, dtype=torch.int64, device=META)
            for i, (window, slots) in enumerate(_context_sizes(T, s.heads, new, format)):
                cache_dtype = dtype if format is None else torch.int8
                stored = torch.zeros(1, slots, s.heads, s.head_dim, dtype=cache_dtype, device=META)
                scale = None
                if format is not None:
                    scale = torch.zeros(1, slots, s.heads, 1, device=META)
                cache = ContextCache(stored, stored, scale, scale, window)
                if i < _WRITTEN:
                    cache.write_(new, new, positions)
                cache.attend(new, positions)


def _context_sizes(T: int, heads: int, q: torch.Tensor, format: str | None) -> Iterator[tuple[int | None, int]]:
    """(window, slots): one of each number of splits of the keys (split-K) that T queries may have; ring buffers with an
    even and an odd number of slots, because Triton specialises strides divisible by 16; the first `_WRITTEN` pairs
    differ in what a cache write sees."""
    tile = choose(T, q.shape[-1], q.element_size())
    tiles = heads * -(-T // tile.block_r)
    seen: set[tuple[int, bool]] = set()

    def is_new(slots: int, window: int) -> bool:
        kind = shares_of(slots, window, T, tiles, tile.block_s), window > 0
        new = kind not in seen
        seen.add(kind)
        return new

    for window in range(1, MAX_SLOTS, tile.block_s):
        ring = -(-(window - 1 + T) // 16) * 16
        if is_new(ring + 16, window):
            yield window, ring
            yield window, ring + 1
        if window == 1 and format:
            yield None, VIEW
    for slots in range(VIEW, MAX_SLOTS + 1, VIEW) if format else ():
        if is_new(slots, 0):
            yield None, slots


def _prompts(model: MingModel, limits: Limits) -> None:
    """Prompts of every length, into empty caches and after earlier tokens; a text token's logits."""
    H = model.config.llm.hidden_size
    for tokens in range(1, limits.tokens + 1):
        embeds = torch.zeros(1, tokens, H, dtype=model.llm.activation_dtype, device=META)
        mask = torch.ones(1, tokens, dtype=torch.bool, device=META)
        state = model.llm.new_state(1, limits.tokens + VIEW)
        hidden, _ = model.llm(embeds, state, audio_mask=mask)
        if tokens == 1:
            model.llm(embeds, state)  # after earlier tokens
            model.llm.logits(hidden)
            model.llm.logits(hidden[:, -1:])


def _sound(model: MingModel, limits: Limits) -> None:
    """Blocks of sound and of latents of every length: voices, recordings, `encode`, `decode`."""
    vae, hop, channels = model.vae, model.config.hop_samples, model.config.latent_dim
    for frames in range(1, BLOCK + 1):
        for samples in (frames * hop, frames * hop - 1, frames):  # Triton specialises multiples of 16, and 1
            vae.encode(torch.zeros(1, samples, device=META))
        latents = torch.zeros(1, frames, channels, dtype=torch.float32, device=META)
        embedding, _ = vae.unify(latents)
        if frames % model.config.patch_frames == 0:
            model.pool(embedding)
        vae.decode(latents)
        if frames <= STREAM_BLOCK:
            for last in (False, True):
                encoder_state, state = vae.new_encoder_state(1), vae.new_decoder_state(1)
                for samples in (frames * hop, frames * hop, frames * hop - 1):
                    vae.encode_stream(torch.zeros(1, samples, device=META), encoder_state)
                vae.encode_stream(torch.zeros(1, 0, device=META), encoder_state, last)
                vae.decode(latents, state, False)
                vae.decode(latents, state, last)


_PARTS: dict[str, Callable[[MingModel, Limits], None]] = {
    "patches": _steps,
    "caches": _caches,
    "attention": _attention,
    "contexts": _contexts,
    "prompts": _prompts,
    "sound": _sound,
}
