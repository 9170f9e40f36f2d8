"""A table of labels brought to the samples of a dataset: one answer a sample, as one array in their order.

Training, label noise and ``labels check`` all go this way, so a table means the same to each of them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ..data.keys import SampleKeys
from ..errors import UserError, nearest
from ..files import file_sha256
from .combine import agreement_of_annotators, combine_annotators
from .store import Manifest
from .table import LabelTable, file_of, is_too_many, read_label_table

_logger = logging.getLogger(__name__)


class TableLabels:
    """The labels of a table for some samples, in memory; it is asked as a `store.LabelReader` is.

    Args:
        manifest: what the labels are, and who gave them.
        answers: (N, ...) one for each sample of ``keys``; rows of samples without a label hold anything.
        known: (N,) which samples have a label.
        keys: of the samples.
        confidence: the probability of a label that is a class alone.
    """

    folder = None  # they are nowhere but in memory
    view = 0

    def __init__(self, manifest: Manifest, answers: Tensor, known: Tensor, keys: SampleKeys, confidence: float = 1.0):
        self.manifest, self.answers, self.known, self.keys = manifest, answers, known, keys
        self.confidence, self.complete = confidence, bool(known.all())

    def of(self, keys: SampleKeys, confidence: float = 1.0) -> "TableLabels":
        """Return the labels of some of these samples, in their order."""
        places = {key: i for i, key in enumerate(self.keys.values)}
        rows = torch.tensor([places[key] for key in keys.values], dtype=torch.long)
        return TableLabels(self.manifest, self.answers[rows], self.known[rows], keys, confidence)

    def classes(self) -> np.ndarray:
        """Return the class (N,) of each sample, -1 where it has no label."""
        known = self.known.numpy()
        found = np.full(len(known), -1)
        answers = self.answers.numpy()[known]
        found[known] = answers if answers.ndim == 1 else most_likely(answers)[0]
        return found

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        return self.known[index]

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        if not self.complete and not self.known[index].all():
            absent = index[~self.known[index]]
            raise UserError(f"{self.manifest.who['file']}: has no label of {self.keys.values[int(absent[0])]}")
        rows = self.answers[index]
        if device.type == "cuda":
            rows = rows.pin_memory()
        (name, _), = self.manifest.layout.items()
        return self.manifest.decode({name: rows.to(device, non_blocking=True)}, self.confidence)


def labels_of_samples(
        table: LabelTable, keys: SampleKeys, class_names: Sequence[str], combine: str | None, flag: str) -> TableLabels:
    """Return one answer for each sample that a table says something of.

    Args:
        table: what the file says, read with these ``class_names``, or with numbers for classes.
        keys: of the samples of the data.
        class_names: classes of the data, in its order.
        combine: what to make of several annotators, one of `combine.MEANS`; None for the majority of labels, and the
            mean of probabilities.
        flag: begins the messages.

    Raises:
        UserError: the table is about other data or other classes, or contradicts itself.
    """
    if table.num_classes > len(class_names):
        raise UserError(f"{flag}: has {table.num_classes} classes, the data {len(class_names)}")
    positions = match_rows(table, keys, flag)
    samples, answers, kind, combined = _one_answer_a_sample(table, positions, len(class_names), combine, flag)
    _warn_of_little(answers, class_names, flag)
    who = dict(file=table.path.name, sha256=file_sha256(file_of(table.path)[0]), rows=len(table), combine=combined)
    if table.annotators is not None:
        who["annotators"] = len({*table.annotators})

    # what is said, by which a run that goes on knows it: whatever the file is called, and the order of its rows
    own = SampleKeys(keys.by, [keys.values[i] for i in samples])
    said = hashlib.sha256(json.dumps([kind, own.by, own.sha256, list(class_names)]).encode())
    said.update(np.ascontiguousarray(answers))
    who["answers"] = said.hexdigest()
    manifest = Manifest(
        len(samples), len(class_names), who, {"keys": own.sha256}, kind, torch.float32, class_names=list(class_names),
        keyed_by=own.by, keys_sha256=own.sha256)

    # one array in the order of the samples
    known = torch.zeros(len(keys.values), dtype=torch.bool)
    known[samples] = True
    whole = np.zeros((len(known), *answers.shape[1:]), answers.dtype)
    whole[samples] = answers
    return TableLabels(manifest, torch.from_numpy(whole), known, keys)


def check_gaps(known: Tensor, keys: SampleKeys, missing: str | None, flag: str, what: str = "training") -> None:
    """Warn of samples without a label. Raises `UserError` where that is all of them, or more than ``missing`` allows.

    Args:
        known: (N,) which samples have a label.
        keys: of the samples.
        missing: see `is_too_many`.
        flag: begins the messages.
        what: the samples are.
    """
    absent = int((~known).sum())
    if not absent:
        return
    example = keys.values[int((~known).nonzero()[0])]
    text = f"{absent} of {len(known)} {what} samples have no label, such as {example}"
    if absent == len(known):
        raise UserError(f"{flag}: {text}")
    if is_too_many(absent, len(known), missing):
        raise UserError(f"{flag}: {text}; ?missing=skip after its name trains on the others")
    _logger.warning(f"WARNING: {flag}: {text}; they are left out")


def most_likely(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the most likely class (N,) of each row, and whether several are as likely (N,).

    Of these it is not always the first one, which would be said too often: they take turns by row.
    """
    best, most = shares.argmax(axis=1), shares.max(axis=1)
    tied = (shares == most[:, None]).sum(axis=1) > 1
    for row in tied.nonzero()[0]:
        classes = (shares[row] == most[row]).nonzero()[0]
        best[row] = classes[row % len(classes)]
    return best, tied


