"""BailingMoe, the language model that carries the loop: text in and out, and audio as embeddings."""

from .model import LLM, LLMState
from .moe import MoE

__all__ = ["LLM", "LLMState", "MoE"]
