"""Monitoring of a training run: throughput, gradient norms, loss spikes, stalls and profiles. It changes no result."""
