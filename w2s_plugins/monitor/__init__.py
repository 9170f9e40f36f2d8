"""What a run shows and logs: console, TensorBoard, Weights & Biases."""

from .console import Console, format_table, setup_logging
from .trackers import Trackers

__all__ = ["Console", "Trackers", "format_table", "setup_logging"]
