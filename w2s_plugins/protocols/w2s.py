"""The weak-to-strong protocol in one run: a weak teacher, a strong student on its labels, and the student's ceiling.

The training set is split in two. The teacher sees the first part with ground truth; the student sees the second with
the teacher's labels only; the ceiling is the student trained on the second part with ground truth. All three are
evaluated on one test set (Weak-to-Strong Generalization, 2023, arXiv 2312.09390). Each is an ordinary run, and so are
those that the student is compared with (``--controls``).

``--label-noise`` is that of the labels one has: the teacher is trained on it, and the student where it sees labels;
``label_noise: null`` in ``--weak-config`` gives the teacher clean labels. The ceiling always sees the clean labels of
all samples of its part; ``--clean-select`` is the student's alone. With ``--select-split`` the same samples are held
out for student and ceiling; epochs of the student are ranked against its teacher, those of the ceiling by ground truth.
"""

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import IterableDataset

from ..build.data import build_data, open_train_split, open_val_split
from ..build.flags import check_teacher_name
from ..build.resolve import refuse_missing_paths
from ..cli.declare import Parser, Role
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..data import take_slice
from ..data.overlap import sample_names
from ..errors import UserError, one_line, said_of
from ..files import write_json
from ..hub.export import write_card
from ..hub.push import push_export
from ..models.class_names import names_of_data
from ..models.foreign import refuse_addresses
from ..quiet import quietly
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS
from ..teachers.kinds import Request, kind_of, open_kind, read_prompts
from ..teachers.teacher import TeacherSettings, load_frozen_model, pair_checkpoints
from ..tokens import say
from .earlier import check_same_run, read_result, resolved, sources_now
from .figures import closing_table, make_record, read_predictions
from .planning import (
    NOT_OF,
    OF_ONE_TEACHER,
    WITH_DIRECT,
    Planned,
    defaults,
    defaults_of,
    exported,
    of_the_task,
    read_protocol,
    run_flags,
    runs_of_protocol,
    weak_flags,
    weak_labels_only,
)
from .same_data import check_same_data

_logger = logging.getLogger(__name__)


def run_w2s(given: dict[str, object], parser: Parser, train: Callable[[dict[str, object]], dict]) -> dict | None:
    """Train teacher, ceiling and student; write ``result.json`` with the performance gap recovered, and return it.

    Args:
        given: flags of the student that were set by hand.
        parser: knows the defaults.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go with the protocol, overlapping splits.
    """
    start = read_protocol(given, parser)
    flags, folder, first, second, trains_teacher = start
    stages = Stages(given, parser, folder, train, go_on=bool(flags["resume"]))
    for run in runs_of_protocol(start, given, parser):
        stages.plan(run)
    if flags["ceiling_checkpoint"]:
        stages.take("ceiling", Path(flags["ceiling_checkpoint"]), "--ceiling-checkpoint")
    if trains_teacher:
        check_data(flags, stages, second)
    plan_controls(flags, stages, first, second)
    if trains_teacher:
        stages.run("weak")
    else:
        take_trained_teacher(flags, second, stages)
    ceiling = stages.run("ceiling")
    stages.run("student", ceiling_acc=ceiling["metrics"]["top1"])
    for name in stages.flags:
        stages.run(name)
    if dist.is_initialized() and dist.get_rank() > 0:
        return None
    record = make_record(flags, stages.done, stages.folders)
    write_json(folder / "result.json", record)
    if record["controls"]:
        show_controls(flags, stages.folders["student"] / "export", stages.done["student"], record["controls"])
    for warning in record["warnings"]:
        _logger.warning(f"WARNING: {warning}")
    print(closing_table(record))
    say(f"* {folder / 'result.json'}")
    return record


def show_controls(flags: Mapping[str, object], export: Path, student: dict, controls: dict) -> None:
    """Write the student's card again, with the runs that it is compared with, and publish it where that is asked for.

    Args:
        flags: of the student.
        export: of the student.
        student: its record.
        controls: figures of each.
    """
    write_card(export, {**student, "controls": controls})
    if flags["push_to_hub"]:
        push_export(export, flags["push_to_hub"], private=flags["hub_private"] or None, revision=flags["hub_revision"])


# ---------------------------------------------------------------- controls


