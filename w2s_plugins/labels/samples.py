"""A table of labels brought to the samples of a dataset: one answer a sample, as one array in their order.

Training, label noise and ``labels check`` all go this way, so a table means the same to each of them.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from ..data.keys import SampleKeys
from ..errors import UserError, logger, quietly
from ..files import file_sha256
from ..no_label import NO_LABEL
from ..target_kind import ONE_CLASS, TargetKind
from .combine import combine_annotators, combine_classes, count_votes, votes_of_classes
from .forecast import settle
from .names import visible
from .several import are_several
from .spelling import check_from_0
from .store import Manifest, check_positions
from .table import LabelRows, file_of, is_too_many

if TYPE_CHECKING:
    from pandas import DataFrame

# what Label Studio makes of the names of files that were uploaded to it, and of those that it reads from a folder
_STUDIO = re.compile(
    r"(?s)(?:.*/)?data/(?:upload/(?:[0-9]+/)?[0-9a-f]{8}-([^/]+)|local-files/?[?]d=(.+))"
)
NO_SAMPLE, SEVERAL = -1, -2  # in place of the sample that a row is about
TIE = 2e-6  # by which one of several classes that are as likely is made likelier: whoever needs one takes that one
MOST_NAMED, MOST_RECORDED = 10, 50  # annotators in log and record, those with the most answers
# in a path that is looked for by its end; a longer one is no file of any disk, and has as many ends as folders
MOST_FOLDERS = 64


@dataclass(frozen=True)
class SampleLabels:
    """The labels of a table for some samples, in memory; it is asked as a `store.LabelReader` is.

    Args:
        manifest: what the labels are, and who gave them.
        answers: (N, ...) one for each sample of ``keys``; rows of samples without a label hold anything.
        known: (N,) which samples have a label.
        keys: of the samples.
        confidence: the probability of a label that is a class alone.
        target_kind: what a label is.
    """

    manifest: Manifest
    answers: Tensor
    known: Tensor
    keys: SampleKeys
    confidence: float = 1.0
    target_kind: TargetKind = ONE_CLASS
    folder: ClassVar[None] = None  # they are nowhere but in memory

    @cached_property
    def complete(self) -> bool:
        """Whether all samples have a label."""
        return bool(self.known.all())

    def of(self, keys: SampleKeys) -> "SampleLabels":
        """Return the labels of some of these samples, in their order."""
        row_of = {key: row for row, key in enumerate(self.keys.values)}
        rows = [row_of[key] for key in keys.values]
        return replace(self, answers=self.answers[rows], known=self.known[rows], keys=keys)

    def classes(self) -> np.ndarray:
        """Return the class (N,) of each sample, `NO_LABEL` where it has none. Of several classes an image they are 1, 0 or
        `NO_LABEL` for each (N, C), in int8.
        """
        best = self.answers
        if self.manifest.kind == "probabilities":
            best = self.target_kind.decide_shares(best)
        elif self.manifest.kind == "logits":
            best = self.target_kind.decide(best)
        if are_several(self.target_kind):
            return best.masked_fill(~self.known[:, None], NO_LABEL).numpy()
        return np.where(self.known.numpy(), best.numpy(), NO_LABEL)

    @property
    def ties(self) -> Tensor:
        """Which of several classes an image (N, C) as many annotators say yes of as no: who is alone is no tie at 0.5."""
        return (self.answers == 0.5) & (self.manifest.who.get("combine") is not None)

    def differs(self, other: "SampleLabels") -> np.ndarray:
        """Say of which samples (N,) the labels of another table are others, where both have one."""
        pair = (torch.from_numpy(labels.classes()) for labels in (self, other))
        return (self.known & other.known & (self.target_kind.agreement(*pair) < 1)).numpy()

    def best(self, index: Tensor) -> Tensor:
        """Say which classes (B, C) are the most likely ones of samples: of a tie several, also where it was settled. Of
        several classes an image they are those that it has.
        """
        logits = self(index, torch.device("cpu"))
        if are_several(self.target_kind):
            return self.target_kind.decide(logits) == 1
        return logits > logits.amax(dim=1, keepdim=True) - 5 * TIE

    def correctness(self, index: Tensor, truth: Tensor) -> Tensor:
        """Return which part (B,) of the labels of samples is the true one (B,): of a tie each class is one part. Of several
        classes an image, with true labels (B, C), it is the share of the classes of which both say the same.
        """
        if are_several(self.target_kind):
            decisions = self.target_kind.decide(self(index, torch.device("cpu")))
            return self.target_kind.agreement(decisions, truth)
        best = self.best(index)
        return best.gather(1, truth[:, None])[:, 0] / best.sum(dim=1)

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        check_positions(index, len(self.known))
        return self.known[index]

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        absent = index[~self.has(index)]
        if len(absent):
            raise UserError(
                f"{self.manifest.who['file']}: has no label of {self.keys.values[int(absent[0])]}"
            )
        # copied once, from memory that the device reads while the CPU goes on
        rows = self.answers[index]
        if device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(device, non_blocking=True)
        # as the kind of the table says: classes, probabilities or logits
        if self.manifest.kind == "hard":
            return self.target_kind.of_decisions(rows, self.manifest.num_classes, self.confidence)
        if self.manifest.kind == "probabilities":
            return self.target_kind.from_probabilities(rows)
        return rows


# tables of which is told what is in them, by the flag; a command begins with none
TOLD: set[tuple[object, ...]] = set()


@contextmanager
def told_once(flag: str, paths: Sequence[Path]) -> Iterator[None]:
    """Log what tables say once in a command, however many runs read them: of a crowd that is a dozen lines. Warnings are
    logged each time, because each run records them.
    """
    files = [file_of(path)[0] for path in paths]
    key = (flag, *((file, file.stat().st_mtime_ns) for file in files if file.exists()))
    shows = logger.isEnabledFor(logging.INFO)
    with quietly(logging.INFO) if shows and key in TOLD else nullcontext():
        yield
    if shows:
        TOLD.add(key)


def labels_of_samples(
    table: LabelRows,
    keys: SampleKeys,
    class_names: Sequence[str],
    combine: str | None,
    flag: str,
    confidence: float = 1.0,
    target_kind: TargetKind = ONE_CLASS,
    is_true: bool = False,
) -> SampleLabels:
    """Return one answer for each sample that a table says something of.

    Args:
        table: what the file says, read with these ``class_names``, or with numbers for classes.
        keys: of the samples of the data.
        class_names: classes of the data, in its order.
        combine: what to make of several annotators, one of `settings.forms.MEANS`; None for the majority of labels, and the
            mean of probabilities.
        flag: begins the messages.
        confidence: the probability of a label that is a class alone.
        target_kind: what a label is.
        is_true: the labels are true, so that a class may have none or all of them.

    Raises:
        UserError: the table is about other data or other classes, or contradicts itself.
    """
    positions = match_rows(table, keys, flag)
    # how reliable people are shows in what they say of other images, too, which are numbered below all samples
    if combine == "dawid-skene":
        others = positions == NO_SAMPLE
        names = np.array(table.keys)[others]
        positions[others] = SEVERAL - 1 - np.unique(names, return_inverse=True)[1]
    if are_several(target_kind):
        combined = _answers_to_classes(table, positions, combine, flag, target_kind)
    else:
        combined = _one_answer_a_sample(
            table, positions, len(class_names), combine, flag, target_kind
        )
    in_data = combined.samples >= 0
    samples, answers, kind = combined.samples[in_data], combined.answers[in_data], combined.kind
    files = [table.path, *table.more]
    who = dict(
        file=", ".join(file.name for file in files),
        rows=len(positions),
        **combined.record,
        sha256=", ".join(file_sha256(file_of(file)[0]) for file in files),
    )
    if table.annotators is not None:
        who["annotators"] = len({*table.annotators})

    # what is said, by which a run that goes on knows it: whatever the file is called, and the order of its rows
    labelled = SampleKeys(keys.by, [keys.values[i] for i in samples.tolist()])
    about = [kind, labelled.by, labelled.sha256, list(class_names)]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(np.ascontiguousarray(answers).data)
    who["answers"] = digest.hexdigest()
    if are_several(target_kind):
        # what is said of each class is as sure as the user says, where it is yes or no alone
        if (
            confidence < 1
            and kind == "probabilities"
            and np.isin(answers, (0, 1)).all(where=~np.isnan(answers))
        ):
            answers = answers * (2 * confidence - 1) + np.float32(1 - confidence)
    else:
        _break_ties(answers, kind, flag)
    manifest = Manifest(len(samples), len(class_names), who, {}, kind)

    # one array in the order of the samples
    known = torch.zeros(len(keys.values), dtype=torch.bool)
    known[samples] = True
    whole = np.zeros((len(known), *answers.shape[1:]), answers.dtype)
    whole[samples] = answers
    rows = torch.from_numpy(whole)
    labels = SampleLabels(manifest, rows, known, keys, confidence, target_kind)
    if are_several(target_kind):
        _log_classes(labels.classes()[samples], class_names, flag, is_true)
    elif is_true:
        present = len(np.unique(labels.classes()[samples]))
        logger.info(f"{flag}: {len(samples)} samples in {present} classes")
    else:
        _log_counts(labels.classes()[samples], class_names, flag)
    return labels


def _break_ties(answers: np.ndarray, kind: str, flag: str) -> None:
    """Make one of several classes that are as likely likelier by a trace, in place: whoever needs one class takes that."""
    best = answers.reshape(len(answers), -1)
    tied = ((best == best.max(axis=1, keepdims=True)).sum(axis=1) > 1).nonzero()[0]
    if not len(tied):
        return
    taken = "the first counts"  # logits stay as they are to the last bit
    if kind == "probabilities":
        answers[tied, most_likely(answers[tied])] *= np.float32(1 + TIE)
        taken = "they take turns"
    logger.info(
        f"{flag}: {len(tied)} of {len(answers)} samples are ties: classes that are as likely share the "
        f"probability, and where one class is needed {taken}"
    )


def _log_counts(classes: np.ndarray, class_names: Sequence[str], flag: str) -> None:
    """Say how many samples each class is the most likely one of, and warn where this looks like a mistake."""
    count = len(classes)
    counts = np.bincount(classes, minlength=len(class_names)).tolist()
    most_first = np.argsort(-np.array(counts), kind="stable").tolist()
    texts = [f"{class_names[i]} ({counts[i]})" for i in most_first]
    logger.info(f"{flag}: {count} samples in {len(texts)} classes: {', '.join(texts)}")

    # hardly any: fewer than one sample in a thousand and, of more than a hundred classes, than a tenth of an even share
    fewest = count * min(1 / 1000, 0.1 / len(texts))
    rare = sum(of_class < fewest for of_class in counts)
    if rare:
        logger.warning(
            f"WARNING: {flag}: hardly any sample is of {rare} of the {len(texts)} classes: "
            f"{', '.join(texts[-rare:][:20])}; are they misspelt, or classes of other data?"
        )
    if max(counts) == count:
        logger.warning(
            f"WARNING: {flag}: all of its {count} labels are the class "
            f"'{class_names[most_first[0]]}': a student learns nothing else of them"
        )


def _log_classes(
    decisions: np.ndarray, class_names: Sequence[str], flag: str, is_true: bool
) -> None:
    """Say how many samples have each of several classes (N, C), and warn where this looks like a mistake, unless the
    labels are true.
    """
    count = len(decisions)
    counts = (decisions == 1).sum(axis=0).tolist()
    unknown = np.mean(decisions == NO_LABEL)
    logger.info(
        f"{flag}: {count} samples, {sum(counts) / max(1, count):.2f} of {len(counts)} classes each; of {100 * unknown:.1f} % "
        "nothing is known"
    )
    # true labels are what they are
    if is_true:
        return
    most_first: list[int] = np.argsort(-np.array(counts), kind="stable").tolist()
    texts = [f"{class_names[i]} ({counts[i]})" for i in most_first]
    logger.info(f"{flag}: samples of each class: {', '.join(texts)}")
    # what is unknown teaches nothing, and nothing else would say no
    if unknown and not (decisions == 0).any():
        logger.warning(
            f"WARNING: {flag}: it says no of no class, so a student learns to say yes to all; take --loss an, wan, ll_r "
            "or ll_ct, which take what is unknown for no"
        )
    # classes come from a list as well, which may be that of other data
    absent = [class_names[i] for i in most_first if not counts[i]]
    if absent:
        logger.warning(
            f"WARNING: {flag}: no sample is of {len(absent)} of the {len(counts)} classes: "
            f"{', '.join(absent[:20])}; are they misspelt, or classes of other data?"
        )


def check_gaps(
    known: Tensor, keys: SampleKeys, missing: str | None, flag: str, what: str = "training"
) -> None:
    """Warn of samples without a label. Raises `UserError` where that is all of them, or more than ``missing`` allows.

    Args:
        known: (N,) which samples have a label.
        keys: of the samples.
        missing: see `is_too_many`.
        flag: begins the messages.
        what: the samples are.
    """
    absent = (~known).nonzero().flatten()
    if not len(absent):
        return
    text = f"{flag}: {len(absent)} of {len(known)} {what} samples have no label, such as {keys.values[int(absent[0])]}"
    if len(absent) == len(known) or is_too_many(len(absent), len(known), missing):
        raise UserError(f"{text}; ?missing=skip after its name takes the others, if there are any")
    logger.warning(f"WARNING: {text}; they are left out")


def most_likely(answers: np.ndarray) -> np.ndarray:
    """Return the most likely class (N,) of each row of values (N, C), or classes (N,) as they are.

    Where several are as likely it is not always the first one, which would be said too often: they take turns by row.
    """
    if answers.ndim == 1:
        return answers
    best = answers == answers.max(axis=1, keepdims=True)
    turn = np.arange(len(best)) % best.sum(axis=1)
    return (best.cumsum(axis=1, dtype=np.int32) > turn[:, None]).argmax(axis=1)


# ---------------------------------------------------------------- rows and samples


def match_rows(table: LabelRows, keys: SampleKeys, flag: str) -> np.ndarray:
    """Return the sample (R,) that each row is about, `NO_SAMPLE` for none of the data: by its name, see `_find_files`,
    or by its position in the whole split.

    Raises:
        UserError: no row is about a sample of the data, or a name is the end of several.
    """
    if table.keyed_by == "filename" and keys.by != "filename":
        raise UserError(
            f"{flag}: names its samples by files, but those of this dataset are not files; name them by "
            "their positions, in a column id"
        )
    samples: dict[str | int, int]
    if table.keyed_by == "filename":
        samples = {**_find_files({*map(str, table.keys)}, [*map(str, keys.values)], flag)}
    else:
        samples = {position: i for i, position in enumerate(keys.positions or keys.values)}
        check_from_0({*map(int, table.keys)}, samples, f"{flag}: its ids")
    positions = np.array([samples.get(key, NO_SAMPLE) for key in table.keys], dtype=np.int64)

    # what is said of no sample, or nobody knows of which
    unknown = positions == NO_SAMPLE
    if unknown.all():
        raise UserError(
            f"{flag}: is about other data: none of its {len(table)} answers names one of the "
            f"{len(keys.values)} samples; it has {table.keys[0]}, the data {keys.values[0]}"
        )
    if SEVERAL in positions:
        name = table.keys[int((positions == SEVERAL).argmax())]
        raise UserError(
            f"{flag}: names '{name}', but several files have that name; expected paths, such as "
            f"{keys.values[0]}"
        )
    if unknown.any():
        logger.warning(
            f"WARNING: {flag}: {unknown.sum()} of {len(table)} answers are about none of these samples, "
            f"such as {table.keys[int(unknown.argmax())]}"
        )
    return positions


def _find_files(names: Set[str], files: Sequence[str], flag: str) -> dict[str, int]:
    """Return which of the files each name means, `SEVERAL` where it may be more than one, nothing where it is none.

    A name is a path, or the end of one, that only one file has. Where there is no such file, it may be written as on
    Windows, by Label Studio, without the suffix, or have folders of another machine before the whole path:
    ``test/1.png`` is not ``train/1.png``.
    """
    # mostly all names are written as the files are
    files = [visible(file) for file in files]  # as cells of tables are
    by_ending = _by_ending(files)
    if names <= by_ending.keys():
        return by_ending

    # else without the suffix, or behind folders of another machine, which end where the whole path of a file begins
    stems = [os.path.splitext(file)[0] for file in files]
    by_ending = _by_ending(stems) | by_ending
    paths = {*files, *stems}
    matches: dict[str, tuple[str, int]] = {}
    for name in names:
        path = name if name in by_ending else _as_here(name)
        whole = path.lstrip("/")
        end = whole if path.count("/") <= MOST_FOLDERS else ""
        while end and end not in paths and not (end == whole and end in by_ending):
            end = end.partition("/")[2]
        if end:
            here = "" if re.match("[/~]|[A-Za-z]+:", path) else "./"
            matches[name] = here + path.removesuffix(end), by_ending[end]

    # What stands before is a folder of images. Below it nothing else is one: what is called as an image of another
    # folder there is not in the data.
    folders: list[str] = []
    for folder in sorted({folder for folder, _ in matches.values()}):
        if not folder.startswith(tuple(folders[-1:])):
            folders.append(folder)
    elsewhere = [folder.removeprefix("./") for folder in folders if folder != "./"]
    if elsewhere:
        logger.info(
            f"{flag}: names begin with folders that are taken for that of the images: "
            f"{', '.join(elsewhere[:8])}"
        )
    taken = {*folders}
    return {name: file for name, (folder, file) in matches.items() if folder in taken}


def _as_here(name: str) -> str:
    """Return a path as Windows or Label Studio writes it in the way that it is written here: what was uploaded has its
    base name, in no folder.
    """
    studio = _STUDIO.fullmatch(name)
    if studio:
        uploaded, read_here = studio.groups()
        name = unquote(read_here or f"/{uploaded}")
    return name.replace("\\", "/")


def _by_ending(files: Sequence[str]) -> dict[str, int]:
    """Return the file with each path, and that whose path ends so: the base name, that with its folder, and so on."""
    endings: dict[str, int] = {}
    whole: dict[str, int] = {}
    for i, ending in enumerate(files):
        whole[ending] = SEVERAL if ending in whole else i
        if ending.count("/") > MOST_FOLDERS:
            continue
        while "/" in ending:
            ending = ending.partition("/")[2]
            endings[ending] = SEVERAL if ending in endings else i
    # a whole path means its file, even if others end so
    return endings | whole


# ---------------------------------------------------------------- one answer of several


class _Combined(NamedTuple):
    """One answer a sample.

    Args:
        samples: (n,) that have a label.
        answers: (n, C) or (n,).
        kind: of the answers.
        record: how several answers of a sample were combined, None where no sample has several, and how reliable each
            annotator is.
    """

    samples: np.ndarray
    answers: np.ndarray
    kind: str
    record: Mapping[str, object]


def _one_answer_a_sample(
    table: LabelRows,
    positions: np.ndarray,
    size: int,
    combine: str | None,
    flag: str,
    target_kind: TargetKind,
) -> _Combined:
    """Return what all rows about a sample say together.

    Raises:
        UserError: a sample has two labels that differ, and no annotator tells them apart.
    """
    names, who = np.array([table.path.name]), np.zeros_like(positions)
    if table.annotators is not None:
        names, who = np.unique(table.annotators, return_inverse=True)

    # the rows about samples of the data, without those that repeat one of the same annotator
    _, distinct, group = np.unique(
        positions * len(names) + who, return_index=True, return_inverse=True
    )
    first, differs = distinct[group], np.zeros(len(positions), bool)
    for values in (table.answers, table.confidence):
        if values is not None:
            differs |= (values != values[first]).reshape(len(values), -1).any(axis=1)
    odd = (differs & (positions >= 0)).nonzero()[0]
    if len(odd):
        # who is named has said both
        who_said = (
            "" if table.annotators is not None else ", say in a column annotator who said what"
        )
        raise UserError(
            f"{flag}: {len(odd)} answer(s) say something else of a sample than one before, such as of "
            f"{table.keys[odd[0]]}; leave one out{who_said}, or take --task multilabel if an image has several classes"
        )
    kept = distinct[positions[distinct] != NO_SAMPLE]

    # a class alone, or what is more than that as probabilities
    samples, rows = np.unique(positions[kept], return_inverse=True)
    answers, who = table.answers[kept], who[kept]
    shares = None
    if table.confidence is not None:
        shares = shares_of(table, size, target_kind)[kept]
    if len(samples) == len(kept):
        if combine:
            logger.warning(
                f"WARNING: {flag}: nothing is combined: no sample has more than one answer"
            )
        if shares is None:
            return _Combined(samples, answers, table.kind, dict(combine=None))
        return _Combined(samples, shares, "probabilities", dict(combine=None))

    # what each annotator says as probabilities, where that is more than a class
    if table.kind != "hard":
        shares = shares_of(table, size, target_kind)[kept]
        answers = most_likely(shares)
        # models of annotators know classes alone
        combine = "mean" if combine in (None, "auto") else combine
    crowd = settle(combine or "majority", [count_votes(rows, who, answers, size)], flag)
    combine = crowd.name
    probabilities = combine_annotators(rows, who, answers, size, crowd, shares).astype(np.float32)
    logger.info(
        f"{flag}: {len({*who})} annotators, {len(rows) / len(samples):.2f} answers a sample, combined by "
        f"{combine}"
    )

    # who is how reliable: the share of their answers that is the majority's, and what was found; of a tie in part
    majority = probabilities
    if combine != "majority":
        majority = combine_annotators(rows, who, answers, size)
    right = {
        how: shares_of_classes[rows, answers]
        for how, shares_of_classes in (("majority", majority), (combine, probabilities))
    }
    people = _reliability(names[who], right)
    for line in people.head(MOST_NAMED).to_string(index=False).split("\n"):
        logger.info(line)
    reliability = people.head(MOST_RECORDED).to_dict("records")
    record = {"combine": combine, "reliability": reliability}
    return _Combined(samples, probabilities, "probabilities", record)


def _answers_to_classes(
    table: LabelRows,
    positions: np.ndarray,
    combine: str | None,
    flag: str,
    target_kind: TargetKind,
) -> _Combined:
    """Return what all rows about a sample say together of each of several classes; samples without any answer are left
    out.

    Raises:
        UserError: a sample has two lists that differ, and no annotator tells them apart.
    """
    names, who = np.array([table.path.name]), np.zeros_like(positions)
    if table.annotators is not None:
        names, who = np.unique(table.annotators, return_inverse=True)
    kept = (positions != NO_SAMPLE).nonzero()[0]
    whole, first, group = np.unique(
        (positions * len(names) + who)[kept], return_index=True, return_inverse=True
    )

    # one answer of each annotator: rows with a class each are one list, and others have to say the same
    kind, answers = table.kind, table.answers[kept]
    if len(whole) < len(kept) or len(np.unique(positions[kept])) < len(whole):
        kind, answers = "probabilities", shares_of(table, answers.shape[1], target_kind)[kept]
    order = np.argsort(group, kind="stable")
    begins = np.searchsorted(group[order], np.arange(len(whole)))
    highest = np.fmax.reduceat(answers[order], begins, axis=0)
    lowest = np.fmin.reduceat(answers[order], begins, axis=0)
    is_whole = np.ones(len(kept), bool) if table.is_part is None else ~table.is_part[kept]
    odd = (lowest < highest).any(axis=1) & np.isin(np.arange(len(whole)), group[is_whole])
    # nor does a list name a class twice, with another confidence
    named = np.where(answers[order] > 0, answers[order], np.nan)
    odd |= (np.fmin.reduceat(named, begins, axis=0) < highest).any(axis=1)
    if odd.any():
        raise UserError(
            f"{flag}: {odd.sum()} answer(s) say something else of a sample than one before, such as of "
            f"{table.keys[kept[first[int(odd.argmax())]]]}; leave one out, or say in a column annotator who said what"
        )
    answers, about, who = highest, positions[kept][first], who[kept][first]

    # what several annotators say of it
    samples, rows = np.unique(about, return_inverse=True)
    record: dict[str, object] = dict(combine=None)
    if len(samples) == len(about):
        if combine:
            logger.warning(
                f"WARNING: {flag}: nothing is combined: no sample has more than one answer"
            )
        answers = answers[np.argsort(rows)]
    else:
        is_plain = np.isin(answers, (0, 1)).all(where=~np.isnan(answers))
        if combine is None or (combine == "auto" and not is_plain):
            combine = "majority" if is_plain else "mean"
        crowds = [votes for _, _, votes in votes_of_classes(rows, who, answers)]
        crowd = settle(combine, crowds, flag)
        combine = crowd.name
        each, decisions = answers, target_kind.decide_shares(torch.from_numpy(answers)).numpy()
        answers = combine_classes(rows, who, each, crowd).astype(np.float32)
        logger.info(
            f"{flag}: {len({*who})} annotators, {len(rows) / len(samples):.2f} answers a sample, combined by {combine}"
        )

        # who is how reliable: the share of their decisions that are those of the majority, and of what was found
        majority = answers
        if combine != "majority":
            majority = combine_classes(rows, who, each)
        right = {
            how: _share_of_equal(decisions, shares[rows])
            for how, shares in (("majority", majority), (combine, answers))
        }
        people = _reliability(names[who], right)
        for line in people.head(MOST_NAMED).to_string(index=False).split("\n"):
            logger.info(line)
        record = dict(combine=combine, reliability=people.head(MOST_RECORDED).to_dict("records"))

    # who says something of a sample may say nothing of its classes
    is_known = ~np.isnan(answers).all(axis=1)
    return _Combined(samples[is_known], answers[is_known], kind, record)


def _share_of_equal(decisions: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return for which part (R,) of the classes that answers (R, C) decide they decide as ``shares`` do; a tie is right
    by half.
    """
    said = decisions != NO_LABEL
    equal = np.where(shares == 0.5, 0.5, (shares > 0.5) == (decisions == 1))
    return (equal * said).sum(axis=1) / np.maximum(said.sum(axis=1), 1)


