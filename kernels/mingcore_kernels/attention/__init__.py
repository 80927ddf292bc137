"""Triton kernels: attention and its cache."""
