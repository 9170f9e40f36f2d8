"""What the runs of a weak-to-strong experiment have in common, and where they differ: the same for ``--protocol w2s``
and for the runs of a study. Flags are those that are set; what is not among them has its default.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..cli.declare import Parser, Role
from ..cli.forms import parse_slice
from ..cli.parser import read_config
from ..errors import UserError

Flags = Mapping[str, object]

# flags of the student that are left out of the other runs
NOT_OF = {"weak": Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.TESTS,  # the student's run measures it there
          "ceiling": Role.TEACHER | Role.STUDENT | Role.NOISE,
          "direct": Role.TEACHER | Role.STUDENT | Role.SELECTION}
# of one teacher alone: another one has its defaults
OF_ONE_TEACHER = ("teacher_checkpoint", "teacher_kwargs", "teacher_img_size", "teacher_class_map", "use_ema_teacher")


def without(flags: Flags, names: Iterable[str]) -> dict[str, object]:
    """Return flags but for some."""
    left_out = {*names}
    return {name: value for name, value in flags.items() if name not in left_out}


def weak_labels_only(given: Iterable[str]) -> dict[str, float]:
    """Return the flag that leaves ground truth unused, unless its weight is among the flags set by hand."""
    return {} if {"task_loss_weight", "gt_loss_weight"} & set(given) else {"task_loss_weight": 0.0}


def exported(folder: object) -> str:
    """Return the name of the model that a run exports."""
    return f"local-dir:{folder}/export"


def check_comparable(flags: Flags, who: str = "") -> None:
    """Raise a `UserError` for flags that leave nothing to compare runs by; ``who`` begins it."""
    rules = [
        (not flags["val_split"], "runs are compared on a test set: leave out --val-split ''"),
        (flags["no_teacher_eval"], "runs are compared with the teacher's predictions: leave out --no-teacher-eval"),
        (flags["episodic"], "runs are compared as classifiers, and --episodic trains none"),
        (flags["select"] == "best" and flags["select_split"] is None,
         "--select best would choose the checkpoint by test labels: give --select-split, a part of the weakly labelled "
         "set, or --select last"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(f"{who}{message}")


# ---------------------------------------------------------------- ceiling


def ceiling_flags(student: Flags, parser: Parser) -> dict[str, object]:
    """Return the flags of the ceiling: those of the student but for a teacher, and over them ``ceiling_config``.

    Raises:
        UserError: a file that cannot be read, or that makes the ceiling one of another student.
    """
    flags = without(student, parser.names(NOT_OF["ceiling"]))
    # a probe on features of views shares which views are stored
    targets = str(student.get("teacher_targets"))
    if student.get("linear_probe") and targets.startswith("cached-views"):
        flags["teacher_targets"] = targets
    shared = parser.names(Role.DATA | Role.SLICE | Role.NOISE | Role.TEACHER | Role.TESTS) | {"model", "val_split"}
    for file in student.get("ceiling_config") or ():
        where = f"--ceiling-config {file}"
        values = read_config(file, parser, flag="--ceiling-config")
        check_one_run(values, parser, where)
        odd = sorted(values.keys() & shared)
        if odd:
            raise UserError(f"{where}: {odd[0]} is that of the student, whose ceiling it is: leave it out of the file")
        flags.update(values)
    return flags


def check_one_run(values: Iterable[str], parser: Parser, where: str) -> None:
    """Raise a `UserError` for what a file of one run of the protocol cannot say; ``where`` begins it."""
    for name in sorted({*values} & {*parser.names(Role.PROTOCOL), "output", "experiment"}):
        reason = "is set by the protocol for all of its runs"
        if name in ("protocol", "stages", "folds"):
            reason = "asks for several runs, and this is one"
        raise UserError(f"{where}: {name} {reason}: leave it out of the file")


# ---------------------------------------------------------------- controls


def direct(student: Flags, teacher: Flags, first: str | None, made: str, parser: Parser) -> dict[str, object]:
    """The student's network on the labels that the teacher had, for as many updates as the student."""
    if not first:
        raise UserError("--weak-fraction 0 leaves no labelled part to train on: give --weak-fraction N, the part that "
                        "the teacher has seen")
    noise = {name: teacher[name] for name in parser.names(Role.NOISE) & teacher.keys()}
    own = dict(train_slice=first, epoch_slice=student["train_slice"])
    return {**without(student, parser.names(NOT_OF["direct"])), **noise, **own}


