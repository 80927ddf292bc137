"""mingcore's Triton kernels: `<family>/<op>.py`, a kernel and its launcher."""
