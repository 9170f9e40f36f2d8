"""What the commands with a page share: the folder that one works in at a time, and what becomes of the answers.

`audit` asks about a random sample, `next` about images that stand for many others. Those of one run that are chosen are
asked about in rounds. A round needs nothing of the one before but its answers, each of which is about an image. So those
of earlier rounds and of audits count as well, and a table of answers is believed if it is about the same images,
whoever has made it.
"""

import hashlib
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError, say, typed, write_errors
from ..files import delete
from ..labels.several import are_several
from ..monitor import setup_logging
from ..no_label import NO_LABEL
from ..registry import load_plugins
from ..run.lock import LOCK
from ..training.learned import Learned, open_learned
from .labelled import (
    ANSWERS,
    VALIDATION,
    command_with_labelled,
    has_learned_labelled,
    images_in,
    validation_of,
    write_labelled,
    written_images,
)
from .page import UNSURE, pictures
from .plan import Plan
from .subjects import IMAGES, Images, Subject, check_stage, images_of, locate_run
from .tables import COMMANDS, Answers, check_draws

ANSWERED = "answered"  # in the folder of a round: the labelled set

_logger = logging.getLogger(__name__)


def command_for(
    name: str, runs: Sequence[str], data_dir: str | None, plugins: Sequence[str]
) -> str:
    """Return the command of this name for some runs, as it would be typed again."""
    # plugins come last: the flag takes any number of words
    words = [name, *runs]
    if data_dir is not None:
        words += ["--data-dir", data_dir]
    if plugins:
        words += ["--plugins", *plugins]
    return f"{typed('labels')} {shlex.join(words)}"


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


def keep_labelled(
    learned: Learned | None,
    images: Images,
    folder: Path,
    keys: Sequence[str | int],
    labels: Sequence[int],
) -> tuple[int, str | None]:
    """Write the images that a person has answered about as a labelled set.

    Args:
        learned: what a run has learned from; None if there is none to repeat.
        images: among which these are.
        folder: where to.
        keys: (n,) of the images.
        labels: (n,) their classes.

    Returns:
        Every so many-th image is for validation, 0 for none; and the command that trains with them, None without one.
    """
    # a part of the answers is kept for validation, as the run's own settings say
    held_out = validation_of(learned)
    files = pictures(images.dataset, keys)
    write_labelled(folder, files, keys, images.by, labels, images.classes, held_out)
    # a table of labels has no command to repeat
    if learned is None:
        return held_out, None
    return held_out, command_with_labelled(learned, folder, images.classes)


# ---------------------------------------------------------------- rounds


