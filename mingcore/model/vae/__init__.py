"""The AudioVAE: samples to latents, latents to the unified embedding, latents to samples."""

from .decoder import DecoderState
from .encoder import EncoderState
from .model import AudioVAE
from .semantic import SemanticState

__all__ = ["AudioVAE", "DecoderState", "EncoderState", "SemanticState"]
