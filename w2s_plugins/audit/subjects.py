"""What an audit is about: runs, with the labels that they learned from, and tables of labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..data import MapDataset, Subset
from ..data.keys import sample_keys
from ..data.unlabeled import open_images
from ..errors import UserError, logger, quietly
from ..files import delete, file_sha256
from ..hub.export import check_export
from ..labels.answers import key_column
from ..labels.commands import read_tables
from ..labels.samples import labels_of_samples
from ..labels.several import are_several
from ..labels.store import LabelReader, Part
from ..made_of import Ingredient, find_changed, to_plain
from ..no_label import NO_LABEL
from ..predictions.run import open_model
from ..run.args_file import read_run_args
from ..settings.forms import LABELS_PREFIX
from ..settings.teacher_name import TeacherName
from ..settings.values import locate, no_model
from ..target_kind import ONE_CLASS, SeveralClasses, TargetKind, kind_of_task
from ..teachers.openers import Opened
from ..teachers.stored import label_images
from ..teachers.teacher import TeacherModel, open_alone
from ..training.learned import ROWS, Learned, open_learned
from ..training.loaders import whole_pass
from .labelled import ANSWERS, has_learned_labelled, is_stage, stages_with, written_images
from .plan import Opinion, Plan, find_opinion
from .questions import Questions, opinion_of
from .tables import is_draw, keys_of, open_answers

LABELS = "labels"  # the name of what runs have learned from
MOST = 30  # runs and tables: who is right, of these and the labels of runs, are bits of one whole number
IMAGES = "train"  # the role of the images of a run
# what decides which labels a run has learned from
OF_LABELS = (IMAGES, "given", "noise", "selected", LABELS, "teacher")


@dataclass
class Images:
    """The images of an audit.

    Args:
        dataset: as they are read.
        by: what their keys are, ``filename`` or ``id``.
        keys: (N,) of those that can be asked about.
        rows: (N,) where these stand in the data.
        classes: their names.
        target_kind: what a label is.
    """

    dataset: MapDataset
    by: str
    keys: list[str | int]
    rows: list[int]
    classes: list[str]
    target_kind: TargetKind = ONE_CLASS

    def plan(self) -> Plan:
        """Return what a person may be asked about them."""
        kind = Questions if are_several(self.target_kind) else Plan
        return kind(self.by, self.classes, self.keys)


@dataclass
class Subject:
    """A run or a table.

    Args:
        name: as a person reads it.
        typed: as it was typed.
        learned: what the run has learned from; None for a table.
        weights: the SHA-256 of the weights of the run.
        labels: the number of the opinion that the run has learned from, once that was asked.
    """

    name: str
    typed: str
    learned: Learned | None
    weights: str = ""
    labels: int | None = None


# ---------------------------------------------------------------- opening


def open_subjects(typed: Sequence[str], data_dir: str | None) -> list[Subject]:
    """Open runs and tables.

    Raises:
        UserError: one is neither, a run has not ended, or what it has learned from is not there any more.
    """
    if len(typed) > MOST:
        raise UserError(f"RUN: {len(typed)} runs and tables; expected at most {MOST}")
    folders = [locate_run(name) for name in typed]
    # one thing may be typed in several ways
    places = [
        (folder or Path(name.removeprefix(LABELS_PREFIX))).resolve()
        for name, folder in zip(typed, folders)
    ]
    short = [place.name for place in places]
    repeated = next((typed[i] for i, place in enumerate(places) if place in places[:i]), None)
    if repeated is not None:
        raise UserError(f"RUN {repeated}: is named twice; expected different runs or tables")
    subjects = []
    for name, text, folder in zip(short, typed, folders):
        shown = text if short.count(name) > 1 or name == LABELS else name
        # the labels of a run are called that
        shown = f"./{text}" if shown == LABELS else shown
        subject = Subject(shown, text, None)
        if folder is not None:
            check_stage(folder, text)
            subject.weights = file_sha256(folder / "export" / "model.safetensors")
            subject.learned = open_learned(folder, data_dir)
        subjects.append(subject)
    return subjects


def locate_run(name: str) -> Path | None:
    """Return the folder of a run that has ended, None for a table. Raises `UserError` if it is neither."""
    is_table = name.startswith(LABELS_PREFIX) or (Path(name).is_file() and Path(name).suffix)
    exported, folder = (None, None) if name.startswith(LABELS_PREFIX) else locate(name)
    if folder is None and is_table:
        return None
    # weights that a run has not exported may still change
    model = (folder or Path()) / "export" / "model.safetensors"
    if exported is None or folder is None or not model.is_file():
        raise no_model("RUN", name, "the folder of a run that has ended, or a table of labels")
    check_export(model.parent, "audit of")
    return folder


def check_stage(folder: Path, run: str) -> None:
    """Raise a `UserError` for a stage that has learned from images with true labels alone, if another one has not."""
    beside = folder.resolve().parent
    others = [
        name for name in stages_with(folder) if read_run_args(beside / name, "RUN").get("unlabeled")
    ]
    if others and folder.resolve().name not in others:
        raise UserError(
            f"RUN {run}: a stage that has learned from labelled images alone; expected one with images without "
            f"labels, such as {folder.parent / others[-1]}"
        )


def images_of(
    subjects: Sequence[Subject], data_dir: str | None, task: str = ONE_CLASS.task
) -> Images:
    """Return the images of the first run, or of a folder if there are tables only, which are read as of ``task``.

    Raises:
        UserError: there are none, or another run has learned from other images or classes.
    """
    runs = [subject for subject in subjects if subject.learned is not None]
    if not runs:
        if data_dir is None:
            raise UserError(
                f"{subjects[0].typed}: a table says of no image where it is; expected --data-dir DIR"
            )
        dataset = open_images(data_dir)
        names = [subject.typed for subject in subjects]
        kind = kind_of_task(task)
        _, classes, _ = read_tables([[name] for name in names], None, target_kind=kind)
        return _images(dataset, list(classes), kind)

    first = learned_of(runs[0])
    kind = first.data.target_kind
    if task not in (ONE_CLASS.task, kind.task):
        raise UserError(f"--task {task}: RUN {runs[0].typed} has labels of {kind.words}")
    images = _images(first.data.samples, classes_of(first), kind)
    for run in runs[1:]:
        other = learned_of(run)
        if other.data.target_kind.name != kind.name:
            raise UserError(
                f"RUN {run.typed}: labels of {other.data.target_kind.words}, expected {kind.words}, as of "
                f"{runs[0].typed}"
            )
        if {*classes_of(other)} != {*images.classes}:
            raise UserError(f"RUN {run.typed}: has other classes than {runs[0].typed}")
        # a run may have learned from some of the images only, but those of one name are the same
        keys = [*_images(other.data.samples, []).keys]
        before, now = (
            [one for one in learned.made_of if one.role == IMAGES] for learned in (first, other)
        )
        if not {*keys} & {*images.keys} or (keys == images.keys and find_changed(before, now)):
            raise UserError(
                f"RUN {run.typed}: has learned from other images than {runs[0].typed}; expected runs on the same "
                "ones"
            )
    return images


def _images(dataset: MapDataset, classes: list[str], target_kind: TargetKind = ONE_CLASS) -> Images:
    """Return which images can be asked about: a name that is not UTF-8 can stand in no table."""
    keys = sample_keys(dataset)
    names = [str(key) for key in keys.values]
    rows = [row for row, name in enumerate(names) if name.encode(errors="ignore").decode() == name]
    named = [keys.values[row] for row in rows]
    return Images(dataset, key_column(keys.by), named, rows, classes, target_kind)


def classes_of(learned: Learned) -> list[str]:
    """Return the names of the classes, which are their numbers if the data have nothing else."""
    return learned.data.class_names or [*map(str, range(learned.data.count_classes()))]


def held_out_by(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the same runs and tables, about the images that all of these runs have held out; none where they have not
    held out the same.
    """
    parts = [None if one.learned is None else one.learned.held_out() for one in subjects]
    keys = [sample_keys(part.data.samples).values for part in parts if part is not None]
    runs = sum(one.learned is not None for one in subjects)
    if not keys or len(keys) < runs or any({*one} != {*keys[0]} for one in keys):
        return []
    return [replace(one, learned=part) for one, part in zip(subjects, parts)]


