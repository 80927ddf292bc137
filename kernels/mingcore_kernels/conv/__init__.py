"""Triton kernels: streamed convolutions."""
