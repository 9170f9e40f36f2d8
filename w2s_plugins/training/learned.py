"""What a run that has ended has learned from: its training images and their labels, opened again by its own flags."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..cli.parser import fill, train_parser
from ..data.datasets import known_labels
from ..distributed.world import World
from ..errors import UserError, said_of
from ..labels.splits import Data
from ..labels.store import LabelReader
from ..models.foreign import refuse_addresses
from ..run.args_file import read_run_args
from ..run.record import SELECTED
from ..settings.resolve import check_paths
from ..teachers.openers import Opened
from ..teachers.stored import AnswerStore
from ..teachers.teacher import TeacherModel
from .data import build_data, select_clean
from .device import create_precision, join_group
from .labels import find_labels, read_labels, take_labels
from .loaders import whole_pass
from .teacher import build_teacher, cached_targets

ROWS = 8192  # images at a time


@dataclass
class Learned:
    """What a run has learned from.

    Args:
        args: its flags.
        world: this process.
        data: its training set, with the labels that were given for it.
    """

    args: argparse.Namespace
    world: World
    data: Data

    def labels(self, student: Opened) -> np.ndarray:
        """Return the class (N,) that each image was given: by the teacher, before anything is made of its answers, or
        by the data. A teacher is asked about plain images, if its answers are not stored.
        """
        args, data, config = self.args, self.data, student.data_config
        precision = create_precision(args, self.world)
        teacher = build_teacher(args, student.model, config, precision, data.class_names)
        targets = cached_targets(args, teacher, data, config, precision, self.world)
        if targets is None:
            return np.array(known_labels(data.train, "RUN"))
        rows = torch.arange(len(data.train)).split(ROWS)
        return torch.cat([targets(index).argmax(dim=1) for index in rows]).numpy(force=True)

    def answers(self, member: TeacherModel, folder: Path) -> LabelReader:
        """Return what a model says of each image, kept in a folder."""
        store = AnswerStore(folder, self.args.dataset, whole_pass(self.args, self.world))
        return store.answers(member, self.data.train, self.args.train_split, kind="logits", dtype=torch.float32)


def open_learned(run: Path, data_dir: str | None) -> Learned:
    """Open the training set of a run again.

    Args:
        run: its folder.
        data_dir: where the images lie if they were moved.

    Raises:
        UserError: they are not there, or are a stream.
    """
    flags = read_run_args(run, "RUN")
    if not {"dataset", "data_dir", "unlabeled", "class_names"} <= flags.keys():
        raise UserError(f"RUN {run}: its args.yaml does not say what it learned from")
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
    return Learned(args, world, data)
