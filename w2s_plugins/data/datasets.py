"""timm's datasets, plus the embedded one, with errors that say what to do."""

import os
from pathlib import Path

import timm.data
from PIL import Image
from timm.data.readers import reader_image_folder, reader_image_in_tar
from torch.utils.data import Dataset, IterableDataset

from ..cli.forms import DIGITS, LIST_FILES, check_dataset_name
from ..errors import UserError, logger, near_path, nearest, one_line
from ..private_names import EVAL_SYNONYMS, TRAIN_SYNONYMS, search_split
from .decoding import FileDataset, ImageSuffixes, Stream, explain_unreadable, to_mode
from .digits import TEST_SPLITS, TRAIN_SPLITS, Digits
from .inat import open_inat
from .readers import NO_LABEL
from .unreadable import UnreadableSample

# names of the splits of few-shot learning, whose classes differ; timm has those of validation
CLASS_SPLITS = (("base", "train", "training"), ("novel", "test", "testing"))


class TorchvisionDataset(Dataset):
    """A torchvision dataset whose images are brought to one mode, as timm does for its other readers."""

    def __init__(self, dataset: Dataset, input_img_mode: str):
        self.dataset, self.input_img_mode, self.transform = dataset, input_img_mode, None
        if hasattr(dataset, "loader"):  # which would lose what does not fit into RGB
            dataset.loader = Image.open
        if hasattr(dataset, "targets"):
            self.targets = [int(label) for label in dataset.targets]
        if hasattr(dataset, "classes"):
            self.classes = dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            image, label = self.dataset[index]
            image = to_mode(image, self.input_img_mode)
        except Exception as error:  # as in `FileDataset`
            raise UnreadableSample(f"sample {index} of {type(self.dataset).__name__}: cannot be read "
                                   f"({explain_unreadable(error)})") from error
        return self.transform(image) if self.transform else image, int(label)


def create_dataset(
        name: str,
        root: str | None,
        split: str,
        *,
        flag: str = "--val-split",
        **kwargs: object,
) -> Dataset:
    """Create a dataset of timm or of this project.

    Args:
        name: ``TYPE/NAME`` or empty for a folder or tar file.
        root: folder of the data.
        split: name of the split.
        flag: the flag that named the split, for error messages.
        **kwargs: arguments of `timm.data.create_dataset`.

    Raises:
        UserError: unknown name, missing or empty folder, missing split.
    """
    check_dataset_name(name)
    # json lists of iNaturalist
    if name in LIST_FILES:
        if kwargs.get("class_map"):
            raise UserError(f"--class-map: the classes of {name} are numbered by its lists; leave the flag out")
        used = {k: kwargs[k] for k in ("load_bytes", "input_img_mode") if kwargs.get(k) is not None}
        return open_inat(name, root, split, flag=flag, **used)
    # the embedded set
    if name == DIGITS:
        if split not in TRAIN_SPLITS + TEST_SPLITS:
            raise UserError(f"{flag} {split}: {name} has the splits train and validation")
        return Digits(split, kwargs.get("input_img_mode") or "RGB")

    # timm's own
    is_torch = name.lower().startswith("torch/")
    if is_torch and not root:
        raise UserError(f"--dataset {name} needs --data-dir FOLDER, where its files are or are to be downloaded")
    if not name or name.lower() in ("torch/image_folder", "torch/folder"):
        split = _find_split(root, split, flag)
    # the user may allow it, and is told so
    if kwargs.get("trust_remote_code"):
        logger.info(f"--dataset-trust-remote-code: opening {name or root} may run code that comes with the data")
    # timm walks through folders and tar files once, and passes over what is no image
    suffixes = ImageSuffixes()
    for reader in (reader_image_folder, reader_image_in_tar):
        reader.get_img_extensions = lambda **_: suffixes
    where = f"--dataset {name}" if name else f"--data-dir {root}"
    if kwargs.get("class_map"):
        where += f", --class-map {kwargs['class_map']}"
    where += f", split '{split}'"
    try:
        dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    except Exception as error:  # readers, and whoever downloads for them, stumble on many things
        hint = " (--dataset-download fetches it)" if is_torch and "not found" in str(error).lower() else ""
        raise UserError(f"{where}: {one_line(error)}{hint or suffixes.log_others(where)}") from error
    suffixes.log_others(where)
    # one interface for all: labels and names, and errors that name the sample
    if is_torch:
        return TorchvisionDataset(dataset, kwargs.get("input_img_mode") or "RGB")
    # what TensorFlow decodes is timm's
    if name.lower().startswith(("wds/", "hfids/")):
        return Stream(dataset.reader, kwargs.get("input_img_mode") or "RGB")
    if type(dataset) is not timm.data.ImageDataset:
        return dataset
    # forked workers would share its place in an open file
    if hasattr(dataset.reader, "cache_tarfiles"):
        dataset.reader.cache_tarfiles = False
    dataset = FileDataset(
        root, reader=dataset.reader, load_bytes=dataset.load_bytes, input_img_mode=dataset.input_img_mode)
    # timm makes a class without a name of the images that are in no folder of a class
    unnamed = (getattr(dataset.reader, "class_to_idx", None) or {}).get("")
    if unnamed is not None and flag != "--split":  # `validate.py --real-labels` needs no classes
        odd = next(file for file, label in dataset.reader.samples if label == unnamed)
        raise UserError(f"--data-dir {root}, split '{split}': {odd} is in no folder of a class; expected {split}/CLASS/"
                        f"{os.path.basename(odd)}, or images without labels by --unlabeled")
    return dataset


