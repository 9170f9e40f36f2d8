"""Which runs ``--protocol w2s``, ``--stages`` and ``--folds`` consist of, and the flags of each. Needs no torch."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..build.resolve import CRITERIA, label_paths, resolve_data_dir
from ..cli.declare import Parser, Role
from ..cli.forms import parse_slice
from ..cli.parser import check_flags as read_flags
from ..cli.parser import fill, read_config, yaml_file
from ..cli.values import check_values, split_names
from ..errors import UserError, nearest, one_line, said_of
from ..files import read_plain
from ..teachers.kinds import kind_of

# flags of the student that are left out of the other stages
NOT_OF = {"weak": Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.TESTS,  # the student's run measures it there
          "ceiling": Role.TEACHER | Role.STUDENT | Role.NOISE, "direct": Role.TEACHER | Role.STUDENT | Role.SELECTION}
WITH_DIRECT = {"direct", "strong-to-strong"}  # controls that need the runs of direct
# of one teacher alone: another one has its defaults
OF_ONE_TEACHER = ("teacher_checkpoint", "teacher_kwargs", "teacher_img_size", "teacher_class_map", "use_ema_teacher")
SYNONYMS = ({"train", "training"}, {"val", "valid", "validation", "eval", "evaluation"})  # timm's, for one folder
EARLIER = "stage:"  # begins the name of an earlier stage, in place of a path
GIVEN = "given"  # among the teachers of a stage, those of the command line
# where a flag finds what an earlier stage has made, in its folder
PRODUCT = {"teacher": "local-dir:{}/export", "teacher_checkpoint": "{}", "clean_select_model": "local-dir:{}/export",
           "initial_checkpoint": "{}/export/model.safetensors"}
FORM = "expected a list of stages, each with a name and flags"


class Planned(NamedTuple):
    """A run that flags alone decide on.

    Args:
        name: of the run.
        where: begins messages about its flags.
        changes: flags that differ from those of the command.
        train_slice: its part of the training split.
        needs: names of the runs that come before it.
    """

    name: str
    where: str
    changes: dict[str, object]
    train_slice: str | None
    needs: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What a command of several runs consists of.

    Args:
        flag: that asks for them.
        folder: of the runs.
        runs: in the order in which their flags are checked; each is made after those that it needs.
        start: what the runs of ``--protocol w2s`` have in common.
    """

    flag: str
    folder: Path
    runs: list[Planned]
    start: "Protocol | None" = None


def make_plan(given: Mapping[str, object], parser: Parser) -> Plan:
    """Return the runs that ``--protocol``, ``--stages`` or ``--folds`` asks for.

    Args:
        given: flags that were set by hand.
        parser: knows the flags.

    Raises:
        UserError: flags that do not go together.
    """
    if given.get("protocol"):
        start = read_protocol(given, parser)
        return Plan("--protocol w2s", start.folder, list(runs_of_protocol(start, given, parser)), start)
    if given.get("stages"):
        folder = folder_of_runs(given, "--stages")
        listed = read_stages(str(given["stages"]), parser)
        return Plan("--stages", folder, list(runs_of_stages(listed, given, parser)))
    return Plan("--folds", folder_of_runs(given, "--folds"), list(runs_of_folds(given, parser)))


def run_flags(run: Planned, folder: Path, given: Mapping[str, object], parser: Parser) -> dict[str, object]:
    """Return the flags of a run in ``folder``. Raises `UserError` for values that no flag may have."""
    check_values(run.changes)
    return {**given, **defaults(parser, Role.PROTOCOL), **run.changes, "train_slice": run.train_slice,
            "output": str(folder), "experiment": run.name}


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


def defaults(parser: Parser, role: Role) -> dict[str, object]:
    """Return the default values of the flags about something."""
    return defaults_of(parser, sorted(parser.names(role)))


def defaults_of(parser: Parser, names: Iterable[str]) -> dict[str, object]:
    """Return the default values of some flags."""
    values = parser.defaults()
    return {name: values[name] for name in names}


# ---------------------------------------------------------------- teacher, student, ceiling


