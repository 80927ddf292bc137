"""What a bundle must agree with beside its sources: the compiler, and the model's shapes."""

from __future__ import annotations

import hashlib

import triton
from triton.backends.nvidia import driver as nvidia_driver
from triton.runtime.cache import triton_key

from ..config.model_config import MingConfig


def compiler() -> str:
    """Identifies this Triton, its compiler's every file included."""
    return hashlib.sha256(triton_key().encode()).hexdigest()


def of_model(config: MingConfig) -> str:
    """Identifies what the shapes of a model follow from."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:32]


def why_not() -> str | None:
    """Why a bundle can be neither made nor served with this Triton, or None."""
    if hasattr(nvidia_driver, "make_launcher"):
        return (
            f"kernels: Triton {triton.__version__} compiles a C launcher for every kernel when it "
            "is first run, whatever was compiled before; bundles need a newer one"
        )
    return None
