"""``python -m w2s_plugins.labels audit RUN ...``: images are drawn, a person says what is on them, and the answers say
whether a student is better than its labels, and which of several is best.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError, quietly, say
from ..monitor import setup_logging
from ..no_label import NO_LABEL
from ..registry import load_plugins
from ..settings.forms import LABELS_PREFIX
from ..target_kind import ONE_CLASS
from .answers import (
    Answered,
    first_steps,
    keep_answers,
    kept_answers,
    read_answered,
    set_aside_others,
)
from .draw import Step, group_images
from .estimate import Evidence, count_yes, estimate, weigh
from .page import UNSURE, Sheet, hand_out
from .plan import PLAN, Plan, read_plan, write_plan
from .questions import Questions, write_checked
from .report import (
    MEMORISED,
    say_accuracies,
    say_of_classes,
    say_of_questions,
    say_yes,
    verdict_on_one,
    verdict_on_several,
    write_differences,
)
from .rounds import alone_in, command_for, keep_labelled
from .subjects import (
    Images,
    Subject,
    ask,
    held_out_by,
    images_of,
    open_subjects,
    warn_of_silent,
)

HELD_OUT = "audit-held-out"  # in the folder of a run, beside the audit of what it was trained on
MORE = 50  # images that are proposed when all have answers
ENOUGH = 50  # answers, from which a sheet that repeats one of the subjects is suspicious
MANY = 0.1  # of the answers are that nobody can tell

_logger = logging.getLogger(__name__)


@dataclass
class Audit:
    """An audit of some runs and tables.

    Args:
        subjects: these.
        images: that it is about.
        folder: of its files.
        command: that begins it.
        plan: what is said, and drawn.
        columns: by name, the numbers of the opinions that are compared.
        memorised: from `memorised_by`.
    """

    subjects: list[Subject]
    images: Images
    folder: Path
    command: str
    plan: Plan
    columns: dict[str, int]
    memorised: Mapping[str, float]

    @property
    def of_one_run(self) -> bool:
        """Whether it asks if a student is better than its labels."""
        return len(self.subjects) == 1 and len(self.columns) == 2


def audit(
    runs: Sequence[str],
    images: int,
    answers: str | None,
    data_dir: str | None,
    plugins: Sequence[str],
    task: str = ONE_CLASS.task,
) -> None:
    """Draw images and write the page about them; with ``answers``, say what these tell. ``task`` is timm's word for what
    labels are, if there are tables only.

    Raises:
        UserError: a run has not ended; its images are not there; a table or the answers cannot be read.
    """
    setup_logging(primary=True)
    load_plugins(plugins)
    command = command_for("audit", runs, data_dir, plugins)
    if task != ONE_CLASS.task:
        command += f" --task {task}"
    _open(runs, command, images, answers, data_dir, task)


def begin_audit(runs: Sequence[str], images: int, plugins: Sequence[str]) -> None:
    """Draw images of runs that this process has made; if that cannot be, say why: the runs are none the worse for it.

    Args:
        runs: their folders.
        images: to draw.
        plugins: modules or files that this process has imported.
    """
    command = command_for("audit", runs, None, plugins)
    _logger.info(f"audit: {len(runs)} students are asked about all of their images")
    try:
        # what these are made of was logged when they were trained
        with quietly(logging.INFO):
            _open(runs, command, images)
    except UserError as error:
        _logger.warning(f"WARNING: no images are drawn: {error}; put that right, then {command}")


def _open(
    runs: Sequence[str],
    command: str,
    images: int,
    answers: str | None = None,
    data_dir: str | None = None,
    task: str = ONE_CLASS.task,
) -> None:
    """Open what an audit is about, and draw, or tell what answers say."""
    # a plan is of these images
    subjects = open_subjects(runs, data_dir)
    pictured = images_of(subjects, data_dir, task)
    folder = folder_of(subjects)
    with alone_in(folder):
        _go_on(subjects, pictured, folder, command, images, answers)


def _go_on(
    subjects: list[Subject],
    pictured: Images,
    folder: Path,
    command: str,
    images: int,
    answers: str | None,
) -> None:
    """Draw, or tell what answers say, with what is in the folder of an audit."""
    # the plan that was drawn before, if it is of these images
    empty = pictured.plan()
    plan = read_plan(folder, empty)
    undrawn = UserError(
        f"--answers {answers}: no images were drawn for this student and what it has learned from; expected "
        f"{command} before"
    )
    if answers is not None and plan is None:
        raise undrawn
    if plan is None:
        if (folder / PLAN).exists():
            _logger.warning(
                f"WARNING: {folder / PLAN} is not of these images, or was changed: images are drawn anew"
            )
        plan = empty

    # what students and labels say is asked once
    columns = ask(subjects, pictured, plan, folder)
    warn_of_silent(subjects, plan, [*columns.values()])

    # what a student knows by heart says nothing about new images, and what it has held out does
    memorised: dict[str, float] = {}
    if folder.name != HELD_OUT:
        memorised = memorised_by(subjects, plan, columns)
    held_out = held_out_by(subjects) if memorised else []
    if held_out:
        write_plan(folder, plan)
        shown = [f"{name} {100 * share:.1f} %" for name, share in memorised.items()]
        say(
            f"of the labels that they were trained on students repeat: {', '.join(shown)}, which says nothing about new "
            "images; the images that were held out are drawn"
        )
        beside = folder.with_name(HELD_OUT)
        with alone_in(beside):
            _go_on(held_out, images_of(held_out, None), beside, command, images, answers)
        return
    if answers is not None and not plan.draws:
        raise undrawn
    own = Audit(subjects, pictured, folder, command, plan, columns, memorised)

    # answers: keep them, and tell what they show
    if answers is not None:
        answered = read_answered(plan, answers, folder)
        write_plan(folder, plan)
        keep_answers(plan, answered, folder)
        tell(own, answered, answers)
        return
    # no answers: draw, and tell what those of earlier draws show
    kept = kept_answers(plan, folder)
    drawn = draw(own, images, kept)
    if kept is None:
        set_aside_others(plan, folder)
    elif len(evidence_of(own, kept).rows):
        tell(own, replace(kept, drawn=drawn), "the answers so far")


def memorised_by(
    subjects: Sequence[Subject], plan: Plan, columns: Mapping[str, int]
) -> dict[str, float]:
    """Return how often students that know the labels by heart repeat these, from 0 to 1, by their names."""
    found = {}
    for subject in subjects:
        if subject.labels is not None:
            pair = [subject.labels, columns[subject.name]]
            share = plan.said(pair, plan.images(pair)).agreement
            if share >= MEMORISED:
                found[subject.name] = share
    return found


def folder_of(subjects: Sequence[Subject]) -> Path:
    """Return the folder of an audit: that of the first run, or beside the first table."""
    first = next((one for one in subjects if one.learned is not None), None)
    if first is not None and first.learned is not None:
        return first.learned.run / "audit"
    file = subjects[0].typed.removeprefix(LABELS_PREFIX)
    # what follows the name says how the file is read, unless it is part of the name
    if not Path(file).is_file():
        file = file.split("?")[0].split("#")[0]
    return Path(f"{file}.audit")


# ---------------------------------------------------------------- the draw


def draw(audit: Audit, images: int, kept: Answered | None) -> int:
    """Draw images, after those that have answers already, and write the page and the table for the answers.

    Returns:
        How many are drawn.
    """
    # answers do not count if one of these says nothing of the image, or has learned them
    plan, folder, columns = audit.plan, audit.folder, [*audit.columns.values()]
    answered = np.empty(0, dtype=np.int64) if kept is None else kept.rows
    of_these = plan.images(columns)
    idle = len(np.setdiff1d(answered, of_these))

    # more images include those that were drawn before
    steps = steps_to(plan, columns, images + idle, kept)
    name = plan.id_of(steps)
    earlier = [one for one in plan.draws if plan.id_of(one) != name]
    plan.draws = [*earlier, steps]
    write_plan(folder, plan)
    rows = plan.order(steps)[: steps[-1].drawn]
    is_done = len(rows) == len(answered)
    _say_drawn(audit, len(rows))
    if idle:
        say(f"answers about {idle} of them do not count here")
    undrawn = len(of_these) - (len(answered) - idle)
    if is_done and undrawn:
        more = min(MORE, undrawn)
        say(
            f"all of these have an answer already; --images {len(answered) - idle + more} draws {more} more"
        )

    labels = [] if kept is None else [plan.word(label) for label in kept.truth.tolist()]
    given = {plan.key(row): label for row, label in zip(answered.tolist(), labels)}
    keys = [plan.key(row) for row in rows]
    sheet = Sheet(
        id=name,
        title=f"Audit of {folder.resolve().parent.name}",
        by=plan.by,
        images=[plan.image(row) for row in rows],
        classes=plan.choices,
        candidates=_candidates(plan, columns, rows),
        table=plan.table(rows.tolist(), [given.get(key, "") for key in keys], name),
        keys=keys,
        given=given,
        earlier=[plan.id_of(one) for one in earlier],
        # without a class to ask about, a person is asked for one
        questions=[plan.about(row) for row in rows] if isinstance(plan, Questions) else (),
    )
    todo = "change some" if is_done else ""
    hand_out(sheet, folder, audit.images.dataset, audit.command, todo)
    return len(rows)


def _say_drawn(audit: Audit, drawn: int) -> None:
    """Say how many images are drawn, and on how many all agree."""
    plan, columns = audit.plan, [*audit.columns.values()]
    opinions = plan.said(columns, plan.images(columns))
    count = len(opinions.says)
    agree = f"agree on {100 * (~opinions.differ).mean():.1f} % of"
    if audit.of_one_run:
        agree = agree.replace("agree on", "agrees with its labels on")
        text = f"{audit.folder.parent}: the student {agree} {count}"
    elif len(columns) > 1:
        text = f"{', '.join(audit.columns)}: all {agree} {count}"
    else:
        text = f"{audit.subjects[0].typed}: {count}"
    say(f"{text} {plan.unit}s; {drawn} are drawn")


def _candidates(plan: Plan, columns: Sequence[int], rows: np.ndarray) -> list[list[int]]:
    """Return which classes the page shows first of each image: what some say, and at least two, so that it does not tell
    whether all agree; no opinion comes first.
    """
    chosen = [plan.opinions[column] for column in columns]
    candidates: list[list[int]] = []
    for row in rows:
        classes = {int(one.says[row]) for one in chosen}
        if len(classes) == 1:
            classes.add(int(chosen[-1].other[row]))
        candidates.append(sorted(classes, key=plan.choices.__getitem__))
    return candidates


def steps_to(plan: Plan, columns: Sequence[int], images: int, kept: Answered | None) -> list[Step]:
    """Return the steps of a draw of so many images for some opinions, which goes on after those with answers."""
    before = [] if kept is None else kept.steps
    answered = 0 if kept is None else len(kept.rows)
    own = Step([*columns], max(images, answered))
    if before and before[-1].columns == own.columns:
        before = before[:-1]
    elif images <= answered:
        # there are as many answers as were asked for, and they tell something of these opinions, too
        return before
    steps = [*before, own]
    return first_steps(steps, min(own.drawn, len(plan.order(steps))))


# ---------------------------------------------------------------- what answers tell


def tell(audit: Audit, answered: Answered, file: str) -> None:
    """Say what answers tell of labels and students, and write the checked images as a labelled set.

    Raises:
        UserError: the answers are about none of the images.
    """
    lost = int((answered.truth == NO_LABEL).sum())
    count, drawn = len(answered.rows), answered.drawn
    unit = audit.plan.unit
    say(
        f"{file}: answers about {count} of the {drawn} drawn {unit}s, {lost} of them '{UNSURE}' (cannot tell)"
    )
    if answered.unknown:
        _logger.warning(
            f"WARNING: {answered.unknown} answers are about {unit}s that are not drawn, and do not count"
        )
    if lost > MANY * count:
        _logger.warning(
            "WARNING: so many are taken to be as the others of their kind, which may not be so"
        )

    # images that had no chance have no weight, and nobody can know whether they are harder
    unreached = np.setdiff1d(
        audit.plan.images([*audit.columns.values()]),
        np.concatenate([audit.plan.images(step.columns) for step in answered.steps]),
    )
    if len(unreached):
        _logger.warning(
            f"WARNING: {len(unreached)} {unit}s could not be drawn so far, because the answers are of an audit that "
            "left them out: they are taken to be as the others, which may not be so"
        )

    # accuracies
    evidence = evidence_of(audit, answered)
    if not len(evidence.rows):
        raise UserError(f"{file}: is about no {unit} of which all of these say something")
    result = estimate(*evidence)
    names = ["labels", "student"] if audit.of_one_run else [*audit.columns]
    # somebody may have named the file of the labels themselves
    right = evidence.opinions.says[evidence.rows] == evidence.truth[:, None]
    same = [name for name, all_right in zip(names, right.all(axis=0)) if all_right]
    if same and len(right) >= ENOUGH and not right.all():
        _logger.warning(
            f"WARNING: all of these answers are what {same[0]} says: is {file} what a person has said?"
        )
    say_accuracies(names, result)
    images = len(evidence.opinions.says)
    if audit.of_one_run:
        export = audit.folder.parent / "export"
        agreement = max(audit.memorised.values(), default=0.0)
        say(verdict_on_one(result, export, count - lost, drawn, images, unit, agreement))
    elif len(names) > 1:
        several = names, result, count - lost, drawn, images, unit
        say(verdict_on_several(*several, audit.memorised))
    write_differences(audit.folder / "differences.csv", names, result)

    # what the best one confuses
    best = int(result.accuracy.argmax())
    answers = weigh(*evidence)
    says, classes = evidence.opinions.says[:, best], audit.plan.classes
    if isinstance(audit.plan, Questions):
        say_yes(names, *count_yes(*evidence), int(evidence.truth.sum()))
        asked = audit.plan.images([*audit.columns.values()])[evidence.rows]
        of_class = asked % len(classes)
        about = says[evidence.rows]
        say_of_questions(audit.folder, names[best], classes, of_class, about, answers)
    else:
        say_of_classes(audit.folder, names[best], classes, says, says[evidence.rows], answers)
    chosen = [one for one in audit.subjects if one.learned is not None]
    subject = next((one for one in chosen if one.name == [*audit.columns][best]), None)
    if subject is not None and subject.learned is not None and not audit.of_one_run:
        say(f"* {names[best]} is exported to {subject.learned.run / 'export'}")
    say_checked(audit, answered, subject or next(iter(chosen), None))


def evidence_of(audit: Audit, answered: Answered) -> Evidence:
    """Return what answers say of the images about which all opinions of an audit say something."""
    plan, columns = audit.plan, [*audit.columns.values()]
    images = plan.images(columns)
    counts = np.isin(answered.rows, images) & (answered.truth != NO_LABEL)
    chance = plan.chances(answered.steps, answered.rows)
    rows = np.searchsorted(images, answered.rows[counts])
    opinions = plan.said(columns, images)
    of_steps = [plan.said(step.columns, images) for step in answered.steps]
    groups = group_images(opinions, of_steps)
    return Evidence(opinions, rows, answered.truth[counts], chance[counts], groups)


def say_checked(audit: Audit, answered: Answered, subject: Subject | None) -> None:
    """Write the checked images as a labelled set, and say how to learn from them."""
    checked = audit.folder / "checked"
    plan = audit.plan
    if isinstance(plan, Questions):
        table = checked.with_suffix(".csv")
        write_checked(table, plan, answered.rows, answered.truth)
        say(
            f"* checked: {table}, for --train-labels {table}?missing=skip: a column of each class, 1 and 0 as you said, "
            "empty where nobody was asked. These are no random sample: learn from them, but measure nothing else on them"
        )
        return
    keys = [plan.keys[row] for row in answered.rows]
    learned = None if subject is None else subject.learned
    _, command = keep_labelled(learned, audit.images, checked, keys, answered.truth.tolist())
    whose = "the student and its labels" if audit.of_one_run else "some of these"
    text = (
        f". They are no random sample, because most are images that {whose} differ about: learn from them, but "
        "measure nothing else on them"
    )
    say(f"* checked images: {checked}{text if len(audit.columns) > 1 else ''}")
    if command is not None:
        say(command)
