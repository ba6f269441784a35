"""Fused Triton kernels for a pass on CUDA, each next to the plain PyTorch operations that it replaces.

`ScoringSettings.kernels` selects them. They were run in Triton's interpreter and compiled for sm_80 and sm_90, and not
run on a GPU.
"""
