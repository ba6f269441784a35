"""Fused Triton kernels for a pass on CUDA, each next to the plain PyTorch operations that it replaces.

The pass does not use them yet, and they were run in the interpreter only, not on a GPU.
"""
