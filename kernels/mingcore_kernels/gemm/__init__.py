"""Triton kernels: matrix products."""
