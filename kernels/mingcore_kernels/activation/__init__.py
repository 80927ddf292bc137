"""Triton kernels: SwiGLU's product."""
