"""Tests and benchmarks that need a CUDA GPU: `make gpu`. See docs/gpu.md for usage."""
