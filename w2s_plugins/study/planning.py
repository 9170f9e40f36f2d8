"""Which runs ``--protocol w2s``, ``--stages`` and ``--folds`` consist of, and the flags of each. Needs no torch."""

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
from .controls import (
    CONTROLS,
    NOT_OF,
    OF_ONE_TEACHER,
    ceiling_flags,
    check_comparable,
    check_one_run,
    chosen_controls,
    control_flags,
    exported,
    split_slice,
    weak_labels_only,
    without,
)

SYNONYMS = ({"train", "training"}, {"val", "valid", "validation", "eval", "evaluation"})  # timm's, for one folder
EARLIER = "stage:"  # begins the name of an earlier stage, in place of a path
GIVEN = "given"  # among the teachers of a stage, those of the command line
# where a flag finds what an earlier stage has made, in its folder
PRODUCT = {"teacher": exported("{}"), "teacher_checkpoint": "{}", "clean_select_model": exported("{}"),
           "initial_checkpoint": "{}/export/model.safetensors"}
FORM = "expected a list of stages, each with a name and flags"


class Planned(NamedTuple):
    """A run that flags alone decide on.

    Args:
        name: of the run.
        where: begins messages about its flags.
        flags: that are set, those of the command among them.
        needs: names of the runs that come before it.
    """

    name: str
    where: str
    flags: dict[str, object]
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


def run_flags(run: Planned, folder: Path, parser: Parser) -> dict[str, object]:
    """Return the flags of a run in ``folder``. Raises `UserError` for values that no flag may have."""
    check_values(run.flags)
    return {**without(run.flags, parser.names(Role.PROTOCOL)), "output": str(folder), "experiment": run.name}


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
    trains_teacher = bool(first) and not flags["teacher_checkpoint"] and ":" not in flags["teacher"]
    return Protocol(flags, folder, first, second, trains_teacher)


def runs_of_protocol(start: Protocol, given: Mapping[str, object], parser: Parser) -> Iterator[Planned]:
    """Yield student, ceiling, the teacher, where it is trained, and controls. Raises `UserError` as `weak_flags` does.
    """
    flags = start.flags
    taught_by = ("weak",) if start.trains_teacher else ()
    student = {**given, **weak_labels_only(given), "train_slice": start.second}
    if start.trains_teacher:
        student["teacher_checkpoint"] = str(start.folder / "weak")
    yield Planned("student", "", student, (*taught_by, "ceiling"))
    where = beginning("--ceiling-config", flags["ceiling_config"], "the ceiling")
    yield Planned("ceiling", where, ceiling_flags(student, parser))
    controls = chosen_controls(flags["controls"])
    weak = dict(given)
    if start.trains_teacher or "same-size" in controls:
        weak = weak_flags(start, given, parser)
    if start.trains_teacher:
        yield Planned("weak", beginning("--weak-config", flags["weak_config"], "the teacher"), weak)
    for name in controls:
        needs = CONTROLS[name].needs
        with said_of(f"--controls {name}: "):
            own = control_flags(name, student, weak, start.first, start.folder / "direct", parser)
        yield Planned(name, "", own, taught_by if needs == "weak" else tuple(filter(None, [needs])))


def beginning(flag: str, files: Sequence[str], run: str) -> str:
    """Return what begins messages about a run of the protocol whose flags are in ``files``."""
    return f"{flag} {' '.join(files)}: " if files else f"--protocol w2s, {run}: "


