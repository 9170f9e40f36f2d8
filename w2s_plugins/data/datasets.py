"""timm's datasets, plus the embedded one, with errors that say what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

import torch
from PIL import Image
from timm.data import dataset_factory
from timm.data.dataset import ImageDataset
from timm.data.readers import reader_image_folder, reader_image_in_tar
from timm.data.target_transforms import MultiLabelTarget
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.datasets import VisionDataset

from ..errors import UserError, logger, near_path, nearest, one_line
from ..no_label import NO_LABEL
from ..private_names import EVAL_SYNONYMS, TRAIN_SYNONYMS, search_split
from ..settings.forms import DIGITS, LIST_FILES, check_dataset_name
from .decoding import FileDataset, ImageSuffixes, Stream, explain_unreadable, to_mode
from .digits import TEST_SPLITS, TRAIN_SPLITS, Digits
from .inat import open_inat
from .map_style import AnyDataset, MapDataset, Transform, classes_of_samples
from .readers import ReaderOfSeveral, stream_reader
from .unreadable import UnreadableSample

if TYPE_CHECKING:
    from typing_extensions import Unpack

ONE_LABEL = (
    "of this kind of dataset one label an image can be read; expected hfds/NAME, or a folder of images or a tar file with "
    "a table of labels, --data-dir FOLDER --train-labels FILE --val-labels FILE"
)
MOST_CLASSES = 2**20  # of a column of labels without names
DEFAULT_SPLITS = ("train", "validation")  # whoever trains has named none of them

# names of the splits of few-shot learning, whose classes differ; timm has those of validation
CLASS_SPLITS = (("base", "train", "training"), ("novel", "test", "testing"))

# which table says the labels of the split that a flag names, if not its class folders
TABLE_OF = {
    "--train-split": "--train-labels",
    "--val-split": "--val-labels",
    "--split": "--val-labels",
}


class DatasetOptions(TypedDict, total=False):
    """Further arguments of `timm.data.create_dataset`, by its names."""

    class_map: str | None
    load_bytes: bool
    is_training: bool
    download: bool
    batch_size: int
    num_samples: int | None
    seed: int
    repeats: float
    input_img_mode: str
    input_key: str | None
    target_key: str | None
    target_format: str | None
    trust_remote_code: bool


@runtime_checkable
class NamesFiles(Protocol):
    """A dataset that names the file of each sample."""

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]: ...


@runtime_checkable
class _HasLoader(Protocol):
    loader: Callable[[str], object]


class TorchvisionDataset(MapDataset):
    """A torchvision dataset whose images are brought to one mode, as timm does for its other readers."""

    def __init__(self, dataset: VisionDataset, input_img_mode: str):
        self.dataset = dataset
        self.input_img_mode = input_img_mode
        self.transform: Transform | None = None
        # torchvision's loader would lose what does not fit into RGB
        if isinstance(dataset, _HasLoader):
            dataset.loader = Image.open
        targets = getattr(dataset, "targets", None)
        if targets is not None:
            self.targets = [int(label) for label in targets]
        classes = getattr(dataset, "classes", None)
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            image, label = self.dataset[index]
            image = to_mode(image, self.input_img_mode)
        except Exception as error:  # as in `FileDataset`
            kind = type(self.dataset).__name__
            reason = explain_unreadable(error)
            raise UnreadableSample(
                f"sample {index} of {kind}: cannot be read ({reason})"
            ) from error
        return self.transform(image) if self.transform else image, int(label)


def create_dataset(
    name: str,
    root: str | None,
    split: str,
    *,
    flag: str = "--val-split",
    **kwargs: "Unpack[DatasetOptions]",
) -> AnyDataset:
    """Create a dataset of timm or of this project.

    Args:
        name: ``TYPE/NAME`` or empty for a folder or tar file.
        root: folder of the data.
        split: name of the split.
        flag: the flag that named the split, for error messages.
        **kwargs: see `DatasetOptions`.

    Raises:
        UserError: unknown name, missing or empty folder, missing split.
    """
    check_dataset_name(name)
    mode = kwargs.get("input_img_mode") or "RGB"
    class_map = kwargs.get("class_map")
    # json lists of iNaturalist
    if name in LIST_FILES:
        if class_map:
            raise UserError(
                f"--class-map: the classes of {name} are numbered by its lists; leave the flag out"
            )
        load_bytes = kwargs.get("load_bytes", False)
        return open_inat(name, root, split, flag=flag, load_bytes=load_bytes, input_img_mode=mode)
    # the embedded set, which needs no folder
    if name == DIGITS:
        if split not in TRAIN_SPLITS + TEST_SPLITS:
            raise UserError(f"{flag} {split}: {name} has the splits train and validation")
        return Digits(split, mode)

    # timm's own
    is_torch = name.lower().startswith("torch/")
    if is_torch and not root:
        raise UserError(
            f"--dataset {name} needs --data-dir FOLDER, where its files are or are to be downloaded"
        )
    if not name or name.lower() in ("torch/image_folder", "torch/folder"):
        split = _find_split(root, split, flag)
    # the user may allow it, and is told so
    if kwargs.get("trust_remote_code"):
        logger.info(
            f"--dataset-trust-remote-code: opening {name or root} may run code that comes "
            "with the data"
        )
    # timm walks through folders and tar files once, and passes over what is no image
    suffixes = ImageSuffixes()
    for module in (reader_image_folder, reader_image_in_tar):
        vars(module)["get_img_extensions"] = lambda **_: suffixes
    where = f"--dataset {name}" if name else f"--data-dir {root}"
    if class_map:
        where += f", --class-map {class_map}"
    where += f", split '{split}'"
    try:
        dataset = dataset_factory.create_dataset(
            name,
            root=root,
            split=split,
            **kwargs,  # pyright: ignore[reportArgumentType]  # timm takes a file of a class map too
        )
    except Exception as error:  # readers, and whoever downloads for them, stumble on many things
        is_missing = is_torch and "not found" in str(error).lower()
        hint = " (--dataset-download fetches it)" if is_missing else suffixes.log_others(where)
        raise UserError(f"{where}: {one_line(error)}{hint}") from error
    suffixes.log_others(where)

    # one interface for all: labels and names, and errors that name the sample
    if isinstance(dataset, VisionDataset):
        return TorchvisionDataset(dataset, mode)
    if not isinstance(dataset, ImageDataset):
        # what TensorFlow decodes is timm's
        is_decoded_by_pillow = name.lower().startswith(("wds/", "hfids/"))
        reader = stream_reader(dataset) if is_decoded_by_pillow else None
        return dataset if reader is None else Stream(reader, mode)
    # forked workers would share their position in an open file
    if isinstance(dataset.reader, reader_image_in_tar.ReaderImageInTar):
        dataset.reader.cache_tarfiles = False
    files = FileDataset(
        root,
        reader=dataset.reader,
        load_bytes=dataset.load_bytes,
        input_img_mode=dataset.input_img_mode,
    )
    if flag != "--split":  # `validate.py --real-labels` needs no classes
        _check_classes(files, root, split, flag)
    return files


def take_several(dataset: AnyDataset, dense: bool, count: int | None, where: str) -> None:
    """Read the labels of a dataset as several classes an image, in place.

    Args:
        dataset: opened by `create_dataset`.
        dense: each label is a row with a number from 0 to 1 for each class; otherwise a list of classes.
        count: number of classes, if it is known; the dataset may tell it.
        where: begins the message.

    Raises:
        UserError: it does not tell its labels without being read, or they are none of this kind.
    """
    reader = getattr(dataset, "reader", None)
    iter_targets = getattr(reader, "iter_targets", None)
    if not isinstance(dataset, FileDataset) or iter_targets is None:
        raise UserError(f"{where}: {ONE_LABEL}")
    labels = [*iter_targets()]
    # as classes, the 0 and 1 of every class would be a few of the first two, again and again
    rows = [label for label in labels if isinstance(label, (list, tuple))]
    width = len(rows[0]) if rows else 0
    if not dense and width > 2 and all(len(row) == width and {*row} <= {0, 1} for row in rows):
        raise UserError(
            f"{where}: each label has {width} numbers, all 0 or 1; if these are one for each class, give --target-format "
            "multihot"
        )
    # who knows how many there are: the dataset, the user, the labels
    count = num_named(reader) or count
    try:
        if count is None and rows:
            count = width if dense else max(max(row, default=-1) for row in rows) + 1
        # a few bytes of a label could ask for any amount of memory
        if (count or 1) > MOST_CLASSES:
            raise ValueError(
                f"a label names the class {(count or 1) - 1}, of {MOST_CLASSES} at most."
            )
        encode = MultiLabelTarget(count or 1, dense)
        targets = torch.stack([encode(label) for label in labels])
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {one_line(error)} Name a column of such labels, or those of the classes, by --target-key; "
            "--target-format says what it holds"
        ) from error
    dataset.reader = ReaderOfSeveral(dataset.reader, targets)


def num_named(reader: object) -> int:
    """Return how many classes a reader has names of."""
    return len(getattr(reader, "class_to_idx", None) or ())


def _check_classes(dataset: FileDataset, root: str | None, split: str, flag: str) -> None:
    """Raise a `UserError` for an image that is in no folder of a class; timm makes a class without a name of these."""
    numbers = getattr(dataset.reader, "class_to_idx", None) or {}
    unnamed = numbers.get("")
    if unnamed is None:
        return
    samples = getattr(dataset.reader, "samples", ())
    odd = next(file for file, label in samples if label == unnamed)
    table = f" a table of labels by {TABLE_OF[flag]}," if flag in TABLE_OF else ""
    raise UserError(
        f"--data-dir {root}, split '{split}': {odd} is in no folder of a class; expected "
        f"{split}/CLASS/{os.path.basename(odd)},{table} or images without labels by --unlabeled"
    )


def is_unlabeled(dataset: AnyDataset | None) -> bool:
    """True for images without labels, and for a part of them, which are marked as such where they are opened."""
    return getattr(dataset, "unlabeled", False)


def labels_of(dataset: AnyDataset) -> list[int] | None:
    """Return the label of every sample without decoding images, or None where the dataset has none or does not tell.

    Of several classes an image it is None: see `classes_of_samples`.
    """
    if classes_of_samples(dataset) is not None:
        return None
    if isinstance(dataset, IterableDataset) or is_unlabeled(dataset):
        return None
    # every kind of dataset knows its labels elsewhere; decoding all images to learn them would take an epoch
    reader = getattr(dataset, "reader", None)
    for source in (dataset, reader):
        # lists of labels, as those of torchvision
        targets = getattr(source, "targets", None)
        if targets is not None and len(targets) == len(dataset):
            return [int(label) for label in targets]
    # Hub datasets
    iter_targets = getattr(reader, "iter_targets", None)
    if iter_targets is not None:
        return [int(label) for label in iter_targets()]
    # folders and single tar files: (file, label)
    samples = getattr(reader, "samples", None)
    return [int(label) for _, label in samples] if samples else None


def truth_of(dataset: AnyDataset) -> list[int] | Tensor | None:
    """Return the labels of a dataset of either kind, as `labels_of` or, of several classes an image, as
    `classes_of_samples` does.
    """
    several = classes_of_samples(dataset)
    return labels_of(dataset) if several is None else several


def labels_unknown(flag: str) -> UserError:
    """Return the error of a flag that needs labels, where a dataset does not tell them."""
    return UserError(
        f"{flag}: this kind of dataset does not tell its labels without being read; "
        "use a folder, torch/, hfds/ or w2s/ dataset"
    )


def known_labels(dataset: AnyDataset, flag: str) -> list[int]:
    """Return the label of every sample. Raises `UserError` for ``flag`` where the dataset does not tell them."""
    if is_unlabeled(dataset):
        raise UserError(f"{flag}: these images have no labels")
    labels = labels_of(dataset)
    if labels is None:
        raise labels_unknown(flag)
    return labels


def strata(dataset: AnyDataset, flag: str) -> list[int]:
    """Return the class of every sample for what is drawn evenly from all classes; without labels there is one. Of several
    classes an image it is the rarest that it has.
    """
    several = classes_of_samples(dataset)
    if several is not None:
        # samples without any are one more group; a class that nobody has is the rarest of none
        has = several == 1
        rarity = torch.where(has, has.sum(dim=0), torch.iinfo(torch.int64).max)
        return rarity.argmin(dim=1).masked_fill(~has.any(dim=1), NO_LABEL).tolist()
    return [NO_LABEL] * len(dataset) if is_unlabeled(dataset) else known_labels(dataset, flag)


def check_labels(dataset: AnyDataset, split: str, num_classes: int) -> None:
    """Raise a `UserError` that names the first sample whose label is not in [0, num_classes)."""
    # on a GPU a label that is out of range ends the process in an assertion that names nothing
    for index, label in enumerate(labels_of(dataset) or ()):
        if not 0 <= label < num_classes:
            is_file = isinstance(dataset, FileDataset)
            name = dataset.reader.filename(index) if is_file else f"sample {index}"
            raise UserError(
                f"split '{split}': {name} has the label {label}; expected 0 to {num_classes - 1}: "
                "give the classes consecutive numbers (--class-map), or a split with labels"
            )


def class_names_of(dataset: AnyDataset) -> list[str] | None:
    """Return the names of the classes in the order of their indices, or None where a class has no name, or several."""
    reader = getattr(dataset, "reader", None)
    # by the numbers that the reader gives, else as the dataset lists them
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if isinstance(numbers, dict) and numbers:
        names = sorted(numbers, key=lambda name: numbers[name])
        has_one_each = [numbers[name] for name in names] == list(range(len(names)))
        return names if has_one_each else None
    classes = getattr(dataset, "classes", None)
    return None if classes is None else [str(name) for name in classes]


def num_classes_of(dataset: AnyDataset) -> int | None:
    """Return the number of classes of a dataset, or None where it does not tell."""
    names = class_names_of(dataset)
    if names:
        return len(names)
    labels = labels_of(dataset)
    return max(labels) + 1 if labels else None


def place_of_split(root: str | None, split: str, flag: str) -> str:
    """Return the folder or tar file of a split whose labels are in a table. That says which images are of the split, so
    where no split was named, and the folder has none, it is the folder itself.

    Raises:
        UserError: there is none.
    """
    if root is not None and os.path.isfile(root):
        return root
    return search_split(root, _find_split(root, split, flag, split in DEFAULT_SPLITS))


def _find_split(root: str | None, split: str, flag: str, may_be_root: bool = False) -> str:
    """Return the name under which a folder has ``split``: base may be train there, and novel may be test.

    timm falls back to the root when it finds no folder of the split: that would train and test on one set. It is right
    to for ``--split``, which is one set, and where the root ``may_be_root`` of a split.
    """
    if root is None:
        raise UserError(f"{flag} {split}: needs --data-dir FOLDER, or another --dataset")
    path = Path(root)
    if path.is_file():  # a tar file
        if flag == "--val-split":
            raise UserError(
                f"--data-dir {root}: one tar file is one split; give a folder with "
                "train/ and validation/, or train without evaluation: --val-split ''"
            )
        return split
    if not path.is_dir():
        raise UserError(f"--data-dir {root}: no such folder{near_path(root)}")
    # the folder of the split, by one of its names in few-shot learning, or one that timm knows
    of_classes = next((names for names in CLASS_SPLITS if split in names), ())
    split = next((name for name in (split, *of_classes) if (path / name).is_dir()), split)
    if Path(search_split(root, split)) != path:
        return split
    # it may be the folder of one split itself
    entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    is_split = entries and not {*TRAIN_SYNONYMS, *EVAL_SYNONYMS}.intersection(entries)
    if is_split and (may_be_root or flag == "--split"):
        return split
    without_labels = ""
    if flag == "--train-split":
        without_labels = ", or give images without labels by --unlabeled"
    if flag == "--val-split":
        without_labels = ", or measure nothing by --val-split ''"
    raise UserError(
        f"--data-dir {root}: no folder of the split '{split}'{nearest(split, entries)}, it has "
        f"{', '.join(entries[:6]) or 'nothing'}; name another one with {flag}{without_labels}"
    )
