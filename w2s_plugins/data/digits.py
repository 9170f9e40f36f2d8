"""scikit-learn's handwritten digits as a dataset that needs no download.

``digits.npz`` has what scikit-learn's `load_digits` gives (the test set of "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository, CC BY 4.0), and which images are for training and for testing: its `train_test_split`,
stratified, 600 for testing, from seed 0. To import scikit-learn takes a second, a fifth of the demo's first step.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from .map_style import MapDataset

TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("validation", "val", "valid", "test", "eval", "evaluation")
_FILE = Path(__file__).with_suffix(".npz")


class Digits(MapDataset):
    """1,797 images of 8 x 8 pixels in 10 classes, cut once into 1,197 for training and 600 for testing."""

    def __init__(self, split: str, input_img_mode: str = "RGB"):
        # 17 levels of grey, 0 to 16, are spread over those of 8 bits, as of any other image
        content = _content()
        part = content["train" if split in TRAIN_SPLITS else "test"]
        levels = content["images"][part] * (255 / 16)
        self.images = np.rint(levels).astype(np.uint8)
        self.targets: list[int] = content["labels"][part].tolist()
        self.classes = [str(c) for c in range(10)]
        self.input_img_mode = input_img_mode
        self.transform = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        return self.transform(image) if self.transform else image, self.targets[index]


@functools.cache
def _content() -> dict[str, np.ndarray]:
    with np.load(_FILE) as file:
        return dict(file)
