"""Samples that cannot be read: what names them.

A file that cannot be read is an `UnreadableSample`, whatever error its decoder raised: the run ends with the name of
the file. timm returns the next sample of the dataset in its place, which here would put another image under a position
by which targets are cached and losses remember, and count a sample twice in an evaluation. `predict` leaves out and
names all such files of a folder (`Blanked`). Streams (`wds/`, `tfds/`) keep timm's behaviour.
"""

import torch
from PIL import Image
from torch import Tensor

from ..no_label import UNREADABLE
from .map_style import classes_of_samples
from .workers import WorkerError
from .wrapper import Wrapper, innermost


class UnreadableSample(WorkerError):
    """A sample that cannot be read or decoded; the text begins with its file."""


class Blanked(Wrapper):
    """A dataset that gives a black image, with the label `UNREADABLE` (of several classes that for each), for a sample
    that cannot be read.

    It is for passes over all samples in which none can take the place of another.
    """

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
        try:
            return self.dataset[index]
        except UnreadableSample:
            # of the mode of the others, so that it goes into one batch with them
            mode = getattr(innermost(self.dataset), "input_img_mode", None) or "RGB"
            image = Image.new(mode, (64, 64))
            label = UNREADABLE
            several = classes_of_samples(self.dataset)
            if several is not None:
                label = torch.full((several.shape[1],), float(UNREADABLE))
            return self.transform(image) if self.transform else image, label

    def why(self, index: int) -> str:
        """Return the message about a sample that could not be read."""
        try:
            self.dataset[index]
        except UnreadableSample as error:
            return str(error)
        return (
            f"sample {index} of the training set: cannot be read (now it can, a moment ago it "
            "could not)"
        )
