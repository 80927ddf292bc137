"""Where tensors come from: a checkpoint's files, a state dict, or headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError
from .headers import FileReader, TensorInfo

BLOCK_BYTES = 8 << 20


class Source(Protocol):
    """Named tensors that are read one by one; `what` names the checkpoint in errors."""

    what: str

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        """Read `name`, or entry `index` of it, into `dest` of its shape -> whether all values are finite."""

    def close(self) -> None: ...


class FileTensors:
    """The tensors of a checkpoint's files, as `read_headers` found them."""

    def __init__(self, infos: Mapping[str, TensorInfo], what: str):
        self.infos, self.what = infos, what
        self._reader = FileReader()
        self._staging: Tensor | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def names(self) -> Iterable[str]:
        return self.infos

    def shape(self, name: str) -> tuple[int, ...]:
        return self.infos[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.infos[name].dtype

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        """As of any `Source`; in blocks of a few MiB."""
        info = self.infos[name]
        flat, width = dest.view(-1), info.dtype.itemsize
        position = 0 if index is None else index * flat.numel() * width
        direct = dest.dtype == info.dtype and dest.device.type == "cpu"
        step = BLOCK_BYTES // width
        finite = True
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            block = part if direct else self._stage(part.numel(), info.dtype)
            self._reader.read(info, position + start * width, _bytes(block))
            if not direct:
                block = block.to(dest.dtype)
                part.copy_(block)
            finite &= _is_finite(block)
        return finite

    def _stage(self, count: int, dtype: torch.dtype) -> Tensor:
        if self._staging is None:
            self._staging = torch.empty(BLOCK_BYTES, dtype=torch.uint8)
        return self._staging[: count * dtype.itemsize].view(dtype)

    def close(self) -> None:
        self._reader.close()
        self._staging = None


class DictTensors:
    """Tensors that are in memory already: a state dict."""

    def __init__(self, tensors: Mapping[str, Tensor], what: str):
        self.tensors, self.what = tensors, what

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        source = self.tensors[name].detach()
        dest.copy_(source if index is None else source[index])
        return _is_finite(dest)

    def close(self) -> None:
        pass


def _bytes(block: Tensor) -> memoryview:
    return memoryview(block.view(torch.uint8).numpy())


def _is_finite(values: Tensor) -> bool:
    # a sum makes no temporary; elements are looked at only where the sum is not finite (it may overflow)
    total = values.sum(dtype=torch.float32 if values.dtype == torch.float16 else None)
    return bool(total.isfinite()) or bool(values.isfinite().all())


class HeaderTensors:
    """Names, shapes and types without any values: for a plan, or a model on the meta device."""

    def __init__(self, headers: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], what: str):
        self.headers, self.what = headers, what

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def names(self) -> Iterable[str]:
        return self.headers

    def shape(self, name: str) -> tuple[int, ...]:
        return self.headers[name][1]

    def dtype(self, name: str) -> torch.dtype:
        return self.headers[name][0]

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        raise CheckpointError(f"{self.what}: {name} has no values here, only a header")

    def close(self) -> None:
        pass
