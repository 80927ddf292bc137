"""BailingMoe, the language model that carries the loop: text, and audio as embeddings."""

from .model import LLM, LLMState
from .moe import MoE

__all__ = ["LLM", "LLMState", "MoE"]
