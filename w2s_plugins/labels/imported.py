"""Tables of labels brought to the samples of a dataset, and stored in the format of labels."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..data.keys import SampleKeys
from ..errors import UserError, nearest
from ..files import file_sha256
from .combine import agreement_of_annotators, combine_annotators
from .format import Manifest, Part
from .table import LabelTable, file_of, read_label_table
from .writer import Answers, ensure_labels

_logger = logging.getLogger(__name__)

ALLOWED_SHARE = 0.01  # of the samples may be without a label before that is an error


@dataclass(frozen=True)
class ImportSettings:
    """How a table becomes one answer a sample.

    Args:
        combine: what to make of several annotators, one of `combine.MEANS`.
        confidence: probability of a label, the others share the rest; None for that of the file, or what the agreement
            of its annotators says, or else 1.
    """

    combine: str = "majority"
    confidence: float | None = None


@dataclass(frozen=True)
class Matched:
    """The rows of a table by the samples that they are about.

    Args:
        positions: (R,) sample of each row, -1 for none of the data.
        unknown: rows that are about none of the data.
    """

    positions: np.ndarray
    unknown: int


def match_rows(table: LabelTable, keys: SampleKeys, flag: str) -> Matched:
    """Find the sample of each row: by its path, by its base name where only one has it, or by its
    position in the whole split.

    Raises:
        UserError: no row is about a sample of the data, or a base name is that of several.
    """
    if table.keyed_by == "id":
        places = {place: i for i, place in enumerate(keys.values if keys.by == "index" else keys.positions)}
        found = [places.get(key, -1) for key in table.keys]
    elif keys.by != "filename":
        raise UserError(f"{flag}: names its samples by files, but those of this dataset are not files; name them by "
                        "their positions, in a column id")
    else:
        found = _match_files(table.keys, keys.values, flag)
    positions = np.array(found, dtype=np.int64)
    unknown = positions < 0
    if unknown.all():
        shown = [", ".join(map(str, values[:2])) for values in (table.keys, keys.values)]
        raise UserError(f"{flag}: is about other data: none of its {len(table)} rows names one of the "
                        f"{len(keys.values)} samples; it has {shown[0]}, the data {shown[1]}")
    if unknown.any():
        example = table.keys[int(unknown.argmax())]
        _logger.warning(f"WARNING: {flag}: {unknown.sum()} of {len(table)} rows are about none of these samples, such "
                        f"as {example}{nearest(str(example), keys.values[:2000]) if table.keyed_by != 'id' else ''}")
    return Matched(positions, int(unknown.sum()))


def _match_files(names: Sequence[str], files: Sequence[str], flag: str) -> list[int]:
    by_path = {file: i for i, file in enumerate(files)}
    by_name: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        by_name.setdefault(PurePosixPath(file).name, []).append(i)
    if not by_path.keys() & {*names} and (folder := _common_folder(names)):
        bare = [name[len(folder):] for name in names]
        if by_path.keys() & {*bare}:
            _logger.warning(f"WARNING: {flag}: its names are taken without the folder that they are in, {folder}")
            names = bare
    found = []
    for row, name in enumerate(names, start=1):
        place = by_path.get(name)
        if place is None:
            same = by_name.get(name, [])
            if len(same) > 1:
                raise UserError(f"{flag}: row {row} names '{name}', but {len(same)} files have that name; expected "
                                f"paths, such as {files[same[0]]}")
            place = same[0] if same else -1
        found.append(place)
    return found


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all names are in, with the / behind it; empty where there is none."""
    folders = {name.rpartition("/")[0] for name in names}
    absolute = {folder.startswith("/") for folder in folders}
    if "" in folders or len(absolute) > 1 or not (shared := os.path.commonpath(folders)):
        return ""
    return f"{shared}/"


