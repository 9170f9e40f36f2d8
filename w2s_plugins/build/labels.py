"""Labels in place of a teacher: ``--teacher labels:PATH``, brought to the samples of the training set."""

import argparse
import logging
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..data.datasets import labels_of
from ..data.keys import SampleKeys, sample_keys
from ..data.slices import Subset
from ..errors import UserError
from ..labels.format import MANIFEST, read_manifest
from ..labels.given import GivenLabels
from ..labels.imported import ImportSettings, import_labels
from ..labels.reader import LabelReader
from ..labels.splits import Data
from ..labels.table import read_label_table
from .resolve import label_paths

_logger = logging.getLogger(__name__)

USUAL_GAP = 0.01  # of the samples may be without a label before that has to be asked for


def take_labels(args: argparse.Namespace, data: Data, class_names: list[str] | None) -> None:
    """Read the labels that ``--teacher`` names, and leave out training samples that none of them is about, in place.

    Raises:
        UserError: labels of other data or other classes; too many samples without one.
    """
    paths = label_paths(args.teacher)
    if not paths:
        return
    if not class_names:
        class_names = [str(i) for i in range(data.num_classes)]
    whole = sample_keys(data.train), sample_keys(data.select) if data.select is not None else None
    folders = [_folder(args, path, whole, class_names) for path in paths]
    _refuse_other_classes(paths, folders, class_names)
    if len(paths) == len([name for name in args.teacher.split(",") if name.strip()]):  # no model answers for the rest
        data.train = _labelled(args, data.train, folders)
        if data.select is not None:
            data.select = _labelled(args, data.select, folders, "held-out")
    keys, confidence = sample_keys(data.train), args.labels_confidence or 1.0
    select = sample_keys(data.select) if data.select is not None else None
    data.given = [
        GivenLabels(path, LabelReader(folder, keys, confidence=confidence),
                    select and LabelReader(folder, select, confidence=confidence))
        for path, folder in zip(paths, folders)]
    truth = data.noise.clean_labels(data.train) if data.noise else labels_of(data.train)
    if truth is not None:
        data.given = [labels.compared_with(truth) for labels in data.given]


def names_in_labels(teacher: str | None) -> list[str] | None:
    """Return the names of the classes that the first labels among the names of ``--teacher`` know of, or None."""
    for path in map(Path, label_paths(teacher)):
        if (path / MANIFEST).is_file():
            names = read_manifest(path).class_names
        else:
            names = read_label_table(path, None, f"--teacher labels:{path}").class_names
        if names:
            return list(names)
    return None


def _folder(
        args: argparse.Namespace,
        path: str,
        keys: tuple[SampleKeys, SampleKeys | None],
        class_names: list[str],
) -> Path:
    """Return the folder of the labels at a path, which is made of a table."""
    if (Path(path) / MANIFEST).is_file():
        return Path(path)
    if Path(path).is_dir():
        raise UserError(f"--teacher labels:{path}: the folder has no {MANIFEST}; expected a folder of labels, or a "
                        "table of them")
    train, select = keys
    both = train if select is None else SampleKeys(train.by, [*train.values, *select.values])
    return import_labels(
        Path(path), both, class_names, Path(args.target_cache), ImportSettings(args.labels_combine),
        f"--teacher labels:{path}")


def _refuse_other_classes(paths: list[str], folders: list[Path], class_names: list[str]) -> None:
    for path, folder in zip(paths, folders):
        manifest = LabelReader(folder).manifest
        if manifest.num_classes != len(class_names):
            raise UserError(f"--teacher labels:{path}: has {manifest.num_classes} classes, the data "
                            f"{len(class_names)}")
        if manifest.class_names and list(manifest.class_names) != list(class_names):
            odd = next(a for a, b in zip(manifest.class_names, class_names) if a != b)
            raise UserError(f"--teacher labels:{path}: its classes are not those of the data in its order (first: "
                            f"{odd}); write it as a table, which is matched by name: python -m w2s_plugins.labels "
                            f"export {path} --output labels.csv")


def _labelled(args: argparse.Namespace, dataset: Dataset, folders: list[Path], what: str = "training") -> Dataset:
    """Return the samples that have a label from anywhere."""
    keys, index = sample_keys(dataset), torch.arange(len(dataset))
    has = torch.stack([LabelReader(folder, keys).has(index) for folder in folders]).any(dim=0)
    absent = int((~has).sum())
    if not absent:
        return dataset
    example = keys.values[int((~has).nonzero()[0])]
    text = f"{absent} of {len(dataset)} {what} samples have no label, such as {example}"
    if args.labels_missing == "error" or (args.labels_missing is None and absent > USUAL_GAP * len(dataset)):
        raise UserError(f"--teacher {args.teacher}: {text}; --labels-missing skip trains on the others")
    _logger.warning(f"WARNING: --teacher {args.teacher}: {text}; they are left out")
    return Subset(dataset, has.nonzero().flatten().tolist())
