"""Datasets, splits, keyed views and loaders.

A name is imported when it is asked for, so that ``python -m w2s_plugins.data`` answers before torch is imported.
"""

import importlib

_HOMES = {
    "class_splits": ("open_split",),
    "datasets": ("DataInfo", "create_dataset", "labels_of"),
    "episodes": ("check_shape", "draw_episodes"),
    "loaders": ("Batch", "LoaderSettings", "TrainLoader", "TrainViews", "create_eval_loader", "create_train_loader"),
    "slices": ("Subset", "hold_out", "parse_slice", "stratified_order", "take_slice"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
