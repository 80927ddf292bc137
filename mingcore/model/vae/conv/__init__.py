"""VAEs made of causal convolutions: VoxCPM's AudioVAE and VibeVoice's acoustic tokenizer."""

from .codec import ConvVAE
from .config import VibeVoiceConfig, VoxCPMConfig
from .folder import load
from .stream import CodecState
from .vibevoice import VibeVoiceVAE
from .voxcpm import VoxCPMVAE

__all__ = ["CodecState", "ConvVAE", "VibeVoiceConfig", "VibeVoiceVAE", "VoxCPMConfig", "VoxCPMVAE", "load"]