def is_unlabeled(dataset: Dataset | None) -> bool:
    """True for images without labels, and for a part of them, which are marked as such where they are opened."""
    return getattr(dataset, "unlabeled", False)


def labels_of(dataset: Dataset) -> list[int] | None:
    """Return the label of every sample without decoding images, or None where the dataset has none or does not tell."""
    if isinstance(dataset, IterableDataset) or is_unlabeled(dataset):
        return None
    reader = getattr(dataset, "reader", None)
    for owner in (dataset, reader):
        # lists of labels, as those of torchvision
        targets = getattr(owner, "targets", None)
        if targets is not None and len(targets) == len(dataset):
            return [int(label) for label in targets]
    if hasattr(reader, "iter_targets"):  # Hub datasets
        return [int(label) for label in reader.iter_targets()]
    if getattr(reader, "samples", None):  # folders and single tar files: (file, label)
        return [int(label) for _, label in reader.samples]
    return None


def known_labels(dataset: Dataset, flag: str) -> list[int]:
    """Return the label of every sample. Raises `UserError` for ``flag`` where the dataset does not tell them."""
    if is_unlabeled(dataset):
        raise UserError(f"{flag}: these images have no labels")
    labels = labels_of(dataset)
    if labels is None:
        raise UserError(f"{flag}: this kind of dataset does not tell its labels without being read; use a folder, "
                        "torch/, hfds/ or w2s/ dataset")
    return labels


def strata(dataset: Dataset, flag: str) -> list[int]:
    """Return the class of every sample for what is drawn evenly from all classes; without labels there is one."""
    return [NO_LABEL] * len(dataset) if is_unlabeled(dataset) else known_labels(dataset, flag)


def check_labels(dataset: Dataset, split: str, num_classes: int) -> None:
    """Raise a `UserError` that names the first sample whose label is not in [0, num_classes)."""
    for index, label in enumerate(labels_of(dataset) or ()):
        if not 0 <= label < num_classes:
            name = dataset.filename(index) if hasattr(dataset, "filename") else f"sample {index}"
            raise UserError(f"split '{split}': {name} has the label {label}; expected 0 to {num_classes - 1}: give the "
                            "classes consecutive numbers (--class-map), or a split with labels")


def class_names_of(dataset: Dataset) -> list[str] | None:
    """Return the names of the classes in the order of their indices, or None where a class has no name, or several."""
    reader = getattr(dataset, "reader", None)
    # by the numbers that the reader gives, else as the dataset lists them
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if isinstance(numbers, dict) and numbers:
        names = sorted(numbers, key=numbers.get)
        return names if [numbers[name] for name in names] == list(range(len(names))) else None
    classes = getattr(dataset, "classes", None)
    return None if classes is None else [str(name) for name in classes]


def num_classes_of(dataset: Dataset) -> int | None:
    """Return the number of classes of a dataset, or None where it does not tell."""
    names = class_names_of(dataset)
    if names:
        return len(names)
    labels = labels_of(dataset)
    return max(labels) + 1 if labels else None


def _find_split(root: str, split: str, flag: str) -> str:
    """Return the name under which a folder has ``split``: base may be train there, and novel may be test.

    timm falls back to the root when it finds no folder of the split: that would train and test on one set.
    """
    path = Path(root)
    if path.is_file():  # a tar file
        if flag == "--val-split":
            raise UserError(f"--data-dir {root}: one tar file is one split; give a folder with train/ and validation/, "
                            "or train without evaluation: --val-split ''")
        return split
    if not path.is_dir():
        raise UserError(f"--data-dir {root}: no such folder{near_path(root)}")
    # the folder of the split, by one of its names in few-shot learning, or one that timm knows
    of_classes = next((names for names in CLASS_SPLITS if split in names), ())
    split = next((name for name in (split, *of_classes) if (path / name).is_dir()), split)
    if Path(search_split(root, split)) != path:
        return split
    # some may be given the folder of one split itself
    entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    is_split = entries and not {*TRAIN_SYNONYMS, *EVAL_SYNONYMS}.intersection(entries)
    if not (is_split and flag == "--split"):
        without_labels = ", or give images without labels by --unlabeled" if flag == "--train-split" else ""
        raise UserError(f"--data-dir {root}: no folder of the split '{split}'{nearest(split, entries)}, it has "
                        f"{', '.join(entries[:6]) or 'nothing'}; name another one with {flag}{without_labels}")
    return split
