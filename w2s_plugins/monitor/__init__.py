"""What a run shows and logs: console, csv and jsonl, TensorBoard, Weights & Biases."""

from .console import Console, format_table, setup_logging
from .trackers import MetricsFile, Trackers

__all__ = ["Console", "MetricsFile", "Trackers", "format_table", "setup_logging"]
