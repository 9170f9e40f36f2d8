"""Several students one after the other (``--stages``): each may label for the next, or hand its weights on.

Every stage is an ordinary run in a folder of its own. A file lists them:

    - name: head
      linear_probe: true
    - name: lora
      teacher: given,stage:head      # mean of the command line's and what the student of that stage says, stored
      teacher_targets: cached
      clean_select: entropy:0.8      # trained on the share of which it is most certain
      tune: lora
    - name: all
      initial_checkpoint: stage:lora # goes on from its weights
      lr: 1.0e-05

A stage has the flags of the command line and its own, which win.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch.distributed as dist

from ..cli.declare import Parser, Role
from ..cli.parser import check_flags
from ..cli.values import split_names
from ..errors import UserError, nearest, one_line
from ..files import read_plain, recipe_path, write_json
from ..metrics.pgr import RESAMPLES
from ..metrics.resampling import CONFIDENCE, resampled_means
from ..monitor import format_table
from ..run.record import PREDICTIONS
from .figures import read_predictions
from .w2s import OF_ONE_TEACHER, Stages, folder_of_runs

EARLIER = "stage:"  # begins the name of an earlier stage, in place of a path
GIVEN = "given"  # among the teachers of a stage, those of the command line
# where a flag finds what an earlier stage has made, in its folder
PRODUCT = {"teacher": "local-dir:{}/export", "teacher_checkpoint": "{}", "clean_select_model": "local-dir:{}/export",
           "initial_checkpoint": "{}/export/model.safetensors"}
FORM = "expected a list of stages, each with a name and flags"


def run_stages(
        given: Mapping[str, object],
        parser: Parser,
        train: Callable[[dict[str, object]], dict],
) -> dict | None:
    """Train the students of ``--stages``; write ``result.json`` with the record of each, and return it.

    Args:
        given: flags that were set by hand.
        parser: knows the flags.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: a file of another form, flags that do not go together in a stage, an unknown stage.
    """
    file, folder = str(given["stages"]), folder_of_runs(given, "--stages")
    stages = Stages(given, parser, folder, train, go_on=bool(given.get("resume")), flag="--stages")
    listed = read_stages(file, parser)
    earlier: dict[str, object] = {}  # stages, with the number of their classes where one is given
    for name, flags in listed:
        if "teacher" in flags and GIVEN not in split_names(flags["teacher"]):  # what was said of another one
            flags = {**{flag: parser.defaults()[flag] for flag in OF_ONE_TEACHER}, **flags}
        classes = flags.get("num_classes", given.get("num_classes"))
        try:
            changes = found_products(flags, earlier, classes, folder, given.get("teacher"))
            stages.plan(name, changes, given.get("train_slice"))
        except UserError as error:
            raise UserError(f"--stages {file}: {name}: {error}") from error
        earlier[name] = classes
    for name, flags in listed:
        check_origin(name, stages.run(name), {other: stages.done[other] for other in _named(flags)}, folder)
    if dist.is_initialized() and dist.get_rank() > 0:
        return None
    record = dict(stages=stages.done)
    write_json(folder / "result.json", record)
    print(closing_table(stages.done, stages.folders))
    print(f"* the last one is exported to {folder / listed[-1][0] / 'export'}")
    return record


def _named(flags: Mapping[str, object]) -> list[str]:
    values = *(value for flag, value in flags.items() if flag != "teacher"), *split_names(flags.get("teacher"))
    return [value.removeprefix(EARLIER) for value in values if isinstance(value, str) and value.startswith(EARLIER)]


def check_origin(name: str, record: dict, earlier: Mapping[str, dict], folder: Path) -> None:
    """Raise a `UserError` where a stage was made of what an earlier one was before it was trained again.

    Args:
        name: of the stage.
        record: its record, which has the hashes of the models that it started from or was taught by.
        earlier: records of these stages.
        folder: of all stages.
    """
    for other, theirs in earlier.items():
        if theirs["export"]["model.safetensors"] not in json.dumps(record):
            raise UserError(f"--resume auto: {folder / name} is complete, but made from another {other} than that in "
                            f"{folder / other}: delete the folders of {name} and of the stages after it")


def read_stages(file: str, parser: Parser) -> list[tuple[str, dict[str, object]]]:
    """Return the names and flags of the stages in a file. Raises `UserError` for anything else."""
    where = f"--stages {file}"
    try:
        content = read_plain(recipe_path(file, where))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a YAML file: {one_line(error)}") from error
    if not (isinstance(content, list) and content and all(isinstance(stage, dict) for stage in content)):
        raise UserError(f"{where}: {FORM}")
    listed: list[tuple[str, dict[str, object]]] = []
    for number, stage in enumerate(content, start=1):
        name = stage.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,80}", name):
            raise UserError(f"{where}: stage {number} has no name, of letters and digits; {FORM}")
        if name in dict(listed):
            raise UserError(f"{where}: two stages are called {name}")
        flags = check_flags(stage, parser, f"{where}: {name}")
        for flag in flags.keys() & {*parser.names(Role.PROTOCOL), "output", "experiment", "resume", "train_slice"}:
            raise UserError(f"{where}: {name}: {flag} is that of all stages: give --{flag.replace('_', '-')} on the "
                            "command line")
        listed.append((name, flags))
    return listed


def found_products(flags: Mapping[str, object], earlier: Mapping[str, object], classes: object, folder: Path,
                   teacher: object = None) -> dict[str, object]:
    """Return flags in which ``stage:NAME`` is what that stage has made, and ``given`` the teacher of the command line.

    Args:
        flags: of a stage.
        earlier: stages before it, with the number of their classes where one is given.
        classes: its own, or None.
        folder: of all stages.
        teacher: of the command line.

    Raises:
        UserError: one that comes later, or whose weights are for other classes.
    """
    def product(flag: str, value: object) -> object:
        if not isinstance(value, str) or not value.startswith(EARLIER):
            return value
        name = value.removeprefix(EARLIER)
        if flag not in PRODUCT:
            raise UserError(f"{flag}: {value}: a stage gives nothing of this kind; it may stand for "
                            f"{', '.join(PRODUCT)}")
        if name not in earlier:
            raise UserError(f"{flag}: {value}: no stage of this name comes before it{nearest(name, earlier)}")
        if flag == "initial_checkpoint" and len({earlier[name], classes} - {None}) > 1:
            raise UserError(f"{flag}: {value}: that stage has num_classes {earlier[name]}, this one {classes}: the "
                            "head of one does not fit the other")
        return PRODUCT[flag].format(folder / name)

    found = {flag: product(flag, value) for flag, value in flags.items() if flag != "teacher"}
    if "teacher" in flags:
        named = split_names(flags["teacher"])
        if GIVEN in named and not teacher:
            raise UserError(f"teacher: {flags['teacher']}: the command line has no --teacher")
        found["teacher"] = ",".join(str(teacher if one == GIVEN else product("teacher", one)) for one in named) or None
    return found


def closing_table(records: Mapping[str, dict], folders: Mapping[str, Path]) -> str:
    """Return a table of the stages: accuracy, what it is above that of the first one, with an interval over test
    samples, agreement with its teacher, trained weights, seconds.

    Args:
        records: of the stages, by name.
        folders: of their runs.
    """
    rows, first = [], next(iter(records))
    hits = {name: hits_of(folders[name] / PREDICTIONS[record["selected"]["rule"]]) for name, record in records.items()}
    for name, record in records.items():
        model, metrics = record["model"], record["metrics"]
        trained = "head" if model["linear_probe"] else model.get("trained", model["params"])
        above, start = None, hits[first]
        if name != first and start is not None and hits[name] is not None and len(hits[name]) == len(start):
            above = "{:+.2f}, {:+.2f} to {:+.2f}".format(*difference(hits[name], start))
        rows.append([name, metrics.get("top1"), above, metrics.get("agreement"), trained, record["seconds"]])
    return format_table(rows, ["stage", "top-1", f"above {first}, 95 %", "agreement", "trained weights", "seconds"])


def hits_of(file: Path) -> np.ndarray | None:
    """Return which test samples a run has right, (N,); None without ground truth."""
    said = read_predictions(file) if file.is_file() else {}
    return said["student"] == said["target"] if "target" in said else None


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two accuracies in percent, and its bootstrap interval over samples, (N,) each."""
    gain = 100 * (ours.astype(float) - theirs)
    low, high = np.quantile(resampled_means(gain[None], RESAMPLES)[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return gain.mean(), low, high
