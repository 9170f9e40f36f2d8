"""Test images of a study, opened by the flags of its runs."""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..data import take_slice
from ..data.datasets import class_names_of, labels_of
from ..errors import UserError
from ..settings.composite import TrainSettings
from ..settings.programs import train_program
from ..training.data import open_val_split
from .collect import StudentRun

SIDE = 96  # pixels of a picture's longer side at most


def open_gallery(run: StudentRun) -> Dataset:
    """Return the validation split of a run. Raises `UserError` where it is not what it was."""
    settings = TrainSettings.from_flags(train_program().flags.defaults() | run.args)
    loading = settings.data
    names_then = run.record["model"].get("class_names")
    whole = open_val_split(loading, settings.input.channels, names_then)
    dataset = take_slice(whole, loading.val_slice, loading.slice_seed, "--val-slice")
    labels, expected = labels_of(dataset), run.answers["target"].tolist()
    # the split may number its classes otherwise than the run, so they are compared by name
    names_now = class_names_of(whole)
    if labels and names_now and names_then:
        labels = [names_now[label] for label in labels]
        expected = [names_then[label] for label in expected]
    if len(dataset) != len(expected) or (labels and labels != expected):
        raise UserError(
            f"the {len(dataset)} test images are not the {len(expected)} that there were"
        )
    return dataset


def picture(dataset: Dataset, position: int) -> np.ndarray:
    """Return an image as it is in the data set, scaled down where it is large: (H, W, 3) of 8 bits."""
    image = dataset[int(position)][0].convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)