def check_flags(flags: Mapping[str, object]) -> None:
    """Refuse what the protocol cannot do, before anything is trained."""
    train, val = flags["train_split"], flags["val_split"]
    rules = [
        (not flags["teacher"], "--protocol w2s needs a --teacher NAME: the weak model"),
        (bool(label_paths(flags["teacher"])), "--protocol w2s measures its teacher on the test set, of which "
         "labels in a file say nothing: train with --teacher labels:PATH alone, and the ceiling with --teacher ''"),
        (same_split(train, val) and not flags["val_slice"],
         f"--protocol w2s would test on what it trains on: --val-split {val} is --train-split {train}; give another "
         "split, or cut it with --train-slice A:B --val-slice B:C"),
        (flags["ceiling_acc"] is not None, "--ceiling-acc is what --protocol w2s measures: leave it out"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)
    check_comparable(flags, "--protocol w2s: ")


def same_split(one: str, other: str) -> bool:
    """Whether two names stand for one split, as far as timm's names of folders tell."""
    return one == other or any({one, other} <= names for names in SYNONYMS)


def weak_flags(start: Protocol, given: Mapping[str, object], parser: Parser) -> dict[str, object]:
    """Return the flags of the teacher's training: the student's but for its own, and ``--weak-config``.

    Raises:
        UserError: a file that cannot be read, or says otherwise than the protocol.
    """
    flags = start.flags
    own = without(given, parser.names(NOT_OF["weak"] | Role.START))
    own.update(model=flags["teacher"], model_kwargs=flags["teacher_kwargs"])
    if flags["teacher_img_size"]:
        own["img_size"] = flags["teacher_img_size"]
    for file in flags["weak_config"]:
        values, where = read_config(file, parser, flag="--weak-config"), f"--weak-config {file}"
        check_one_run(values, parser, where)
        part, model = values.get("train_slice"), values.get("model", flags["teacher"])
        if part and bounds_of(part, f"{where}: train_slice") != bounds_of(start.first):
            raise UserError(f"{where}: train_slice {part}, but --weak-fraction {flags['weak_fraction']} gives the "
                            f"teacher {start.first}: leave it out of the file, or make the two equal")
        if model != flags["teacher"]:
            raise UserError(f"{where}: model {model} is not --teacher {flags['teacher']}: leave it out of the file")
        own.update(values)
    if "," in own["model"]:
        raise UserError(f"--protocol w2s trains one teacher, --teacher {flags['teacher']} names several: train them "
                        "beforehand and give --teacher-checkpoint")
    return {**own, "train_slice": start.first}


def bounds_of(text: str, flag: str = "--train-slice") -> tuple[float | int, float | int | None]:
    """Return the ends of a slice."""
    start, stop = parse_slice(text, flag)
    return start or 0, stop


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
    folder, loss = folder_of_runs(given, "--stages"), given.get("distiller") or given.get("loss")
    earlier: dict[str, object] = {}  # stages, with the number of their classes where one is given
    for name, own in listed:
        where, flags, needs = f"--stages {given['stages']}: {name}: ", dict(given), []
        with said_of(where):
            teachers = split_names(own.get("teacher"))
            if "teacher" in own and GIVEN not in teachers:  # what was said of another one
                flags = without(flags, OF_ONE_TEACHER)
                if not teachers and loss not in (None, "vanilla", *CRITERIA) and "loss" not in own:
                    raise UserError(f"the stage has no teacher, and --loss {loss} is for all stages: stages have "
                                    "their own settings, leave --loss, or the --config with it, out")
            if GIVEN in teachers and not given.get("teacher"):
                raise UserError(f"teacher: {own['teacher']}: the command line has no --teacher")
            classes = own.get("num_classes", given.get("num_classes"))
            starts_from = own.get("initial_checkpoint")
            if str(starts_from).startswith(EARLIER):
                flags["finetune"] = ""  # of the command line: what the first stage begins with
                begun = earlier.get(starts_from.removeprefix(EARLIER))
                if begun and classes and begun != classes:
                    raise UserError(f"initial_checkpoint: {starts_from}: that stage has num_classes {begun}, this one "
                                    f"{classes}: the head of one does not fit the other")
            # what earlier stages have made
            for flag, value in own.items():
                parts = teachers if flag == "teacher" else [value]
                found = [product_of(flag, part, earlier, folder) for part in parts]
                flags[flag] = found[0] if flag != "teacher" else ",".join(
                    str(given["teacher"] if part == GIVEN else part) for part in found) or None
                needs += [part.removeprefix(EARLIER) for part in parts if str(part).startswith(EARLIER)]
        yield Planned(name, where, flags, tuple(needs))
        earlier[name] = classes


def product_of(flag: str, value: object, earlier: Iterable[str], folder: Path) -> object:
    """Return the value of a flag of a stage, in which ``stage:NAME`` is what that stage has made in ``folder``.

    Raises:
        UserError: none of the ``earlier`` stages, or a flag for which they make nothing.
    """
    if not str(value).startswith(EARLIER):
        return value
    name = value.removeprefix(EARLIER)
    if flag not in PRODUCT:
        raise UserError(f"{flag}: {value}: a stage gives nothing of this kind; it may stand for {', '.join(PRODUCT)}")
    if name not in earlier:
        raise UserError(f"{flag}: {value}: no stage of this name comes before it{nearest(name, earlier)}")
    return PRODUCT[flag].format(folder / name)


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
        own = dict(val_split=args.train_split, val_slice=part, train_slice=rest)
        yield Planned(f"fold{number}", "", {**given, **own})


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