def plan_controls(flags: Mapping[str, object], stages: "Stages", first: str, second: str | None) -> None:
    """Plan the runs of ``--controls``.

    Args:
        flags: of the student.
        stages: the teacher, where it is trained, is planned already.
        first: the teacher's slice of the training split, empty where it has none.
        second: the student's.

    Raises:
        UserError: a teacher without a labelled part, one or one that is no network of timm's.
    """
    parser, given, chosen = stages.parser, stages.given, flags["controls"]
    if WITH_DIRECT & set(chosen):
        of_teacher, whole = stages.flags.get("weak", {}), open_train_split(argparse.Namespace(**flags))
        labels = {name: of_teacher[name] for name in parser.names(Role.NOISE) & of_teacher.keys()}
        take_slice(whole, first, flags["slice_seed"], "--controls direct: slice")
        changes = {**labels, **defaults(parser, NOT_OF["direct"]), "epoch_slice": second}
        stages.plan(Planned("direct", "", changes, first))
    shared = {**defaults_of(parser, parser.names(Role.STUDENT) & parser.names(Role.REPORT)), **weak_labels_only(given)}
    if "same-size" in chosen:
        if kind_of(flags["teacher"]):
            raise UserError(f"--controls same-size: --teacher {flags['teacher']} is no network of timm's that could be "
                            "trained")
        network = {name: value for name, value in weak_flags(flags, parser, first).items()
                   if name not in of_the_task(parser)}
        taught = {"teacher_checkpoint": stages.flags["student"]["teacher_checkpoint"]}
        stages.plan(Planned("same-size", "", {**shared, **network, **taught}, second))
    if "strong-to-strong" in chosen:
        changes = {**shared, **defaults_of(parser, OF_ONE_TEACHER), "teacher": exported(stages.folder / "direct")}
        stages.plan(Planned("strong-to-strong", "", changes, second))


class Stages:
    """The stages of the protocol: all are planned, and so checked, before the first one runs.

    Args:
        given: flags of the student that were set by hand.
        parser: knows the defaults.
        folder: folder of the stages.
        train: trains one model and returns its record.
        go_on: a stage that is complete is not run again.
        flag: that asked for them, for messages.

    Attributes:
        flags: flags that differ from the defaults, by stage.
        done: records by stage.
        folders: run folders by stage.
    """

    def __init__(self, given: Mapping[str, object], parser: Parser, folder: Path, train: Callable, go_on: bool,
                 flag: str = "--protocol w2s"):
        self.given, self.parser, self.folder, self.train, self.go_on = given, parser, folder, train, go_on
        self.flag = flag
        self.flags: dict[str, dict[str, object]] = {}
        self.done: dict[str, dict] = {}
        self.folders: dict[str, Path] = {}

    def plan(self, run: Planned) -> None:
        """Decide on the flags of a stage, and refuse now what its run would refuse.

        Raises:
            UserError: flags that do not go together.
        """
        with said_of(run.where):
            self.flags[run.name] = run_flags(run, self.folder, self.given, self.parser)
            refuse_missing_paths(argparse.Namespace(**self.resolved(run.name)))

    def resolved(self, name: str) -> dict[str, object]:
        """Return the flags of a stage as its run would write them; what is logged of it is logged when it runs."""
        with quietly():
            return resolved(self.flags[name])

    def take(self, name: str, folder: Path, flag: str) -> None:
        """Take an earlier run for a stage. Raises `UserError` when it is not what would come out."""
        record, wanted = read_result(folder, flag), self.resolved(name)
        with quietly():
            check_same_run(folder, wanted, record, flag, f"or leave out {flag} and it is trained anew")
        read_predictions(folder / PREDICTIONS[wanted["select"]])
        _logger.info(f"--protocol w2s: {name} is taken from {folder}")
        self.folders[name], self.done[name] = folder, record

    def run(self, name: str, **more: object) -> dict:
        """Run one stage, unless there is its record; return that.

        Args:
            name: of the stage.
            **more: flags that are known by now.

        Raises:
            UserError: a run that is there was made with other flags.
        """
        if name in self.done:
            return self.done[name]
        self.flags[name].update(more)
        self.folders[name] = folder = self.folder / name
        there = self.go_on and (folder / "result.json").is_file()
        record = read_result(folder, "--resume auto") if there else None
        if record and not record.get("failed_test_sets"):
            with quietly():
                check_same_run(folder, self.resolved(name), record, "--resume auto",
                               "delete that folder, or give another --experiment")
            _logger.info(f"{self.flag}: {name} is complete: {folder}")
        else:
            if self.done:  # the data may have changed since the runs before
                with quietly():
                    sources = sources_now(self.resolved(name))
                check_same_data({**self.done, name: {"data": {"sources": sources}}}, self.flag)
            _logger.info(f"{self.flag}: {name}, --train-slice {self.flags[name]['train_slice'] or ':'}")
            record = self.train(self.flags[name])
        check_same_data({**self.done, name: record}, self.flag)
        self.done[name] = record
        return record

    def note(self, name: str, flag: str, checkpoint: str) -> None:
        """Keep the record of the run that a checkpoint is of, where there is one."""
        folder = run_of(checkpoint)
        if (folder / "result.json").is_file():
            self.folders[name], self.done[name] = folder, read_result(folder, flag, evaluated=False)


def run_of(checkpoint: str) -> Path:
    """Return the run folder that a checkpoint is of: the folder itself, or that of a file or an export in it."""
    path = Path(checkpoint.removeprefix("local-dir:"))
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "export" else folder


def check_data(flags: Mapping[str, object], stages: Stages, second: str | None) -> None:
    """Refuse now what is wrong with the student's data, and a teacher whose own flags would let it see them."""
    check_fraction(flags)
    with quietly():
        build_data(argparse.Namespace(**stages.resolved("student")))
    theirs = {**flags, **stages.flags["weak"]}
    if any(theirs[name] != flags[name] for name in train_parser().names(Role.DATA)):
        refuse_overlap(flags, second, theirs, f"--weak-config {' '.join(flags['weak_config'])}")


