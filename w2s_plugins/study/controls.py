"""What the runs of a weak-to-strong experiment have in common, and where they differ: the same for ``--protocol w2s``
and for the runs of a study. Flags are those that are set; what is not among them has its default.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from ..cli.parser import check_flags, fill, keep_typed, overlay, read_config, train_parser
from ..errors import UserError, logger, one_line
from ..files import read_plain
from ..settings.field import Role, option, shown_value
from ..settings.forms import LABELS_PREFIX, parse_slice
from ..settings.programs import train_program
from ..settings.values import check_values, split_names

# by name; each value is of the type of its flag, which the parser has checked
Flags = Mapping[str, Any]

# flags of the student that are left out of the other runs
NOT_OF = {
    "weak": Role.TEACHER | Role.STUDENT | Role.SELECTION,
    "ceiling": Role.TEACHER | Role.STUDENT | Role.NOISE,
    "direct": Role.TEACHER | Role.STUDENT | Role.SELECTION,
}
# of one teacher alone: another one has its defaults
OF_ONE_TEACHER = ("teacher_checkpoint", "teacher_kwargs", "teacher_img_size")


def flags_about(role: Role) -> frozenset[str]:
    """Return the names of the flags that are about a role."""
    return train_program().flags.names(role)


def without(flags: Flags, names: Iterable[str]) -> dict[str, Any]:
    """Return flags but for some."""
    left_out = {*names}
    return {name: value for name, value in flags.items() if name not in left_out}


def weak_labels_only(explicit_flags: Iterable[str]) -> dict[str, Any]:
    """Return the flag that leaves ground truth unused, unless its weight is among those that were set by hand."""
    if {"task_loss_weight", "gt_loss_weight"} & set(explicit_flags):
        return {}
    return {"task_loss_weight": 0.0}


LOCAL_DIR = "local-dir:"  # begins the name of a model in a folder
ON_DISK = (LOCAL_DIR, "checkpoint:")  # begin the name of a model that a run may have written


def exported(folder: object) -> str:
    """Return the name of the model that a run exports."""
    return f"{LOCAL_DIR}{folder}/export"


# where a flag finds what an earlier run has made, in its folder
PLACE_IN_RUN = {
    "teacher": exported("{}"),
    "teacher_checkpoint": "{}",
    "clean_select_model": exported("{}"),
    "initial_checkpoint": "{}/export/model.safetensors",
}


def run_folder(path: str) -> Path:
    """Return the folder of the run that a path names: itself, or a file or the export in it."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return folder.parent if folder.name == "export" else folder


def models_of(flags: Flags, names: Iterable[str]) -> list[tuple[str, str, Path]]:
    """Return flag, value and run folder of each model on this disk that some flags name."""
    models = []
    for name in names:
        for value in split_names(flags.get(name)):
            # timm's names are no paths
            kind = next((kind for kind in ON_DISK if value.startswith(kind)), "")
            if kind or name not in ("teacher", "model"):
                models.append((option(name), value, run_folder(value.removeprefix(kind))))
    return models


def taken_teachers(student: Flags) -> list[tuple[str, str, Path]]:
    """Return flag, value and run folder of each teacher that is trained already."""
    return models_of(student, ["teacher_checkpoint"]) or models_of(student, ["teacher"])


def labelled_part(student: Flags) -> dict[str, Any]:
    """Return the flags that say which true labels the student's teacher, trained already, has learned from; none if no
    run folder tells, or if they are of another split. Raises `UserError` if its args.yaml is damaged.
    """
    teachers = taken_teachers(student)
    if len(teachers) != 1 or not (teachers[0][2] / "args.yaml").is_file():
        return {}
    flag, name, folder = teachers[0]
    where = f"{flag} {name}: its args.yaml"
    try:
        content = read_plain(folder / "args.yaml")
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error
    # a control on other labels than the teacher's would compare two amounts of truth.
    # it may come from others: of its flags those that are known, and no path of a file of labels
    part = {"train_slice", "slice_seed"} | flags_about(Role.NOISE)
    known = content if isinstance(content, dict) else {}
    split = ("dataset", "train_split", "train_labels")
    kept = {key: known[key] for key in {*part, *split} & known.keys()}
    theirs = check_flags(kept, train_parser(), where)
    check_values(theirs)
    ours, _ = fill(train_parser(), student)
    same_split = all((theirs.get(key) or "") == (getattr(ours, key) or "") for key in split)
    if not theirs.get("train_slice") or not same_split:
        return {}
    if str(theirs.get("label_noise")).startswith(LABELS_PREFIX):
        part -= flags_about(Role.NOISE)
    return {key: theirs[key] for key in sorted(part & theirs.keys())}


def place_flags(flags: Flags) -> Set[str]:
    """Return the names of those flags that say what a run is made of: files, folders and models."""
    return flags.keys() & (PLACE_IN_RUN.keys() | flags_about(Role.PLACE))


