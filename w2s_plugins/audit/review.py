"""``python -m w2s_plugins.labels review RUN``: the labels that are most likely wrong are shown to a person, whose answers
become a labelled set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..errors import UserError, say
from .doubt import doubt_of, judge, order_to_review, proposals
from .draw import lots_of
from .features import features_of, read_rows, untrained_student
from .next_images import directions_of, rows_to_consider
from .page import Sheet, hand_out
from .rounds import Round, ask_in_rounds
from .subjects import labels_of_run


class Doubts(NamedTuple):
    """What is known of the labels of some images.

    Args:
        rows: (n,) of the images in the plan.
        labels: (n,) their classes.
        shares: (n, C) of the classes, by the labels of other images.
        doubt: (n,) by how far another class is above the label.
        features: (n, D) of the images.
    """

    rows: np.ndarray
    labels: np.ndarray
    shares: np.ndarray
    doubt: np.ndarray
    features: Tensor


def review(
    run: str,
    images: int,
    answers: str | None,
    data_dir: str | None,
    plugins: Sequence[str],
) -> None:
    """Choose labels and write the page about them; with ``answers``, write the labelled set.

    Raises:
        UserError: no run that has ended; its images are not there; the answers cannot be read.
    """
    ask_in_rounds(
        "review",
        run,
        answers,
        data_dir,
        plugins,
        not_several="which are not reviewed",
        draw=lambda opened: _draw(opened, images),
    )


def _draw(own: Round, images: int) -> None:
    """Choose labels without an answer, and write the page and the table for the answers.

    Raises:
        UserError: every label has an answer.
    """
    # those that have an answer are not asked about again
    plan, doubts = own.plan, doubts_of(own)
    doubt = np.where(np.isin(doubts.rows, [*own.answers]), np.nan, doubts.doubt)
    if np.isnan(doubt).all():
        raise UserError(f"RUN {own.learned.run}: none of its labels is left to review")
    directions = directions_of(doubts.features.numpy())
    chosen = order_to_review(doubt, doubts.labels, images, directions)
    rows = doubts.rows[chosen].tolist()
    say(
        f"{own.learned.run}: {len(own.answers)} of {plan.count} {plan.unit}s have an answer; {len(chosen)} labels are "
        "drawn, the most doubted first"
    )

    # beside its label, up to three others, the likeliest first
    labels = doubts.labels[chosen].tolist()
    others = [proposals(doubts.shares[one], label) for one, label in zip(chosen, labels)]
    shares = [doubts.shares[one, pair].tolist() for one, pair in zip(chosen, others)]
    table = plan.table(rows, [""] * len(rows), own.id)
    words = [
        "; ".join(f"{plan.word(one)} {100 * share:.0f} %" for one, share in zip(*pairs))
        for pairs in zip(others, shares)
    ]
    sheet = Sheet(
        id=own.id,
        title=f"Labels to review: {own.learned.run.resolve().name}",
        by=plan.by,
        images=[plan.image(row) for row in rows],
        classes=plan.choices,
        candidates=others,
        table={**table, "current": [plan.word(label) for label in labels], "likelier": words},
        labels=labels,
        shares=shares,
    )
    hand_out(sheet, own.folder, own.images.dataset, own.command)


def doubts_of(own: Round) -> Doubts:
    """Return how likely each label is wrong, by the labels of other images, and say whose opinion that is."""
    # the student as it began has seen no label; that of the run has learned them all
    learned, images = own.learned, own.images
    start = untrained_student(learned)
    whose = "the student's features as they were before it had learned a label"
    if start is None:
        whose = "features of the student, which has learned them: mistakes that it repeats are not found"
    say(
        f"each label is judged by a discriminant that was fitted to the labels of other images, on {whose}; what the "
        "student says is not asked, because it has learned this label"
    )
    considered = rows_to_consider(len(images.keys), np.zeros(0, dtype=np.int64))
    folder = own.folder / ("student" if start is None else "untrained")
    features = read_rows(features_of(learned, images, folder, start), considered, images)
    lots = lots_of(images.keys)[considered]

    labels = labels_of_run(learned, images).says[considered].astype(np.int64)
    shares = judge(features, labels, len(images.classes), lots)
    return Doubts(considered, labels, shares, doubt_of(shares, labels), features)
