"""LoRA adapters as PEFT saves them, merged into a checkpoint's tensors while these are read.

A merged matrix is W + s·B·A, with s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (Hu et al. 2021;
Kalajdzievski 2023), computed in float32 before the result is cast, packed or quantised. With `use_dora` its rows are
scaled to the lengths that were trained (Liu et al. 2024). `MergedTensors` is a source like any other: no module knows
of adapters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.files import read_json
from ..config.sections import Section
from ..errors import CheckpointError
from .headers import read_headers
from .sources import FileTensors, Source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE, _LORA_BIAS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight", "lora_B.bias"
_EMBEDDING = {"lora_embedding_A": "lora_A.weight", "lora_embedding_B": "lora_B.weight"}
_EXPERT = re.compile(r"(?P<stack>.*\.experts)\.(?P<entry>\d+)\.(?P<matrix>gate_proj|up_proj|down_proj)")
# settings that, where they are on, change the merged weights in ways that are not built here
_UNSUPPORTED = (
    "use_qalora",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)


@dataclass(frozen=True)
class Delta:
    """What one adapter adds to a matrix [N, K], or to some rows of one entry of a stack [E, N, K].

    a [r, K], b [N, r], as keys of the adapter's file. magnitude: DoRA's lengths of the rows [N]. stacked: both hold the
    factors of all E entries, a [r·E, K], b [N, r·E]; turned: of transposed entries.
    """

    source: FileTensors
    a: str
    b: str
    scale: float
    entry: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False  # the matrix is kept as [K, N]: embeddings, and `fan_in_fan_out`
    magnitude: str | None = None
    stacked: int = 0
    turned: bool = False

    def factors(self, entry: int | None) -> tuple[Tensor, Tensor]:
        a, b = _read(self.source, self.a), _read(self.source, self.b)
        if self.stacked:
            a = a.view(self.stacked, -1, a.shape[-1])[entry]
            b = b.view(b.shape[0], -1, self.stacked)[:, :, entry]
        return a, b

    def add_to(self, weight: Tensor, entry: int | None) -> None:
        """Changes a float32 matrix in place; entry: which one of a stack it is."""
        if self.entry is not None and entry != self.entry:
            return
        a, b = self.factors(entry)
        target = weight if self.rows is None else weight[slice(*self.rows)]
        target = target.T if self.transposed or self.turned else target
        target += (b @ a) * self.scale
        if self.magnitude is not None:
            lengths = torch.linalg.vector_norm(target, dim=1, keepdim=True)
            target *= _read(self.source, self.magnitude).view(-1, 1) / lengths


@dataclass(frozen=True)
class Adapter:
    """What one adapter changes: deltas by the name of the tensor, and tensors that it replaces."""

    folder: Path
    deltas: Mapping[str, list[Delta]]
    replaced: Mapping[str, tuple[FileTensors, str]]

    @property
    def names(self) -> set[str]:
        return {*self.deltas, *self.replaced}


class MergedTensors:
    """The tensors of a checkpoint with adapters merged into them, one after the other."""

    def __init__(self, base: Source, adapters: Sequence[Adapter]):
        self.base, self.adapters, self.what = base, tuple(adapters), base.what
        self.changed = set().union(*(adapter.names for adapter in adapters))

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def names(self) -> Iterable[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of a changed tensor float32: so formats are made of the sum, not of a rounded copy of it."""
        return torch.float32 if name in self.changed else self.base.dtype(name)

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        """As the other sources; beside `dest` one float32 copy of it is in memory, where it is changed."""
        if name not in self.changed:
            return self.base.fill(name, dest, index)
        merged = torch.empty(dest.shape, dtype=torch.float32)
        finite = self.base.fill(name, merged, index)
        for adapter in self.adapters:
            if name in adapter.replaced:
                source, key = adapter.replaced[name]
                finite = source.fill(key, merged, index)
            for delta in adapter.deltas.get(name, ()):
                if index is None and merged.dim() == 3:
                    for entry in range(merged.shape[0]):
                        delta.add_to(merged[entry], entry)
                else:
                    delta.add_to(merged, index)
        dest.copy_(merged)
        return finite and bool(dest.isfinite().all())

    def close(self) -> None:
        self.base.close()
        for adapter in self.adapters:
            for source in {source for source, _ in adapter.replaced.values()}:
                source.close()
            for deltas in adapter.deltas.values():
                deltas[0].source.close()


def merged(base: Source, folders: Sequence[str | Path]) -> Source:
    """`base` with the adapters of these folders merged in, in order; `base` itself without any."""
    return MergedTensors(base, [read_adapter(folder, base) for folder in folders]) if folders else base


