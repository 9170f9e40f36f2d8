"""The runs that a command consists of, and the flags of each: ``--protocol w2s``, ``--stages``, ``--folds`` and the
file of a study are four ways to write such a list. Needs no torch.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..cli.declare import words_of
from ..cli.parser import check_flags, fill, keep_typed, read_yaml, taker_of, train_parser
from ..errors import UserError, logger, nearest, said_of
from ..resolve.fill_in import resolve_data_dir
from ..settings.composite import TrainSettings
from ..settings.field import Role, option, shown_value
from ..settings.forms import MULTILABEL, parse_slice
from ..settings.programs import train_program
from ..settings.rules import note_idle
from ..settings.teacher_name import label_paths
from ..settings.values import check_values, split_names
from .controls import (
    CONTROLS,
    LABELS_OF_KIND,
    NOT_OF,
    OF_ONE_TEACHER,
    PLACE_IN_RUN,
    Flags,
    check_comparable,
    flags_about,
    overlaid,
    place_flags,
    runs_around,
    split_slice,
    weak_labels_only,
    with_files,
    without,
)
from .layout import NAME, RUNS, STUDY, StudyRun
from .plan import PlannedRun, RunPlan
from .spec import Choice, Study


@dataclass
class LocalRun(PlannedRun):
    """A run of ``--protocol``, ``--stages`` or ``--folds``.

    Args:
        flags: that are set.
        settings: what its flags come to; there once `ahead.settle` has checked them.
        assign_by: earlier stages, by whose figures its ``teacher_assign`` is chosen.
        tune_by: earlier stages; it trains the same part of the student as the best of these.
        audited: a person is asked at the end whether this stage, or another one of these, is best.
        unless_same: a later stage; where that one turns out to be trained alike, this one is left out.
        stands_for: the stage that was left out because this one is trained alike.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    settings: TrainSettings = field(init=False, repr=False, compare=False)
    assign_by: Sequence[str] = ()
    tune_by: Sequence[str] = ()
    audited: bool = False
    unless_same: str = ""
    stands_for: str = ""


@dataclass
class Stage:
    """A stage as its file describes it.

    Args:
        flags: of its own.
        assign_by: see `LocalRun`, like the others.
    """

    flags: dict[str, Any]
    assign_by: Sequence[str] = ()
    tune_by: Sequence[str] = ()
    audited: bool = False
    unless_same: str = ""


LocalPlan = RunPlan[LocalRun]


def plan_runs(explicit_flags: Flags, typed: Set[str] = frozenset()) -> LocalPlan:
    """Return the runs that ``--protocol``, ``--stages`` or ``--folds`` asks for.

    Args:
        explicit_flags: flags that were set by hand.
        typed: names of those that are on the command line.

    Raises:
        UserError: flags that do not go together, or values that no flag may have.
    """
    # flags of the command with their defaults decide which runs there are; those set by hand go to the runs
    filled, _ = fill(train_parser(), explicit_flags)
    resolve_data_dir(filled)
    flags = vars(filled)
    flag = next(flag for flag in RUNS_OF if flags[flag.split()[0].strip("-")])
    # all runs lie in one folder
    if not flags["experiment"]:
        raise UserError(f"{flag} makes several runs in one folder: name it with --experiment")
    if flags["resume"] not in ("", "auto"):
        raise UserError(f"{flag} goes on with --resume auto")
    folder = Path(flags["output"] or "./output/train") / flags["experiment"]
    # what every run has in common is that it is one run, and in this folder
    plan = LocalPlan(flag, folder, [], flags)
    for run in RUNS_OF[flag](flags, explicit_flags, typed, folder):
        run.flags = without(run.flags, flags_about(Role.PROTOCOL))
        run.flags |= {"output": str(folder), "experiment": run.name}
        run.folder = folder / run.name
        with plan.about(run):
            check_values(run.flags)
        plan.runs.append(run)
    return plan


# ---------------------------------------------------------------- teacher, student, ceiling