def answers_by_sample(
        table: LabelTable, positions: np.ndarray, class_names: Sequence[str], settings: ImportSettings, flag: str,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the labelled samples (n,), their answers (n, C) or (n,), and the kind of these.

    Raises:
        UserError: a sample has two labels that differ, and no annotator tells them apart.
    """
    kept = _distinct_rows(table, positions, flag)
    samples, rows = np.unique(positions[kept], return_inverse=True)
    answers, size = table.answers[kept], len(class_names)
    sure = None if table.confidence is None else table.confidence[kept]
    if len(samples) == len(kept):
        return (samples, answers, table.kind) if sure is None else (
            samples, _spread(answers, sure, size), "probabilities")
    if table.kind != "hard":
        sums = np.zeros((len(samples), answers.shape[1]))
        np.add.at(sums, rows, answers if table.kind == "probabilities" else _softmax(answers))
        return samples, (sums / np.bincount(rows)[:, None]).astype(np.float32), "probabilities"
    who = np.unique(np.array(table.annotators)[kept], return_inverse=True)[1]
    shares = combine_annotators(rows, who, answers, size, settings.combine, sure)
    agreement = agreement_of_annotators(rows, answers)
    _logger.info(f"{flag}: {who.max() + 1} annotators, {len(rows) / len(samples):.2f} answers a sample, combined by "
                 f"{settings.combine}; two of them agree in {100 * (agreement or 0):.1f} % of the cases")
    return samples, shares.astype(np.float32), "probabilities"


def first_rows(table: LabelTable, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find what an annotator says of a sample again.

    Returns:
        The rows without repetitions, by sample and annotator; for each row (R,) the first one of its annotator about
        its sample, and whether it says something else (R,) than that one.
    """
    who = np.zeros(1, int) if table.annotators is None else np.unique(table.annotators, return_inverse=True)[1]
    _, distinct, group = np.unique(positions * (who.max() + 1) + who, return_index=True, return_inverse=True)
    first, other = distinct[group], np.zeros(len(positions), bool)
    again = (first != np.arange(len(first))).nonzero()[0]
    for said in (table.answers, table.confidence):
        if said is not None:
            other[again] |= (said[again] != said[first[again]]).any(axis=tuple(range(1, said.ndim)))
    return distinct, first, other


def _distinct_rows(table: LabelTable, positions: np.ndarray, flag: str) -> np.ndarray:
    """Return the rows about samples of the data, as `first_rows`. Raises `UserError` for those that contradict one."""
    distinct, _, other = first_rows(table, positions)
    odd = (other & (positions >= 0)).nonzero()[0]
    if len(odd):
        remedy = "say in a column annotator who said what" if table.annotators is None else "tell its annotators apart"
        raise UserError(f"{flag}: {len(odd)} row(s) say something else of a sample than one before, such as of "
                        f"{table.keys[odd[0]]}; leave one out, or {remedy}")
    return distinct[positions[distinct] >= 0]


def _spread(labels: np.ndarray, confidence: np.ndarray, size: int) -> np.ndarray:
    shares = np.repeat(((1 - confidence) / max(1, size - 1))[:, None], size, axis=1).astype(np.float32)
    shares[np.arange(len(labels)), labels] = confidence
    return shares


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def map_to_classes(table: LabelTable, class_names: Sequence[str], flag: str) -> LabelTable:
    """Return a table whose classes are in the order of ``class_names``; positions count where it has no names.

    Raises:
        UserError: it has a class that is none of them.
    """
    names = table.class_names
    if names is None:
        if table.num_classes > len(class_names):
            raise UserError(f"{flag}: has {table.num_classes} classes, the data {len(class_names)}")
        _logger.info(f"{flag}: has numbers for classes, which are taken for those of the data in its order")
        names = list(class_names[:table.num_classes])
    if names == list(class_names):
        return table
    places = {name: i for i, name in enumerate(class_names)}
    odd = [name for name in names if name not in places]
    if odd:
        raise UserError(f"{flag}: its class '{odd[0][:40]}' is none of the {len(class_names)} classes of the data"
                        f"{nearest(odd[0], class_names)}")
    order = np.array([places[name] for name in names])
    if table.kind == "hard":
        answers = order[table.answers]
    else:
        low = 0.0 if table.kind == "probabilities" else float(table.answers.min()) - 20
        answers = np.full((len(table), len(class_names)), low, dtype=np.float32)
        answers[:, order] = table.answers
    return LabelTable(**{**table.__dict__, "answers": answers, "class_names": list(class_names)})


def labels_in_table(path: Path, keys: SampleKeys, class_names: Sequence[str], flag: str) -> np.ndarray:
    """Return the class (N,) that a table gives each sample, -1 where it gives none; arguments as `import_labels`."""
    table = map_to_classes(read_label_table(path, class_names, flag), class_names, flag)
    samples, answers, _ = answers_by_sample(
        table, match_rows(table, keys, flag).positions, class_names, ImportSettings(), flag)
    found = np.full(len(keys.values), -1)
    found[samples] = answers if answers.ndim == 1 else answers.argmax(axis=1)
    return found


def import_labels(
        table: LabelTable, keys: SampleKeys, class_names: Sequence[str], root: Path, settings: ImportSettings,
        flag: str,
) -> Path:
    """Bring a table of labels into the format of labels, unless that has been done before; return the folder.

    Args:
        table: what the file says.
        keys: of the samples of the data.
        class_names: classes of the data, in its order.
        root: folder of imported labels.
        settings: what to make of several annotators.
        flag: begins the messages.

    Raises:
        UserError: the table is about other data or other classes, or contradicts itself.
    """
    table = map_to_classes(table, class_names, flag)
    samples, answers, kind = answers_by_sample(
        table, match_rows(table, keys, flag).positions, class_names, settings, flag)
    own = SampleKeys(keys.by, [keys.values[i] for i in samples])
    who = dict(file=table.path.name, sha256=file_sha256(file_of(table.path)[0]), rows=len(table), **asdict(settings))
    if table.annotators is not None:
        who["annotators"] = len(set(table.annotators))
    values = torch.from_numpy(np.ascontiguousarray(answers))
    said = hashlib.sha256(json.dumps([kind, own.by, own.sha256, class_names]).encode())
    said.update(values.numpy())
    who["answers"] = said.hexdigest()  # whatever the file is called, and the order of its rows
    manifest = Manifest(
        len(samples), len(class_names), who, {"keys": own.sha256}, kind, torch.float32, class_names=list(class_names),
        keyed_by=own.by, keys_sha256=own.sha256)

    def labeller(parts: Sequence[Part]) -> Iterator[Answers]:
        return (Answers(values[part.first:part.stop]) for part in parts)
    return ensure_labels(root / manifest.key, manifest, own, labeller)
