"""Labels in place of a teacher: ``--teacher labels:PATH``, brought to the samples of the training set."""

import argparse
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..data.datasets import labels_of
from ..data.keys import SampleKeys, sample_keys
from ..data.shards import shard_reader
from ..data.slices import Subset
from ..distributed.world import World, agree
from ..errors import UserError
from ..files import file_sha256
from ..labels.format import MANIFEST
from ..labels.given import GivenLabels
from ..labels.imported import ImportSettings, import_labels
from ..labels.published import Place, local_labels
from ..labels.reader import LabelReader
from ..labels.sharded import ShardedLabels, manifest_at
from ..labels.splits import Data
from ..labels.table import BadRows, LabelTable, WithoutRows, file_of, read_columns, read_label_table
from .resolve import LABELS, label_paths, split_names

_logger = logging.getLogger(__name__)

USUAL_GAP = 0.01  # of the samples may be without a label before that has to be asked for


@dataclass(frozen=True)
class FoundLabels:
    """Labels that ``--teacher labels:NAME`` names.

    Args:
        name: as it was typed.
        place: where they are on this disk.
        missing: ``--labels-missing``.
    """

    name: str
    place: Place
    missing: str | None = None

    @property
    def flag(self) -> str:
        return f"--teacher {LABELS}{self.name}"

    @property
    def is_folder(self) -> bool:
        return (self.place.path / MANIFEST).is_file()

    @property
    def in_shards(self) -> bool:
        """Whether it is a folder with labels of shards, a folder for each."""
        return self.place.path.is_dir() and not self.is_folder and manifest_at(self.place.path) is not None

    @cached_property
    def columns(self) -> Mapping[str, Sequence]:
        """Those of a table, read once."""
        if self.place.path.is_dir():
            raise UserError(f"{self.flag}: the folder has no {MANIFEST}; expected a folder of labels, or a table of "
                            "them")
        return read_columns(file_of(self.place.path)[0], self.flag)

    def table(self, class_names: Sequence[str] | None) -> LabelTable:
        """Return what the table says in terms of some classes, or of those that it names itself.

        Rows that say nothing that can be understood are left out as ``--labels-missing`` allows.
        """
        columns: Mapping[str, Sequence] = self.columns
        while True:
            try:
                return read_label_table(self.place.path, class_names, self.flag, columns)
            except BadRows as error:
                if error.rows.all() or is_too_many(int(error.rows.sum()), len(error.rows), self.missing):
                    raise
                _logger.warning(f"WARNING: {error}; left out")
                columns = WithoutRows(columns, error.rows)

    @property
    def class_names(self) -> Sequence[str] | None:
        if self.is_folder or self.in_shards:
            return manifest_at(self.place.path).class_names
        return self.table(None).class_names


def fingerprint_of(path: Path) -> str | None:
    """Return the fingerprint of a file of labels, or of the manifests and names of the files in a folder of them; None
    where there is none.
    """
    if not path.is_dir():
        file = file_of(path)[0]
        return file_sha256(file)[:16] if file.is_file() else None
    content = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")):
        content.update(f"{file.relative_to(path)} {file.stat().st_size}".encode(errors="surrogateescape"))
    for file in sorted(path.rglob(MANIFEST)):
        content.update(file.read_bytes())
    return content.hexdigest()[:16]


def is_too_many(bad: int, count: int, missing: str | None) -> bool:
    """Whether so many of ``count`` samples or rows are an error, as ``--labels-missing`` says."""
    return missing == "error" or (missing is None and bad > USUAL_GAP * count)


def find_labels(args: argparse.Namespace, world: World) -> list[FoundLabels]:
    """Find the labels among the names of ``--teacher``; one process fetches those that are on the Hub.

    Raises:
        UserError: see `local_labels`.
    """
    found = []
    for name in label_paths(args.teacher):
        place = agree(world.primary and local_labels(name, f"--teacher {LABELS}{name}"), world.distributed)
        found.append(FoundLabels(name, place, args.labels_missing))
    return found


def take_labels(
        args: argparse.Namespace,
        data: Data,
        found: Sequence[FoundLabels],
        class_names: list[str] | None,
) -> list[Path]:
    """Find labels in place of a teacher, and leave out training samples that none is about, in place; return their
    folders.

    Raises:
        UserError: labels of other data or other classes; too many samples without one.
    """
    if not found:
        return []
    if not class_names:
        class_names = [str(i) for i in range(data.num_classes)]
    if args.labels_confidence is not None and args.labels_confidence < 1 / len(class_names):
        raise UserError(f"--labels-confidence {args.labels_confidence:g}: is below chance; of {len(class_names)} "
                        f"classes expected {1 / len(class_names):.3g} to 1")
    whole = sample_keys(data.train), sample_keys(data.select) if data.select is not None else None
    sharded = shard_reader(data.train) is not None
    folders = [labels.place.path if sharded and labels.in_shards else _folder(args, labels, whole, class_names)
               for labels in found]
    _refuse_other_classes(found, folders, class_names)
    # no model answers for the rest, nor do labels of shards, which have all samples
    if len(found) == len(split_names(args.teacher)) and not any(map(_in_shards, folders)):
        data.train = _labelled(args, data.train, folders)
        if data.select is not None:
            data.select = _labelled(args, data.select, folders, "held-out")
    _refuse_gaps(args, data, found, folders)
    return folders


