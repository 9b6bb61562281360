"""Plan of a training run: memory of each rank, communication and time, without data and without the hardware."""