def runs_of_protocol(
    flags: Flags, explicit_flags: Flags, typed: Set[str], folder: Path
) -> Iterator[LocalRun]:
    """Yield the teacher, where it is trained, ceiling, student and controls."""
    if not flags["teacher"] or label_paths(flags["teacher"]):
        raise UserError(
            "--protocol w2s needs a --teacher NAME, the weak model, which it measures on the test set: "
            "labels in a file say nothing of that"
        )
    check_comparable(flags, "--protocol w2s: ")
    # the teacher's part, and that of student and ceiling
    whole, amount = flags["train_slice"], flags["weak_fraction"]
    first, second = split_slice(whole, amount) if amount else ("", whole)
    trains_teacher = bool(first) and not flags["teacher_checkpoint"] and ":" not in flags["teacher"]
    student = {**explicit_flags, **weak_labels_only(explicit_flags), "train_slice": second}
    # the teacher is trained with the student's flags but for its own, and over them those of its file
    same = dict(model=flags["teacher"], train_slice=first)
    weak = {
        **without(explicit_flags, flags_about(NOT_OF["weak"] | Role.START)),
        **same,
        "model_kwargs": flags["teacher_kwargs"],
    }
    if flags["teacher_img_size"]:
        weak["img_size"] = flags["teacher_img_size"]
    weak = with_files(weak, flags["weak_config"], "--weak-config", same)
    # its runs are those of a student in a study, in folders that are named after their kinds
    folders = {kind: folder / kind for kind in LABELS_OF_KIND}
    around = runs_around(student, weak, trains_teacher, flags["controls"], folders)
    for kind, flags_of_kind, needs in around:
        yield LocalRun(kind, kind, flags_of_kind, needs=needs)


# ---------------------------------------------------------------- stages

EARLIER = "stage:"  # begins the name of an earlier stage, in place of a path
TEACHER_OF_COMMAND = "given"  # stands for the teacher of the command line


