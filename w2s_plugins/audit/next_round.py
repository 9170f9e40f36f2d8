"""``python -m w2s_plugins.labels next RUN``: images are chosen whose classes would teach the next student most, a person
says what is on them, and the answers become a labelled set beside the command that trains with it.

A round needs nothing of the one before but its answers, each of which is about an image. So those of earlier rounds and
of audits count as well, and a table of answers is believed if it is about the same images, whoever has made it.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import MapDataset
from ..errors import UserError, say, typed
from ..labels.several import are_several
from ..labels.store import LabelReader
from ..labels.table import LabelRows
from ..labels.table_writer import write_label_table
from ..models.loading import of_timm
from ..monitor import setup_logging
from ..no_label import NO_LABEL
from ..predictions.run import open_model
from ..registry import load_plugins
from ..settings.teacher_name import TeacherName
from ..students.probe import create_encoder
from ..teachers.openers import Opened
from ..teachers.teacher import open_alone
from ..training.device import create_precision
from ..training.learned import ROWS, Learned, open_learned
from ..training.loaders import answer_store
from .answers import UNSURE, answers_by_image, open_answers, run_of_sheet
from .labelled import (
    ANSWERS,
    VALIDATION,
    command_with_labelled,
    has_learned_labelled,
    images_in,
    pictures,
    validation_of,
    write_labelled,
    written_images,
)
from .next_images import order_to_ask, rows_to_consider
from .page import write_page
from .plan import is_draw, is_round
from .run import alone_in, command_for
from .subjects import (
    IMAGES,
    Images,
    Subject,
    check_stage,
    images_of,
    locate_run,
    student_logits,
)

FOLDER = "next"  # in that of a run
ANSWERED = "answered"  # in that one: the labelled set
FEWEST = 5  # classes that are named

_logger = logging.getLogger(__name__)


@dataclass
class Round:
    """Images of a run that a person is asked about.

    Args:
        learned: what the run has learned from.
        images: its training images.
        command: that begins the round.
        answers: what a person has said already: classes of images by their keys, in the order in which they were
            answered, `NO_LABEL` where she could not tell.
    """

    learned: Learned
    images: Images
    command: str
    answers: dict[str | int, int]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.learned.run / FOLDER

    @property
    def id_of_images(self) -> str:
        """Names images and classes, whoever has learned from them. It begins with a letter, so that no spreadsheet
        takes it for a number.
        """
        # runs may count classes differently
        contents = [one.fingerprint for one in self.learned.made_of if one.role == IMAGES]
        classes = sorted(self.images.classes)
        return "n" + _digest(self.images.by, self.images.keys, classes, contents)[:7]

    @property
    def id(self) -> str:
        """Names the round: the same images and answers."""
        return self.id_of_images + _digest(sorted(map(str, self.answers)))[:8]


def ask_next(
    run: str,
    images: int,
    answers: str | None,
    data_dir: str | None,
    plugins: Sequence[str],
) -> None:
    """Choose images and write the page about them; with ``answers``, write the labelled set.

    Raises:
        UserError: no run that has ended; its images are not there; the answers cannot be read.
    """
    setup_logging(primary=True)
    load_plugins(plugins)
    command = command_for("next", [run], data_dir, plugins)
    folder = locate_run(run)
    if folder is None:
        raise UserError(
            f"RUN {run}: a table of labels; expected the folder of a run that has ended"
        )

    check_stage(folder, run)

    # the images, and what is known of them
    learned = open_learned(folder, data_dir)
    if are_several(learned.data.target_kind):
        raise UserError(
            f"RUN {run}: labels of several classes an image, of which no images are chosen to label next; expected "
            f"{command_for('audit', [run], data_dir, plugins)}"
        )
    of_run = images_of([Subject(folder.name, run, learned)], data_dir)
    own = Round(learned, of_run, command, {})
    with alone_in(own.folder):
        own.answers = answers_before(own)
        if answers is None:
            draw(own, images)
        else:
            tell(own, answers)


# ---------------------------------------------------------------- the draw


def draw(own: Round, images: int) -> None:
    """Choose images without an answer, and write the page and the table for the answers.

    Raises:
        UserError: every image has an answer.
    """
    # of very many images only some are chosen from, whose features are read
    learned, of_run = own.learned, own.images
    place = {key: number for number, key in enumerate(of_run.keys)}
    answered = np.array(sorted(place[key] for key in own.answers), dtype=np.int64)
    if len(answered) == len(of_run.keys):
        raise UserError(f"RUN {learned.run}: all of its {len(answered)} images have an answer")
    student = open_model(str(learned.run))
    considered = rows_to_consider(len(of_run.keys), answered)
    features = read_rows(features_of(learned, student, of_run.dataset), considered, of_run)
    chosen = considered[order_to_ask(features, np.searchsorted(considered, answered), images)]
    say(
        f"{learned.run}: {len(answered)} of {len(of_run.keys)} images have an answer; {len(chosen)} are drawn"
    )

    # the two classes that the student finds likeliest come first, in an order that does not tell which it says
    keys = [of_run.keys[row] for row in chosen]
    likely = student_logits(learned, of_run, chosen).topk(min(2, len(of_run.classes))).indices
    candidates = [sorted(pair, key=of_run.classes.__getitem__) for pair in likely.tolist()]
    page = own.folder / "index.html"
    write_page(
        page,
        pictures(of_run.dataset, keys),
        title=f"To label next: {learned.run.resolve().name}",
        command=f"{own.command} --answers FILE",
        audit=dict(
            id=own.id,
            earlier=[],
            given=[],
            by=of_run.by,
            classes=of_run.classes,
            unsure=UNSURE,
            keys=keys,
            candidates=candidates,
        ),
    )

    # a sheet that is there may hold answers
    sheet = own.folder / f"answers-{own.id}-{len(keys)}.csv"
    if not sheet.exists():
        empty = {of_run.by: keys, "label": [""] * len(keys), "audit": [own.id] * len(keys)}
        write_label_table(sheet, [empty])
    say(
        f"* open {page} in a browser and download your answers, or fill in {sheet}; then",
        f"{own.command} --answers FILE",
    )


def features_of(learned: Learned, student: Opened, dataset: MapDataset) -> LabelReader:
    """Return the features of the images, which are stored: what the head of the student sees, or, if that is not one
    linear layer, its answers.
    """
    loading = learned.settings.data
    precision = create_precision(learned.settings.compute, learned.world)
    stored = learned.run / FOLDER / "student"
    store = answer_store(loading, stored, learned.world)
    advice = "images are taken to be near where the student says much the same"
    try:
        encoder = create_encoder(
            of_timm(student.model),
            student.data_config,
            precision,
            f"RUN {learned.run}",
            "labels next",
            advice,
        )
    except UserError as error:
        _logger.warning(f"WARNING: {error}")
        name = TeacherName.parse(str(learned.run))
        member = open_alone(name, student, learned.world.device, ("RUN", "RUN"))
        return learned.answers(member, stored)
    return store.features(encoder, dataset, loading.train_split)


def read_rows(reader: LabelReader, rows: np.ndarray, images: Images) -> np.ndarray:
    """Return what is stored of some images, (n, D)."""
    in_data = torch.tensor(images.rows)[torch.tensor(rows)]
    return torch.cat([reader(index, torch.device("cpu")) for index in in_data.split(ROWS)]).numpy()


# ---------------------------------------------------------------- answers


def answers_before(own: Round) -> dict[str | int, int]:
    """Return the answers about the images of a run: those that it was trained with, then those of its audit, then those
    of earlier rounds, which win.
    """
    known: dict[str | int, int] = {}
    run, loading = own.learned.run, own.learned.settings.data
    folders = [run / "audit" / "checked", run / FOLDER / ANSWERED]
    if loading.data_dir and loading.unlabeled:
        given = Path(loading.data_dir)
        # another table of that name holds the weak labels, for all that is known
        is_written = written_images(given) is not None
        if is_written:
            folders.insert(0, given)
        is_own = not is_written or has_others(given)
        if has_learned_labelled(own.learned) and is_own and not has_others(folders[-1]):
            _logger.warning(
                f"WARNING: RUN {run} has also learned from the labelled images of {loading.data_dir}, which the printed "
                f"command does not have: copy them into {folders[-1]}"
            )
    for folder in folders:
        file = folder / ANSWERS
        if file.is_file():
            table, combine = open_answers(str(file), own.images.classes)
            last = answers_in(own, table, combine, str(file))
            known |= last
            if folder == folders[-1]:
                # an audit after them leaves each image in its part, training or validation
                known = {key: known[key] for key in [*last, *known]}
    return known


def has_others(folder: Path) -> bool:
    """True if there are images beside those that were written as a labelled set."""
    return bool(images_in(folder) - (written_images(folder) or set()))


def answers_in(
    own: Round, table: LabelRows, combine: str | None, file: str
) -> dict[str | int, int]:
    """Return the answers of a table about the images of a run."""
    of_run = own.images
    has_answer, classes = answers_by_image(
        table, combine, of_run.by, of_run.keys, of_run.classes, file
    )
    # in the order of the table, as far as it has the names of the images as they are
    place = {key: number for number, key in enumerate(table.keys)}
    rows = has_answer.nonzero()[0].tolist()
    rows.sort(key=lambda row: place.get(of_run.keys[row], len(place)))
    return {of_run.keys[row]: int(classes[row]) for row in rows}


def tell(own: Round, file: str) -> None:
    """Write all answers as a labelled set, and say how to train with it.

    Raises:
        UserError: the answers cannot be read, are about other images, or say of no image what is on it.
    """
    table, combine = open_answers(file, own.images.classes)
    check_round(own, table, file)
    told = answers_in(own, table, combine, file)
    answers = own.answers | told
    if all(label == NO_LABEL for label in told.values()):
        raise UserError(f"{file}: says of no image what is on it")

    # what is new in them
    lost = sum(label == NO_LABEL for label in told.values())
    changed = sum(own.answers.get(key, label) != label for key, label in told.items())
    say(
        f"{file}: answers about {len(told)} images, {lost} of them '{UNSURE}' (cannot tell); with those before "
        f"{len(answers)}"
    )
    if changed:
        _logger.warning(f"WARNING: {changed} of them are others than before, and replace these")
    unknown = len({*table.keys}) - len(told)
    if unknown:
        _logger.warning(
            f"WARNING: {unknown} answers are about images that RUN {own.learned.run} has not learned from, and do "
            "not count"
        )

    # the labelled set, and the classes that it has least of
    folder, of_run = own.folder / ANSWERED, own.images
    keys, labels = list(answers), list(answers.values())
    held_out = validation_of(own.learned)
    images = pictures(of_run.dataset, keys)
    write_labelled(folder, images, keys, of_run.by, labels, of_run.classes, held_out)
    counts = np.bincount([label for label in labels if label != NO_LABEL], minlength=1)
    counts = np.pad(counts, (0, len(of_run.classes) - len(counts)))
    fewest = np.argsort(counts, kind="stable")[:FEWEST]
    named = ", ".join(f"{of_run.classes[number]} ({counts[number]})" for number in fewest)
    say(
        f"* answered images: {folder}{f', every {held_out}th for validation' if held_out else ''}; classes with the "
        f"fewest answers: {named}"
    )
    command = command_with_labelled(own.learned, folder, of_run.classes)
    if command is None:
        say(
            f"* there is no command that trains with them: it needs a run with --unlabeled, and {VALIDATION} answers"
        )
    else:
        say(command)


def check_round(own: Round, table: LabelRows, file: str) -> None:
    """Raise a `UserError` for answers that say that they are about other images, or of an audit."""
    # other tables may have a column of that name with anything in it
    named = [*map(str.lower, table.draws)]
    if any(is_draw(one) for one in named):
        raise UserError(
            f"{file}: is of an audit; expected {typed('labels')} audit RUN --answers {file}, after which its answers "
            "count here as well"
        )
    others = [one for one in named if is_round(one) and not one.startswith(own.id_of_images)]
    if others:
        whose = run_of_sheet(others[0], own.folder)
        raise UserError(
            f"{file}: is about other images or classes than {own.learned.run}'s{f': {whose}' if whose else ''}; "
            f"expected answers to {own.folder / 'index.html'}"
        )


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