def read_labels(args: argparse.Namespace, data: Data, found: Sequence[FoundLabels], folders: Sequence[Path]) -> None:
    """Read the labels of the samples that are trained on, of which there will be no fewer, in place."""
    if not found:
        return
    data.given = [_given(args, labels, folder, data) for labels, folder in zip(found, folders)]
    truth = data.noise.clean_labels(data.train) if data.noise else labels_of(data.train)
    if truth is not None:
        data.given = [labels.compared_with(truth) for labels in data.given]


def _refuse_gaps(
        args: argparse.Namespace, data: Data, found: Sequence[FoundLabels], folders: Sequence[Path]) -> None:
    """Refuse to choose among teachers some of which say nothing of a sample."""
    choice = ("--teacher-weights learned" if args.teacher_weights == "learned" else
              "--teacher-assign student" if args.teacher_assign == "student" else None)
    for labels in (_given(args, *about, data) for about in zip(found, folders)) if choice else ():
        index = torch.arange(len(data.train))
        if isinstance(labels.train, LabelReader) and (absent := int((~labels.train.has(index)).sum())):
            raise UserError(f"{choice} needs an answer of every teacher to each sample, but {labels.shown} has none of "
                            f"{absent} of {len(index)} training samples; leave it out, or label them")


def _in_shards(folder: Path) -> bool:
    """Say whether a folder has labels of shards, a folder for each."""
    return not (folder / MANIFEST).is_file()


def _given(args: argparse.Namespace, labels: FoundLabels, folder: Path, data: Data) -> GivenLabels:
    def reader(dataset: Dataset) -> LabelReader | ShardedLabels:
        confidence = 1.0 if args.labels_confidence is None else args.labels_confidence
        if _in_shards(folder):
            return ShardedLabels(folder, dataset, confidence)
        return LabelReader(folder, sample_keys(dataset), confidence=confidence, partial=True)
    return GivenLabels(
        labels.name, reader(data.train), None if data.select is None else reader(data.select), labels.place.commit)


def names_in_labels(found: Sequence[FoundLabels]) -> list[str]:
    """Return the names of the classes that labels know of, those of the first ones first."""
    return list(dict.fromkeys(name for labels in found for name in labels.class_names or ()))


def _folder(
        args: argparse.Namespace,
        labels: FoundLabels,
        keys: tuple[SampleKeys, SampleKeys | None],
        class_names: list[str],
) -> Path:
    """Return the folder of labels, which is made of a table."""
    train, select = keys
    both = train if select is None else SampleKeys(
        train.by, [*train.values, *select.values], [*(train.positions or ()), *(select.positions or ())])
    if labels.is_folder:
        LabelReader(labels.place.path, both)  # refuses those of other data; a part of it may be without
        return labels.place.path
    return import_labels(
        labels.table(class_names), both, class_names, Path(args.target_cache), ImportSettings(args.labels_combine),
        labels.flag)


def _refuse_other_classes(found: Sequence[FoundLabels], folders: list[Path], class_names: list[str]) -> None:
    for labels, folder in zip(found, folders):
        manifest = manifest_at(folder)
        if manifest.num_classes != len(class_names):
            raise UserError(f"{labels.flag}: has {manifest.num_classes} classes, the data "
                            f"{len(class_names)}")
        if manifest.class_names and list(manifest.class_names) != list(class_names):
            odd = next(a for a, b in zip(manifest.class_names, class_names) if a != b)
            raise UserError(f"{labels.flag}: its classes are not those of the data in its order (first: "
                            f"{odd}); write it as a table, which is matched by name: python -m w2s_plugins.labels "
                            f"export {labels.name} --output labels.csv")


def _labelled(args: argparse.Namespace, dataset: Dataset, folders: list[Path], what: str = "training") -> Dataset:
    """Return the samples that have a label from anywhere."""
    keys, index = sample_keys(dataset), torch.arange(len(dataset))
    has = torch.stack([LabelReader(folder, keys, partial=True).has(index) for folder in folders]).any(dim=0)
    absent = int((~has).sum())
    if not absent:
        return dataset
    example = keys.values[int((~has).nonzero()[0])]
    text = f"{absent} of {len(dataset)} {what} samples have no label, such as {example}"
    if absent == len(dataset):
        raise UserError(f"--teacher {args.teacher}: {text}")
    if is_too_many(absent, len(dataset), args.labels_missing):
        raise UserError(f"--teacher {args.teacher}: {text}; --labels-missing skip trains on the others")
    _logger.warning(f"WARNING: --teacher {args.teacher}: {text}; they are left out")
    return Subset(dataset, has.nonzero().flatten().tolist())
