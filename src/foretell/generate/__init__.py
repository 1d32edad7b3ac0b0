"""Benchmarks to learn from: micro-kernels and random networks. A benchmark is a spec from which its graph is rebuilt."""
