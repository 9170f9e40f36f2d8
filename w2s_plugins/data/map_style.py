"""What all datasets of this package are to whoever uses one: images by position, with a transform that can be set."""

from collections.abc import Callable

from timm.data.dataset import IterableImageDataset
from torch import Tensor
from torch.utils.data import Dataset

# of an image, or of the bytes of a file; to what, only the collate function that follows it knows
Transform = Callable[[object], object]


class MapDataset(Dataset):
    """Images that are read by position.

    Further attributes, where a dataset has them: ``classes`` and ``targets``, names and labels that are known without a
    look at the images; ``unlabeled``, True for images without labels.

    Attributes:
        transform: what is made of each image; None for the image itself.
    """

    transform: Transform | None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
        """Return an image and its label, of several classes an image (C,) in float32. Raises `UnreadableSample`."""
        raise NotImplementedError


# what can be opened: of the two, streams have neither positions nor a size
AnyDataset = MapDataset | IterableImageDataset


def classes_of_samples(dataset: AnyDataset) -> Tensor | None:
    """Return which of several classes each sample has: (N, C) in float32, NaN where it is unknown; None for a dataset of
    one class an image, or without labels.
    """
    if getattr(dataset, "unlabeled", False):
        return None
    for source in (dataset, getattr(dataset, "reader", None)):
        targets = getattr(source, "targets", None)
        if isinstance(targets, Tensor) and targets.ndim == 2 and len(targets) == len(dataset):
            return targets
    return None
