"""Datasets, splits, keyed views and loaders."""

from .class_splits import open_split
from .datasets import create_dataset, labels_of
from .episodes import check_shape, draw_episodes
from .loaders import (
    Batch,
    LoaderSettings,
    TrainLoader,
    TrainViews,
    create_eval_loader,
    create_train_loader,
)
from .map_style import AnyDataset, MapDataset
from .slices import Subset, hold_out, parse_slice, stratified_order, take_slice

__all__ = [
    "AnyDataset",
    "Batch",
    "LoaderSettings",
    "MapDataset",
    "Subset",
    "TrainLoader",
    "TrainViews",
    "check_shape",
    "create_dataset",
    "create_eval_loader",
    "create_train_loader",
    "draw_episodes",
    "hold_out",
    "labels_of",
    "open_split",
    "parse_slice",
    "stratified_order",
    "take_slice",
]
