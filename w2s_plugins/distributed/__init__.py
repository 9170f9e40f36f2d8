"""Several processes: the world, DDP, signs of life, signals."""
