"""Triton kernels: what the kernels share: activations, and the GPU that tiles are chosen for."""
