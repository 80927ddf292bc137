"""What safetensors files hold, from their headers alone: nothing else of a file is read here."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..config.files import read_json, require_content, unreadable
from ..errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # the format's own limit, in bytes
_PREFIX = 64  # enough to know a Git LFS pointer
_OTHER_WEIGHTS = (
    (".safetensors", "shards need their index, which says what is in them"),
    ((".bin", ".pt", ".pth", ".ckpt"), "weights in PyTorch's own format; convert them to safetensors"),
    (".gguf", "weights for llama.cpp; take the safetensors they were made of"),
    ((".onnx", ".h5", ".msgpack", ".npz"), "weights of another framework; take the safetensors"),
)

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
    CheckpointError for a missing, unreadable, truncated or corrupt file, a missing shard, and an
    index that does not agree with its shards.
    """
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise CheckpointError(unreadable(path, FileNotFoundError()))
    for name, read in ((SINGLE, _read_file), (INDEX, lambda index: _read_shards(index.parent))):
        if (path / name).exists() or (path / name).is_symlink():
            return read(path / name)
    raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}{_instead(path)}")


def _instead(folder: Path) -> str:
    """What a folder without weights in the expected files holds in their place."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file() or p.is_symlink())
    except OSError as error:
        return f"; it cannot be listed ({error.strerror})"
    for suffixes, what in _OTHER_WEIGHTS:
        found = [name for name in names if name.endswith(suffixes)]
        if found:
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            return f", but {', '.join(found[:2])}{more}: {what}"
    return ""


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        links = [shard for shard in missing if (folder / shard).is_symlink()]
        dangling = f" ({len(links)} of them links to files that do not exist)" if links else ""
        raise CheckpointError(
            f"{index} names {len(shards)} shards and {len(missing)} are missing: {', '.join(missing[:4])}{dangling}"
        )
    infos: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in _read_file(folder / shard).items():
            if name in infos:
                raise CheckpointError(f"{name} is in {infos[name].file} and in {info.file}")
            infos[name] = info
    for name, shard in weight_map.items():
        if name not in infos or infos[name].file.name != shard:
            where = f"; it is in {infos[name].file.name}" if name in infos else ""
            raise CheckpointError(f"{index} puts {name} in {shard}, which lacks it{where}")
    unlisted = [name for name in infos if name not in weight_map]
    if unlisted:
        more = f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
        shard = infos[unlisted[0]].file.name
        raise CheckpointError(f"{folder / shard} holds {unlisted[0]}{more}, which {INDEX} does not list")
    return infos


def _read_index(path: Path) -> dict[str, str]:
    values = read_json(path)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path} names a shard outside its folder: {shard!r}")
    return weight_map


def _read_file(path: Path) -> dict[str, TensorInfo]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX)
            raw = _header_bytes(path, prefix, size, file)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a corrupt header: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a corrupt header: no mapping of tensors")
    header.pop("__metadata__", None)
    start = 8 + len(raw)
    infos = {name: _info(path, name, entry, start) for name, entry in header.items()}
    _check_extents(path, infos, start, size)
    return infos


def _header_bytes(path: Path, prefix: bytes, size: int, file: BinaryIO) -> bytes:
    require_content(path, prefix)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes hold no safetensors header")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > size - 8:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: its header claims {length} bytes, the file has {size}"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} has a corrupt header: it claims {length} bytes, the format allows {MAX_HEADER}")
    file.seek(8)
    return file.read(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
    return found


def _check_extents(path: Path, infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """Raises CheckpointError unless the tensors fill the file: no overlap, no hole, nothing behind."""
    end, last = start, "the header"
    for name, info in sorted(infos.items(), key=lambda each: (each[1].offset, each[1].nbytes)):
        if info.offset < end:
            raise CheckpointError(f"{path} has a corrupt header: {name} overlaps {last}")
        if info.offset > end:
            raise CheckpointError(
                f"{path} has a corrupt header: {info.offset - end} bytes between {last} and {name} belong to no tensor"
            )
        end, last = info.offset + info.nbytes, name
    if end > size:
        raise CheckpointError(f"{path} is truncated: its tensors need {end} bytes, the file has {size}")
    if end < size:
        raise CheckpointError(f"{path} has {size - end} bytes behind its last tensor")


def _info(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path} has a corrupt header: the entry of {name} is {_shown(entry)}")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}, which is not supported")
    info = TensorInfo(DTYPES[dtype], shape, path, start + begin)
    if info.nbytes != end - begin:
        raise CheckpointError(
            f"{path} has a corrupt header: {name} of {dtype} {list(shape)} needs {info.nbytes} "
            f"bytes, its entry covers {end - begin}"
        )
    return info


def _shown(entry: object) -> str:
    text = repr(entry)
    return text if len(text) <= 100 else f"{text[:99]}…"


class FileReader:
    """Positional reads (preadv) of checkpoint files, not mmap: mapped pages would count as resident."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def read(self, info: TensorInfo, position: int, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor from `position` on."""
        try:
            self._read(info, position, into)
        except OSError as error:
            raise CheckpointError(unreadable(info.file, error)) from None

    def _read(self, info: TensorInfo, position: int, into: memoryview) -> None:
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
