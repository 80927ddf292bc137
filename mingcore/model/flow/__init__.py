"""The flow head: a small diffusion transformer that turns a hidden state into a latent patch."""

from .model import FlowHead, PatchInputs

__all__ = ["FlowHead", "PatchInputs"]
