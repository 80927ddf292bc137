"""What safetensors files hold, from their headers alone: nothing else of a file is read here."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorInfo(NamedTuple):
    """One tensor of a file; `offset` counts bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: str | Path) -> dict[str, TensorInfo]:
    """name -> TensorInfo of every tensor of a checkpoint: a folder, or one safetensors file.

    A folder holds `model.safetensors`, or shards and their `model.safetensors.index.json`. Raises
    CheckpointError for a missing, truncated or corrupt file, a missing shard, and an index that
    does not agree with its shards.
    """
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is missing")
    if (path / SINGLE).exists():
        return _read_file(path / SINGLE)
    if (path / INDEX).exists():
        return _read_shards(path)
    raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}")


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    weight_map = _read_index(folder / INDEX)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / INDEX} names {len(shards)} shards and {len(missing)} are missing: " + ", ".join(missing[:4])
        )
    infos: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in _read_file(folder / shard).items():
            if name in infos:
                raise CheckpointError(f"{name} is in {infos[name].file} and in {info.file}")
            infos[name] = info
    for name, shard in weight_map.items():
        if name not in infos:
            raise CheckpointError(f"{folder / INDEX} puts {name} in {shard}, which lacks it")
    return infos


def _read_index(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path} names a shard outside its folder: {shard!r}")
    return weight_map


def _read_file(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path} is truncated: {size} bytes hold no safetensors header")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: its header claims {length} bytes, the file has {size}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{path} has a corrupt header: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a corrupt header: no mapping of tensors")
    header.pop("__metadata__", None)
    infos = {name: _info(path, name, entry, 8 + length) for name, entry in header.items()}
    end = max((info.offset + info.nbytes for info in infos.values()), default=8 + length)
    if end > size:
        raise CheckpointError(f"{path} is truncated: its tensors need {end} bytes, the file has {size}")
    return infos


def _info(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path} has a corrupt header: the entry of {name} is {entry!r}")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}, which is not supported")
    info = TensorInfo(DTYPES[dtype], shape, path, start + begin)
    if info.nbytes != end - begin:
        raise CheckpointError(
            f"{path} has a corrupt header: {name} of {dtype} {list(shape)} needs {info.nbytes} "
            f"bytes, its entry covers {end - begin}"
        )
    return info


class FileReader:
    """Positional reads (preadv) of checkpoint files, not mmap: mapped pages would count as resident."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def read(self, info: TensorInfo, position: int, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor from `position` on."""
        if info.file not in self._files:
            self._files[info.file] = os.open(info.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        descriptor, done = self._files[info.file], 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], info.offset + position + done)
            if count == 0:
                raise CheckpointError(f"{info.file} ended early: it changed while being read")
            done += count

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