def learned_of(subject: Subject) -> Learned:
    """Return what a run has learned from."""
    if subject.learned is None:
        raise TypeError(f"{subject.name} is a table")
    return subject.learned


# ---------------------------------------------------------------- what they say


def ask(subjects: Sequence[Subject], images: Images, plan: Plan, folder: Path) -> dict[str, int]:
    """Add to a plan what runs, and the labels that they learned from, and tables say, if it is not there yet.

    Args:
        subjects: the runs and tables.
        images: that they are asked about.
        plan: of these images.
        folder: of the audit.

    Returns:
        By name, the number of the opinion of each. Labels of several runs that are the same ones have one name.

    Raises:
        UserError: a table cannot be read, or is about none of the images.
    """
    # a table is read before any student is asked, which takes longer
    tables = {one.name: _table(one, images) for one in subjects if one.learned is None}
    of_tables = {name: _find_or_add(plan, *table) for name, table in tables.items()}
    columns: dict[str, int] = {}
    first = next((subject for subject in subjects if subject.learned is not None), None)
    for subject in subjects:
        if subject.learned is None:
            columns[subject.name] = of_tables[subject.name]
            continue

        # what a student and its labels say is asked once
        learned, student = subject.learned, _Student(subject.learned)
        of_labels = [one for one in learned.made_of if one.role.split()[0] in OF_LABELS]
        # the same teachers say something else together where they are weighed as evidence
        if learned.settings.teacher.weighs_evidence:
            assign = learned.settings.teacher.teacher_assign
            of_labels.append(Ingredient("assign", "--teacher-assign", "", assign))
        if isinstance(learned.data.target_kind, SeveralClasses):
            threshold = str(learned.data.target_kind.threshold)
            of_labels.append(Ingredient("threshold", "--multilabel-threshold", "", threshold))
        own = _find_or_add(plan, of_labels, partial(_labels, learned, student, images))
        subject.labels = own
        says = plan.opinions[own].says
        others = {*columns.values(), *of_tables.values()}
        if not any(np.array_equal(plan.opinions[one].says, says) for one in others):
            # labels of a later run that are others are called after it
            columns[LABELS if subject is first else f"{LABELS} of {subject.name}"] = own
        made_of = [Ingredient("student", "the student", "", subject.weights), *learned.made_of]
        answers = partial(_answers, learned, student, images, folder / "student")
        columns[subject.name] = _find_or_add(plan, made_of, answers)
    return columns


