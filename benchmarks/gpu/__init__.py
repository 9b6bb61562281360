"""Everything that needs a CUDA card, in one command: `make gpu`. docs/gpu.md says how to use it."""
