"""Fused Triton kernels for a pass on CUDA, each next to the plain PyTorch operations that it replaces."""