def overlaid(flags: Flags, file: Flags, typed: Set[str], where: str) -> dict[str, Any]:
    """Return the flags of a run that has some of its own by a file. These win over what the runs have in common, and
    typed ones over both, but for what a run is made of (docs/measure.md). Each value that gives way is told.

    Args:
        flags: that the runs have in common.
        file: those of the file.
        typed: names of flags of the command line.
        where: begins what is told.
    """
    # a path, or a model, that was typed is that of the command; the file says what this run is made of
    last = {name: flags[name] for name in flags.keys() & typed - place_flags(file)}
    values = dict(flags)
    for layer in (dict(file), last):
        overlay(values, layer)
    keep_typed(values, last)
    for name in sorted(file.keys() & last.keys()):
        if file[name] != last[name]:
            logger.info(
                f"{where}: {name} {shown_value(file[name])} gives way to {option(name)} "
                f"{shown_value(last[name])} of the command line"
            )
    return values


def check_comparable(flags: Flags, where: str = "", with_truth: bool = True) -> None:
    """Raise a `UserError` for flags that leave nothing to compare runs by.

    Args:
        flags: of a run.
        where: begins the message.
        with_truth: some of the runs are trained on true labels.
    """
    # each would be found in the middle of the runs, or not at all
    rules = [
        (
            flags["unlabeled"] and with_truth,
            "runs are compared by true labels, which the images of --unlabeled do not have",
        ),
        (
            not flags["val_split"],
            "runs are compared on a test set: give --data-dir or --dataset, no --val-split ''",
        ),
        (
            flags["no_teacher_eval"],
            "runs are compared with the teacher's predictions: leave out --no-teacher-eval",
        ),
        (flags["episodic"], "runs are compared as classifiers, and --episodic trains none"),
        (
            flags["select"] == "best" and flags["select_split"] is None,
            "--select best would choose the checkpoint by test labels: give --select-split, a part of the weakly labelled "
            "set, or --select last",
        ),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(f"{where}{message}")


def with_files(flags: Flags, files: Iterable[str], flag: str, same: Flags) -> dict[str, Any]:
    """Return the flags of a run of the protocol, of which its files say some: they are there to differ, so they win.

    Args:
        flags: that the runs have in common.
        files: YAML files.
        flag: that names them.
        same: flags that all of the runs have alike, which a file may at most repeat.

    Raises:
        UserError: a file that cannot be read, or that would change what all have alike.
    """
    # a file that changed the folder or the data of one run would leave nothing to compare
    for_all = {**dict.fromkeys([*flags_about(Role.PROTOCOL), "output", "experiment"]), **same}
    of_files: dict[str, Any] = {}
    for file in files:
        values = read_config(file, train_parser(), flag=flag)
        for name in sorted(values.keys() & for_all.keys()):
            if values[name] != for_all[name]:
                raise UserError(
                    f"{flag} {file}: {name} is set by the protocol for all of its runs: leave it out of "
                    "the file"
                )
        of_files.update(values)
    return {**flags, **of_files}


def ceiling_flags(student: Flags) -> dict[str, Any]:
    """Return the flags of the ceiling: those of the student but for a teacher, and over them ``ceiling_config``.

    Raises:
        UserError: a file that cannot be read, or that makes the ceiling one of another student.
    """
    flags = without(student, flags_about(NOT_OF["ceiling"]) | {"target_cache"})
    # a probe on features of views shares which views are stored
    targets = str(student.get("teacher_targets"))
    if student.get("linear_probe") and targets.startswith("cached-views"):
        flags["teacher_targets"] = targets
    shared = flags_about(Role.DATA | Role.SLICE | Role.NOISE | Role.TEACHER) | {
        "model",
        "val_split",
    }
    same = {name: student.get(name) for name in shared}
    return with_files(flags, student.get("ceiling_config") or (), "--ceiling-config", same)


# ---------------------------------------------------------------- controls

# what a student is compared with besides its ceiling, and the kind of run that labels for it
CONTROLS = {"direct": "", "same-size": "weak", "strong-to-strong": "direct"}
# the kinds of runs, in the order in which they are made, each with the labels that it has in a study
LABELS_OF_KIND = {
    "weak": ("weak",),
    "ceiling": ("strong",),
    "student": ("weak", "strong", "loss", "protocol"),
    "direct": ("strong",),
    "same-size": ("weak", "loss", "protocol"),
    "strong-to-strong": ("strong", "loss", "protocol"),
}


def direct_flags(student: Flags, teacher: Flags) -> dict[str, Any]:
    """Return the flags of the student's network on the labels that the teacher had, for as many updates as the student.

    Args:
        student: flags of the student.
        teacher: flags of its teacher's training.

    Raises:
        UserError: no labelled part.
    """
    if not teacher["train_slice"]:
        raise UserError(
            "--controls direct: --weak-fraction 0 leaves no labelled part to train on: give "
            "--weak-fraction N, the part that the teacher has seen"
        )
    noise = {flag: teacher[flag] for flag in flags_about(Role.NOISE) & teacher.keys()}
    slices = dict(train_slice=teacher["train_slice"], epoch_slice=student["train_slice"])
    return {**without(student, flags_about(NOT_OF["direct"])), **noise, **slices}


def same_size_flags(student: Flags, teacher: Flags) -> dict[str, Any]:
    """Return the flags of the teacher's own network in place of the student's, for the same task: labels, loss, choices
    and length are those of the student; arguments as of `direct_flags`.
    """
    task = flags_about(Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.NOISE | Role.SCHEDULE)
    # but each network has learning rates of its own
    task -= flags_about(Role.SCHEDULE) & flags_about(Role.TUNING | Role.ALIAS)
    of_task = {flag: value for flag, value in student.items() if flag in {*task, "train_slice"}}
    return {**without(teacher, task), **of_task}


def strong_to_strong_flags(student: Flags, direct: str | Path) -> dict[str, Any]:
    """Return the flags of the same student with the control direct, of which this is the folder, as its teacher."""
    return {**without(student, OF_ONE_TEACHER), "teacher": exported(direct)}


def runs_around(
    student: Flags,
    teacher: Flags,
    trains_teacher: bool,
    controls: Iterable[str],
    folders: Mapping[str, str | Path],
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield kind, flags and needed kinds of a student and of the runs that it is compared with, in the order in which
    they can be made.

    Args:
        student: its flags, but for the checkpoint of a teacher that is trained.
        teacher: flags of its teacher's training.
        trains_teacher: it is not trained already.
        controls: that are asked for; those that they need come as well.
        folders: of the runs by kind, as far as they have been yielded.

    Raises:
        UserError: flags that make no such run.
    """
    # A new head of who has a teacher begins with zeros, and of who has none as in timm: these are to begin alike.
    # These flags are as they were written: the form of their values is checked where each run is planned.
    starts = ("pretrained", "pretrained_path", "finetune", "initial_checkpoint")
    if (
        any(map(student.get, starts))
        and student.get("tune", "all") == "all"
        and not student.get("linear_probe")
    ):
        student = {"head_init_scale": 1.0, **student}
    taught_by = []
    if trains_teacher:
        yield "weak", dict(teacher), []
        taught_by, student = ["weak"], {**student, "teacher_checkpoint": str(folders["weak"])}
    # nobody can learn the truth about images without labels
    beside = [] if student.get("unlabeled") else ["ceiling"]
    for kind in beside:
        yield kind, ceiling_flags(student), []
    yield "student", dict(student), [*taught_by, *beside]
    # what is published is the student, and none of the controls
    unpublished = without(student, flags_about(Role.STUDENT) & flags_about(Role.REPORT))
    asked = {*controls, *(CONTROLS[name] for name in controls)}
    for name in CONTROLS:
        if name in asked:
            if name == "direct":
                # the labels of a teacher that is trained already are those of its run
                part = {} if trains_teacher else labelled_part(student)
                yield name, direct_flags(unpublished, {**teacher, **part}) | part, []
            elif name == "same-size":
                yield name, same_size_flags(unpublished, teacher), taught_by
            else:
                yield name, strong_to_strong_flags(unpublished, folders["direct"]), ["direct"]


# ---------------------------------------------------------------- parts of the training slice


def split_slice(text: str | None, amount: float | int) -> tuple[str, str]:
    """Return the slices of teacher and student: the first ``amount`` of the slice ``text``, and the rest of it.

    Args:
        text: ``A:B`` as of ``--train-slice``, or None for everything.
        amount: a share of the slice, or a count of samples.

    Raises:
        UserError: a count in a slice of shares, a share of a slice of counts that has no end, or an empty part.
    """
    start, stop = parse_slice(text or ":")
    where = f"--weak-fraction {amount} of --train-slice {text or ':'}"
    kinds = {type(start), type(stop)}
    if isinstance(amount, int):
        if float in kinds:
            raise UserError(f"{where}: a count of a slice of shares; use one kind")
        start = start or 0
        cut = start + amount
    elif int in kinds:
        if stop is None:
            raise UserError(
                f"{where}: the slice has no end; give the teacher a count, such as --weak-fraction 500"
            )
        start = start or 0
        cut = start + math.floor(amount * (stop - start) + 0.5)
    else:
        start, stop = start or 0.0, 1.0 if stop is None else stop
        cut = start + amount * (stop - start)
    # repr keeps every digit of a share, so that the second part begins exactly where the first one ends
    parts = f"{start!r}:{cut!r}", f"{cut!r}:{'' if stop is None else repr(stop)}"
    for part in parts:
        parse_slice(part, f"{where}:")  # neither may be empty
    return parts