def same_size(student: Flags, teacher: Flags, first: str | None, made: str, parser: Parser) -> dict[str, object]:
    """The teacher's own network in place of the student's, for the same task: labels, loss, choices, length."""
    kind, colon, _ = str(teacher["model"]).partition(":")
    if colon and kind not in ("hf-hub", "hf_hub", "local-dir"):
        raise UserError(f"{teacher['model']} is no network of timm's that could be trained")
    rates = parser.names(Role.SCHEDULE) & parser.names(Role.TUNING | Role.ALIAS)
    task = parser.names(
        Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.NOISE | Role.SCHEDULE | Role.TESTS) - rates
    of_task = {name: value for name, value in student.items() if name in {*task, "train_slice"}}
    return {**without(teacher, task), **of_task}


def strong_to_strong(student: Flags, teacher: Flags, first: str | None, made: str, parser: Parser) -> dict[str, object]:
    """The same student with direct as its teacher."""
    return {**without(student, OF_ONE_TEACHER), "teacher": made}


class Control(NamedTuple):
    """What a student is compared with.

    Args:
        flags: made of those of the student and of its teacher, the teacher's part of the training slice, and the name
            of the model that direct exports.
        needs: the kind of run that labels for it.
        labels: on which of the student's it depends.
    """

    flags: Callable[[Flags, Flags, str | None, str, Parser], dict[str, object]]
    needs: str | None
    labels: tuple[str, ...]


CONTROLS = {
    "direct": Control(direct, None, ("strong",)),
    "same-size": Control(same_size, "weak", ("weak", "loss", "protocol")),
    "strong-to-strong": Control(strong_to_strong, "direct", ("strong", "loss", "protocol")),
}


def chosen_controls(names: Iterable[str]) -> list[str]:
    """Return the controls to train: those that are asked for, after those that they need."""
    asked = {*names}
    return [name for name in CONTROLS if name in asked or any(CONTROLS[other].needs == name for other in asked)]


def control_flags(
        name: str,
        student: Flags,
        teacher: Flags,
        first: str | None,
        direct_run: object,
        parser: Parser,
) -> dict[str, object]:
    """Return the flags of a control.

    Args:
        name: of the control.
        student: flags of the student.
        teacher: flags of its teacher's training.
        first: the part of the training slice that the teacher has seen.
        direct_run: folder of the control direct.
        parser: knows the flags.

    Raises:
        UserError: no labelled part, or a teacher that is no network of timm's.
    """
    published = parser.names(Role.STUDENT) & parser.names(Role.REPORT)
    return CONTROLS[name].flags(without(student, published), teacher, first, exported(direct_run), parser)


# ---------------------------------------------------------------- parts of the training slice


def split_slice(text: str | None, amount: float | int) -> tuple[str, str]:
    """Return the slices of teacher and student: the first ``amount`` of the slice ``text``, and the rest of it.

    Args:
        text: ``A:B`` as of ``--train-slice``, or None for everything.
        amount: a share of the slice, or a count of samples.

    Raises:
        UserError: a count in a slice of shares, or a share of a slice of counts that has no end.
    """
    where = f"--weak-fraction {amount}"
    start, stop = parse_slice(text) if text else (None, None)
    if isinstance(amount, int):
        if isinstance(start, float) or isinstance(stop, float):
            raise UserError(f"{where} is a count, --train-slice {text} has shares; use one kind")
        cut = (start or 0) + amount
        if amount < 1 or (stop is not None and cut >= stop):
            raise UserError(f"{where}: nothing is left for teacher or student of --train-slice {text or ':'}; 0 is for "
                            "a teacher that is trained already")
        return f"{start or 0}:{cut}", f"{cut}:{'' if stop is None else stop}"
    if not 0 < amount < 1:
        raise UserError(f"{where}: expected a share between 0 and 1, or a count, or 0 for a teacher that is trained "
                        "already")
    if isinstance(start, int) or isinstance(stop, int):
        if stop is None:
            raise UserError(f"{where} of --train-slice {text}: the slice has no end; give the teacher a count, such as "
                            "--weak-fraction 500")
        cut = (start or 0) + math.floor(amount * (stop - (start or 0)) + 0.5)
        return f"{start or 0}:{cut}", f"{cut}:{stop}"
    low, high = start or 0.0, 1.0 if stop is None else stop
    cut = low + amount * (high - low)
    return f"{low!r}:{cut!r}", f"{cut!r}:{high!r}"
