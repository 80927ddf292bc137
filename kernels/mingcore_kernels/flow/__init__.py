"""Triton kernels: the flow sampler."""
