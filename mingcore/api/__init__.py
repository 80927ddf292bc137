"""MingAudio and AsyncMingAudio: the public classes, and what they return."""

from ..fidelity import RoundTrip
from ..results import Speech, Transcript, Voice
from .ming_audio import MingAudio

__all__ = ["MingAudio", "RoundTrip", "Speech", "Transcript", "Voice"]