@dataclass
class Round:
    """Images of a run that a person is asked about.

    Args:
        name: of the command.
        learned: what the run has learned from.
        images: its training images.
        plan: what may be asked about these.
        command: that begins the round.
        answers: what a person has said already: the answer to each row, in the order in which they were given,
            `NO_LABEL` where she could not tell.
    """

    name: str
    learned: Learned
    images: Images
    plan: Plan
    command: str
    answers: dict[int, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.learned.run / self.name

    @property
    def id_of_images(self) -> str:
        """Names images and classes, whoever has learned from them."""
        # runs may count classes differently
        contents = [one.fingerprint for one in self.learned.made_of if one.role == IMAGES]
        classes = sorted(self.plan.classes)
        letter = next(letter for letter, name in COMMANDS.items() if name == self.name)
        return letter + _digest(self.plan.by, self.plan.keys, classes, contents)[:7]

    @property
    def id(self) -> str:
        """Names the round: the same images and answers."""
        return self.id_of_images + _digest(sorted(map(self.plan.words, self.answers)))[:8]


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def open_round(name: str, run: str, data_dir: str | None, plugins: Sequence[str]) -> Round:
    """Open the images of a run again, of which a command of this name asks about some.

    Raises:
        UserError: no run that has ended; its images are not there.
    """
    # plugins may register the loss or the teacher that the run names
    setup_logging(primary=True)
    load_plugins(plugins)

    # the run, and the images that it learned from
    folder = locate_run(run)
    if folder is None:
        raise UserError(
            f"RUN {run}: a table of labels; expected the folder of a run that has ended"
        )
    check_stage(folder, run)
    learned = open_learned(folder, data_dir)
    images = images_of([Subject(folder.name, run, learned)], data_dir)
    command = command_for(name, [run], data_dir, plugins)
    return Round(name, learned, images, images.plan(), command)


def ask_in_rounds(
    name: str,
    run: str,
    answers: str | None,
    data_dir: str | None,
    plugins: Sequence[str],
    *,
    not_several: str,
    draw: Callable[[Round], None],
    summarise: Callable[[Round], None] | None = None,
) -> None:
    """Begin a round of a command, or with ``answers`` end it: read them, and write the labelled set.

    Args:
        name: of the command.
        run: folder of a run that has ended.
        answers: table of a person's answers, or None to draw.
        data_dir: where the images lie now, or None.
        plugins: modules or files to import.
        not_several: what the command cannot do with labels of several classes an image.
        draw: chooses images, and writes the page.
        summarise: says what the answers amount to, before the labelled set is written.

    Raises:
        UserError: no run that has ended; its images are not there; the answers cannot be read.
    """
    opened = open_round(name, run, data_dir, plugins)
    if are_several(opened.images.target_kind):
        raise UserError(
            f"RUN {run}: labels of several classes an image, {not_several}; expected "
            f"{command_for('audit', [run], data_dir, plugins)}"
        )
    # draw, or read what was answered
    with alone_in(opened.folder):
        opened.answers = answers_before(opened)
        if answers is None:
            draw(opened)
            return
        read_round(opened, answers)
        if summarise:
            summarise(opened)
        write_answered(opened)


def answers_before(own: Round) -> dict[int, int]:
    """Return the answers about the images of a run: those that it was trained with, then those of its audit, then those
    of earlier rounds, which win.
    """
    # where answers may be: the audit's, then this command's
    known: dict[int, int] = {}
    run, loading = own.learned.run, own.learned.settings.data
    folders = [run / "audit" / "checked", own.folder / ANSWERED]
    if loading.data_dir and loading.unlabeled:
        given = Path(loading.data_dir)
        # another table of that name holds the weak labels, for all that is known
        is_written = written_images(given) is not None
        if is_written:
            folders.insert(0, given)
        is_own = not is_written or _has_others(given)
        if has_learned_labelled(own.learned) and is_own and not _has_others(folders[-1]):
            _logger.warning(
                f"WARNING: RUN {run} has also learned from the labelled images of {loading.data_dir}, which the printed "
                f"command does not have: copy them into {folders[-1]}"
            )
    # later answers replace earlier ones
    for folder in folders:
        file = folder / ANSWERS
        if file.is_file():
            last = answers_of(own.plan.read(str(file)))
            known |= last
            if folder == folders[-1]:
                # an audit after them leaves each image in its part, training or validation
                known = {row: known[row] for row in [*last, *known]}
    return known


def _has_others(folder: Path) -> bool:
    """True if there are images beside those that were written as a labelled set."""
    return bool(images_in(folder) - (written_images(folder) or set()))


def answers_of(answers: Answers) -> dict[int, int]:
    """Return the answers of a table by their rows."""
    return dict(zip(answers.rows.tolist(), answers.labels.tolist()))


def read_round(own: Round, file: str) -> dict[int, int]:
    """Read the answers to a round, say how many they are, and add them to those before.

    Returns:
        The answers of the table.

    Raises:
        UserError: they cannot be read, are about other images, or say of no image what is on it.
    """
    # a table of another run, or of images that have changed, is refused
    answers = own.plan.read(file)
    check_draws(
        answers.draws,
        own.name,
        lambda draw: draw.startswith(own.id_of_images),
        own.folder,
        file,
    )
    new = answers_of(answers)
    if all(label == NO_LABEL for label in new.values()):
        raise UserError(f"{file}: says of no {own.plan.unit} what is on it")

    # what is new in them
    lost = sum(label == NO_LABEL for label in new.values())
    changed = sum(own.answers.get(row, label) != label for row, label in new.items())
    own.answers = own.answers | new
    say(
        f"{file}: answers about {len(new)} {own.plan.unit}s, {lost} of them '{UNSURE}' (cannot tell); with those "
        f"before {len(own.answers)}"
    )
    if changed:
        _logger.warning(f"WARNING: {changed} of them are others than before, and replace these")
    unknown = answers.total - len(new)
    if unknown:
        _logger.warning(
            f"WARNING: {unknown} answers are about {own.plan.unit}s that RUN {own.learned.run} has not learned from, and "
            "do not count"
        )
    return new


def write_answered(own: Round) -> None:
    """Write all answers of a round as a labelled set, and say how to train with it."""
    # the images, and a part of them for validation
    folder = own.folder / ANSWERED
    keys = [own.plan.key(row) for row in own.answers]
    labels = [*own.answers.values()]
    held_out, command = keep_labelled(own.learned, own.images, folder, keys, labels)
    # where they are, and what to type next
    part = f"; every {held_out}th is for validation" if held_out else ""
    say(f"* answered images: {folder}{part}")
    say(
        command
        or f"* there is no command that trains with them: it needs a run with --unlabeled, and {VALIDATION} answers"
    )