def runs_of_stages(
    flags: Flags, explicit_flags: Flags, typed: Set[str], folder: Path
) -> Iterator[LocalRun]:
    """Yield the runs of ``--stages``: a stage has the flags of the command line and its own, see `overlaid`."""
    where = f"--stages {flags['stages']}"
    stages = read_stages(flags["stages"])
    # what is typed needs no figures
    is_of_several = flags["task"] == MULTILABEL
    if (
        is_of_several
        and "teacher_assign" not in typed
        and any(s.assign_by for s in stages.values())
    ):
        logger.info(
            f"--task {MULTILABEL}: teachers are averaged class by class, because --teacher-assign posterior is for one "
            "class an image"
        )
    if typed & {"tune", "linear_probe"}:
        # all of these would train the same part, so the first one is enough
        alike = {judge for stage in stages.values() for judge in stage.tune_by[1:]}
        stages = without_judges(stages, "tune_by", alike)
    if is_of_several or "teacher_assign" in typed:
        stages = without_judges(stages, "assign_by")
    # of several classes an image most answers are no, so students hardly differ in how often they say what labels say
    judges = {judge for stage in stages.values() for judge in stage.tune_by}
    if is_of_several and any(
        is_unlabeled(stages[judge], explicit_flags) for judge in judges & {*stages}
    ):
        logger.info(
            f"--task {MULTILABEL}: no part of the student is chosen, because students that have learned several labels an "
            "image hardly differ in how often they say what weak labels say"
        )
        stages = without_judges(stages, "tune_by")
    # without a test set nobody compares anything with what is there for that
    if not flags["val_split"]:
        stages = {n: stage for n, stage in stages.items() if stage.audited or not stage.unless_same}
    if "select_split" in typed:
        measured = [name for name, stage in stages.items() if stage.flags.get("select_split")]
        typed_split = f"--select-split {shown_value(flags['select_split'])}"
        if measured:
            raise UserError(
                f"{where}: {typed_split}: {', '.join(measured)} measure themselves on a part of their own, and others "
                "learn from all images: leave it out, or change a copy of the file"
            )
        # what the command line alone could not tell
        if "best" not in [flags["select"], *(s.flags.get("select") for s in stages.values())]:
            raise UserError(
                f"{typed_split} has no effect without --select best: add it, or leave --select-split out"
            )
    # what was typed is of use to a stage at least
    for name in sorted(place_flags(explicit_flags) & typed):
        if not any(takes(stage.flags, name) for stage in stages.values()):
            raise UserError(
                f"{where}: {option(name)} {shown_value(flags[name])} is for no stage: "
                f"each has its own, {', '.join(stages)}; leave it out, or take theirs out of the file"
            )
    # of candidates that train the same part a person would be asked which one is better
    alike = sorted({"tune", "linear_probe"} & typed)
    if alike and any(stage.audited for stage in stages.values()):
        raise UserError(
            f"{where}: its stages differ in what they train of the student: leave {option(alike[0])} out, or train one "
            "student by --config weak-labels"
        )
    earlier: list[str] = []
    flags_of: dict[str, Flags] = {}
    for name, stage in stages.items():
        of_stage = stage.flags
        common = dict(explicit_flags)
        # another teacher than that of the command line has nothing of what belongs to that one
        if not takes(of_stage, "teacher"):
            common = without(common, OF_ONE_TEACHER)
        # the weights of the command line are those that the first stage begins with
        if str(of_stage.get("initial_checkpoint")).startswith(EARLIER):
            common["finetune"] = ""
        needs = fill_in_earlier(of_stage, flags["teacher"], earlier, folder, f"{where}: {name}")
        run_flags = overlaid(common, of_stage, typed, f"--stages, {name}")
        # who is asked for figures has them by then
        for key, judges in (("assign_by", stage.assign_by), ("tune_by", stage.tune_by)):
            for judge in judges:
                if judge not in earlier:
                    raise UserError(
                        f"{where}: {name}: {key}: {judge}: no stage of this name comes before it; before it come "
                        f"{', '.join(earlier) or 'none'}"
                    )
                check_judge(judge, flags_of[judge], key, f"{where}: {name}: {key}")
            if judges:
                check_alike({judge: flags_of[judge] for judge in judges}, f"{where}: {name}: {key}")
        if stage.assign_by:
            if len(split_names(run_flags.get("teacher"))) < 2:
                raise UserError(
                    f"{where}: {name}: assign_by: {', '.join(stage.assign_by)}: expected several teachers, of which it "
                    "calibrates the last one"
                )
            # its rules are checked before the first stage; the number follows
            run_flags["teacher_assign"] = "posterior"
        flags_of[name] = run_flags
        yield LocalRun(
            name,
            "",
            run_flags,
            assign_by=stage.assign_by,
            tune_by=stage.tune_by,
            audited=stage.audited,
            unless_same=stage.unless_same,
            needs=needs,
        )
        earlier.append(name)


def without_judges(
    stages: Mapping[str, Stage], key: str, alike: Collection[str] = ()
) -> dict[str, Stage]:
    """Return stages of which none has an ``assign_by``, or a ``tune_by``, as ``key`` says. A stage that was to be
    measured for it alone is left out.

    Args:
        stages: by their names.
        key: ``assign_by`` or ``tune_by``.
        alike: stages that measure no more than another one does.
    """
    left = {}
    for name, stage in stages.items():
        assign_by = [judge for judge in stage.assign_by if judge not in alike]
        left[name] = replace(stage, **{"assign_by": assign_by, key: ()})
    judges = {judge for stage in stages.values() for judge in getattr(stage, key)}
    # what such a stage has made, or measured, may be of use to others all the same
    texts = [str(value) for stage in stages.values() for value in stage.flags.values()]
    kept = {part.removeprefix(EARLIER) for text in texts for part in split_names(text)}
    kept |= {judge for stage in left.values() for judge in (*stage.assign_by, *stage.tune_by)}
    kept |= {name for name, stage in stages.items() if stage.audited}
    needless = judges - kept
    if needless:
        logger.info(
            f"--stages: without the stage {', '.join(sorted(needless))}, which no other one asks for"
        )
    return {name: stage for name, stage in left.items() if name not in needless}


