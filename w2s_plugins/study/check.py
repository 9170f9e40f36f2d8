"""Checks of the commands of a study by what its runs would refuse, before the first of them begins."""

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from ..build.data import open_train_split
from ..build.flags import resolve_train_args
from ..build.resolve import refuse_missing_paths
from ..cli.declare import Parser
from ..cli.parser import parse
from ..data.slices import take_slice
from ..errors import UserError, said_of
from ..protocols.w2s import refuse_seen
from .layout import PlannedRun, fill_in
from .plan import of_first_seed
from .spec import Study


def check_plan(study: Study, plan: Sequence[PlannedRun], root: Path, parser: Parser) -> None:
    """Let the real parser and its checks see every command, of one seed: the others differ in nothing else.

    Args:
        study: the specification.
        plan: its runs.
        root: folder of the study.
        parser: knows the flags of train_w2s.py.

    Raises:
        UserError: naming the run and what is wrong with it.
    """
    opened: dict[tuple, Dataset | None] = {}  # training splits; None for one that is not on this machine yet
    checked: set[tuple] = set()  # their slices, which students of all losses share
    for run in of_first_seed(plan):
        with said_of(f"{study.name}: {run.label}: "):
            args = resolve_command(fill_in(run.argv, root), parser)
            refuse_missing_paths(args, elsewhere=True)
            _check_run(vars(args))
            split = args.dataset, args.data_dir, args.train_split, args.class_list
            part = *split, args.train_slice, args.slice_seed
            if args.train_slice and part not in checked:
                checked.add(part)
                remote = args.dataset_download or args.dataset.startswith(("hfds/", "hfids/", "tfds/", "wds/"))
                if split not in opened:
                    opened[split] = None
                    with contextlib.suppress(UserError):
                        opened[split] = None if remote else open_train_split(args)
                if opened[split] is not None:  # refuses a slice without a sample
                    take_slice(opened[split], args.train_slice, args.slice_seed)
            if run.kind == "student" and not run.needs[1:] and args.teacher_checkpoint and args.train_slice:
                refuse_seen(vars(args), args.train_slice)


def resolve_command(argv: Sequence[str], parser: Parser) -> argparse.Namespace:
    """Return the flags of a command, checked and resolved as its run does it."""
    args, given = parse(parser, argv)
    resolve_train_args(args, given)
    return args


def _check_run(flags: Mapping[str, object]) -> None:
    """Refuse runs that would say nothing in a table of results, and data that nothing can open."""
    rules = [
        (not flags["val_split"], "runs are compared on a test set: leave out val_split ''"),
        (flags["speedtest"], "speedtest leaves nothing to compare"),
        (flags["episodic"], "runs are compared as classifiers, and episodic trains none"),
        (flags["no_teacher_eval"],
         "no_teacher_eval leaves out the teacher's predictions, with which runs are compared"),
        (flags["select"] == "best" and flags["select_split"] is None, "select best would choose the checkpoint by "
         "test labels: give select_split, a part of the training slice, or select last"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)