def read_adapter(folder: str | Path, base: Source) -> Adapter:
    """What a PEFT LoRA adapter's folder changes of `base`; nothing but headers is read.

    The folder holds adapter_config.json and adapter_model.safetensors. Raises CheckpointError for files that are
    missing or damaged, settings that are not built here, tensors that belong to no module of the checkpoint or to half
    a pair, and shapes that do not fit it.
    """
    folder = Path(folder)
    config = Section(CONFIG, read_json(folder / CONFIG))
    settings = _Settings.of(config, str(folder))
    source = FileTensors(_read_weights(folder), str(folder))
    pairs: dict[str, dict[str, str]] = {}  # module -> role -> key of the file
    replaced: dict[str, tuple[FileTensors, str]] = {}
    for key in source.names():
        module, role = _split(key)
        if role is not None:
            pairs.setdefault(module, {})[role] = key
        else:
            name = _known(base, module, f"{folder}: {key}")
            _fits(source, key, base.shape(name), name)
            replaced[name] = (source, key)
    deltas: dict[str, list[Delta]] = {}
    for module, keys in pairs.items():
        for name, delta in _deltas(base, source, module, keys, settings, replaced):
            deltas.setdefault(name, []).append(delta)
    if not deltas and not replaced:
        raise CheckpointError(f"{folder}: {WEIGHTS} holds no tensors")
    return Adapter(folder, deltas, replaced)


@dataclass(frozen=True)
class _Settings:
    """What adapter_config.json says that changes the merged weights."""

    r: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    target_parameters: tuple[str, ...]

    @classmethod
    def of(cls, s: Section, what: str) -> _Settings:
        kind = s.get("peft_type", str)
        if kind.upper() != "LORA":
            raise CheckpointError(f"{what}: {CONFIG} peft_type must be LORA, got {kind}")
        for key in _UNSUPPORTED:
            if s.values.get(key):
                raise CheckpointError(f"{what}: {CONFIG} {key} is not supported, got {s.values[key]!r}")
        r, alpha = s.get("r", int), s.get("lora_alpha", float)
        if r <= 0:
            raise CheckpointError(f"{what}: {CONFIG} r must be positive, got {r}")
        return cls(
            r=r,
            alpha=alpha,
            rank_pattern=s.get("rank_pattern", Mapping, {}),
            alpha_pattern=s.get("alpha_pattern", Mapping, {}),
            use_rslora=s.get("use_rslora", bool, False),
            use_dora=s.get("use_dora", bool, False),
            fan_in_fan_out=s.get("fan_in_fan_out", bool, False),
            target_parameters=tuple(s.get("target_parameters", list, [])),
        )

    def rank(self, module: str) -> int:
        return self._by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        alpha, r = self._by_pattern(self.alpha_pattern, module, self.alpha), self.rank(module)
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    @staticmethod
    def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
        """PEFT's rule: the first pattern that matches the module's name, or the end of it behind a dot."""
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


def _read_weights(folder: Path) -> Mapping[str, Any]:
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise CheckpointError(f"{folder} holds adapter_model.bin, a pickle; save the adapter as {WEIGHTS}")
    return read_headers(folder / WEIGHTS)


def _split(key: str) -> tuple[str, str | None]:
    """(module, role) of a tensor of a pair; (tensor of the checkpoint, None) of one that is replaced."""
    name = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
    name = re.sub(r"\.default(?=\.|$)", "", name)
    for role in (_A, _B, _MAGNITUDE, _LORA_BIAS, *_EMBEDDING, "lora_magnitude_vector"):
        if name.endswith(f".{role}"):
            return name[: -len(role) - 1], {"lora_magnitude_vector": _MAGNITUDE}.get(role, role)
    return name.replace(".base_layer.", "."), None


def _known(base: Source, name: str, what: str) -> str:
    """The tensor's name in the checkpoint; an adapter of the language model alone lacks its prefix."""
    for candidate in (name, f"model.{name}"):
        if candidate in base:
            return candidate
    raise CheckpointError(f"{what}: {base.what} has no tensor {name}")


def _fits(source: FileTensors, key: str, shape: tuple[int, ...], name: str) -> None:
    if source.shape(key) != shape:
        raise CheckpointError(
            f"{source.what}: {key} must be {list(shape)}, the shape of {name}, got {list(source.shape(key))}"
        )


