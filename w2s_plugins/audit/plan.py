"""What a run's student and its labels say of each image: ``audit/plan.json``, from which all else follows."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..cli.parser import fill, train_parser
from ..data.datasets import known_labels
from ..data.keys import sample_keys
from ..errors import UserError, said_of
from ..files import delete, read_plain
from ..labels.splits import Data
from ..models.foreign import refuse_addresses
from ..predictions.run import open_model
from ..run.args_file import read_run_args
from ..run.record import SELECTED
from ..teachers.name import TeacherName
from ..teachers.stored import AnswerStore
from ..teachers.teacher import open_alone
from ..training.data import build_data, select_clean
from ..training.device import create_precision, join_group
from ..training.labels import find_labels, read_labels, take_labels
from ..training.loaders import whole_pass
from ..training.resolve import check_paths
from ..training.teacher import build_teacher, cached_targets
from .draw import drawing_order, find_strata

ROWS = 8192  # images at a time


@dataclass
class Plan:
    """What is said of all images of a run, in the order in which they are drawn.

    Args:
        weights: SHA-256 of the student.
        by: what the keys are, ``filename`` or ``id``.
        classes: their names.
        keys: (N,) of the images.
        labels: (N,) classes that the student has learned from.
        student: (N,) classes that it says.
        other: (N,) the label where it is another class, else what the student finds the next best one.
        strata: (N,) see `draw.find_strata`.
        drawn: how many images a person is asked about, the first ones.
    """

    weights: str
    by: str
    classes: list[str]
    keys: list[str] | list[int]
    labels: list[int]
    student: list[int]
    other: list[int]
    strata: list[int]
    drawn: int = 0


def read_plan(path: Path, weights: str) -> Plan | None:
    """Return the plan of the student with these weights, None where there is no whole one."""
    try:
        plan = Plan(**read_plain(path))
    except (OSError, ValueError, TypeError):
        return None
    return plan if plan.weights == weights else None


def open_training_set(run: Path, data_dir: str | None) -> tuple[argparse.Namespace, Data]:
    """Open the training set of a run, and the labels that were given for it, again by its own flags; return both.

    Args:
        run: its folder.
        data_dir: where the images lie if they were moved.

    Raises:
        UserError: they are not there, or are a stream.
    """
    flags = read_run_args(run, "RUN")
    refuse_addresses(flags, {"dataset": "data_dir"}, f"RUN {run}: its args.yaml")
    if data_dir is not None:
        flags["unlabeled" if flags["unlabeled"] else "data_dir"] = data_dir
    if flags["unlabeled"]:  # labelled images beside them need not be there
        flags["task_loss_weight"] = 0.0
    # nothing is evaluated, and the classes are those of the run in their order
    names = run / "class_names.json"
    flags |= dict(val_split="", few_shot_eval=None, episodic=None, teacher_targets="cached",
                  device="cuda" if torch.cuda.is_available() else "cpu",
                  class_names=str(names) if names.is_file() else flags["class_names"])
    args, _ = fill(train_parser(), flags)
    with said_of(f"RUN {run}: its flags say "):
        check_paths(args)
        world = join_group(args.device)
        found = find_labels(args, world)
        data = build_data(args, found)
        if isinstance(data.train, IterableDataset):
            raise UserError(f"--dataset {args.dataset}: a stream, of which no images can be drawn")
        answers = take_labels(args, data, found, data.class_names)
        select_clean(args, data, {}, None, world, run / SELECTED)
        read_labels(data, found, answers)
    return args, data


def make_plan(run: Path, weights: str, args: argparse.Namespace, data: Data) -> Plan:
    """Ask the student of a run about its training images, and find the labels that it has learned from.

    Args:
        run: its folder.
        weights: SHA-256 of the student.
        args: flags of the run.
        data: its training set, from `open_training_set`.
    """
    # labels as the run has made them: the teacher's stored answers if they are there, else it is asked again
    world, student = join_group(args.device), open_model(str(run))
    precision, config = create_precision(args, world), student.data_config
    teacher = build_teacher(args, student.model, config, precision, data.class_names)
    targets = cached_targets(args, teacher, data, config, precision, world)
    batches = torch.arange(len(data.train)).split(ROWS)
    if targets is None:
        labels = np.array(known_labels(data.train, f"RUN {run}"))
    else:
        labels = torch.cat([targets(index).argmax(dim=1) for index in batches]).numpy(force=True)

    # the student, in its own form of the plain images; its answers are kept until all are there
    member = open_alone(TeacherName.parse(str(run)), student, world.device, ("RUN", "RUN"))
    store = AnswerStore(run / "audit" / "student", args.dataset, whole_pass(args, world))
    reader = store.answers(member, data.train, args.train_split, kind="logits", dtype=torch.float32)
    best = [reader(index, world.device).softmax(dim=1).topk(min(2, member.num_classes)) for index in batches]
    confidence, classes = (torch.cat(rows).numpy(force=True) for rows in zip(*best))
    delete(store.folder)

    # all images in the order of the draw
    said, keys = classes[:, 0], sample_keys(data.train)
    strata = find_strata(labels, said, confidence[:, 0])
    order, other = drawing_order(strata, labels, said), np.where(labels == said, classes[:, -1], labels)
    return Plan(
        weights,
        "filename" if keys.by == "filename" else "id",
        data.class_names or [*map(str, range(member.num_classes))],
        [keys.values[row] for row in order],
        *(rows[order].tolist() for rows in (labels, said, other, strata)),
    )
