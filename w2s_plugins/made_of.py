"""What a run was made of, by content: is it still what it was?

Images, labels and weights may change between two uses of one name. So every run notes what it was made of, in its
checkpoints and in result.json (`made_of`), and whatever takes something up again asks here: a run that goes on, a
finished run that is taken, and the runs that stand in one table.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError

PRODUCT = "product"


@dataclass(frozen=True)
class Ingredient:
    """A split, a file of labels, or the weights of a model that a run was made of.

    Args:
        role: what it is in the run: ``train``, ``labelled``, ``val`` and ``few_shot`` are splits, ``labels 0``
            is the first file of labels. ``given`` are the labels of the samples at hand, ``noise`` those of
            ``--label-noise``, ``selected`` what ``--clean-select`` left, and ``selection`` the file of weights
            by which it did. ``teacher`` is all that decides what the teachers say, ``teacher 0`` the file of
            the first one, ``start`` that which the student starts from, and ``product`` the one that the run
            has exported.
        name: what the user calls it.
        place: a hash of where it lies, so that others may read it and not learn the path.
        fingerprint: a hash of its content, or several, see `differ`; None if it cannot be told, which is taken for the
            same content. Streams have none.
        samples: how many there are, None if it has none.
    """

    role: str
    name: str
    place: str
    fingerprint: str | None
    samples: int | None = None

    def __str__(self) -> str:
        """Say which content it has."""
        count = "" if self.samples is None else f"{self.samples} samples, "
        return f"{count}fingerprint {str(self.fingerprint).split()[0][:16]}"


def absolute_place(path: str | Path | None) -> str:
    """Return a path that has the same text however it is spelt; names that are no paths stay as they are."""
    return os.path.abspath(path) if path and os.path.exists(path) else str(path or "")


def hash_of_place(*names: object) -> str:
    """Return a short hash of what names a place; others may read a record, but not where things lie on this disk."""
    # an exported model and its record are published; 16 digits tell a run's few places apart
    return hashlib.sha256(json.dumps(names, default=str).encode()).hexdigest()[:16]


def to_plain(made_of: Iterable[Ingredient]) -> list[dict[str, object]]:
    """Return ingredients as result.json and checkpoints hold them."""
    return [asdict(ingredient) for ingredient in made_of]


def from_plain(content: object) -> list[Ingredient]:
    """Read what `to_plain` wrote, perhaps of another version, which may have noted nothing that is known here.

    Raises:
        ValueError: it is something else.
    """
    # Older versions wrote a mapping, or nothing. What they had noted is not compared, so that their runs go on.
    entries = content if isinstance(content, list) else []
    try:
        made_of = [Ingredient(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError("not what a run is made of") from error
    texts = [(one.role, one.name, one.place) for one in made_of]
    if any({*map(type, text)} != {str} for text in texts):
        raise ValueError("not what a run is made of")
    return made_of


def differ(before: str | None, now: str | None) -> bool:
    """Return whether two fingerprints are of other content. One that has several parts, with a blank between them, needs
    one of the other's.
    """
    # what cannot be told, such as of a stream, is no reason to refuse a run
    return before is not None and now is not None and not {*before.split()} & {*now.split()}


def find_changed(before: Sequence[Ingredient], now: Sequence[Ingredient]) -> Ingredient | None:
    """Return the first ingredient of ``before`` that has the same role but another content now, None if none has."""
    contents = {one.role: one.fingerprint for one in now}
    for one in before:
        if differ(one.fingerprint, contents.get(one.role)):
            return one
    return None


def keep_recorded(before: Sequence[Ingredient], now: Sequence[Ingredient]) -> list[Ingredient]:
    """Return what a run that goes on is made of: what has another content now, and may have, stays as it was recorded."""
    recorded = {one.role: one for one in before}
    pairs = [(recorded.get(one.role, one), one) for one in now]
    return [old if differ(old.fingerprint, new.fingerprint) else new for old, new in pairs]


def check_same(runs: Mapping[str, Sequence[Ingredient]], where: str, key: str = "place") -> None:
    """Raise a `UserError` if two runs were made of what has one name, but not the same content.

    Args:
        runs: what each run was made of, by the name of the run.
        where: begins the message.
        key: what says which ingredients are one: their ``place``, or their ``role`` in runs that only differ in where
            things lie.
    """
    first: dict[str, tuple[str, Ingredient]] = {}
    for run, made_of in runs.items():
        for now in made_of:
            # The first run that was made of it is what all others are compared with.
            other, before = first.setdefault(getattr(now, key), (run, now))
            if differ(before.fingerprint, now.fingerprint):
                # What was made of a product is older than the run that has made another one since.
                older = run if before.role == PRODUCT else other
                raise UserError(
                    f"{where}: {other} and {run} cannot be compared: {now.name} changed between them: {before} for "
                    f"{other}, {now} for {run}; put the files back as they were, or delete the run folder of {older} "
                    "and train it again"
                )