def check_judge(judge: str, flags_of_judge: Flags, key: str, where: str) -> None:
    """Raise a `UserError` unless a stage (``judge``) measures itself: for ``assign_by`` on labelled images, for ``tune_by``
    on any.
    """
    # Else that would be known once it has been trained.
    if not flags_of_judge.get("select_split"):
        images = "images" if key == "tune_by" else "labelled images"
        raise UserError(
            f"{where}: {judge}: the stage holds out no {images} to measure itself: give it select_split"
        )
    if key == "tune_by" and flags_of_judge.get("linear_probe"):
        raise UserError(
            f"{where}: {judge}: linear_probe trains no part of a student that another one could train; leave {judge} out"
        )
    if key == "assign_by" and flags_of_judge.get("unlabeled"):
        raise UserError(
            f"{where}: {judge}: the stage holds out images without labels: give it unlabeled: null"
        )


# on which it depends which images a stage holds out, and which labels they have
OF_HELD_OUT = (
    *("dataset", "data_dir", "unlabeled", "train_split", "train_labels"),
    *("slice_seed", "label_noise", "noise_seed", "select_split"),
)


def check_alike(judges: Mapping[str, Flags], where: str) -> None:
    """Raise a `UserError` unless some stages (their flags, by name) measure themselves on the same images and labels."""
    # Else the one that has the easier images would be taken.
    first, *others = judges
    for judge in others:
        names = [*OF_HELD_OUT, *(["teacher"] if judges[judge].get("unlabeled") else [])]
        for name in names:
            values = [judges[one].get(name) or None for one in (first, judge)]
            if values[0] != values[1]:
                shown = " and ".join("none" if v is None else shown_value(v) for v in values)
                raise UserError(
                    f"{where}: {first} and {judge} measure themselves on other images or labels, which can't be compared: "
                    f"give both the same {option(name)}, not {shown}"
                )


def is_unlabeled(stage: Stage, common: Flags) -> bool:
    """Return whether a stage learns from images without labels, by its own flags or by those of the command line."""
    return bool(stage.flags.get("unlabeled", common.get("unlabeled")))


def takes(of_stage: Flags, name: str) -> bool:
    """Return whether a stage has a flag as the command line says it: it has none of its own, or names that teacher."""
    return name not in of_stage or TEACHER_OF_COMMAND in split_names(str(of_stage[name]))


def fill_in_earlier(
    of_stage: dict[str, Any], teacher: str | None, earlier: Sequence[str], folder: Path, where: str
) -> list[str]:
    """Put what earlier stages have made in the place of their names, and the command line's teacher in that of
    `TEACHER_OF_COMMAND`; return the names of these stages.

    Raises:
        UserError: there is no such stage or teacher, or a stage makes nothing of this kind.
    """
    needs = []
    for flag, value in of_stage.items():
        # several teachers are separated by commas
        parts = split_names(value) if flag == "teacher" else [value]
        for number, part in enumerate(parts):
            if flag == "teacher" and part == TEACHER_OF_COMMAND:
                if not teacher:
                    raise UserError(f"{where}: {flag}: {part}: the command line has no --teacher")
                parts[number] = teacher
            elif str(part).startswith(EARLIER):
                if flag not in PLACE_IN_RUN:
                    raise UserError(
                        f"{where}: {flag}: {part}: a stage makes nothing of this kind, but "
                        f"{', '.join(PLACE_IN_RUN)}"
                    )
                stage = part.removeprefix(EARLIER)
                if stage not in earlier:
                    raise UserError(
                        f"{where}: {flag}: {part}: no stage of this name comes before it"
                        f"{nearest(stage, earlier)}"
                    )
                parts[number] = PLACE_IN_RUN[flag].format(folder / stage)
                needs.append(stage)
        of_stage[flag] = (",".join(parts) or None) if flag == "teacher" else parts[0]
    return needs