def _deltas(
    base: Source,
    source: FileTensors,
    module: str,
    keys: Mapping[str, str],
    settings: _Settings,
    replaced: dict[str, tuple[FileTensors, str]],
) -> Iterable[tuple[str, Delta]]:
    """The delta of a module's pair, by the tensor that it is added to."""
    what = f"{source.what}: {module}"
    embedding = any(role in keys for role in _EMBEDDING)
    names = tuple(_EMBEDDING) if embedding else (_A, _B)
    for role in names:
        if role not in keys:
            raise CheckpointError(f"{what} has no {role}, only {', '.join(sorted(keys))}")
    if _LORA_BIAS in keys:
        raise CheckpointError(f"{what}: a bias beside the factors (lora_bias) is not supported")
    a, b = keys[names[0]], keys[names[1]]
    scale = settings.scale(module)
    make = partial(Delta, source, a, b, scale, magnitude=keys.get(_MAGNITUDE))
    if settings.use_dora and _MAGNITUDE not in keys:
        raise CheckpointError(f"{what} has no {_MAGNITUDE}, which use_dora needs")
    for each in (a, b):
        if len(source.shape(each)) != 2:
            raise CheckpointError(f"{source.what}: {each} must be a matrix, got {list(source.shape(each))}")
    (rank, k), (n, columns) = source.shape(a), source.shape(b)
    if settings.target_parameters:
        found = _of_parameter(base, module, settings, (rank, k), (n, columns))
        if found is not None:
            name, stacked, turned = found
            return [(name, make(stacked=stacked, turned=turned))]
    if rank != columns or rank != settings.rank(module):
        raise CheckpointError(
            f"{what}: its factors have ranks {rank} and {columns}, {CONFIG} says {settings.rank(module)}"
        )
    expert = _EXPERT.fullmatch(module)
    if expert and f"{module}.weight" not in base and f"model.{module}.weight" not in base:
        name, delta = _of_stack(base, expert, make, what)
    else:
        transposed = embedding or settings.fan_in_fan_out
        name, delta = _known(base, f"{module}.weight", what), make(transposed=transposed)
    shape = base.shape(name)
    wanted = shape[::-1] if delta.transposed else shape[-2:]
    if delta.rows is not None:
        wanted = (delta.rows[1] - delta.rows[0], *wanted[1:])
    if (n, k) != tuple(wanted):
        raise CheckpointError(f"{what}: its factors make [{n}, {k}], {name} is {list(shape)}")
    return [(name, delta)]


def _of_stack(base: Source, expert: re.Match, make: Any, what: str) -> tuple[str, Delta]:
    """One expert of a checkpoint that keeps them stacked, gate and up perhaps as one."""
    stack, matrix, entry = expert["stack"], expert["matrix"], int(expert["entry"])
    fused = None if matrix == "down_proj" else "gate_up_proj"
    for prefix in ("", "model."):
        for found, is_fused in ((matrix, False), (fused, True)):
            for suffix in ("", ".weight"):
                name = f"{prefix}{stack}.{found}{suffix}"
                if found is None or name not in base:
                    continue
                count, rows = base.shape(name)[0], base.shape(name)[1]
                if entry >= count:
                    raise CheckpointError(f"{what}: {name} stacks {count} experts")
                half = rows // 2
                part = None
                if is_fused:
                    part = (0, half) if matrix == "gate_proj" else (half, rows)
                return name, make(entry=entry, rows=part)
    raise CheckpointError(f"{what}: {base.what} has no such module")


def _of_parameter(
    base: Source, module: str, settings: _Settings, a: tuple[int, int], b: tuple[int, int]
) -> tuple[str, int, bool] | None:
    """(name, entries, turned) of the stack that is named and that these factors fit; None if none is named."""
    inner = module
    while inner.endswith(".base_layer"):  # several parameters of a module are wrapped one in the other
        inner = inner.removesuffix(".base_layer")
    names = [
        candidate
        for parameter in settings.target_parameters
        if f"{inner}.".endswith(f".{parameter.rpartition('.')[0]}.") or "." not in parameter
        for candidate in _present(base, f"{inner}.{parameter.rpartition('.')[2]}")
        if len(base.shape(candidate)) == 3
    ]
    if not names:
        return None
    fitting = []
    for name in names:
        count, rows, columns = base.shape(name)
        if a[0] == b[1] == count * settings.rank(inner):
            fitting += [(name, count, False)] if (b[0], a[1]) == (rows, columns) else []
            fitting += [(name, count, True)] if (b[0], a[1]) == (columns, rows) and rows != columns else []
    if len(fitting) != 1:
        raise CheckpointError(
            f"{module}: factors [{a[0]}, {a[1]}] and [{b[0]}, {b[1]}] fit {len(fitting)} of the parameters "
            f"{', '.join(names)}, they must fit one"
        )
    return fitting[0]


def _present(base: Source, name: str) -> list[str]:
    return [found for prefix in ("", "model.") for end in ("", ".weight") if (found := prefix + name + end) in base]


def _read(source: FileTensors, key: str) -> Tensor:
    values = torch.empty(source.shape(key), dtype=torch.float32)
    if not source.fill(key, values):
        raise CheckpointError(f"{source.what}: {key} holds values that are not finite (NaN or infinity)")
    return values
