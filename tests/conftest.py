"""Fixtures that every test may use: the golden tensors and the model that made them."""

from pathlib import Path

import pytest

from mingcore.env import let_idle_threads_sleep

let_idle_threads_sleep()  # the machine may be busy; before torch is imported

import torch  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The golden checkpoint and, beside it, what the reference computes with it."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden():
    """`golden("d_llm")` -> its tensors by name; read once, not to be changed."""
    from safetensors.torch import load_file

    read: dict[str, dict[str, torch.Tensor]] = {}

    def tensors(name: str) -> dict[str, torch.Tensor]:
        if name not in read:
            read[name] = load_file(GOLDEN / f"{name}.safetensors")
        return read[name]

    return tensors


@pytest.fixture(scope="session")
def golden_model():
    """The golden checkpoint as a MingModel, float32 on the CPU."""
    from mingcore.model import load

    return load(GOLDEN)