def read_stages(file: str) -> dict[str, Stage]:
    """Return the stages in a file by their names. Raises `UserError` for anything else."""
    where = f"--stages {file}"
    _, content = read_yaml(file, where)
    if content and isinstance(content, dict):
        taken_by, what = taker_of(content)
        raise UserError(f"{where}: is {what}; expected a list of stages, or {taken_by} {file}")
    if not content or not isinstance(content, list) or {*map(type, content)} != {dict}:
        raise UserError(f"{where}: expected a list of stages, each with a name and flags")
    # the last item may say which stages a person is asked about, and is none itself
    asked = content.pop() if "audit" in content[-1] else {}
    # flags that one stage cannot have for itself
    of_all = flags_about(Role.PROTOCOL) | {"output", "experiment", "resume", "train_slice"}
    stages: dict[str, Stage] = {}
    for number, stage in enumerate(content, start=1):
        if "audit" in stage:
            raise UserError(
                f"{where}: audit is item {number}; expected it last, behind the stages that it is about"
            )
        name = stage.pop("name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f"{where}: stage {number} has no name of its own, of letters and digits"
            )
        if name in stages:
            raise UserError(f"{where}: two stages are named {name}; expected a name for each")
        assign_by, tune_by = (
            names_in(stage.pop(key, []), f"{where}: {name}: {key}")
            for key in ("assign_by", "tune_by")
        )
        unless_same = stage.pop("unless_same", "")
        flags = check_flags(stage, train_parser(), f"{where}: {name}")
        for flag in flags.keys() & of_all:
            raise UserError(
                f"{where}: {name}: {flag} is that of all stages: give it on the command line"
            )
        stages[name] = Stage(flags, assign_by, tune_by, unless_same=unless_same)
    for number, (name, stage) in enumerate(stages.items(), start=1):
        later = [*stages][number:]
        if stage.unless_same and stage.unless_same not in later:
            raise UserError(
                f"{where}: {name}: unless_same: {stage.unless_same!r:.60}: no stage of this name comes after it; after it "
                f"come {', '.join(later) or 'none'}"
            )
    for name in read_audited(asked, stages, where):
        stages[name].audited = True
    return stages


def names_in(value: object, where: str) -> list[str]:
    """Return the names in a value of a stage: one, or a list. Raises `UserError` for anything else, or the same twice."""
    names = value if isinstance(value, list) else [value]
    if {*map(type, names)} - {str} or len({*names}) < len(names):
        raise UserError(
            f"{where}: {value!r:.60}: expected the name of an earlier stage, or a list of different ones"
        )
    return [str(name) for name in names]


def read_audited(item: Mapping[str, Any], stages: Collection[str], where: str) -> list[str]:
    """Return the names of the stages that a file ends with an audit of; none if it does not.

    Args:
        item: the last one of the file, empty if that is a stage.
        stages: names of all.
        where: begins the messages.

    Raises:
        UserError: it is no list of two stages at least.
    """
    if not item:
        return []
    names = item["audit"]
    others = [str(key) for key in item if key != "audit"]
    if others:
        raise UserError(f"{where}: audit stands with {', '.join(others)}; expected it alone")
    if not isinstance(names, list) or {*map(type, names)} - {str}:
        raise UserError(
            f"{where}: audit: {names!r:.60}; expected a list of names of stages, such as "
            f"[{', '.join(stages)}]"
        )
    unknown = next((name for name in names if name not in stages), None)
    if unknown is not None:
        raise UserError(
            f"{where}: audit: {unknown}: no stage of this name{nearest(unknown, stages)}"
        )
    if len({*names}) < 2:
        raise UserError(
            f"{where}: audit: {', '.join(names) or '[]'}; expected two stages at least, of which "
            "answers name the best one"
        )
    return names


