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
    """The test split of some runs.

    Args:
        dataset: gives images.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def image(self, place: int) -> np.ndarray:
        """Return an image as it is in the data set, scaled down where it is large: (H, W, 3) of 8 bits."""
        image = self.dataset[int(place)][0]
        image = image.convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def spread(self, places: Sequence[int], count: int) -> list[int]:
        """Return at most ``count`` of the places, spread evenly over the data set."""
        chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
        return [int(places[i]) for i in chosen]


def class_name(student: StudentRun, label: int) -> str:
    """Return the name that a class has in a run, which need not number classes as its data do; its number without."""
    names = student.record["model"].get("class_names")
    return str(names[label]) if isinstance(names, list) and label < len(names) else str(int(label))


def _has_labels(dataset: Dataset, student: StudentRun) -> bool:
    """Whether the samples of a dataset have, by the names of their classes, the labels that a run was measured on."""
    labels, own = labels_of(dataset), class_names_of(dataset)
    if labels is None:
        labels = [int(dataset[place][1]) for place in range(min(3, len(dataset)))]
    if not own or not student.record["model"].get("class_names"):
        return labels == student.target[:len(labels)].tolist()
    return [own[label] for label in labels] == [class_name(student, label) for label in student.target[:len(labels)]]


def open_gallery(runs: list[StudentRun], notes: list[str]) -> Gallery | None:
    """Open the validation split of some runs; where that fails, add the reason to ``notes`` and return None."""
    args = runs[0].args
    if runs[0].test:
        return None
    try:
        dataset = open_split(
            args.get("dataset") or "", args.get("data_dir") or args.get("data"), args.get("val_split", "validation"),
            args.get("class_list"), flag="--val-split", is_training=False)
        if isinstance(dataset, IterableDataset):
            raise UserError(f"{args.get('dataset')} gives its test images in no order that can be repeated")
        if args.get("val_slice"):
            dataset = take_slice(dataset, args["val_slice"], args.get("slice_seed") or 0, "--val-slice")
        if len(dataset) != len(runs[0].target):
            raise UserError(f"there are {len(dataset)} test images now, and were {len(runs[0].target)}")
        if not _has_labels(dataset, runs[0]):
            raise UserError("the test images have changed since")
    except (UserError, OSError, ValueError, TypeError) as error:
        reason = f"No pictures of {runs[0].folder}: {one_line(error)}"
        if reason not in notes:
            notes.append(reason)
        return None
    return Gallery(dataset)
