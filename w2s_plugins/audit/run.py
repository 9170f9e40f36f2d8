"""``python -m w2s_plugins.labels audit RUN ...``: images are drawn, a person says what is on them, and the answers say
whether a student is better than its labels, and which of several is best.
"""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ..errors import UserError, quietly, say, typed, write_errors
from ..files import delete
from ..labels.several import are_several
from ..monitor import setup_logging
from ..no_label import NO_LABEL
from ..registry import load_plugins
from ..run.lock import LOCK
from ..settings.forms import LABELS_PREFIX
from ..target_kind import ONE_CLASS
from .answers import (
    UNSURE,
    Answered,
    first_steps,
    keep_answers,
    kept_answers,
    labels_given,
    read_answers,
    set_aside_others,
    write_sheet,
)
from .draw import Step, group_images
from .estimate import Evidence, count_yes, estimate, weigh
from .labelled import command_with_labelled, pictures, validation_of, write_labelled
from .page import write_page
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


def command_for(
    name: str, runs: Sequence[str], data_dir: str | None, plugins: Sequence[str]
) -> str:
    """Return the command of this name for some runs, as it would be typed again."""
    words = [name, *runs]
    if data_dir is not None:
        words += ["--data-dir", data_dir]
    if plugins:
        words += ["--plugins", *plugins]
    return f"{typed('labels')} {shlex.join(words)}"


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
    several = are_several(pictured.target_kind)
    empty = (Questions if several else Plan)(pictured.by, pictured.classes, pictured.keys)
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
    if answers is not None:
        answered = read_answers(plan, answers, folder)
        write_plan(folder, plan)
        keep_answers(plan, answered, folder)
        tell(own, answered, answers)
        return
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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder: each would write what it draws over what the other one has drawn.

    Raises:
        UserError: another one is in it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{folder}: another command is at work in it; wait for its end, and start the same command again"
            ) from None
    try:
        yield
    finally:
        lock.release()
        # what is refused leaves no folder behind
        if {*folder.iterdir()} <= {folder / LOCK}:
            delete(folder)


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
    # more images include those that were drawn before
    plan, folder = audit.plan, audit.folder
    columns = [*audit.columns.values()]
    # answers do not count if one of these says nothing of the image, or has learned them
    count_of_these = 0 if kept is None else int(np.isin(kept.rows, plan.images(columns)).sum())
    idle = 0 if kept is None else len(kept.rows) - count_of_these
    steps = steps_to(plan, columns, images + idle, kept)
    name = plan.id_of(steps)
    earlier = [one for one in plan.draws if plan.id_of(one) != name]
    plan.draws = [*earlier, steps]
    write_plan(folder, plan)
    rows = plan.order(steps)[: steps[-1].drawn]
    agree = 100 * (~plan.said(columns, plan.images(columns)).differ).mean()
    count, drawn = len(plan.images(columns)), len(rows)
    if audit.of_one_run:
        text = f"{folder.parent}: the student agrees with its labels on {agree:.1f} % of {count} {plan.unit}s"
    elif len(columns) > 1:
        text = f"{', '.join(audit.columns)}: all agree on {agree:.1f} % of {count} {plan.unit}s"
    else:
        text = f"{audit.subjects[0].typed}: {count} {plan.unit}s"
    say(f"{text}; {drawn} are drawn")
    if idle:
        say(f"answers about {idle} of them do not count here")
    is_done = kept is not None and drawn == len(kept.rows)
    if is_done and count_of_these < count:
        more = min(MORE, count - count_of_these)
        say(
            f"all of these have an answer already; --images {count_of_these + more} draws {more} more"
        )

    # what some say, and at least two classes, so that the page does not tell whether all agree; none comes first
    chosen = [plan.opinions[column] for column in columns]
    candidates = []
    for row in rows:
        said = {int(one.says[row]) for one in chosen}
        if len(said) == 1:
            said.add(int(chosen[-1].other[row]))
        candidates.append(sorted(said, key=plan.choices.__getitem__))
    keys = [plan.key(row) for row in rows]
    given = labels_given(plan, kept)
    # without a class to ask about, a person is asked for one
    template, more = "page", {}
    if isinstance(plan, Questions):
        template, more = "question", {"questions": [plan.about(row) for row in rows]}
    page = folder / "index.html"
    write_page(
        page,
        pictures(audit.images.dataset, [plan.image(row) for row in rows]),
        title=f"Audit of {folder.resolve().parent.name}",
        command=f"{audit.command} --answers FILE",
        audit=dict(
            id=name,
            earlier=[plan.id_of(one) for one in earlier],
            given=[[key, given[key]] for key in keys if key in given],
            by=plan.by,
            classes=plan.choices,
            unsure=UNSURE,
            keys=keys,
            candidates=candidates,
            **more,
        ),
        template=template,
    )

    # a sheet that is there may hold answers
    sheet = folder / f"answers-{name[:7]}-{drawn}.csv"
    if not sheet.exists():
        write_sheet(sheet, plan, name, rows, kept)
    todo = "change some" if is_done else f"download your answers, or fill in {sheet}"
    say(
        f"* open {page} in a browser and {todo}; then",
        f"{audit.command} --answers FILE",
    )
    return drawn


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
    images = pictures(audit.images.dataset, keys)
    learned = None if subject is None else subject.learned
    labels = answered.truth.tolist()
    held_out = validation_of(learned)
    write_labelled(checked, images, keys, plan.by, labels, plan.classes, held_out)
    whose = "the student and its labels" if audit.of_one_run else "some of these"
    text = (
        f". They are no random sample, because most are images that {whose} differ about: learn from them, but "
        "measure nothing else on them"
    )
    say(f"* checked images: {checked}{text if len(audit.columns) > 1 else ''}")
    if learned is not None:
        command = command_with_labelled(learned, checked, plan.classes)
        if command is not None:
            say(command)
