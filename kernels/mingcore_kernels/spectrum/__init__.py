"""Triton kernels: frames, windows and spectra."""
