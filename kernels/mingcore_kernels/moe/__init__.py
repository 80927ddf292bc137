"""Triton kernels: the expert MLP."""
