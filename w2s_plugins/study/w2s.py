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
from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import IterableDataset

from ..build.data import build_data, open_train_split, open_val_split
from ..build.flags import check_teacher_name
from ..cli.declare import Role
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..data import take_slice
from ..data.overlap import sample_names
from ..errors import UserError, one_line, quietly
from ..hub.export import write_card
from ..hub.push import push_export
from ..models.class_names import names_of_data
from ..models.foreign import refuse_addresses
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..teachers.clip import read_prompts
from ..teachers.kinds import open_teacher
from ..teachers.openers import Request
from ..teachers.teacher import pair_checkpoints
from .controls import chosen_controls
from .outcome import closing_table, make_record
from .runs import Runs, run_of

_logger = logging.getLogger(__name__)


def prepare(runs: Runs) -> None:
    """Check the data and a teacher that is trained already, and take a ceiling of another run, before the first run.

    Raises:
        UserError: overlapping parts of the data, a teacher or a ceiling that does not fit.
    """
    start = runs.plan.start
    flags = start.flags
    if flags["ceiling_checkpoint"]:
        runs.take("ceiling", Path(flags["ceiling_checkpoint"]), "--ceiling-checkpoint")
    if start.trains_teacher:
        check_data(flags, runs, start.second)
    if "direct" in chosen_controls(flags["controls"]):
        whole = open_train_split(argparse.Namespace(**flags))
        take_slice(whole, start.first, flags["slice_seed"], "--controls direct: slice")
    if not start.trains_teacher:
        take_trained_teacher(flags, start.second, runs)


def finish(runs: Runs) -> tuple[dict, str]:
    """Return the figures of all models as a record, and the table that the protocol ends with."""
    record = make_record(runs.plan.start.flags, runs.done, runs.folders)
    return record, f"{closing_table(record)}\n* {runs.plan.folder / 'result.json'}"


def show_controls(runs: Runs, controls: dict) -> None:
    """Write the student's card again, with the figures of what it is compared with, and publish it where that is asked
    for.
    """
    flags, export = runs.plan.start.flags, runs.folders["student"] / "export"
    write_card(export, {**runs.done["student"], "controls": controls})
    if flags["push_to_hub"]:
        push_export(export, flags["push_to_hub"], private=flags["hub_private"] or None, revision=flags["hub_revision"])


def check_data(flags: Mapping[str, object], runs: Runs, second: str | None) -> None:
    """Refuse now what is wrong with the student's data, and a teacher whose own flags would let it see them."""
    check_fraction(flags)
    with quietly():
        build_data(argparse.Namespace(**runs.resolved("student")))
    theirs = {**flags, **runs.flags["weak"]}
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


def take_trained_teacher(flags: Mapping[str, object], second: str | None, runs: Runs) -> None:
    """Check a teacher that is trained already, and keep the record of its run where there is one.

    It is loaded once, so that a wrong name or file ends the run before it has begun.
    """
    load_plugins(flags["plugins"])
    names = names_of_data(open_train_split(argparse.Namespace(**flags)))
    for name, file in pair_checkpoints(split_names(flags["teacher"]), split_names(flags["teacher_checkpoint"])):
        check_teacher_name("--teacher", name)
        open_teacher(name, Request(
            names,
            names and len(names),
            flags["in_chans"] or 3,
            flags["teacher_img_size"],
            prompts=read_prompts(flags["prompts"]),
            checkpoint=file,
            use_ema=flags["use_ema_teacher"],
            model_kwargs=flags["teacher_kwargs"],
        ))
    refuse_seen(flags, second)
    if len(known := known_teachers(flags)) == 1:
        runs.note("weak", *known[0])


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
