"""The runs of one command, one after the other in this process: each is made once, after those that it needs."""

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from ..build.resolve import check_paths
from ..cli.declare import Parser
from ..errors import UserError, said_of
from ..run.record import PREDICTIONS
from .earlier import check_same_run, read_result, resolved, sources_now
from .outcome import read_predictions
from .planning import Plan, run_flags
from .same_data import check_same_data

_logger = logging.getLogger(__name__)


class Runs:
    """The runs of a plan. The flags of all are checked before the first one is made.

    Args:
        plan: the runs.
        given: flags that were set by hand.
        parser: knows the defaults.
        train: trains one model with the flags that it is given, and returns its record.

    Attributes:
        flags: flags that differ from the defaults, by run.
        done: records by run.
        folders: run folders by run.

    Raises:
        UserError: flags that do not go together.
    """

    def __init__(self, plan: Plan, given: Mapping[str, object], parser: Parser, train: Callable):
        self.plan, self.train, self.go_on = plan, train, bool(given.get("resume"))
        self.flags: dict[str, dict[str, object]] = {}
        self.done: dict[str, dict] = {}
        self.folders: dict[str, Path] = {}
        for run in plan.runs:
            with said_of(run.where):
                self.flags[run.name] = run_flags(run, plan.folder, parser)
                check_paths(argparse.Namespace(**self.resolved(run.name)))

    def resolved(self, name: str) -> dict[str, object]:
        """Return the flags of a run as it would write them."""
        return resolved(self.flags[name])

    def take(self, name: str, folder: Path, flag: str) -> None:
        """Take an earlier run in place of one that would be made. Raises `UserError` when it is not what would be."""
        record, wanted = read_result(folder, flag), self.resolved(name)
        check_same_run(folder, wanted, record, flag, f"or leave out {flag} and it is trained anew")
        read_predictions(folder / PREDICTIONS[wanted["select"]])
        _logger.info(f"{self.plan.flag}: {name} is taken from {folder}")
        self.folders[name], self.done[name] = folder, record

    def note(self, name: str, flag: str, checkpoint: str) -> None:
        """Keep the record of the run that a checkpoint is of, where there is one."""
        folder = run_of(checkpoint)
        if (folder / "result.json").is_file():
            self.folders[name], self.done[name] = folder, read_result(folder, flag, evaluated=False)

    def make(self, name: str) -> None:
        """Make a run and, before it, those that it needs, but for those that are there.

        Raises:
            UserError: a run that is there has other flags, or is of other data or other models than would be made.
        """
        if name in self.done:
            return
        run = next(run for run in self.plan.runs if run.name == name)
        for other in run.needs:
            self.make(other)
        if self.plan.start is not None and name == "student":
            self.flags[name]["ceiling_acc"] = self.done["ceiling"]["metrics"]["top1"]
        self.folders[name] = folder = self.plan.folder / name
        with said_of(run.where if self.plan.start is None else ""):
            record = self.finished(name)
            if record is None:
                if self.done:  # the data may have changed since the runs before
                    sources = sources_now(self.resolved(name))
                    check_same_data({**self.done, name: {"data": {"sources": sources}}}, self.plan.flag)
                _logger.info(f"{self.plan.flag}: {name}, --train-slice {self.flags[name].get('train_slice') or ':'}")
                record = self.train(self.flags[name])
            check_same_data({**self.done, name: record}, self.plan.flag)
        for other in run.needs:
            self.check_origin(name, record, other, folder)
        self.done[name] = record

    def finished(self, name: str) -> dict | None:
        """Return the record of a complete run that is there. Raises `UserError` when it is not what would be made."""
        folder = self.folders[name]
        if not (self.go_on and (folder / "result.json").is_file()):
            return None
        record = read_result(folder, "--resume auto")
        if record.get("failed_test_sets"):
            return None
        check_same_run(folder, self.resolved(name), record, "--resume auto",
                       "delete that folder, or give another --experiment")
        _logger.info(f"{self.plan.flag}: {name} is complete: {folder}")
        return record

    def check_origin(self, name: str, record: dict, other: str, folder: Path) -> None:
        """Raise a `UserError` where a run was made of what one that it needs was before that was trained again."""
        made = str(self.plan.folder / other)
        named = any(made in str(value) for value in self.flags[name].values())
        # the averaged weights of a teacher are in its checkpoint alone
        if not named or self.flags[name].get("use_ema_teacher"):
            return
        if self.done[other]["export"]["model.safetensors"] not in json.dumps(record):
            raise UserError(f"--resume auto: {folder} is complete, but made from another {other} than that in {made}: "
                            f"delete the folders of {name} and of what comes after it")


def run_of(checkpoint: str) -> Path:
    """Return the run folder that a checkpoint is of: the folder itself, or that of a file or an export in it."""
    path = Path(checkpoint.removeprefix("local-dir:"))
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "export" else folder