def check_fraction(flags: Mapping[str, object]) -> None:
    """Raise a `UserError` where a count for the teacher leaves no sample for the student."""
    whole, amount = open_train_split(argparse.Namespace(**flags)), flags["weak_fraction"]
    if isinstance(amount, int) and not isinstance(whole, IterableDataset):
        count = len(take_slice(whole, flags["train_slice"], flags["slice_seed"]))
        if amount >= count:
            raise UserError(f"--weak-fraction {amount}: --train-slice {flags['train_slice'] or ':'} has {count} "
                            "samples; expected fewer for the teacher, or a share such as 0.5")


def take_trained_teacher(flags: Mapping[str, object], second: str | None, stages: Stages) -> None:
    """Check a teacher that is trained already, and keep the record of its run where there is one.

    It is loaded once, so that a wrong name or file ends the run before it has begun.
    """
    load_plugins(flags["plugins"])
    settings = TeacherSettings(use_ema=flags["use_ema_teacher"], img_size=flags["teacher_img_size"],
                               model_kwargs=flags["teacher_kwargs"], prompts=read_prompts(flags["prompts"]))
    for name, file in pair_checkpoints(split_names(flags["teacher"]), split_names(flags["teacher_checkpoint"])):
        check_teacher_name("--teacher", name)
        if kind_of(name):
            names = names_of_data(open_train_split(argparse.Namespace(**flags)))
            open_kind(name, Request(names, names and len(names), prompts=settings.prompts))
        else:
            load_frozen_model(name, file, flags["in_chans"] or 3, settings)
    refuse_seen(flags, second)
    if len(known := known_teachers(flags)) == 1:
        stages.note("weak", *known[0])


def known_teachers(flags: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return flag and value of each checkpoint or folder that teachers which are trained already come from."""
    files = [("--teacher-checkpoint", file) for file in split_names(flags["teacher_checkpoint"])]
    return files or [("--teacher", name) for name in split_names(flags["teacher"]) if name.startswith("local-dir:")]


def refuse_seen(flags: Mapping[str, object], second: str | None) -> None:
    """Refuse teachers that were trained on samples of the student's part ``second`` or of the test set, as far as
    their run folders tell.
    """
    for flag, teacher in known_teachers(flags):
        refuse_overlap(flags, second, flags_of_run(flag, teacher, second), f"{flag} {teacher}")


def flags_of_run(flag: str, checkpoint: str, second: str | None) -> dict[str, object] | None:
    """Return the flags of the data that a checkpoint was trained on; None, with a warning, where they are not known."""
    folder = run_of(checkpoint)
    if (folder / "args.yaml").is_file():
        flags = read_run_args(folder, flag)
        theirs = {name: flags[name] for name in train_parser().names(Role.DATA) | {"train_slice"} if name in flags}
        try:
            refuse_addresses(theirs, {name: name for name in theirs}, str(folder))
            return theirs
        except UserError as error:
            return _warn_of_unknown_samples(f"{flag} {checkpoint}", one_line(error), second)
    _warn_of_unknown_samples(f"{flag} {checkpoint}", "nothing tells what it was trained on", second)
    return None


def _warn_of_unknown_samples(flag: str, why: str, second: str | None) -> None:
    _logger.warning(f"{flag}: {why}; see to it yourself that it has seen none of --train-slice {second or ':'}, and no "
                    "test sample")


def refuse_overlap(
        flags: Mapping[str, object], second: str | None, theirs: Mapping[str, object] | None, flag: str) -> None:
    """Refuse a teacher that was trained on samples of the student's part or of the test set.

    Args:
        flags: of the student.
        second: its slice of the training split.
        theirs: flags that the teacher was trained with; None where they are not known.
        flag: the flag that named it, for messages.

    Raises:
        UserError: with the number of samples.
    """
    if theirs is None or theirs.get("dataset") != flags["dataset"]:
        return
    student, teacher = argparse.Namespace(**flags), argparse.Namespace(**{**flags, **theirs})
    try:
        seen = sample_names(take_slice(open_train_split(teacher), teacher.train_slice, teacher.slice_seed))
    except UserError as error:
        return _warn_of_unknown_samples(flag, f"its samples cannot be compared ({one_line(error)})", second)
    parts = {
        "the student's {}": take_slice(open_train_split(student), second, student.slice_seed),
        "the {} test samples": take_slice(
            open_val_split(student), student.val_slice, student.slice_seed, "--val-slice"),
    }
    for whose, part in parts.items():
        if shared := (seen or set()) & (sample_names(part) or set()):
            raise UserError(f"{flag}: {len(shared)} of the {len(seen)} samples that it was trained on are among "
                            f"{whose.format(len(part))}; give disjoint parts, or leave the flag out and the teacher is "
                            "trained on the first part")
