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
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch.distributed as dist
from timm.data.dataset_factory import _EVAL_SYNONYM, _TRAIN_SYNONYM
from torch.utils.data import IterableDataset

from ..build.data import build_data, open_train_split, open_val_split
from ..build.flags import check_teacher_name
from ..build.resolve import label_paths, resolve_data_dir, split_names
from ..cli.declare import Parser, Role
from ..cli.parser import fill, read_config, train_parser
from ..cli.values import check_values
from ..data import take_slice
from ..data.overlap import sample_names
from ..data.slices import parse_slice
from ..errors import UserError, one_line
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
from .earlier import check_same_run, other_flags, read_result, resolved
from .figures import closing_table, make_record, read_predictions

_logger = logging.getLogger(__name__)

# flags of the student that are left out of the other stages
NOT_OF = {"weak": Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.TESTS,  # the student's run measures it there
          "ceiling": Role.TEACHER | Role.STUDENT | Role.NOISE, "direct": Role.TEACHER | Role.STUDENT | Role.SELECTION}
WITH_DIRECT = {"direct", "strong-to-strong"}  # controls that need the runs of direct
# of one teacher alone: another one has its defaults
OF_ONE_TEACHER = ("teacher_checkpoint", "teacher_kwargs", "teacher_img_size", "teacher_class_map", "use_ema_teacher",
                  "teacher_stages")


def run_w2s(given: dict[str, object], parser: Parser, train: Callable[[dict[str, object]], dict]) -> dict | None:
    """Train teacher, ceiling and student; write ``result.json`` with the performance gap recovered, and return it.

    Args:
        given: flags of the student that were set by hand.
        parser: knows the defaults.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go with the protocol, overlapping splits, a ceiling not above the teacher.
    """
    filled, _ = fill(parser, given)
    if filled.unlabeled:
        raise UserError("--protocol w2s trains teacher and ceiling on labels, which the images of --unlabeled do not "
                        "have: train the student alone, with --teacher NAME")
    resolve_data_dir(filled)
    flags = vars(filled)
    check_flags(flags)
    folder = folder_of_runs(flags, "--protocol w2s")
    whole, amount = flags["train_slice"], flags["weak_fraction"]
    first, second = split_slice(whole, amount) if amount else ("", whole)
    stages = Stages(given, parser, folder, train, go_on=bool(flags["resume"]))
    trains_teacher = first and not flags["teacher_checkpoint"] and ":" not in flags["teacher"]
    weak_source = str(folder / "weak") if trains_teacher else flags["teacher_checkpoint"]
    stages.plan("student", dict(teacher_checkpoint=weak_source, **weak_labels_only(given)), second)
    stages.plan("ceiling", {**defaults(parser, NOT_OF["ceiling"]), **stored_views(flags)}, second,
                instead=flags["ceiling_checkpoint"])
    if trains_teacher:
        plan_teacher(flags, parser, stages, first)
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
    print(f"* {folder / 'result.json'}")
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
        push_export(export, flags["push_to_hub"], private=flags["hub_private"] or None, revision=flags["hub_revision"],
                    commit_message=flags["hub_commit_message"])