def _reliability(annotators: np.ndarray, right: Mapping[str, np.ndarray]) -> "DataFrame":
    """Return who is right how often, those with the most answers first: ``annotator``, ``images`` and a share for each
    of what is taken to be ``right``.
    """
    from pandas import DataFrame

    answers = DataFrame(right).groupby(annotators)
    people = answers.agg("mean").astype(float).round(4)
    people.insert(0, "images", answers.size())
    people = people.reset_index(names="annotator")
    return people.sort_values("images", ascending=False, kind="stable")


def shares_of(table: LabelRows, size: int, target_kind: TargetKind = ONE_CLASS) -> np.ndarray:
    """Return what each row says as probabilities (R, C) of ``size`` classes; those beside a label share the rest.

    A confidence below chance counts as chance, so that no other class becomes likelier than the label.
    """
    if table.kind == "probabilities":
        return table.answers
    if table.kind == "logits":
        return target_kind.probabilities(torch.from_numpy(table.answers)).numpy()
    # a label alone is certain
    confidence = table.confidence
    if confidence is None:
        confidence = np.ones(len(table), np.float32)
    confidence = np.maximum(confidence, np.float32(1 / size))
    other = (1 - confidence) / max(1, size - 1)
    shares = np.repeat(other[:, None], size, axis=1).astype(np.float32)
    shares[np.arange(len(table)), table.answers] = confidence
    return shares