class Protocol(NamedTuple):
    """What the runs of ``--protocol w2s`` have in common.

    Args:
        flags: of the student, with defaults.
        folder: of the runs.
        first: the teacher's slice of the training split, empty where it has none.
        second: the student's.
        trains_teacher: it is not trained already.
    """

    flags: dict[str, object]
    folder: Path
    first: str
    second: str | None
    trains_teacher: bool


def read_protocol(given: Mapping[str, object], parser: Parser) -> Protocol:
    """Return what the flags say of the protocol. Raises `UserError` for what does not go with it."""
    filled, _ = fill(parser, given)
    if filled.unlabeled:
        raise UserError("--protocol w2s trains teacher and ceiling on labels, which the images of --unlabeled do not "
                        "have: train the student alone, with --teacher NAME")
    resolve_data_dir(filled)
    flags = vars(filled)
    check_flags(flags)
    folder, whole, amount = folder_of_runs(flags, "--protocol w2s"), flags["train_slice"], flags["weak_fraction"]
    first, second = split_slice(whole, amount) if amount else ("", whole)
    return Protocol(flags, folder, first, second,
                    bool(first) and not flags["teacher_checkpoint"] and ":" not in flags["teacher"])


def runs_of_protocol(start: Protocol, given: Mapping[str, object], parser: Parser) -> Iterator[Planned]:
    """Yield student, ceiling, the teacher, where it is trained, and controls. Raises `UserError` as `weak_flags` does.
    """
    flags = start.flags
    taught_by = ("weak",) if start.trains_teacher else ()
    weak_source = str(start.folder / "weak") if start.trains_teacher else flags["teacher_checkpoint"]
    taught = dict(teacher_checkpoint=weak_source, **weak_labels_only(given))
    yield Planned("student", "", taught, start.second, (*taught_by, "ceiling"))
    ceiling = {**defaults(parser, NOT_OF["ceiling"]), **ceiling_flags(flags, parser)}
    where = beginning("--ceiling-config", flags["ceiling_config"], "the ceiling")
    yield Planned("ceiling", where, ceiling, start.second)
    if start.trains_teacher:
        where = beginning("--weak-config", flags["weak_config"], "the teacher")
        yield Planned("weak", where, weak_flags(flags, parser, start.first), start.first)
    yield from controls_of_protocol(start, parser, taught, taught_by)


def controls_of_protocol(
        start: "Protocol",
        parser: Parser,
        taught: Mapping[str, object],
        taught_by: tuple[str, ...],
) -> Iterator[Planned]:
    """Yield the runs of ``--controls``.

    Args:
        start: of the protocol.
        parser: knows the flags.
        taught: the flags of the student that name its teacher.
        taught_by: the run that trains this one, where it is trained.

    Raises:
        UserError: a teacher that is no network of timm's.
    """
    flags, chosen = start.flags, start.flags["controls"]
    if WITH_DIRECT & set(chosen):
        of_teacher = weak_flags(flags, parser, start.first) if start.trains_teacher else {}
        changes = {**{name: of_teacher[name] for name in parser.names(Role.NOISE) & of_teacher.keys()},
                   **defaults(parser, NOT_OF["direct"]), "epoch_slice": start.second}
        yield Planned("direct", "", changes, start.first)
    shared = {**defaults_of(parser, parser.names(Role.STUDENT) & parser.names(Role.REPORT)), **taught}
    if "same-size" in chosen:
        if kind_of(flags["teacher"]):
            raise UserError(f"--controls same-size: --teacher {flags['teacher']} is no network of timm's that could be "
                            "trained")
        network = {name: value for name, value in weak_flags(flags, parser, start.first).items()
                   if name not in of_the_task(parser)}
        yield Planned("same-size", "", {**network, **shared}, start.second, taught_by)
    if "strong-to-strong" in chosen:
        changes = {**shared, **defaults_of(parser, OF_ONE_TEACHER), "teacher": exported(start.folder / "direct")}
        yield Planned("strong-to-strong", "", changes, start.second, ("direct",))


