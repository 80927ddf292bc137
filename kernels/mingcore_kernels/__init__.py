"""mingcore's Triton kernels: one module per op, a kernel and its launcher."""