def labels_in_table(path: Path, keys: SampleKeys, class_names: Sequence[str], flag: str) -> np.ndarray:
    """Return the class (N,) that a table gives each sample, -1 where it gives none."""
    table = read_label_table(path, class_names, flag)
    return labels_of_samples(table, keys, class_names, None, flag).classes()


def _warn_of_little(answers: np.ndarray, class_names: Sequence[str], flag: str) -> None:
    """Say where labels leave open what the class is, and where all of them are one."""
    if answers.ndim == 1:
        return warn_of_one_class(answers, class_names, flag)
    best, tied = most_likely(answers)
    if not tied.any():
        return warn_of_one_class(best, class_names, flag)
    _logger.warning(f"WARNING: {flag}: of {tied.sum()} of {len(tied)} samples several classes are the most likely "
                    "ones; these share their probability")


def warn_of_one_class(classes: np.ndarray, class_names: Sequence[str], flag: str) -> None:
    """Say where all labels (n,) are one class, which may be the only one that a table names."""
    if len(classes) and (classes == classes[0]).all():
        _logger.warning(f"WARNING: {flag}: all of its {len(classes)} labels are the class '{class_names[classes[0]]}': "
                        "a student learns nothing else of them")


# ---------------------------------------------------------------- rows and samples


def match_rows(table: LabelTable, keys: SampleKeys, flag: str) -> np.ndarray:
    """Return the sample (R,) that each row is about, -1 for none of the data: by its path, by the end of its path where
    only one has it, or by its position in the whole split.

    Raises:
        UserError: no row is about a sample of the data, a name is the end of several, or name and position disagree.
    """
    by_position = table.keys if table.keyed_by == "id" else table.positions
    if by_position is not None:
        places = {place: i for i, place in enumerate(keys.values if keys.by == "index" else keys.positions)}
        by_position = np.array([places.get(key, -1) for key in by_position], dtype=np.int64)
    if table.keyed_by == "id":
        positions = by_position
    elif keys.by != "filename":
        raise UserError(f"{flag}: names its samples by files, but those of this dataset are not files; name them by "
                        "their positions, in a column id")
    else:
        positions = np.array(_match_files(table.keys, keys.values, flag), dtype=np.int64)
        if by_position is not None and (positions != by_position).any():
            row = int((positions != by_position).argmax())
            raise UserError(f"{flag}: two columns say which sample a row is about, and they disagree, such as of "
                            f"{table.keys[row]}, which is not the sample {table.positions[row]}; leave one out")
    unknown = positions < 0
    if unknown.all():
        raise UserError(f"{flag}: is about other data: none of its {len(table)} rows names one of the "
                        f"{len(keys.values)} samples; it has {table.keys[0]}, the data {keys.values[0]}")
    if unknown.any():
        example = table.keys[int(unknown.argmax())]
        near = "" if table.keyed_by == "id" else nearest(str(example), keys.values[:2000])
        _logger.warning(f"WARNING: {flag}: {unknown.sum()} of {len(table)} rows are about none of these samples, such "
                        f"as {example}{near}")
    return positions


def _match_files(names: Sequence[str], files: Sequence[str], flag: str) -> list[int]:
    by_path = {file: i for i, file in enumerate(files)}
    # a folder before all names is left out
    folder = _common_folder(names)
    if folder and not by_path.keys() & {*names}:
        bare = [name[len(folder):] for name in names]
        if by_path.keys() & {*bare}:
            _logger.warning(f"WARNING: {flag}: its names are taken without the folder that they are in, {folder}")
            names = bare
    by_end = _by_end(files) if any(name not in by_path for name in names) else {}
    found = []
    for row, name in enumerate(names, start=1):
        place = by_path.get(name)
        if place is None:
            same = by_end.get(name.lstrip("/"), [])
            if len(same) > 1:
                raise UserError(f"{flag}: row {row} names '{name}', but {len(same)} files have that name; expected "
                                f"paths, such as {files[same[0]]}")
            place = same[0] if same else -1
        found.append(place)
    return found


