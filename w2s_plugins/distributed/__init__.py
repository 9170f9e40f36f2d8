"""Several processes: the world, DDP, signals."""
