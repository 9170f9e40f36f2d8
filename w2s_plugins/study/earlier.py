"""A run that is already there, taken in place of one that would be trained again: is it what would come out?"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..build.data import open_splits, sources_of
from ..build.device import join_group
from ..build.flags import resolve_train_args
from ..build.labels import find_labels
from ..cli.outcome import other_values
from ..cli.parser import fill, train_parser
from ..errors import UserError, nearest, one_line, quietly
from ..files import read_plain
from ..run.args_file import read_run_args
from .same_data import check_made_of

# what is read of an earlier result.json, and its types; what only a run with a validation split has
READ_BACK = {
    (): dict,
    ("data", "label_noise"): (dict, type(None)),
    ("selected", "rule"): str,
    ("data", "splits", "train", "num_samples"): int,
}
OF_EVALUATED = {
    ("metrics", "top1"): (int, float),
    ("data", "splits", "val", "fingerprint"): (str, type(None)),
    ("data", "splits", "val", "num_samples"): int,
}


def read_result(folder: Path, flag: str, evaluated: bool = True) -> dict:
    """Read the result.json of a complete run.

    Args:
        folder: a run folder.
        flag: the flag that named it.
        evaluated: the run has to have figures of a validation split.

    Raises:
        UserError: there is none, or what is read of it is not what a run writes.
    """
    path = folder / "result.json"
    if not path.is_file():
        near = nearest(folder.name, [p.parent.name for p in folder.parent.glob("*/result.json")])
        raise UserError(f"{flag} {folder}: no result.json there{near}; expected the folder of a complete run")
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {folder}: its result.json cannot be read: {one_line(error)}") from error
    for keys, kinds in {**READ_BACK, **(OF_EVALUATED if evaluated else {})}.items():
        part = content
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        if not isinstance(part, kinds) or isinstance(part, bool):
            raise UserError(f"{flag} {folder}: its result.json is not that of a run: {'.'.join(keys) or 'it'} is a "
                            f"{type(part).__name__}")
    if content["selected"]["rule"] not in ("last", "best"):
        raise UserError(f"{flag} {folder}: its result.json is not that of a run: selected.rule is unknown")
    return content


def resolved(flags: Mapping[str, object]) -> dict[str, object]:
    """Return all flags as a run with these would write them to its args.yaml; the number of classes is left open. What
    is logged of them is logged when the run is made.
    """
    args, given = fill(train_parser(), flags)
    with quietly():
        resolve_train_args(args, given)
    return vars(args)


def other_flags(folder: Path, wanted: Mapping[str, object], flag: str) -> list[str]:
    """Return in which flags the run in ``folder`` differs from ``wanted``, as text, for what changes its outcome.

    Args:
        folder: a run folder.
        wanted: flags from `resolved`.
        flag: the flag that named the folder.
    """
    theirs, ours = read_run_args(folder, flag), yaml.safe_load(yaml.safe_dump(dict(wanted)))
    for name in ("num_classes", "gp"):
        if ours[name] is None:  # that of the data, of published weights
            del ours[name]
    return [f"--{name.replace('_', '-')} {old} -> {new}" for name, (old, new) in other_values(theirs, ours).items()]


def check_same_run(folder: Path, wanted: Mapping[str, object], record: dict, flag: str, remedy: str) -> None:
    """Raise a `UserError` unless the run in ``folder`` was made with the flags ``wanted``, of the data they name.

    Args:
        folder: a run folder.
        wanted: flags from `resolved`.
        record: its result.json.
        flag: the flag that named the folder.
        remedy: ends what is said of other flags.
    """
    if changed := other_flags(folder, wanted, flag):
        raise UserError(f"{flag} {folder}: that run had other flags: {'; '.join(changed)}; repeat them, {remedy}")
    check_made_of(record, sources_now(wanted), f"{flag} {folder}")


def sources_now(wanted: Mapping[str, object]) -> list[dict]:
    """Describe what a run with flags from `resolved` would be made of."""
    args = argparse.Namespace(**wanted)
    with quietly():
        labels = find_labels(args, join_group(args.device, args.dist_timeout))
        return sources_of(args, open_splits(args), labels)
