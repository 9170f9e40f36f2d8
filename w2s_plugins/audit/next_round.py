"""``python -m w2s_plugins.labels next RUN``: images are chosen whose classes would teach the next student most, a person
says what is on them, and the answers become a labelled set beside the command that trains with it.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError, say
from ..no_label import NO_LABEL
from .features import features_of, read_rows
from .next_images import order_to_ask, rows_to_consider
from .page import Sheet, hand_out
from .rounds import Round, ask_in_rounds
from .subjects import student_logits

FEWEST = 5  # classes that are named


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
    ask_in_rounds(
        "next",
        run,
        answers,
        data_dir,
        plugins,
        not_several="of which no images are chosen to label next",
        draw=lambda opened: _draw(opened, images),
        summarise=_say_fewest,
    )


def _draw(own: Round, images: int) -> None:
    """Choose images without an answer, and write the page and the table for the answers.

    Raises:
        UserError: every image has an answer.
    """
    # of very many images only some are chosen from, whose features are read
    learned, count = own.learned, own.plan.count
    answered = np.array(sorted(own.answers), dtype=np.int64)
    if len(answered) == count:
        raise UserError(f"RUN {learned.run}: all of its {count} images have an answer")
    considered = rows_to_consider(count, answered)
    reader = features_of(learned, own.images, own.folder / "student")
    features = read_rows(reader, considered, own.images).numpy()
    chosen = considered[order_to_ask(features, np.searchsorted(considered, answered), images)]
    say(f"{learned.run}: {len(answered)} of {count} images have an answer; {len(chosen)} are drawn")

    # the two classes that the student finds likeliest come first, in an order that does not tell which it says
    keys, classes = [own.plan.keys[row] for row in chosen], own.plan.classes
    likely = student_logits(learned, own.images, chosen).topk(min(2, len(classes))).indices
    sheet = Sheet(
        id=own.id,
        title=f"To label next: {learned.run.resolve().name}",
        by=own.plan.by,
        images=keys,
        classes=classes,
        candidates=[sorted(pair, key=classes.__getitem__) for pair in likely.tolist()],
        table=own.plan.table(chosen.tolist(), [""] * len(keys), own.id),
    )
    hand_out(sheet, own.folder, own.images.dataset, own.command)


def _say_fewest(own: Round) -> None:
    """Name the classes that have the fewest answers."""
    labels = [label for label in own.answers.values() if label != NO_LABEL]
    counts = np.bincount(labels, minlength=len(own.plan.classes))
    fewest = np.argsort(counts, kind="stable")[:FEWEST]
    named = ", ".join(f"{own.plan.classes[number]} ({counts[number]})" for number in fewest)
    say(f"* classes with the fewest answers: {named}")