def _find_or_add(plan: Plan, made_of: Sequence[Ingredient], say: Callable[[], Opinion]) -> int:
    """Return the number of an opinion of a plan, to which it is added if it is not there."""
    number = find_opinion(plan, made_of)
    if number is None:
        plan.opinions.append(say())
        plan.made_of.append(to_plain(made_of))
        number = len(plan.opinions) - 1
    return number


class _Student:
    """The student of a run as it was exported, which is what would be used; opened when it is needed."""

    def __init__(self, learned: Learned):
        self._learned = learned
        self._opened: Opened | None = None

    def opened(self) -> Opened:
        """Return the opened model."""
        if self._opened is None:
            self._opened = open_model(str(self._learned.run))
        return self._opened

    def member(self) -> TeacherModel:
        """Return the model that answers to plain images in its own form."""
        name = TeacherName.parse(str(self._learned.run))
        return open_alone(name, self.opened(), self._learned.world.device, ("RUN", "RUN"))


def student_logits(learned: Learned, images: Images, rows: np.ndarray) -> torch.Tensor:
    """Return what the student of a run says of some images (n, C), in terms of their classes."""
    student = _Student(learned).member()
    # as the run has read them: in grey or in colour
    own, _ = _places(learned, images)
    chosen = Subset(learned.data.samples, own[rows].tolist())
    how = whole_pass(learned.settings.data, learned.world)
    part = Part(0, 0, len(rows))
    (answers,) = label_images(student, student.data_config, chosen, how, [part])
    order = [classes_of(learned).index(name) for name in images.classes]
    return answers.values[:, order]


def labels_of_run(learned: Learned, images: Images) -> Opinion:
    """Return the labels that a run has learned from."""
    return _labels(learned, _Student(learned), images)


def _labels(learned: Learned, student: _Student, images: Images) -> Opinion:
    rows, classes = _places(learned, images)
    labels = learned.labels(student.opened())[rows]
    if is_stage(learned.run):  # one before it may be among the teachers
        rows[_has_learned(learned, images)] = -1
    if are_several(images.target_kind):
        labels = labels[:, np.argsort(classes)]
        return opinion_of(np.where(rows[:, None] < 0, NO_LABEL, labels))
    labels = classes[labels]
    return _opinion(np.where(rows < 0, NO_LABEL, labels), images)


def _answers(learned: Learned, student: _Student, images: Images, kept: Path) -> Opinion:
    """Return what the student of a run says; its answers are kept in a folder until all are there."""
    member = student.member()
    reader = learned.answers(member, kept)
    kind = learned.data.target_kind
    if are_several(kind):
        return _answers_to_questions(learned, reader, images, kept)
    most_likely = [
        kind.probabilities(reader(index, learned.world.device)).topk(min(2, member.num_classes))
        for index in torch.arange(len(learned.data.samples)).split(ROWS)
    ]
    confidence, best = (torch.cat(parts).numpy(force=True) for parts in zip(*most_likely))
    delete(kept)
    rows, classes = _places(learned, images)
    rows[_has_learned(learned, images)] = -1
    says, other = (np.where(rows < 0, NO_LABEL, classes[best[rows, i]]) for i in (0, -1))
    return _opinion(says, images, other, confidence[rows, 0])


