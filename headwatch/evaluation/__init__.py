"""Benchmarks with sampled answers: generation, grading, pass@k, and heads switched off or scaled."""