def beginning(flag: str, files: Sequence[str], run: str) -> str:
    """Return what begins messages about a run of the protocol whose flags are in ``files``."""
    return f"{flag} {' '.join(files)}: " if files else f"--protocol w2s, {run}: "


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
        (not amount and WITH_DIRECT & set(flags["controls"]),
         f"--controls {' '.join(flags['controls'])}: --weak-fraction 0 leaves no labelled part to train on: give "
         "--weak-fraction N, the part that the teacher has seen"),
        (flags["ceiling_acc"] is not None, "--ceiling-acc is what --protocol w2s measures: leave it out"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)


def same_split(one: str, other: str) -> bool:
    """Whether two names stand for one split, as far as timm's names of folders tell."""
    return one == other or any({one, other} <= names for names in SYNONYMS)


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


def stored_views(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flag of the teacher that the ceiling of a probe shares: of which views features are stored."""
    targets = str(flags.get("teacher_targets"))
    return {"teacher_targets": targets} if flags.get("linear_probe") and targets.startswith("cached-views") else {}


def ceiling_flags(flags: Mapping[str, object], parser: Parser) -> dict[str, object]:
    """Return the flags in which the ceiling's training differs from the student's, beside those of a teacher, which it
    has not: ``--ceiling-config``.

    Args:
        flags: of the student.
        parser: knows the flags.

    Raises:
        UserError: a file that cannot be read, or that makes the ceiling one of another student.
    """
    own = stored_views(flags)
    shared = parser.names(Role.DATA | Role.SLICE | Role.NOISE | Role.TEACHER | Role.TESTS) | {"model", "val_split"}
    for file in flags.get("ceiling_config") or ():
        where = f"--ceiling-config {file}"
        values = read_config(file, parser, flag="--ceiling-config")
        check_one_run(values, parser, where, "the ceiling's")
        if odd := sorted(values.keys() & shared):
            raise UserError(f"{where}: {odd[0]} is that of the student, whose ceiling it is: leave it out of the file")
        own.update(values)
    return own


def check_one_run(values: Iterable[str], parser: Parser, where: str, whose: str) -> None:
    """Raise a `UserError` for what a file of one run of the protocol cannot say; ``where`` begins it."""
    for name in {*values} & {"protocol", "stages", "folds"}:
        raise UserError(f"{where}: {name} asks for several runs, and {whose} is one: leave it out of the file")
    for name in {*values} & {*parser.names(Role.PROTOCOL), "output", "experiment"}:
        raise UserError(f"{where}: {name} is set by the protocol for all of its runs: give --"
                        f"{name.replace('_', '-')} on the command line")


def weak_labels_only(given: Iterable[str]) -> dict[str, float]:
    """Return the flag that leaves ground truth unused, unless its weight is among the flags set by hand."""
    return {} if {"task_loss_weight", "gt_loss_weight"} & set(given) else {"task_loss_weight": 0.0}


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
    check_one_run(values, parser, where, "the teacher's")
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


def of_the_task(parser: Parser) -> set[str]:
    """Return what a student of another network shares with the student: labels, loss, choices, length of training."""
    rates = parser.names(Role.SCHEDULE) & parser.names(Role.TUNING | Role.ALIAS)
    return parser.names(
        Role.TEACHER | Role.STUDENT | Role.SELECTION | Role.NOISE | Role.SCHEDULE | Role.TESTS) - rates


def exported(folder: Path | str) -> str:
    """Return the name of the model that a run exports."""
    return f"local-dir:{folder}/export"


# ---------------------------------------------------------------- stages


def read_stages(file: str, parser: Parser) -> list[tuple[str, dict[str, object]]]:
    """Return the names and flags of the stages in a file. Raises `UserError` for anything else."""
    where = f"--stages {file}"
    try:
        content = read_plain(yaml_file(file, where))
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
        flags = read_flags(stage, parser, f"{where}: {name}")
        for flag in sorted(flags.keys() & parser.names(Role.PROTOCOL)):
            raise UserError(f"{where}: {name}: {flag} is about several runs, and a stage is one: leave it out")
        for flag in flags.keys() & {"output", "experiment", "resume", "train_slice"}:
            raise UserError(f"{where}: {name}: {flag} is that of all stages: give --{flag.replace('_', '-')} on the "
                            "command line")
        listed.append((name, flags))
    return listed


def runs_of_stages(listed: Iterable[tuple[str, Mapping[str, object]]], given: Mapping[str, object],
                   parser: Parser) -> Iterator[Planned]:
    """Yield the runs of ``--stages``.

    Args:
        listed: names and flags of the stages.
        given: flags that were set by hand.
        parser: knows the flags.

    Raises:
        UserError: a stage that comes later, or flags of the command line that its own leave without a meaning.
    """
    folder = folder_of_runs(given, "--stages")
    earlier: dict[str, object] = {}  # stages, with the number of their classes where one is given
    for name, flags in listed:
        where, loss = f"--stages {given['stages']}: {name}: ", given.get("distiller") or given.get("loss")
        with said_of(where):
            if "teacher" in flags and GIVEN not in split_names(flags["teacher"]):  # what was said of another one
                flags = {**{flag: parser.defaults()[flag] for flag in OF_ONE_TEACHER}, **flags}
                if not flags["teacher"] and loss not in (None, "vanilla", *CRITERIA) and "loss" not in flags:
                    raise UserError(f"the stage has no teacher, and --loss {loss} is for all stages: stages have "
                                    "their own settings, leave --loss, or the --config with it, out")
            classes = flags.get("num_classes", given.get("num_classes"))
            changes = found_products(flags, earlier, classes, folder, given.get("teacher"))
        values = *(value for flag, value in flags.items() if flag != "teacher"), *split_names(flags.get("teacher"))
        needs = [value.removeprefix(EARLIER) for value in values if str(value).startswith(EARLIER)]
        yield Planned(name, where, changes, given.get("train_slice"), tuple(needs))
        earlier[name] = classes


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
    if str(flags.get("initial_checkpoint") or "").startswith(EARLIER):
        found.setdefault("finetune", "")  # of the command line: what the first stage begins with
    if "teacher" in flags:
        named = split_names(flags["teacher"])
        if GIVEN in named and not teacher:
            raise UserError(f"teacher: {flags['teacher']}: the command line has no --teacher")
        found["teacher"] = ",".join(str(teacher if one == GIVEN else product("teacher", one)) for one in named) or None
    return found


# ---------------------------------------------------------------- folds


def runs_of_folds(given: Mapping[str, object], parser: Parser) -> Iterator[Planned]:
    """Yield the runs of ``--folds``. Raises `UserError` for flags that do not go with it."""
    args, _ = fill(parser, given)
    for broken, message in (
            (args.unlabeled, "--folds holds out labelled samples, which the images of --unlabeled are not"),
            (args.select == "best" and args.select_split is None, "--folds --select best would choose the epoch by the "
             "part that is held out: give --select-split, or --select last")):
        if broken:
            raise UserError(message)
    for number, (rest, part) in enumerate(fold_slices(args.train_slice, args.folds), start=1):
        yield Planned(f"fold{number}", "", dict(val_split=args.train_split, val_slice=part), rest)


def fold_slices(text: str | None, folds: int) -> list[tuple[str, str]]:
    """Return for each of ``folds`` parts of the slice ``text`` the slice of all others, and its own.

    Raises:
        UserError: a slice of counts without an end, or with fewer samples than parts.
    """
    start, stop = parse_slice(text) if text else (0.0, 1.0)
    if stop is None and not isinstance(start, float):
        raise UserError(f"--folds of --train-slice {text}: the slice has no end; give it one, or take shares")
    start, stop = start or 0, 1.0 if stop is None else stop
    cuts = [start + (stop - start) * k / folds for k in range(folds + 1)]
    if isinstance(stop, int):
        cuts = [round(cut) for cut in cuts]
        if stop - start < folds:
            raise UserError(f"--folds {folds}: --train-slice {text} has {stop - start} samples; expected as many or "
                            "more")
    return [(",".join(f"{a}:{b}" for a, b in ((cuts[0], low), (high, cuts[-1])) if a < b), f"{low}:{high}")
            for low, high in pairwise(cuts)]
