"""Triton kernels: rotary embedding."""
