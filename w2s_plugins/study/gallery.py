"""Test images of a study, opened by the flags of its runs."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ..data import open_split, take_slice
from ..data.datasets import class_names_of, labels_of
from ..errors import UserError, one_line
from .collect import StudentRun

SIDE = 96  # pixels of a picture's longer side at most


class Gallery:
    """The test split of some runs, and their classes by name.

    Args:
        dataset: gives images and labels, None where it cannot be opened any more.
        names: of the classes of the runs, whose order the test split need not have; None where they have no names.
    """

    def __init__(self, dataset: Dataset | None, names: Sequence[str] | None):
        self.dataset, self.names = dataset, names

    def name(self, label: int) -> str:
        """Return the name of a class of the runs, its number where it has none."""
        return self.names[label] if self.names and label < len(self.names) else str(int(label))

    def image(self, place: int) -> np.ndarray:
        """Return an image as it is in the data set, scaled down where it is large: (H, W, 3) of 8 bits."""
        image = self.dataset[int(place)][0].convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)


def open_gallery(run: StudentRun, notes: list[str]) -> Gallery:
    """Open the validation split of a run; where that fails, add the reason to ``notes``."""
    names = run.record["model"].get("class_names")
    try:
        return Gallery(None if run.test else _open_images(run, names), names)
    except (UserError, OSError, ValueError, TypeError) as error:
        reason = f"No pictures of {run.folder}: {one_line(error)}"
        if reason not in notes:
            notes.append(reason)
        return Gallery(None, names)


def _open_images(run: StudentRun, names: Sequence[str] | None) -> Dataset:
    """Return the test split of a run. Raises `UserError` where it is not what it was."""
    args = run.args
    dataset = open_split(
        args.get("dataset") or "", args.get("data_dir") or args.get("data"), args.get("val_split", "validation"),
        args.get("class_list"), flag="--val-split", is_training=False)
    if isinstance(dataset, IterableDataset):
        raise UserError(f"{args.get('dataset')} gives its test images in no order that can be repeated")
    own = class_names_of(dataset)
    if args.get("val_slice"):
        dataset = take_slice(dataset, args["val_slice"], args.get("slice_seed") or 0, "--val-slice")
    if len(dataset) != len(run.target):
        raise UserError(f"there are {len(dataset)} test images now, and were {len(run.target)}")

    # the split may number its classes otherwise than the run, so they are compared by name
    found = labels_of(dataset) or [int(dataset[place][1]) for place in range(min(3, len(dataset)))]
    expected = run.target[:len(found)].tolist()
    if own and names:
        found, expected = [own[label] for label in found], [names[label] for label in expected]
    if found != expected:
        raise UserError("the test images have changed since")
    return dataset
