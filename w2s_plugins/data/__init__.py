"""Datasets, splits, keyed views and loaders."""

from .datasets import DataInfo, create_dataset, labels_of
from .loaders import Batch, TrainLoader, create_eval_loader, create_train_loader
from .slices import Subset, hold_out, parse_slice, stratified_order, take_slice

__all__ = [
    "Batch",
    "DataInfo",
    "Subset",
    "TrainLoader",
    "create_dataset",
    "create_eval_loader",
    "create_train_loader",
    "hold_out",
    "labels_of",
    "parse_slice",
    "stratified_order",
    "take_slice",
]