def _by_end(files: Sequence[str]) -> dict[str, list[int]]:
    """Return the files whose paths end with each name: the base name, that with its folder, and so on."""
    found: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        parts = [part for part in PurePosixPath(file).parts if part != "/"]
        for first in range(len(parts)):
            found.setdefault("/".join(parts[first:]), []).append(i)
    return found


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all names are in, with the / behind it; empty where there is none."""
    folders = {name.rpartition("/")[0] for name in names}
    if "" in folders or len({folder.startswith("/") for folder in folders}) > 1:
        return ""
    shared = os.path.commonpath(folders)
    return f"{shared}/" if shared else ""


# ---------------------------------------------------------------- one answer of several


def _one_answer_a_sample(
        table: LabelTable, positions: np.ndarray, size: int, combine: str | None, flag: str,
) -> tuple[np.ndarray, np.ndarray, str, str | None]:
    """Return the labelled samples (n,), their answers (n, C) or (n,), the kind of these, and how several answers of a
    sample were combined, None where no sample has several.

    Raises:
        UserError: a sample has two labels that differ, and no annotator tells them apart.
    """
    kept = _distinct_rows(table, positions, flag)
    samples, rows = np.unique(positions[kept], return_inverse=True)
    answers, kind = table.answers[kept], table.kind
    sure = None if table.confidence is None else _at_least_chance(table.confidence[kept], size, flag)
    if len(samples) == len(kept):
        if sure is None:
            return samples, answers, kind, None
        return samples, _spread(answers, sure, size), "probabilities", None

    # what each annotator says as probabilities, where that is more than a class
    shares = _spread(answers, sure, size) if sure is not None else None
    if kind != "hard":
        shares = answers if kind == "probabilities" else torch.from_numpy(answers).softmax(dim=1).numpy()
        combine, answers = combine or "mean", most_likely(shares)[0]
    combine = combine or "majority"
    who = np.unique(np.array(table.annotators)[kept], return_inverse=True)[1]
    found = combine_annotators(rows, who, answers, size, combine, shares)
    agreement = agreement_of_annotators(rows, answers)
    _logger.info(f"{flag}: {who.max() + 1} annotators, {len(rows) / len(samples):.2f} answers a sample, combined by "
                 f"{combine}; two of them agree in {100 * (agreement or 0):.1f} % of the cases")
    return samples, found.astype(np.float32), "probabilities", combine


def _distinct_rows(table: LabelTable, positions: np.ndarray, flag: str) -> np.ndarray:
    """Return the rows about samples of the data, by sample and annotator, without those that repeat one.

    Raises:
        UserError: one annotator says two things of a sample.
    """
    who = np.zeros(1, int) if table.annotators is None else np.unique(table.annotators, return_inverse=True)[1]
    _, distinct, group = np.unique(positions * (who.max() + 1) + who, return_index=True, return_inverse=True)
    first, other = distinct[group], np.zeros(len(positions), bool)
    again = (first != np.arange(len(first))).nonzero()[0]
    again = again[positions[again] >= 0]
    for said in (table.answers, table.confidence):
        if said is not None:
            other[again] |= (said[again] != said[first[again]]).any(axis=tuple(range(1, said.ndim)))
    odd = other.nonzero()[0]
    if len(odd):
        remedy = "say in a column annotator who said what" if table.annotators is None else "tell its annotators apart"
        raise UserError(f"{flag}: {len(odd)} row(s) say something else of a sample than one before, such as of "
                        f"{table.keys[odd[0]]}; leave one out, or {remedy}")
    if len(again):
        _logger.info(f"{flag}: {len(again)} row(s) repeat one before, and do not count, such as of "
                     f"{table.keys[again[0]]}")
    return distinct[positions[distinct] >= 0]


def _at_least_chance(confidence: np.ndarray, size: int, flag: str) -> np.ndarray:
    """Return confidences that make no other class likelier than the label."""
    below = confidence < np.float32(1 / size)
    if below.any():
        _logger.warning(f"WARNING: {flag}: {below.sum()} of {len(below)} labels have a confidence below chance; such a "
                        "label says nothing of its sample, all classes are as likely")
    return np.maximum(confidence, np.float32(1 / size))


def _spread(labels: np.ndarray, confidence: np.ndarray, size: int) -> np.ndarray:
    """Return probabilities (n, C) of labels with a confidence; the other classes share the rest."""
    shares = np.repeat(((1 - confidence) / max(1, size - 1))[:, None], size, axis=1).astype(np.float32)
    shares[np.arange(len(labels)), labels] = confidence
    return shares
