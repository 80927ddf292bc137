"""The reference's structure in plain PyTorch: the baseline of every benchmark.

Written from docs/model.md as an ordinary port would be: one module per checkpoint prefix, a
host synchronisation in every MoE layer, KV caches that grow by concatenation, guidance by doubling
the batch, and everything that never changes computed again in every step. It imports nothing from
the rest of the package, so it also checks the model's description independently.
"""

from .llm import EagerLLM
from .model import EagerMing, Patch

__all__ = ["EagerLLM", "EagerMing", "Patch"]
