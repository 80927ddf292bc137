"""What is measured: a checkpoint's folder, or random weights of a named shape that are generated on the device.

Random weights are never written to a file, nor to host memory where the device is a GPU: each tensor is generated on
the device when the model reads it, and copied to its place and format. The baseline generates the same values again,
so both compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.model_config import MingConfig
from ..errors import InputError, NotEnoughMemory
from ..model.checkpoint import MingModel, from_source, load
from ..model.headers import read_headers
from ..model.memory import device_memory
from ..model.sources import HeaderTensors
from ..runtime.locate import locate
from ..testing.eager import EagerMing
from ..testing.synthetic import model_config, random_tensor, tensor_shapes
from ..text.prompts import Tokenizer

# --random-weights NAME -> the shape in testing/synthetic.py
SHAPES = {"tiny": "tiny", "mid": "mid", "ming-uniaudio-16b": "real"}
SPARE = 1 << 30  # bytes for the baseline's caches and activations


class RandomTensors(HeaderTensors):
    """A source of tensors whose values are generated on the device of their destination."""

    def __init__(self, name: str, dtype: torch.dtype):
        shapes = tensor_shapes(model_config(SHAPES[name]))
        super().__init__({key: (dtype, s) for key, s in shapes.items()}, f"random {name}")

    def fill(self, name: str, dest: Tensor, index: int | None = None) -> bool:
        drawn = self.tensor(name, dest.device)
        dest.copy_(drawn if index is None else drawn[index])
        return True

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """One tensor, with the same values as `fill` gives."""
        dtype, shape = self.headers[name]
        return random_tensor(name, shape, 0, dtype, device)


@dataclass(frozen=True)
class Subject:
    """name: for the result. folder: None is random weights. dtype: of the baseline, and of random weights."""

    name: str
    device: torch.device
    dtype: torch.dtype
    folder: Path | None

    @classmethod
    def of(
        cls, checkpoint: str | None, random_weights: str | None, device: torch.device, dtype: torch.dtype | None
    ) -> Subject:
        """Raises InputError for unknown names."""
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        if random_weights is None:
            name = checkpoint or "tiny"
            return cls(Path(name).name, device, dtype, locate(name))
        if checkpoint is not None:
            raise InputError("--random-weights: takes the place of a checkpoint; name only one")
        if random_weights not in SHAPES:
            raise InputError(f"--random-weights: must be one of {', '.join(SHAPES)}, got {random_weights!r}")
        return cls(random_weights, device, dtype, None)

    @property
    def random(self) -> bool:
        return self.folder is None

    def load(self, weights: str | None) -> MingModel:
        """mingcore's model. Raises NotEnoughMemory, before anything is allocated, when it does not fit.

        With random weights the tokenizer is the bundled one, whose ids are within every vocabulary.
        """
        if self.folder is not None:
            return load(self.folder, self.device, self.dtype, weights=weights)
        config = MingConfig.from_json(model_config(SHAPES[self.name]))
        return from_source(
            RandomTensors(self.name, self.dtype),
            config,
            Tokenizer.from_folder(locate("tiny")),
            device=self.device,
            dtype=self.dtype,
            weights=weights,
        )

    def load_baseline(self) -> EagerMing:
        """`testing/eager`, beside the models that are loaded already. Raises NotEnoughMemory."""
        need, memory = self._parameters() * self.dtype.itemsize + SPARE, device_memory(self.device)
        if memory is not None and need > memory.available:
            raise NotEnoughMemory(
                f"the baseline of {self.name}: needs {need / 1e9:.2f} GB on {self.device} beside "
                f"ours, {memory.available / 1e9:.2f} GB are available; --no-baseline leaves it out"
            )
        if self.folder is not None:
            return EagerMing.load(self.folder, self.dtype, str(self.device))
        source = RandomTensors(self.name, self.dtype)
        tensors = {name: source.tensor(name, self.device) for name in source.names()}
        return EagerMing.from_state_dict(model_config(SHAPES[self.name]), tensors, self.dtype)

    def _parameters(self) -> int:
        if self.folder is None:
            shapes: Any = tensor_shapes(model_config(SHAPES[self.name])).values()
        else:
            shapes = [info.shape for info in read_headers(self.folder).values()]
        return sum(torch.Size(shape).numel() for shape in shapes)
