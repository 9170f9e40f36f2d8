"""A run that is already there, taken in place of one that would be trained again: is it what would come out?"""

import argparse
import copy
import json
import os
from pathlib import Path

import yaml

from .build import build_data, settle_learning_rate
from .checkpoint import read_run_args
from .cli.declare import NEUTRAL, Role
from .cli.parser import train_parser
from .cli.resolve import resolve_train_args
from .data.datasets import describe
from .errors import UserError, nearest, one_line


def read_result(folder: Path, flag: str) -> dict:
    """Read the result.json of a complete run.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / "result.json"
    if not path.is_file():
        near = nearest(folder.name, [p.parent.name for p in folder.parent.glob("*/result.json")])
        raise UserError(f"{flag} {folder}: no result.json there{near}; expected the folder of a complete run")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{flag} {folder}: its result.json cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{flag} {folder}: its result.json is not that of a run")
    return content


def resolved(args: argparse.Namespace, given: set[str]) -> argparse.Namespace:
    """Return the flags as a run would write them to its args.yaml; the number of classes is left open."""
    wanted = copy.deepcopy(args)
    resolve_train_args(wanted, set(given))
    settle_learning_rate(wanted, int(os.environ.get("WORLD_SIZE", "1")))
    return wanted


def other_flags(folder: Path, wanted: argparse.Namespace, flag: str) -> list[str]:
    """Return in which flags the run in ``folder`` differs from ``wanted``, as text, for what changes its outcome.

    Args:
        folder: a run folder.
        wanted: flags from `resolved`.
        flag: the flag that named the folder.
    """
    theirs, ours = read_run_args(folder, flag), yaml.safe_load(yaml.safe_dump(vars(wanted)))
    ignored = train_parser().names(NEUTRAL)
    if not ours["teacher"]:
        ignored |= train_parser().names(Role.TEACHER | Role.RELEASED) - {"teacher", "loss"}
    if ours["num_classes"] is None:  # settled by the data
        ignored = ignored | {"num_classes"}
    return [f"--{name.replace('_', '-')} {theirs[name]} -> {ours[name]}" for name in sorted(theirs.keys() & ours.keys())
            if name not in ignored and theirs[name] != ours[name]]


def check_same_run(folder: Path, wanted: argparse.Namespace, record: dict, flag: str) -> None:
    """Raise a `UserError` unless the run in ``folder`` was made with the flags ``wanted``, on the samples they name.

    Args:
        folder: a run folder.
        wanted: flags from `resolved`.
        record: its result.json.
        flag: the flag that named the folder.
    """
    if changed := other_flags(folder, wanted, flag):
        raise UserError(f"{flag} {folder}: that run had other flags: {'; '.join(changed)}; repeat them, or leave out "
                        f"{flag} and it is trained anew")
    data = build_data(copy.deepcopy(wanted))
    for split, dataset, name in (("train", data.train, wanted.train_split), ("val", data.val, wanted.val_split)):
        ours, theirs = describe(dataset, wanted.dataset, name), record["data"]["splits"][split]
        if (theirs["fingerprint"], theirs["num_samples"]) != (ours.fingerprint, ours.num_samples):
            raise UserError(f"{flag} {folder}: that run had other samples of '{name}': {theirs['num_samples']} with "
                            f"fingerprint {theirs['fingerprint']}, here {ours.num_samples} with {ours.fingerprint}")
