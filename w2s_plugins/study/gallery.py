"""Test images of a study, opened by the flags of its runs."""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ..data import open_split, take_slice
from ..data.datasets import class_names_of, labels_of
from ..errors import UserError
from .collect import StudentRun

SIDE = 96  # pixels of a picture's longer side at most


def open_gallery(run: StudentRun) -> Dataset:
    """Return the validation split of a run. Raises `UserError` where it is not what it was."""
    args = run.args
    dataset = open_split(
        args.get("dataset") or "", args.get("data_dir") or args.get("data"), args.get("val_split", "validation"),
        args.get("class_list"), flag="--val-split", is_training=False)
    if isinstance(dataset, IterableDataset):
        raise UserError(f"{args.get('dataset')} gives its test images in no order that can be repeated")
    own = class_names_of(dataset)
    if args.get("val_slice"):
        dataset = take_slice(dataset, args["val_slice"], args.get("slice_seed") or 0, "--val-slice")
    # the split may number its classes otherwise than the run, so they are compared by name
    labels, expected, names = labels_of(dataset), run.target.tolist(), run.record["model"].get("class_names")
    if labels and own and names:
        labels, expected = [own[label] for label in labels], [names[label] for label in expected]
    if len(dataset) != len(expected) or (labels and labels != expected):
        raise UserError(f"the {len(dataset)} test images are not the {len(expected)} that there were")
    return dataset


def picture(dataset: Dataset, position: int) -> np.ndarray:
    """Return an image as it is in the data set, scaled down where it is large: (H, W, 3) of 8 bits."""
    image = dataset[int(position)][0].convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)