def stored_views(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flag of the teacher that the ceiling of a probe shares: of which views features are stored."""
    targets = str(flags.get("teacher_targets"))
    return {"teacher_targets": targets} if flags.get("linear_probe") and targets.startswith("cached-views") else {}


def folder_of_runs(flags: Mapping[str, object], flag: str) -> Path:
    """Return the folder of the runs of one command, which ``flag`` asked for.

    Raises:
        UserError: it has no name, or the command is to go on from a single checkpoint.
    """
    if not flags.get("experiment"):
        raise UserError(f"{flag} makes several runs in one folder: name it with --experiment")
    if flags.get("resume") not in (None, "", "auto"):
        raise UserError(f"{flag} goes on with --resume auto")
    return Path(str(flags.get("output") or "./output/train")) / str(flags["experiment"])


def check_flags(flags: Mapping[str, object]) -> None:
    """Refuse what the protocol cannot do, before anything is trained."""
    amount, train, val = (flags[name] for name in ("weak_fraction", "train_split", "val_split"))
    rules = [
        (not flags["teacher"], "--protocol w2s needs a --teacher NAME: the weak model"),
        (bool(label_paths(flags["teacher"])), "--protocol w2s measures its teacher on the test set, of which "
         "labels in a file say nothing: train with --teacher labels:PATH alone, and the ceiling with --teacher ''"),
        (not val, "--protocol w2s compares on a test set: leave out --val-split ''"),
        (same_split(train, val) and not flags["val_slice"],
         f"--protocol w2s would test on what it trains on: --val-split {val} is --train-split {train}; give another "
         "split, or cut it with --train-slice A:B --val-slice B:C"),
        (flags["no_teacher_eval"], "--protocol w2s needs the teacher's predictions: leave out --no-teacher-eval"),
        (flags["episodic"],
         "--protocol w2s compares classifiers, and --episodic trains none: run its stages one by one"),
        (flags["select"] == "best" and flags["select_split"] is None,
         "--protocol w2s --select best would choose the checkpoint by test labels: give --select-split, a part of the "
         "weakly labelled set, or --select last"),
        (isinstance(amount, float) and amount and not 0 < amount < 1,
         f"--weak-fraction {amount:g}: expected a share between 0 and 1, or a count, or 0 for a teacher that is "
         "trained already"),
        (flags["direct_sizes"] and not WITH_DIRECT & set(flags["controls"]), "--direct-sizes trains more of --controls "
         f"direct, which is not among --controls {' '.join(flags['controls'])}: add it"),
        (flags["ceiling_acc"] is not None, "--ceiling-acc is what --protocol w2s measures: leave it out"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)


def same_split(one: str, other: str) -> bool:
    """Whether two names stand for one split, as far as timm's names of folders tell."""
    return one == other or any({one, other} <= set(names) for names in (_TRAIN_SYNONYM, _EVAL_SYNONYM))


def split_slice(text: str | None, amount: float | int, flag: str = "--weak-fraction") -> tuple[str, str]:
    """Return the slices of teacher and student: the first ``amount`` of the slice ``text``, and the rest of it.

    Args:
        text: ``A:B`` as of ``--train-slice``, or None for everything.
        amount: a share of the slice, or a count of samples.
        flag: that gave it.

    Raises:
        UserError: a count in a slice of shares, or a share of a slice of counts that has no end.
    """
    start, stop = parse_slice(text) if text else (None, None)
    if isinstance(amount, int):
        if isinstance(start, float) or isinstance(stop, float):
            raise UserError(f"{flag} {amount} is a count, --train-slice {text} has shares; use one kind")
        cut = (start or 0) + amount
        if amount < 1 or (stop is not None and cut >= stop):
            raise UserError(f"--weak-fraction {amount}: nothing is left for teacher or student of --train-slice "
                            f"{text or ':'}")
        return f"{start or 0}:{cut}", f"{cut}:{'' if stop is None else stop}"
    if isinstance(start, int) or isinstance(stop, int):
        if stop is None:
            raise UserError(f"--weak-fraction {amount} of --train-slice {text}: the slice has no end; give the teacher "
                            "a count, such as --weak-fraction 500")
        cut = (start or 0) + math.floor(amount * (stop - (start or 0)) + 0.5)
        return f"{start or 0}:{cut}", f"{cut}:{stop}"
    low, high = start or 0.0, 1.0 if stop is None else stop
    cut = low + amount * (high - low)
    return f"{low!r}:{cut!r}", f"{cut!r}:{high!r}"


def weak_labels_only(given: Iterable[str]) -> dict[str, float]:
    """Return the flag that leaves ground truth unused, unless its weight is among the flags set by hand."""
    return {} if {"task_loss_weight", "gt_loss_weight"} & set(given) else {"task_loss_weight": 0.0}


def defaults(parser: Parser, role: Role) -> dict[str, object]:
    """Return the default values of the flags about something."""
    return defaults_of(parser, sorted(parser.names(role)))


def defaults_of(parser: Parser, names: Iterable[str]) -> dict[str, object]:
    """Return the default values of some flags."""
    values = parser.defaults()
    return {name: values[name] for name in names}


def plan_teacher(flags: Mapping[str, object], parser: Parser, stages: "Stages", first: str) -> None:
    """Plan the training of the teacher on the slice ``first``."""
    own = weak_flags(flags, parser, first)
    try:
        check_values(own)
        stages.plan("weak", own, first)
    except UserError as error:
        files = flags["weak_config"]
        where = f"--weak-config {' '.join(files)}" if files else "--protocol w2s, the teacher"
        raise UserError(f"{where}: {error}") from error


def weak_flags(flags: Mapping[str, object], parser: Parser, first: str) -> dict[str, object]:
    """Return the flags in which the teacher's training differs from the student's: ``--weak-config`` and its model.

    Args:
        flags: of the student.
        parser: knows the defaults.
        first: the teacher's slice of the training split.

    Raises:
        UserError: a file that cannot be read, or says otherwise than the protocol.
    """
    own = {**defaults(parser, NOT_OF["weak"] | Role.START), "model": flags["teacher"],
           "model_kwargs": flags["teacher_kwargs"]}
    if flags["teacher_img_size"]:
        own["img_size"] = flags["teacher_img_size"]
    for file in flags["weak_config"]:
        values = read_config(file, parser, flag="--weak-config")
        check_weak_values(values, flags, first, parser, f"--weak-config {file}")
        own.update({name: value for name, value in values.items() if name != "train_slice"})
    if "," in own["model"]:
        raise UserError(f"--protocol w2s trains one teacher, --teacher {flags['teacher']} names several: train them "
                        "beforehand and give --teacher-checkpoint")
    return own


def check_weak_values(
        values: dict[str, object], flags: Mapping[str, object], first: str, parser: Parser, where: str) -> None:
    """Raise a `UserError` for a flag of ``--weak-config`` that the protocol would not follow; ``where`` begins it."""
    for name in values.keys() & {*parser.names(Role.PROTOCOL), "output", "experiment"}:
        raise UserError(f"{where}: {name} is set by the protocol for all of its runs: give --"
                        f"{name.replace('_', '-')} on the command line")
    own = values.get("train_slice")
    if own and _bounds(own, f"{where}: train_slice") != _bounds(first):
        raise UserError(f"{where}: train_slice {own}, but --weak-fraction {flags['weak_fraction']} gives the teacher "
                        f"{first}: leave it out of the file, or make the two equal")
    if values.get("model", flags["teacher"]) != flags["teacher"]:
        raise UserError(f"{where}: model {values['model']} is not --teacher {flags['teacher']}: leave it out of the "
                        "file")


def _bounds(text: str, flag: str = "--train-slice") -> tuple[float | int, float | int | None]:
    start, stop = parse_slice(text, flag)
    return start or 0, stop


# ---------------------------------------------------------------- controls


def plan_controls(flags: Mapping[str, object], stages: "Stages", first: str, second: str | None) -> None:
    """Plan the runs of ``--controls``.

    Args:
        flags: of the student.
        stages: the teacher, where it is trained, is planned already.
        first: the teacher's slice of the training split, empty where it has none.
        second: the student's.

    Raises:
        UserError: a teacher without a labelled part, one that is no network of timm's, or sizes that cannot be cut.
    """
    parser, given, chosen = stages.parser, stages.given, flags["controls"]
    if WITH_DIRECT & set(chosen):
        if not first:
            raise UserError(f"--controls {' '.join(chosen)}: --weak-fraction 0 leaves no labelled part to train on: "
                            "give --weak-fraction N, the part that the teacher has seen")
        of_teacher, whole = stages.flags.get("weak", {}), open_train_split(argparse.Namespace(**flags))
        labels = {name: of_teacher[name] for name in parser.names(Role.NOISE) & of_teacher.keys()}
        for name, part in direct_slices(first, flags["direct_sizes"]).items():
            take_slice(whole, part, flags["slice_seed"], f"--direct-sizes: {name}, slice")
            stages.plan(name, {**labels, **defaults(parser, NOT_OF["direct"]), "epoch_slice": second}, part)
    shared = {**defaults_of(parser, parser.names(Role.STUDENT) & parser.names(Role.REPORT)), **weak_labels_only(given)}
    if "same-size" in chosen:
        if kind_of(flags["teacher"]):
            raise UserError(f"--controls same-size: --teacher {flags['teacher']} is no network of timm's that could be "
                            "trained")
        network = {name: value for name, value in weak_flags(flags, parser, first).items()
                   if name not in of_the_task(parser)}
        taught = {"teacher_checkpoint": stages.flags["student"]["teacher_checkpoint"]}
        stages.plan("same-size", {**shared, **network, **taught}, second)
    if "strong-to-strong" in chosen:
        stages.plan("strong-to-strong", {**shared, **defaults_of(parser, OF_ONE_TEACHER),
                                         "teacher": exported(stages.folder / "direct")}, second)


def direct_slices(first: str, sizes: Iterable[float | int]) -> dict[str, str]:
    """Return the slices of the direct runs by their names: the labelled part, shares of it, counts from its start on.

    Args:
        first: the labelled part of the training split, a slice.
        sizes: of ``--direct-sizes``; a count may go on into the student's part.

    Raises:
        UserError: not a share, or a count where the part begins at a share of the split.
    """
    start, slices = first.partition(":")[0], {"direct": first}
    for size in sizes:
        if size <= 0 or (isinstance(size, float) and size > 1):
            raise UserError(f"--direct-sizes {size:g}: expected a share of the labelled part such as 0.5, or a count "
                            "of labels such as 500")
        if size != 1:
            whole = first if isinstance(size, float) else f"{start}:" if float(start) else None
            slices[f"direct-{size}"] = split_slice(whole, size, "--direct-sizes")[0]
    return slices


def of_the_task(parser: Parser) -> set[str]:
    """Return what a student of another network shares with the student: labels, loss, choices, length of training."""
    rates = parser.names(Role.SCHEDULE) & parser.names(Role.TUNING | Role.ALIAS)
    return parser.names(
        Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.NOISE | Role.SCHEDULE | Role.TESTS) - rates


def exported(folder: Path | str) -> str:
    """Return the name of the model that a run exports."""
    return f"local-dir:{folder}/export"


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

    def plan(
            self,
            name: str,
            changes: dict[str, object],
            train_slice: str | None,
            *,
            instead: str | None = None,
    ) -> None:
        """Decide on the flags of a stage, and refuse now what its run would refuse.

        Args:
            name: of the stage.
            changes: flags that differ from the student's.
            train_slice: its part of the training split.
            instead: folder of an earlier run to take, from ``--ceiling-checkpoint``.

        Raises:
            UserError: flags that do not go together, or a run that was made with others or on other samples.
        """
        self.flags[name] = {**self.given, **defaults(self.parser, Role.PROTOCOL), **changes,
                            "train_slice": train_slice, "output": str(self.folder), "experiment": name}
        self.resolved(name)
        if instead:
            self.take(name, Path(instead), f"--{name}-checkpoint")

    def resolved(self, name: str) -> dict[str, object]:
        """Return the flags of a stage as its run would write them; what is logged of it is logged when it runs."""
        with quietly():
            return resolved(self.flags[name])

    def take(self, name: str, folder: Path, flag: str) -> None:
        """Take an earlier run for a stage. Raises `UserError` when it is not what would come out."""
        record, wanted = read_result(folder, flag), self.resolved(name)
        with quietly():
            check_same_run(folder, wanted, record, flag)
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
            if changed := other_flags(folder, self.resolved(name), "--resume auto"):
                raise UserError(f"--resume auto: {folder} is complete, with other flags: {'; '.join(changed)}; repeat "
                                "them, delete that folder, or give another --experiment")
            _logger.info(f"{self.flag}: {name} is complete: {folder}")
            self.done[name] = record
        else:
            _logger.info(f"{self.flag}: {name}, --train-slice {self.flags[name]['train_slice'] or ':'}")
            self.done[name] = self.train(self.flags[name])
        return self.done[name]

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
