"""Training: one loop for all stages, and its components."""
