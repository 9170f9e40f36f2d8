"""Labels in place of a teacher: ``--teacher labels:PATH``, brought to the samples of the training set."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..cli.forms import LABELS
from ..data.datasets import labels_of
from ..data.keys import SampleKeys, sample_keys
from ..data.slices import Subset
from ..distributed.world import World, broadcast_from_rank0
from ..errors import UserError, logger
from ..files import file_sha256
from ..labels.crowd import join_tables
from ..labels.given import GivenLabels
from ..labels.published import Place, local_labels
from ..labels.samples import TableLabels, check_gaps, labels_of_samples
from ..labels.splits import Data
from ..labels.table import LabelTable, file_of, read_label_table
from ..settings.resolve import label_paths, teacher_models


@dataclass(frozen=True)
class FoundLabels:
    """Labels that ``--teacher labels:NAME`` names.

    Args:
        name: as it was typed.
        place: where they are on this disk.
        missing: ``skip`` or ``error``, what to do about samples without a label.
    """

    name: str
    place: Place
    missing: str | None = None

    @property
    def flag(self) -> str:
        return f"--teacher {LABELS}{self.name}"

    def table(self, class_names: Sequence[str] | None, likely: Sequence[str] | None = None) -> LabelTable:
        """Return what the table says in terms of some classes, or of those that it names itself."""
        return read_label_table(self.place.path, class_names, self.flag, self.missing, likely)


def fingerprint_of(path: Path) -> str | None:
    """Return the fingerprint of a file of labels; None where there is none."""
    file = file_of(path)[0]
    return file_sha256(file)[:16] if file.is_file() else None


def find_labels(args: Namespace, world: World) -> list[FoundLabels]:
    """Find the labels among the names of ``--teacher``; one process fetches those that are on the Hub.

    Raises:
        UserError: see `local_labels`.
    """
    found = []
    for name in label_paths(args.teacher):
        place = local_labels(name, f"--teacher {LABELS}{name}") if world.primary else None
        place = broadcast_from_rank0(place, world.distributed)
        found.append(FoundLabels(name, place, args.labels_missing))
    return found


def take_labels(
        args: Namespace,
        data: Data,
        found: Sequence[FoundLabels],
        class_names: list[str] | None,
) -> list[TableLabels]:
    """Find labels in place of a teacher, and leave out training samples that none is about, in place; return those
    of all samples, of the training set and of its held-out part. Of files that are to be combined they are one.

    Raises:
        UserError: labels of other data or other classes; too many samples without one.
    """
    if not found:
        return []
    class_names = class_names or [str(number) for number in range(data.num_classes)]
    chance = 1 / len(class_names)
    if args.labels_confidence is not None and args.labels_confidence < chance:
        raise UserError(f"--teacher {args.teacher}: a confidence below chance; of {len(class_names)} "
                        f"classes expected {chance:.3g} to 1")

    # Rows are matched with the samples of both parts: a table may be about all of them.
    keys = sample_keys(data.train)
    if data.select is not None:
        select = sample_keys(data.select)
        keys = SampleKeys(
            keys.by, [*keys.values, *select.values], [*(keys.positions or ()), *(select.positions or ())])
    confidence = 1.0 if args.labels_confidence is None else args.labels_confidence
    tables, flags = [labels.table(class_names) for labels in found], [labels.flag for labels in found]
    if args.labels_combine and len(tables) > 1:
        flags = [",labels:".join([flags[0], *(labels.name for labels in found[1:])])]
        tables = [join_tables(tables, *flags)]
    answers = [
        labels_of_samples(table, keys, class_names, args.labels_combine, flag, confidence)
        for table, flag in zip(tables, flags)]
    # The mean of two that differ is a tie, which is for the reader to know of.
    one, *others = (labels.classes() for labels in answers)
    differ = sum((one >= 0) & (other >= 0) & (one != other) for other in others)
    if np.any(differ) and args.teacher_assign != "student":
        logger.info(f"--teacher {args.teacher}: {np.count_nonzero(differ)} samples get the mean of files that differ; "
                    "?combine=majority would take these as one crowd")

    # Samples without a label are left out, unless a model answers for them.
    if not teacher_models(args.teacher):
        data.train = _labelled(args, data.train, answers)
        if data.select is not None:
            data.select = _labelled(args, data.select, answers, "held-out")

    # Who chooses among teachers needs an answer of each.
    if args.teacher_assign == "student":
        for labels, has in zip(found, _known_by(answers, sample_keys(data.train))):
            if not has.all():
                raise UserError(f"--teacher-assign student needs an answer of every teacher to each sample, but "
                                f"{labels.flag} has none of {int((~has).sum())} of {len(has)}")
    return answers


def read_labels(data: Data, found: Sequence[FoundLabels], answers: Sequence[TableLabels]) -> None:
    """Keep the labels of the samples that are trained on, of which there will be no fewer, in place."""
    if not found:
        return
    data.given = [
        GivenLabels(labels.name, own.of(sample_keys(data.train)),
                    None if data.select is None else own.of(sample_keys(data.select)), labels.place.commit)
        for labels, own in zip(found, answers)]

    # Where ground truth is known, the log and the record say how many labels are wrong.
    truth = data.noise.clean_labels(data.train) if data.noise else labels_of(data.train)
    if truth is not None:
        data.given = [labels.compared_with(truth) for labels in data.given]


def _labelled(
        args: Namespace, dataset: Dataset, answers: list[TableLabels], what: str = "training") -> Dataset:
    """Return the samples that have a label from anywhere."""
    keys = sample_keys(dataset)
    has = _known_by(answers, keys).any(dim=0)
    check_gaps(has, keys, args.labels_missing, f"--teacher {args.teacher}", what)
    return dataset if has.all() else Subset(dataset, has.nonzero().flatten().tolist())


def _known_by(answers: Sequence[TableLabels], keys: SampleKeys) -> Tensor:
    """Say of which samples each of the labels (L, N) says something."""
    return torch.stack([labels.of(keys).known for labels in answers])
