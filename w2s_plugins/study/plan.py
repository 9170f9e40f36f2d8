"""From a specification to runs: which commands there are, which several cells share, what each needs."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..cli.declare import Parser, Role, words_of
from ..cli.forms import parse_slice
from ..cli.parser import parse, train_parser
from ..errors import UserError, said_of
from ..monitor import format_table
from ..quiet import quietly
from .layout import KINDS, RUNS, STUDY, PlannedRun
from .planning import (
    NOT_OF,
    OF_ONE_TEACHER,
    ceiling_flags,
    exported,
    of_the_task,
    split_slice,
    weak_labels_only,
)
from .spec import LossChoice, Part, Protocol, Study


def make_plan(study: Study, parser: Parser) -> list[PlannedRun]:
    """Return all runs of a study, each once, after those that it needs; those of one seed stay together.

    Raises:
        UserError: a teacher with samples of the student's part.
    """
    runs = [run for name, own in study.by_set().items() for run in Planner(own, parser, name).plan()]
    place = {seed: i for i, seed in enumerate(study.seeds)}
    return sorted(runs, key=lambda run: (place[run.seed], KINDS.index(run.kind)))


class Planner:
    """Makes the runs of a study on one data set.

    Args:
        study: the specification.
        parser: knows the flags of train_w2s.py.
        set: label of the data set, where the study has several.
    """

    def __init__(self, study: Study, parser: Parser, set: str | None):
        self.study, self.parser, self.set = study, parser, set
        self.runs: dict[str, PlannedRun] = {}

    def plan(self) -> Iterable[PlannedRun]:
        """Return the runs."""
        study = self.study
        for seed in study.seeds:
            for protocol in study.protocols:
                for weak in study.weak:
                    for strong in study.strong:
                        for loss in study.losses:
                            self.student(weak, strong, loss, protocol, seed)
        return self.runs.values()

    def student(self, weak: Part, strong: Part, loss: LossChoice, protocol: Protocol, seed: int) -> PlannedRun:
        """Add a student, and its teacher, ceiling and controls unless they are there already."""
        # what the student has in common with its ceiling
        first, second = self.slices(weak, protocol)
        flags = {**self.study.base, **strong.flags, **protocol.flags, "train_slice": second}
        if protocol.split:
            flags.update(weak_labels_only(k for k, v in flags.items() if v is not None))
        ceiling = self.add("ceiling", of_stage("ceiling", flags), seed, strong=strong.name)
        needs = [ceiling.id]

        # its teacher: trained by a run of its own, a file, or a name that is opened as it is
        if weak.trained_here:
            own = {**of_stage("weak", self.study.base), **weak.flags,
                   "train_slice": weak.flags.get("train_slice") or first}
            teacher = self.add("weak", own, seed, weak=weak.name)
            needs.insert(0, teacher.id)
            flags["teacher_checkpoint"] = f"{STUDY}/{RUNS}/{teacher.id}"
        elif weak.checkpoint:
            flags["teacher_checkpoint"] = weak.checkpoint

        # what it is told by the teacher, and stored where all students find it
        flags.update(
            teacher=weak.flags["model"], teacher_kwargs=weak.flags.get("model_kwargs"), loss=loss.loss,
            loss_kwargs=loss.kwargs)
        if not weak.trained_here:
            flags["teacher_img_size"] = weak.flags.get("img_size")
        if flags.get("teacher_targets", "online") != "online":
            flags.setdefault("target_cache", f"{STUDY}/targets")
        names = dict(weak=weak.name, strong=strong.name, loss=loss.name, protocol=protocol.name)
        controls = self.controls(weak, flags, first, seed, needs[:-1], names) if protocol.split else []
        return self.add("student", flags, seed, needs, controls, **names)

    def controls(
            self,
            weak: Part,
            flags: Mapping[str, object],
            first: str | None,
            seed: int,
            needs: Sequence[str],
            names: Mapping[str, str],
    ) -> list[str]:
        """Add what a student is compared with, as ``--protocol w2s --controls`` does; return the ids.

        Args:
            weak: its teacher.
            flags: of the student.
            first: the part of the training slice that is for teachers.
            seed: of all.
            needs: id of its teacher, where that is trained.
            names: labels of the student.

        Raises:
            UserError: a teacher without a labelled part, or whose network cannot be trained.
        """
        chosen, found, task = self.study.controls, [], of_the_task(self.parser)
        if {"direct", "strong-to-strong"} & set(chosen):
            # the student's network on the labels that the teacher had, for as many updates as the student
            part = weak.flags.get("train_slice") or first
            if not part:
                raise self.wrong(weak, f"controls {', '.join(chosen)} need a part with labels, and weak_fraction 0 "
                                 "leaves none")
            noise = {k: v for k, v in weak.flags.items() if k in self.parser.names(Role.NOISE)}
            own = {**of_stage("direct", flags), **noise, "epoch_slice": flags["train_slice"]}
            found = [self.add("direct", {**own, "train_slice": part}, seed, strong=names["strong"]).id]
        if "strong-to-strong" in chosen:
            # the same student with direct as its teacher
            others = {k: v for k, v in flags.items() if k not in OF_ONE_TEACHER}
            teacher = exported(f"{STUDY}/{RUNS}/{found[0]}")
            labels = {k: v for k, v in names.items() if k != "weak"}
            found.append(self.add("strong-to-strong", {**others, "teacher": teacher}, seed, found[:1], **labels).id)
        if "same-size" in chosen:
            # the teacher's own network in place of the student's
            from ..teachers.kinds import kind_of

            if kind_of(str(weak.flags["model"])):
                raise self.wrong(weak, f"controls: same-size: {weak.flags['model']} is no network of timm's that "
                                 "could be trained")
            network = {k: v for k, v in {**self.study.base, **weak.flags}.items() if k not in task}
            network.update({k: v for k, v in flags.items() if k in task}, train_slice=flags["train_slice"])
            labels = {k: v for k, v in names.items() if k != "strong"}
            found.append(self.add("same-size", network, seed, needs, **labels).id)
        return found

    def slices(self, weak: Part, protocol: Protocol) -> tuple[str | None, str | None]:
        """Return the parts of teacher and student."""
        flags = {**self.study.base, **weak.flags, **protocol.flags}
        base_slice = self.study.base.get("train_slice")
        if not protocol.split:
            return base_slice, base_slice
        fraction = flags.get("weak_fraction", 0.5)
        if not fraction and not weak.trained_here:
            return None, base_slice
        if not fraction or (isinstance(fraction, float) and not 0 < fraction < 1):
            raise self.wrong(weak, f"weak_fraction {fraction}: expected a share between 0 and 1, or a count; 0 is for "
                             "a teacher that is trained already")
        first, second = split_slice(base_slice, fraction)
        own = weak.flags.get("train_slice")
        if own and not lies_within(own, first):
            raise self.wrong(weak, f"train_slice {own} is not within the teachers' part {first}, which weak_fraction "
                             "cuts off; the rest is for the students")
        return first, second

    def wrong(self, weak: Part, text: str) -> UserError:
        """Return an error about a teacher."""
        return UserError(f"{f'{self.set}: ' if self.set else ''}weak {weak.name}: {text}")

    def add(
            self,
            kind: str,
            flags: dict,
            seed: int,
            needs: Iterable[str] = (),
            controls: Iterable[str] = (),
            **labels: str,
    ) -> PlannedRun:
        """Add a run under a name that its command decides, unless it is there already."""
        flags = {**{k: v for k, v in flags.items() if k not in ("weak_fraction", "ceiling_config")}, "seed": seed}
        if self.study.slices == "by_seed":
            flags["slice_seed"] = seed
        # equal commands have equal names, so that a run which several need is planned once
        argv = [*encode(flags, self.parser), "--output", f"{STUDY}/{RUNS}", "--resume", "auto"]
        digest = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:8]
        name = "-".join(filter(None, [kind, self.set, *labels.values(), f"s{seed}", digest]))
        labels = {key: labels.get(key) for key in ("weak", "strong", "loss", "protocol")}
        return self.runs.setdefault(name, PlannedRun(
            name, kind, **labels, seed=seed, argv=[*argv, "--experiment", name], needs=list(needs),
            controls=list(controls), set=self.set))


def of_stage(stage: str, flags: dict[str, object]) -> dict[str, object]:
    """Leave out what a teacher (``weak``) or a ceiling does not share with a student, as ``--protocol w2s`` does."""
    left_out = train_parser().names(NOT_OF[stage])
    kept = {k: v for k, v in flags.items() if k not in left_out}
    return kept | ceiling_flags(flags, train_parser()) if stage == "ceiling" else kept


def lies_within(text: str, part: str) -> bool:
    """True when every sample of a slice is in another one; shares and counts are not compared."""
    (start, stop), (low, high) = parse_slice(text), parse_slice(part)
    return ("." in text) == ("." in part) and (start or 0) >= (low or 0) and (
        high is None or (stop is not None and stop <= high))


def encode(flags: dict[str, object], parser: Parser) -> list[str]:
    """Return the command line that gives these flags: in the order of their names, so that equal runs are equal.

    Flags of None, False and empty lists or mappings are left out: those are their defaults.
    """
    actions = parser.by_dest()
    return [word for name in sorted(flags) if flags[name] not in (None, [], {})
            for word in words_of(actions[name], flags[name])]


def check_plan(study: Study, plan: Sequence[PlannedRun], parser: Parser) -> None:
    """Let the parser and the checks of train_w2s.py see every command, of one seed: the others differ in nothing else.

    Raises:
        UserError: naming the run and what is wrong with it.
    """
    from ..build.flags import resolve_train_args  # it imports torch and timm
    from ..build.resolve import refuse_missing_paths
    from .w2s import refuse_seen

    for run in plan:
        if run.seed != plan[0].seed:
            continue
        with said_of(f"{study.name}: {run.label}: "), quietly():  # hints are about single commands
            args, given = parse(parser, run.command)
            resolve_train_args(args, given)
            refuse_missing_paths(args, elsewhere=True)  # the data may be on another machine
            _check_comparable(vars(args))
            teacher_is_planned = len(run.needs) > 1
            if run.kind == "student" and not teacher_is_planned and args.teacher_checkpoint and args.train_slice:
                refuse_seen(vars(args), args.train_slice)


def _check_comparable(flags: Mapping[str, object]) -> None:
    """Refuse runs that would say nothing in a table of results."""
    rules = [
        (not flags["val_split"], "runs are compared on a test set: leave out val_split ''"),
        (flags["episodic"], "runs are compared as classifiers, and episodic trains none"),
        (flags["no_teacher_eval"],
         "no_teacher_eval leaves out the teacher's predictions, with which runs are compared"),
        (flags["select"] == "best" and flags["select_split"] is None, "select best would choose the checkpoint by test "
         "labels: give select_split, a part of the training slice, or select last"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)


# ---------------------------------------------------------------- what is printed


def describe_plan(study: Study, plan: Sequence[PlannedRun]) -> str:
    """Return the runs, those of all losses and seeds in one line."""
    rows: dict[tuple, list] = {}
    for run in plan:
        key = (run.kind, run.set, run.weak, run.strong, run.protocol, run.flag("--train-slice") or "all",
               run.flag("--epochs"))
        row = rows.setdefault(key, [*key, 0])
        row[-1] += 1
    table = format_table(list(rows.values()), [
        "run", "set", "weak", "strong", "protocol", "train slice", "epochs", "runs"])
    kinds = Counter(run.kind for run in plan)
    lines = [table, "", f"losses: {', '.join(loss.name for loss in study.losses)}",
             f"{study.name}: {len(plan)} runs, " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])]
    if study.slices == "by_seed" and len(study.seeds) > 1 and any(run.flag("--val-slice") for run in plan):
        lines.append("losses will not be compared: slices by_seed draws the test samples of val_slice anew for each "
                     "seed; leave val_slice out, or take slices fixed")
    return "\n".join(lines)