# ---------------------------------------------------------------- folds


def runs_of_folds(
    flags: Flags, explicit_flags: Flags, typed: Set[str], folder: Path
) -> Iterator[LocalRun]:
    """Yield the runs of ``--folds``: each is trained on all parts of the slice but one, which is its validation split."""
    idle = typed & {"val_split", "val_slice", "val_labels"}
    if idle:
        note_idle("--folds, which measures a model on the part that it has not seen", sorted(idle))
    for number, (rest, part) in enumerate(
        fold_slices(flags["train_slice"], flags["folds"]), start=1
    ):
        slices = dict(
            val_split=flags["train_split"],
            val_labels=flags["train_labels"],
            val_slice=part,
            train_slice=rest,
        )
        check_comparable({**flags, **slices}, "--folds: ")
        yield LocalRun(f"fold{number}", "", {**explicit_flags, **slices})


def fold_slices(text: str | None, folds: int) -> list[tuple[str, str]]:
    """Return for each of ``folds`` parts of the slice ``text`` the slice of all others, and its own.

    Raises:
        UserError: a slice of counts without an end.
    """
    # cut into equal parts, of shares or of counts
    start, stop = parse_slice(text or "0.0:1.0")
    if stop is None and not isinstance(start, float):
        raise UserError(
            f"--folds of --train-slice {text}: the slice has no end; give it one, or take shares"
        )
    # of a slice of counts the cuts are counts too; of shares each cut is the same number in both of its slices
    start, stop = start or 0, 1.0 if stop is None else stop
    cuts = [start + (stop - start) * k / folds for k in range(folds + 1)]
    if isinstance(stop, int):
        cuts = [round(cut) for cut in cuts]
    # each is held out once, and the others on both of its sides are trained on
    parts = []
    for low, high in itertools.pairwise(cuts):
        sides = (cuts[0], low), (high, cuts[-1])
        others = [f"{a}:{b}" for a, b in sides if a < b]
        parts.append((",".join(others), f"{low}:{high}"))
    return parts


RUNS_OF = {"--protocol w2s": runs_of_protocol, "--stages": runs_of_stages, "--folds": runs_of_folds}


# ---------------------------------------------------------------- studies


def plan_study(study: Study) -> list[StudyRun]:
    """Return all runs of a study, each once, after those that it needs; those of one seed stay together.

    Raises:
        UserError: a teacher with samples of the student's part.
    """
    plan: dict[str, StudyRun] = {}
    for name, of_set in study.by_set().items():
        for cell in itertools.product(of_set.seeds, of_set.weak, of_set.strong, of_set.losses):
            runs = list(runs_of_cell(of_set, name, *cell))
            # equal commands have equal names, so that a run which several need is planned once
            for run in runs:
                plan.setdefault(run.name, run)
            student = next(run for run in runs if run.kind == "student")
            plan[student.name].controls = [run.name for run in runs if run.kind in CONTROLS]
    if not plan:
        raise UserError(
            "no run at all; expected at least one item in weak, strong, losses and seeds"
        )
    kinds = list(LABELS_OF_KIND)
    return sorted(
        plan.values(), key=lambda run: (study.seeds.index(run.seed), kinds.index(run.kind))
    )