def _answers_to_questions(
    learned: Learned, reader: LabelReader, images: Images, kept: Path
) -> Opinion:
    """Return what the student of a run says of several classes an image; arguments as of `_answers`."""
    kind = learned.data.target_kind
    decisions: list[torch.Tensor] = []
    probabilities: list[torch.Tensor] = []
    for index in torch.arange(len(learned.data.samples)).split(ROWS):
        logits = reader(index, learned.world.device)
        decisions.append(kind.decide(logits))
        probabilities.append(kind.probabilities(logits))
    delete(kept)
    rows, classes = _places(learned, images)
    order = np.argsort(classes)
    says, sure = (
        torch.cat(parts).numpy(force=True)[rows][:, order] for parts in (decisions, probabilities)
    )
    rows[_has_learned(learned, images)] = -1
    return opinion_of(np.where(rows[:, None] < 0, NO_LABEL, says), sure)


def _has_learned(learned: Learned, images: Images) -> np.ndarray:
    """Return of which images (N,) a run has learned a person's answers: what it says of them tells nothing."""
    file = Path(learned.settings.data.data_dir or "") / ANSWERS
    known = set()
    if are_several(images.target_kind):
        # in the table of true labels that an audit has written
        table = learned.settings.data.train_labels
        if has_learned_labelled(learned) and table:
            kind = images.target_kind
            with quietly():
                (rows,), _, _ = read_tables([[table]], images.classes, target_kind=kind)
            if any(map(is_draw, rows.draws)):
                known = {*map(str, rows.keys)}
    elif has_learned_labelled(learned) and written_images(file.parent) is not None:
        known = {*map(str, open_answers(str(file), images.classes)[0].keys)}
    return np.array([str(key) in known for key in images.keys], dtype=bool)


def _places(learned: Learned, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return where the images (N,) stand in the data of a run, -1 for nowhere, and its classes among theirs."""
    own = {key: row for row, key in enumerate(sample_keys(learned.data.samples).values)}
    place = {name: number for number, name in enumerate(images.classes)}
    return (
        np.array([own.get(key, -1) for key in images.keys]),
        np.array([place[name] for name in classes_of(learned)]),
    )


def _table(subject: Subject, images: Images) -> tuple[list[Ingredient], Callable[[], Opinion]]:
    """Return what a table is made of, and what gives its labels of the images."""
    several = are_several(images.target_kind)
    kind = images.target_kind
    (table,), _, how = read_tables([[subject.typed]], images.classes, target_kind=kind)
    keys = keys_of(images.by, images.keys)
    # without combine a training takes the mean of several files
    combine = how["combine"] or ("mean" if table.more else None)
    with quietly():
        labels = labels_of_samples(
            table, keys, images.classes, combine, subject.typed, target_kind=kind
        )

    def say() -> Opinion:
        # a class alone says neither what is next best nor how sure it is
        classes = labels.classes()
        if several:
            known = labels.known.nonzero().flatten()
            shares = np.full(classes.shape, np.nan, dtype=np.float32)
            shares[known] = kind.probabilities(labels(known, torch.device("cpu"))).numpy()
            is_plain = np.isin(labels.answers[known].numpy(), (0, 1, np.nan)).all()
            return opinion_of(classes, None if is_plain else shares)
        if labels.answers.ndim == 1 or len(images.classes) == 1:
            return _opinion(classes, images)
        known = labels.known.nonzero().flatten()
        best = kind.probabilities(labels(known, torch.device("cpu"))).topk(2)
        other, sure = classes.copy(), np.zeros(len(classes))
        other[known], sure[known] = best.indices[:, 1], best.values[:, 0]
        # of a tie the class that was taken
        other[known] = np.where(other[known] == classes[known], best.indices[:, 0], other[known])
        return _opinion(classes, images, other, sure)

    return [Ingredient("table", subject.typed, "", str(labels.manifest.who["answers"]))], say


def _opinion(
    says: np.ndarray,
    images: Images,
    other: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
) -> Opinion:
    """Return an opinion; where nobody says which class is next best, that is any other one."""
    if other is None:
        other = np.where(says == NO_LABEL, NO_LABEL, (says + 1) % len(images.classes))
    if confidence is None:
        confidence = np.full(len(says), np.nan)
    return Opinion(says.astype(np.int32), other.astype(np.int32), confidence.astype(np.float32))


def warn_of_silent(subjects: Sequence[Subject], plan: Plan, columns: Sequence[int]) -> None:
    """Say that some of the images are left out, because not all of these opinions say something of them.

    Raises:
        UserError: there is no other image.
    """
    both = len(plan.images(columns))
    units = f"{plan.unit}s"
    names = " and ".join(subject.typed for subject in subjects)
    if not both:
        raise UserError(f"{names}: are about no {plan.unit} in common")
    if both < plan.count:
        logger.warning(
            f"WARNING: {plan.count - both} of {plan.count} {units} are left out: not all of {names} say "
            "something of them, or one has learned your answers about them"
        )
