"""From a specification to runs: which commands there are, which several cells share, what each needs."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..cli.declare import Parser, words_of
from ..cli.forms import parse_slice
from ..cli.parser import parse
from ..errors import UserError, quietly, said_of
from ..monitor import format_table
from .controls import (
    CONTROLS,
    NOT_OF,
    ceiling_flags,
    check_comparable,
    chosen_controls,
    control_flags,
    split_slice,
    weak_labels_only,
    without,
)
from .layout import KINDS, RUNS, STUDY, PlannedRun
from .spec import LossChoice, Part, Protocol, Study


def make_plan(study: Study, parser: Parser) -> list[PlannedRun]:
    """Return all runs of a study, each once, after those that it needs; those of one seed stay together.

    Raises:
        UserError: a teacher with samples of the student's part.
    """
    runs = [run for name, own in study.by_set().items() for run in Planner(own, parser, name).plan()]
    return sorted(runs, key=lambda run: (study.seeds.index(run.seed), KINDS.index(run.kind)))


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
        for seed, protocol, weak in itertools.product(study.seeds, study.protocols, study.weak):
            with said_of(f"{f'{self.set}: ' if self.set else ''}weak {weak.name}: "):
                for strong, loss in itertools.product(study.strong, study.losses):
                    self.student(weak, strong, loss, protocol, seed)
        return self.runs.values()

    def student(self, weak: Part, strong: Part, loss: LossChoice, protocol: Protocol, seed: int) -> None:
        """Add a student, and its teacher, ceiling and controls unless they are there already."""
        base = self.study.base
        first, second = self.slices(weak, protocol)
        student = {**base, **strong.flags, **protocol.flags, "train_slice": second}
        if protocol.split:
            student.update(weak_labels_only(name for name, value in student.items() if value is not None))

        # its ceiling, and its teacher: trained by a run of its own, a file, or a name that is opened as it is
        ceiling = self.add("ceiling", ceiling_flags(student, self.parser), seed, strong=strong.name)
        teacher = {**without(base, self.parser.names(NOT_OF["weak"])), **weak.flags}
        teacher["train_slice"] = weak.flags.get("train_slice") or first
        needs = {"ceiling": ceiling.id}
        if weak.trained_here:
            needs = {"weak": self.add("weak", teacher, seed, weak=weak.name).id, **needs}
            student["teacher_checkpoint"] = f"{STUDY}/{RUNS}/{needs['weak']}"
        else:
            student["teacher_img_size"] = weak.flags.get("img_size")
            if weak.checkpoint:
                student["teacher_checkpoint"] = weak.checkpoint

        # what it is told by the teacher, and stored where all students find it
        student.update(teacher=weak.flags["model"], teacher_kwargs=weak.flags.get("model_kwargs"), loss=loss.loss,
                       loss_kwargs=loss.kwargs)
        if student.get("teacher_targets", "online") != "online":
            student.setdefault("target_cache", f"{STUDY}/targets")

        # what it is compared with
        labels = dict(weak=weak.name, strong=strong.name, loss=loss.name, protocol=protocol.name)
        made = dict(needs)
        for name in chosen_controls(self.study.controls) if protocol.split else ():
            with said_of(f"controls: {name}: "):
                direct = f"{STUDY}/{RUNS}/{made.get('direct')}"
                flags = control_flags(name, student, teacher, teacher["train_slice"], direct, self.parser)
            own = {part: labels[part] for part in CONTROLS[name].labels}
            needed = [made[kind] for kind in [CONTROLS[name].needs] if kind in made]
            made[name] = self.add(name, flags, seed, needed, **own).id
        controls = [run for kind, run in made.items() if kind not in needs]
        self.add("student", student, seed, needs.values(), controls, **labels)

    def slices(self, weak: Part, protocol: Protocol) -> tuple[str | None, str | None]:
        """Return the parts of teacher and student."""
        flags = {**self.study.base, **weak.flags, **protocol.flags}
        whole, own, fraction = self.study.base.get("train_slice"), weak.flags.get("train_slice"), flags.get(
            "weak_fraction", 0.5)
        if not protocol.split:
            return whole, whole
        if not fraction and not weak.trained_here:
            return None, whole
        first, second = split_slice(whole, fraction)
        if own and not lies_within(own, first):
            raise UserError(f"train_slice {own} is not within the teachers' part {first}, which weak_fraction cuts "
                            "off; the rest is for the students")
        return first, second

    def add(
            self,
            kind: str,
            flags: Mapping[str, object],
            seed: int,
            needs: Iterable[str] = (),
            controls: Iterable[str] = (),
            **labels: str,
    ) -> PlannedRun:
        """Add a run under a name that its command decides, unless it is there already."""
        flags = {**without(flags, ("weak_fraction", "ceiling_config")), "seed": seed}
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
    from ..build.resolve import check_paths
    from .w2s import refuse_seen

    for run in plan:
        if run.seed != plan[0].seed:
            continue
        with said_of(f"{study.name}: {run.label}: "), quietly():  # hints are about single commands
            args, given = parse(parser, run.command)
            resolve_train_args(args, given)
            check_paths(args, elsewhere=True)  # the data may be on another machine
            check_comparable(vars(args))
            teacher_is_planned = len(run.needs) > 1
            if run.kind == "student" and not teacher_is_planned and args.teacher_checkpoint and args.train_slice:
                refuse_seen(vars(args), args.train_slice)


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