def runs_of_cell(
    study: Study, name: str | None, seed: int, weak: Choice, strong: Choice, loss: Choice
) -> Iterator[StudyRun]:
    """Yield the runs of one student, and of what it is compared with.

    Args:
        study: on one data set.
        name: of that.
        seed: of the runs.
        weak: the teacher.
        strong: the student.
        loss: that it learns with.
    """
    labels = dict(weak=weak.name, strong=strong.name, loss=loss.name, protocol="w2s")
    names: dict[str, str] = {}  # by kind
    folders: dict[str, str] = {}
    with said_of(f"{f'{name}: ' if name else ''}weak {weak.name}: "):
        student, teacher = flags_of_study(study, weak, strong, loss)
    if study.slices == "by_seed":
        student["slice_seed"] = teacher["slice_seed"] = seed
    around = runs_around(student, teacher, weak.trained_here, study.controls, folders)
    for kind, flags, needs in around:
        flags = {**without(flags, ("weak_fraction", "ceiling_config")), "seed": seed}
        argv = [*encode(flags), "--output", f"{STUDY}/{RUNS}", "--resume", "auto"]
        # a name changes with the command, so that a folder never has two kinds of runs under one name
        digest = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:8]
        known = {label: labels[label] for label in LABELS_OF_KIND[kind]}
        id = "-".join(filter(None, [kind, name, *known.values(), f"s{seed}", digest]))
        names[kind], folders[kind] = id, f"{STUDY}/{RUNS}/{id}"
        yield StudyRun(
            id,
            kind,
            known.get("weak"),
            known.get("strong"),
            known.get("loss"),
            known.get("protocol"),
            seed,
            [*argv, "--experiment", id],
            needs=[names[other] for other in needs],
            set=name,
        )


def flags_of_study(
    study: Study,
    weak: Choice,
    strong: Choice,
    loss: Choice,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags of a student, and those of its teacher's training.

    Raises:
        UserError: the teacher has a slice of its own that is not within its part, or there are no true labels for it.
    """
    # images without labels have no part that a teacher could learn from
    student = {**study.base, **strong.flags}
    unlabeled = student.get("unlabeled")
    amount = {**study.base, **weak.flags}.get("weak_fraction", 0 if unlabeled else 0.5)
    if unlabeled and (weak.trained_here or study.controls or amount):
        raise UserError(
            "the images of unlabeled have no true labels, from which a teacher or a control could learn: "
            "give a teacher that is there, such as {model: labels:FILE}, no controls and no weak_fraction"
        )
    # parts of the training slice; of images without labels none is the teacher's
    whole, narrower = study.base.get("train_slice"), weak.flags.get("train_slice")
    first, second = split_slice(whole, amount) if amount or weak.trained_here else (None, whole)
    if narrower and first and not lies_within(narrower, first):
        raise UserError(
            f"train_slice {narrower} is not within the teachers' part {first}, which weak_fraction cuts "
            "off; the rest is for the students"
        )
    # the teacher is trained by a run of its own, or taken as it is
    teacher = {
        **without(study.base, flags_about(NOT_OF["weak"])),
        **weak.flags,
        "train_slice": narrower or first,
    }
    student |= weak_labels_only(name for name, value in student.items() if value is not None)
    student |= dict(
        train_slice=second,
        loss=loss.loss,
        loss_kwargs=loss.flags,
        teacher=weak.flags["model"],
        teacher_kwargs=weak.flags.get("model_kwargs"),
        teacher_checkpoint=weak.checkpoint,
        teacher_img_size=None if weak.trained_here else weak.flags.get("img_size"),
    )
    keep_typed(student, ("loss",))  # a recipe may have another one for some data
    if student.get("teacher_targets", "online") != "online":
        student.setdefault("target_cache", f"{STUDY}/targets")  # stored where all students find it
    return student, teacher


def lies_within(text: str, part: str) -> bool:
    """True when every sample of a slice is in another one; shares and counts are not compared."""
    (start, stop), (low, high) = parse_slice(text), parse_slice(part)
    begins_within = ("." in text) == ("." in part) and (start or 0) >= (low or 0)
    return begins_within and (high is None or (stop is not None and stop <= high))


def encode(flags: Mapping[str, object]) -> list[str]:
    """Return the command line that gives these flags: in the order of their names, so that equal runs are equal.

    Flags of None, False and empty lists or mappings are left out: those are their defaults.
    """
    # the order is part of a run's name, by which a study finds again what it has made: it may not change
    known = train_program().flags
    words: list[str] = []
    for name in sorted(flags):
        if flags[name] not in (None, [], {}):
            words += words_of(known[name], flags[name])
    return words
