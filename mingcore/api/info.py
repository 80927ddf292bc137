"""Describes a checkpoint by its headers: no weights are loaded or downloaded.

`describe` takes a folder, a hub id or a bundled name and returns plain data, which `mingcore info` prints as a table
or as JSON.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config.devices import as_device, as_dtype
from ..config.files import read_json
from ..config.model_config import MingConfig
from ..errors import CheckpointError, InputError
from ..model.headers import DTYPES, read_headers
from ..model.memory_plan import MemoryPlan, make
from ..model.parts import PARTS, part_of
from ..model.sources import HeaderTensors
from ..runtime.locate import HubId, bundled, find_folder, hub_errors, hub_id, not_on_hub
from ..runtime.params import ContextParams

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others: 1


class Header(NamedTuple):
    """One tensor as a safetensors header names it: dtype ("BF16"), shape, file."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def describe(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """The facts of a checkpoint, as JSON-ready data.

    Keys: `name`, `source`, `card` (of the checkpoint's config.json, {} when it has none), `warning`
    (None or one line), `parameters`, `active_parameters` (per generated token, with the experts
    that one token takes), `bytes`, `files`, `dtypes` {dtype: parameters}, `parts` [{part, tensors,
    parameters, bytes}], `dims` {part: {dim: value}}, `rates`, `tokenizer` and `voices`.
    revision: of a hub id: a branch, a tag or a commit. Raises InputError when nothing has that name, CheckpointError
    when the files are damaged.
    """
    source, config, headers, names = _read(name_or_path, revision)
    parsed = MingConfig.from_json(config)
    parts = _parts(headers)
    dtypes = Counter()
    for header in headers.values():
        dtypes[header.dtype] += header.count
    card = config.get("card") or {}
    experts = next(p["parameters"] for p in parts if p["part"] == "LLM, experts")
    idle = 1 - parsed.llm.top_k / parsed.llm.num_experts if parsed.llm.num_experts else 0
    total = sum(p["parameters"] for p in parts)
    return {
        "name": card.get("name") or Path(name_or_path).name,
        "source": source,
        "card": card,
        "warning": _warning(card),
        "parameters": total,
        "active_parameters": total - round(experts * idle),
        "bytes": sum(p["bytes"] for p in parts),
        "files": len({header.file for header in headers.values()}),
        "dtypes": dict(dtypes.most_common()),
        "parts": parts,
        "dims": _dims(parsed, headers),
        "rates": _rates(parsed),
        "tokenizer": "tokenizer.json" in names,
        "voices": sorted(Path(n).stem for n in names if n.startswith("voices/")),
    }


def plan(
    name_or_path: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    batches: Sequence[int] = (1,),
    minutes: Sequence[float] = (1.0,),
    context_seconds: float | None = None,
    context_format: str | None = None,
    revision: str | None = None,
) -> MemoryPlan:
    """The memory that a checkpoint would need, by its headers; see `model.memory_plan`.

    device: None is a GPU if there is one; "cuda" is possible without one. batches, minutes: one line of the plan for
    each pair.
    context_seconds, context_format: as in `MingAudio.tts_stream`. Raises what `describe` does, and
    InputError for numbers that are not positive.
    """
    for name, values in (("batch", batches), ("minutes", minutes)):
        if not all(0 < value <= 1e6 for value in values):
            raise InputError(f"{name}: must be positive, got {', '.join(map(str, values))}")
    absent = device is not None and device.startswith("cuda") and not torch.cuda.is_available()
    where = torch.device("cuda") if absent else as_device(device)
    source, config, headers, _ = _read(name_or_path, revision)
    parsed = MingConfig.from_json(config)
    for name, header in headers.items():
        if header.dtype not in DTYPES:
            raise CheckpointError(f"{source}: {name} has dtype {header.dtype}, not supported")
    tensors = {name: (DTYPES[h.dtype], h.shape) for name, h in headers.items()}
    return make(
        HeaderTensors(tensors, source),
        parsed,
        device=where,
        dtype=as_dtype(dtype),
        weights=weights,
        batches=batches,
        minutes=minutes,
        context=ContextParams(False, context_seconds, context_format).kinds(parsed),
    )


def card_warning(folder: Path, task: str | None = None) -> str | None:
    """The warning of a checkpoint's card for its users, for a task if one is named: a line, or None."""
    card = _config(folder / "config.json").get("card") or {}
    tasks = card.get("tasks")
    if task is not None and tasks is not None and task not in tasks:
        return f"trained for {' and '.join(tasks)} alone: the result of {task} means nothing"
    return _warning(card)


def _warning(card: Mapping[str, Any]) -> str | None:
    note = card.get("note", None if card.get("trained", True) else "not trained")
    return None if note is None else str(note)


def _read(name_or_path: str, revision: str | None) -> tuple[str, Mapping[str, Any], dict[str, Header], list[str]]:
    """(source, config.json, tensor headers, file names)."""
    folder = find_folder(name_or_path)
    if folder is None:
        return _read_hub(str(name_or_path), hub_id(str(name_or_path), revision))
    if revision is not None:
        raise InputError(f"revision: belongs to a hub id, checkpoint {str(name_or_path)!r} is a folder")
    return _read_folder(folder, "bundled" if name_or_path in bundled() else str(folder))


def _read_folder(folder: Path, source: str) -> tuple[str, Mapping, dict[str, Header], list[str]]:
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return source, _config(folder / "config.json"), _headers(folder), names


def _headers(folder: Path) -> dict[str, Header]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {name: Header(names[info.dtype], info.shape, info.file.name) for name, info in read_headers(folder).items()}


def _config(path: Path) -> Mapping[str, Any]:
    config = read_json(path)
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{path} must hold a mapping, got {type(config).__name__}")
    return config


def _read_hub(name: str, found: HubId) -> tuple[str, Mapping[str, Any], dict[str, Header], list[str]]:
    """config.json, the list of files and each weight file's header, over the network.

    When the hub cannot be reached: of an earlier download in its cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        api = hub.HfApi()
        names = _below(found, api.list_repo_files(found.repo, **found.options))
        config = _config(Path(hub.hf_hub_download(found.repo, found.path("config.json"), **found.options)))
        headers = _hub_headers(api, found, names)
    except (*hub_errors(), errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        folder = _cached(found)
        if folder is not None:
            return _read_folder(folder, f"hub: {name} (cached)")
        raise not_on_hub(name, found, error) from None
    return f"hub: {name}", config, headers, names


def _below(found: HubId, names: Sequence[str]) -> list[str]:
    start = "" if found.folder is None else f"{found.folder}/"
    below = [name.removeprefix(start) for name in names if name.startswith(start)]
    if not below:
        raise InputError(f"checkpoint: the repository {found.repo} has no folder {found.folder}")
    return below


def _hub_headers(api: Any, found: HubId, names: Sequence[str]) -> dict[str, Header]:
    if found.folder is None:
        files = api.get_safetensors_metadata(found.repo, **found.options).files_metadata
    else:
        shards = [name for name in names if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
        files = {
            shard: api.parse_safetensors_file_metadata(found.repo, found.path(shard), **found.options)
            for shard in shards
        }
    return {
        name: Header(tensor.dtype, tuple(tensor.shape), file)
        for file, part in files.items()
        for name, tensor in part.tensors.items()
    }


def _cached(found: HubId) -> Path | None:
    """The folder of an earlier download, if its config.json is there."""
    import huggingface_hub as hub

    path = hub.try_to_load_from_cache(found.repo, found.path("config.json"), **found.options)
    return Path(path).parent if isinstance(path, str) else None


def _parts(headers: Mapping[str, Header]) -> list[dict[str, Any]]:
    rows = {part: {"part": part, "tensors": 0, "parameters": 0, "bytes": 0} for part in PARTS}
    rows["other"] = {"part": "other", "tensors": 0, "parameters": 0, "bytes": 0}
    for name, header in headers.items():
        row = rows[part_of(name)]
        row["tensors"] += 1
        row["parameters"] += header.count
        row["bytes"] += header.count * _BYTES.get(header.dtype, 1)
    return [row for row in rows.values() if row["tensors"] or row["part"] == "LLM, experts"]


def _dims(config: MingConfig, headers: Mapping[str, Header]) -> dict[str, dict[str, Any]]:
    llm, audio, flow = config.llm, config.audio, config.flow
    root = "flowloss.cfm.model."
    width = headers.get(root + "x_embedder.weight")
    blocks = {n.removeprefix(root).split(".")[1] for n in headers if n.startswith(root + "blocks.")}
    dims: dict[str, dict[str, Any]] = {
        "LLM": {
            "layers": llm.num_layers,
            "hidden": llm.hidden_size,
            "heads": llm.num_heads,
            "kv heads": llm.num_kv_heads,
            "head dim": llm.head_dim,
            "vocabulary": llm.vocab_size,
            "rope": llm.rope.kind,
        },
        "flow head": {
            "depth": len(blocks) or flow.depth,
            "hidden": width.shape[0] if width else flow.hidden_size,
            "heads": flow.num_heads,
        },
        "semantic module": {
            "layers": audio.semantic_layers,
            "hidden": audio.semantic_hidden,
            "heads": audio.semantic_heads,
        },
    }
    if llm.num_experts:
        dims["LLM"] |= {
            "experts": llm.num_experts,
            "top-k": llm.top_k,
            "shared": llm.num_shared_experts,
            "expert width": llm.moe_intermediate_size,
            "routers": 3 if llm.multi_gate else 1,
        }
    for part, backbone in (("audio encoder", audio.encoder), ("audio decoder", audio.decoder)):
        windows = {w for w in backbone.windows if w is not None}
        dims[part] = {
            "layers": backbone.num_layers,
            "hidden": backbone.hidden_size,
            "heads": backbone.num_heads,
            "kv heads": backbone.num_kv_heads,
            "window frames": max(windows) if windows else "none",
        }
    return dims


def _rates(config: MingConfig) -> dict[str, float]:
    """Per second of audio; caches in bytes at 16 bits per value."""
    llm, audio = config.llm, config.audio
    frames = config.sample_rate / config.hop_samples
    patches = frames / config.patch_frames
    llm_row = 4 * llm.num_layers * llm.num_kv_heads * llm.head_dim
    semantic_row = 4 * audio.semantic_layers * audio.semantic_hidden
    return {
        "sample_rate": config.sample_rate,
        "latents_per_second": frames,
        "latent_dim": config.latent_dim,
        "patches_per_second": patches,
        "patch_ms": 1000 / patches,
        "llm_cache_bytes_per_second": patches * llm_row,
        "semantic_cache_bytes_per_second": frames * semantic_row,
    }
