"""A run is a folder: its checkpoints, how it goes on, and its record."""
