"""Labels in place of a teacher: ``--teacher labels:PATH``, brought to the samples of the training set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import MapDataset
from ..data.datasets import truth_of
from ..data.keys import SampleKeys, sample_keys
from ..data.slices import Subset
from ..distributed.world import World, broadcast_from_rank0
from ..errors import UserError, logger
from ..files import file_sha256
from ..labels.crowd import join_tables
from ..labels.given import GivenLabels
from ..labels.published import Place, local_labels
from ..labels.samples import SampleLabels, check_gaps, labels_of_samples, told_once
from ..labels.several import ListForm
from ..labels.table import TableFile, file_of, open_table
from ..settings.concerns import WeakTeacherSettings
from ..settings.forms import LABELS_PREFIX
from ..target_kind import SEVERAL_CLASSES
from .splits import Data


@dataclass(frozen=True)
class LabelSource:
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
        return f"--teacher {LABELS_PREFIX}{self.name}"

    @cached_property
    def file(self) -> TableFile:
        """The table, which is read once: for the classes that it names, and for what it says in those of the run."""
        return open_table(self.place.path, self.flag)


def fingerprint_of(table: TableFile) -> str:
    """Return the fingerprint of a table of labels: that of its rows, in whatever order, then that of the file, by which
    older versions know it.
    """
    from pandas import util

    frame = table.frame
    rows = np.zeros(len(frame), np.uint64)
    for _, column in frame.items():
        values = column.to_numpy()
        # cells may be lists, and names of files need not be UTF-8
        if values.dtype.kind not in "biuf":
            values = np.array([*map(str, values)], object)
        # pandas imports it as late as this, which hides its type
        hashes = util.hash_array(values, encoding="unicode_escape", categorize=False)  # pyright: ignore[reportCallIssue]
        rows = rows * np.uint64(1_000_003) + hashes
    columns = json.dumps([*frame.columns, frame.attrs.get("class_names")], default=str)
    digest = hashlib.sha256(columns.encode() + np.sort(rows).tobytes()).hexdigest()
    return f"{digest[:16]} {file_sha256(file_of(table.path)[0])[:16]}"


def find_label_files(settings: WeakTeacherSettings, world: World) -> list[LabelSource]:
    """Find the labels among the names of ``--teacher``; one process fetches those that are on the Hub.

    Raises:
        UserError: see `local_labels`.
    """
    labels = []
    for name in settings.label_paths:
        # Only the first rank asks the Hub, so that all have the same revision.
        place = local_labels(name, f"--teacher {LABELS_PREFIX}{name}") if world.primary else None
        place = broadcast_from_rank0(place, world.distributed)
        labels.append(LabelSource(name, place, settings.labels_missing))
    return labels


def match_labels(
    settings: WeakTeacherSettings,
    data: Data,
    labels: Sequence[LabelSource],
    class_names: list[str] | None,
) -> list[SampleLabels]:
    """Find labels in place of a teacher, and leave out training samples that none is about, in place; return those
    of all samples, of the training set and of its held-out part. Of files that are to be combined they are one.

    Raises:
        UserError: labels of other data or other classes; too many samples without one.
    """
    if not labels:
        return []
    class_names = class_names or [str(number) for number in range(data.count_classes())]
    # Below chance a label would make its own class the least likely one; of several each is a question of two answers.
    several = data.target_kind.name == SEVERAL_CLASSES.name
    chance = 1 / (2 if several else len(class_names))
    confidence = settings.labels_confidence
    if confidence is not None and confidence < chance:
        raise UserError(
            f"--teacher {settings.teacher}: a confidence below chance; of {len(class_names)} classes expected "
            f"{chance:.3g} to 1"
        )

    # Rows are matched with the samples of both parts: a table may be about all of them.
    keys = sample_keys(data.samples)
    if data.select is not None:
        select = sample_keys(data.select)
        values: list[Any] = [*keys.values, *select.values]  # all names, or all positions
        keys = SampleKeys(keys.by, values, [*(keys.positions or ()), *(select.positions or ())])
    lists = ListForm(settings.labels_unlisted, settings.labels_delimiter)
    kind = data.target_kind
    # beside them there may be a teacher of its own in each of several runs
    flags = [of_name.flag for of_name in labels]
    with told_once(" ".join(flags), [of_name.place.path for of_name in labels]):
        tables = [
            of_name.file.labels(class_names, of_name.missing, target_kind=kind, lists=lists)
            for of_name in labels
        ]
        if settings.labels_combine and len(tables) > 1:
            flag = ",labels:".join([flags[0], *(of_name.name for of_name in labels[1:])])
            flags, tables = [flag], [join_tables(tables, flag)]
        sure, combine = 1.0 if confidence is None else confidence, settings.labels_combine
        answers = [
            labels_of_samples(table, keys, class_names, combine, flag, sure, kind)
            for table, flag in zip(tables, flags)
        ]
    # The mean of two that differ is a tie, which is for the reader to know of.
    first, *others = answers
    differ = sum(first.differs(other) for other in others)
    if np.any(differ) and settings.teacher_assign == "mean":
        logger.info(
            f"--teacher {settings.teacher}: {np.count_nonzero(differ)} samples get the mean of files that differ; "
            "?combine=majority would take these as one crowd"
        )

    # Samples without a label are left out, unless a model answers for them.
    if not settings.models:
        data.train = _with_a_label(settings, data.samples, answers)
        if data.select is not None:
            data.select = _with_a_label(settings, data.select, answers, "held-out")

    # Who chooses among teachers needs an answer of each.
    if settings.teacher_assign == "student":
        for of_name, known in zip(labels, _known_by(answers, sample_keys(data.samples))):
            if not known.all():
                raise UserError(
                    f"--teacher-assign student needs an answer of every teacher to each sample, but {of_name.flag} has "
                    f"none of {int((~known).sum())} of {len(known)}"
                )
    return answers


def attach_labels(
    data: Data, labels: Sequence[LabelSource], answers: Sequence[SampleLabels]
) -> None:
    """Keep the labels of the samples that are trained on, of which there will be no fewer, in place."""
    if not labels:
        return
    train = sample_keys(data.samples)
    select = None if data.select is None else sample_keys(data.select)
    data.given_labels = [
        GivenLabels(
            of_name.name,
            answer.of(train),
            None if select is None else answer.of(select),
            of_name.place.commit,
        )
        for of_name, answer in zip(labels, answers)
    ]

    # If ground truth is known, the log and the record say how many labels are wrong.
    truth = data.noise.clean_labels(data.train) if data.noise else truth_of(data.train)
    if truth is not None:
        data.given_labels = [
            labels_of_run.compared_with(truth) for labels_of_run in data.given_labels
        ]


def _with_a_label(
    settings: WeakTeacherSettings,
    dataset: MapDataset,
    answers: list[SampleLabels],
    what: str = "training",
) -> MapDataset:
    """Return the samples that have a label from anywhere."""
    keys = sample_keys(dataset)
    # One label is enough: teachers that say nothing of a sample have no part in its target.
    known = _known_by(answers, keys).any(dim=0)
    check_gaps(known, keys, settings.labels_missing, f"--teacher {settings.teacher}", what)
    return dataset if known.all() else Subset(dataset, known.nonzero().flatten().tolist())


def _known_by(answers: Sequence[SampleLabels], keys: SampleKeys) -> Tensor:
    """Say of which samples each of the labels (L, N) says something."""
    return torch.stack([labels.of(keys).known for labels in answers])
