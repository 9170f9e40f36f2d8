"""Names of classes, as a person gives them."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, near_path, one_line
from ..files import read_text

# what Unicode ignores where it is not drawn, fillers that are drawn as nothing, and control characters; the two joiners
# stay, because they change letters and emoji
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def read_class_names(text: str) -> list[str]:
    """Return the names that ``--class-names`` gives: a file with one a line, a json list, or themselves with commas.

    Raises:
        UserError: no names, a name given twice, or a file that holds something else.
    """
    flag, path = f"--class-names {text[:80]}", Path(text)
    # `Path.exists` raises for a list that is longer than a name of a file may be
    if os.path.exists(text) and not os.path.isdir(text):
        try:
            content = read_text(path, encoding="utf-8-sig")
            names = json.loads(content) if content.lstrip().startswith("[") else content.split("\n")
            names = [name for name in map(visible, names) if name]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{flag}: expected a text file with one name a line, or a json list of names "
                f"({one_line(error, 120)})"
            ) from error
    elif "," in text:
        names = [visible(name) for name in text.split(",")]
    else:
        raise UserError(
            f"{flag}: no such file{near_path(path)}; expected a file with one name a line, a json list, or "
            "names separated by commas"
        )
    # a class twice would have two numbers
    check_class_names(names, flag)
    return names


def visible(text: str) -> str:
    """Return a text without what nobody sees: spaces around it, byte order marks, spaces of no width."""
    return (text if text.isprintable() and text.isascii() else _UNSEEN.sub("", text)).strip()


def same_text(name: str) -> str:
    """Return a name in the one form that all of its spellings in Unicode share, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", visible(name)).split())


def same_word(name: str) -> str:
    """Return what all spellings of a name share that differ in capitals, spaces or the form of Unicode alone."""
    # the small letter of a Turkish capital with a dot has none of its own
    return same_text(same_text(name).casefold().replace("i\u0307", "i"))


def names_to_type(counts: Counter[str]) -> str | None:
    """Return the names of classes as ``--class-names`` takes them, of several spellings of one the most frequent; None
    where they cannot be typed so: a comma ends a name, and one name alone would be a file.
    """
    classes: dict[str, str] = {}
    for name, _ in counts.most_common():
        classes.setdefault(same_word(name), name)
    listed = ",".join(classes.values())
    return listed if listed.count(",") == len(classes) - 1 > 0 else None


def check_class_names(names: Sequence[str], flag: str, count: int | None = None) -> None:
    """Raise a `UserError` unless there are names, ``count`` if that is known, each of them once and not empty."""
    # a text is a sequence of texts, too, and not meant
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        text = one_line(ValueError(repr(names)), 60)
        raise UserError(f"{flag}: {text}: expected a list of texts, one for each class")
    if count is not None and len(names) != count:
        raise UserError(f"{flag}: {len(names)} names for the student's {count} classes")
    if not names or not all(names):
        raise UserError(f"{flag}: a name is empty, or there are none; expected one for each class")
    if len({*names}) < len(names):
        # the most frequent one is one that is there twice
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(
            f"{flag}: the class '{twice[:40]}' is named twice; expected names that differ"
        )
