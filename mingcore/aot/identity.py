"""Fingerprints that a bundle is checked against beside its sources: the compiler, and the model's shapes."""

from __future__ import annotations

import hashlib

import triton
from triton.backends.nvidia import driver as nvidia_driver
from triton.runtime.cache import triton_key

from ..config.model_config import MingConfig


def compiler() -> str:
    """SHA-256 over Triton's own cache key, which covers every file of its compiler."""
    return hashlib.sha256(triton_key().encode()).hexdigest()


def of_model(config: MingConfig) -> str:
    """SHA-256 over the config that the shapes of a model follow from."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:32]


def unsupported_reason() -> str | None:
    """Why bundles can be neither made nor used with this version of Triton, or None."""
    if hasattr(nvidia_driver, "make_launcher"):
        return (
            f"kernels: Triton {triton.__version__} compiles a C launcher for every kernel when it "
            "is first run, whatever was compiled before; bundles need a newer one"
        )
    return None
