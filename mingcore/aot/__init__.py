"""Kernels compiled ahead of time: `mingcore compile` writes a bundle, `from_pretrained(kernels=...)` uses it.

No list says which kernels a model launches. The model is built on the meta device and run (`dry_run`), and every
launch that its ops would make is recorded instead of made (`trace`). So a bundle holds what the code that chooses
kernels at run time chooses, and nothing else must be kept in step with it.

The modules of this package need Triton, which is optional: `install_bundle` imports them when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .install import InstalledBundle


def install_bundle(folder: str | Path, model: Any) -> InstalledBundle:
    """`install.install`: take a model's kernels from a bundle from now on, in the whole process."""
    from .install import install

    return install(folder, model)
