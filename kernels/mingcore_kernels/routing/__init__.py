"""Triton kernels: routing and sorting by expert."""
