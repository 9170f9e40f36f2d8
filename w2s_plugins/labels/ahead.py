"""Tables that flags name, looked at before torch is imported: who has named the wrong one is told at once.

Nothing is refused here that the training would take. Of what it would refuse this is all that can be seen without
images and models: which classes there are is often said by these.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError, quietly
from ..settings.forms import LABELS_PREFIX, MULTILABEL, parse_labels, parse_true_labels
from .names import read_class_names
from .several import ListForm
from .table import NoLabels, TableFile, file_of, open_table

MOST_READ = 1 << 26  # bytes of a file that is read twice
Flags = Mapping[str, Any]


class Task(NamedTuple):
    """Timm's name of a kind of target, where `target_kind.TargetKind` would import torch."""

    task: str


def check_tables(flags: Flags) -> None:
    """Check the tables of ``train_w2s.py`` and ``validate.py``. Raises `UserError` for one that cannot be trained on."""
    # the classes, as far as flags say them
    given = flags.get("class_names")
    names = read_class_names(given) if given else None
    unlabeled = bool(flags.get("unlabeled"))
    root = flags["data_dir"] or flags["data"]

    # weak labels
    files, settings = parse_labels(flags["teacher"])
    # beside samples with labels these say which classes there are
    knows = unlabeled and bool(given or not (root or flags["dataset"]))
    for file in files:
        if not _is_left(file):
            table = open_table(Path(file), f"--teacher {LABELS_PREFIX}{file}")
            _check(table, flags["task"], names, settings, knows)

    # true labels; a list takes some classes of all
    if flags.get("class_list"):
        names = None
    for flag, knows in (("--train-labels", True), ("--val-labels", unlabeled)):
        text = flags.get(flag[2:].replace("-", "_"))
        if text and not _is_left(parse_true_labels(text, flag)[0]):
            table, settings = open_truth(text, flag, root)
            settings["missing"] = settings["missing"] or "error"
            _check(table, flags["task"], names, settings, knows)


def check_files(files: Sequence[str], task: str, class_names: str | None) -> None:
    """Check the tables of ``w2s-labels check`` and ``stats``, of which several are to have the same classes."""
    prefixed = [LABELS_PREFIX + name.removeprefix(LABELS_PREFIX) for name in files]
    paths, settings = parse_labels(",".join(prefixed), alone=True)
    names = read_class_names(class_names) if class_names else None
    for path in paths:
        # what is left to the command is read by it in any case
        if _is_left(path):
            continue
        # each by itself, because what they have in common is found when all are read
        table = open_table(Path(path), path)
        try:
            _check(table, task, names, settings, bool(names or len(paths) == 1))
        except UserError as error:
            # of annotators the command itself says what to type
            if "annotator" not in str(error):
                raise


def open_truth(
    text: str, flag: str, root: str | None, may_name: bool = False
) -> tuple[TableFile, dict[str, Any]]:
    """Open the table that ``--train-labels`` or ``--val-labels`` names; return it with what is set behind its name.

    Args:
        text: as it was typed.
        flag: which of the two.
        root: where the images are; a table there has to be named with it.
        may_name: see `TableFile`.
    """
    where = f"{flag} {text:.80}"
    path, settings = parse_true_labels(text, flag)
    file, _ = file_of(Path(path))
    beside = Path(root or "", file)
    if not file.exists() and beside.exists():
        raise UserError(f"{where}: no such file (nearest: {beside})")
    return open_table(Path(path), where, may_name=may_name), settings


def _is_left(name: str) -> bool:
    """Say whether a table is left to the training: on the Hub, or so large that it takes long to read it twice."""
    # of a sheet or an array in a file the whole file counts
    file, _ = file_of(Path(name))
    return name.startswith("hf:") or (file.is_file() and file.stat().st_size > MOST_READ)


def _check(
    table: TableFile, task: str, names: Sequence[str] | None, settings: Flags, knows: bool
) -> None:
    """Read a table as the training will, if all classes are known to be ``names`` or its own; else look at its columns."""
    with quietly():  # what is to be said of it is said when it is brought to the images
        if knows:
            lists = ListForm.of(settings)
            table.labels(names, settings["missing"], target_kind=Task(task), lists=lists)
        else:
            with suppress(NoLabels):
                table.schema(several=task == MULTILABEL)
