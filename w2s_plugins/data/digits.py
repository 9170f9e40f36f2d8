"""scikit-learn's handwritten digits as a dataset that needs no download."""

import functools

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("validation", "val", "valid", "test", "eval", "evaluation")


class Digits(Dataset):
    """1,797 images of 8 x 8 pixels in 10 classes, cut once into 1,197 for training and 600 for testing."""

    TEST_SIZE = 600
    SPLIT_SEED = 0  # the cut is part of the dataset, not of a run

    def __init__(self, split: str, input_img_mode: str = "RGB"):
        parts = self._parts()
        images, targets = (parts[0], parts[2]) if split in TRAIN_SPLITS else (parts[1], parts[3])
        self.images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.targets = targets.tolist()
        self.classes = [str(c) for c in range(10)]
        self.input_img_mode = input_img_mode
        self.transform = None

    @classmethod
    @functools.cache
    def _parts(cls) -> list[np.ndarray]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, targets = load_digits(return_X_y=True)
        return train_test_split(
            images, targets, test_size=cls.TEST_SIZE, stratify=targets, random_state=cls.SPLIT_SEED)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        return self.transform(image) if self.transform else image, self.targets[index]
