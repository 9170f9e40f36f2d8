"""Names of classes, as a person gives them."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, one_line


def read_class_names(text: str, flag: str = "--class-names") -> list[str]:
    """Return the names of classes: of a file with one a line or a JSON list, or ``a,b,c``.

    Raises:
        UserError: the file cannot be read; a name is empty or there twice.
    """
    if Path(text).is_file():
        try:
            content = Path(text).read_text(encoding="utf-8-sig")
            names = json.loads(content) if content.lstrip().startswith("[") else content.splitlines()
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{flag} {text}: cannot be read as names, one a line or a JSON list ({one_line(error)})"
                            ) from error
        names = [str(name).strip() for name in names if str(name).strip()]
    elif "," in text:
        names = [name.strip() for name in text.split(",")]
    else:
        raise UserError(f"{flag} {text}: no such file; expected one with a name a line, or a,b,c")
    check_class_names(names, f"{flag} {text[:60]}")
    return names


def check_class_names(names: Sequence[str], flag: str) -> None:
    """Raise a `UserError` unless there are names, each of them once and not empty."""
    if not names or not all(names):
        raise UserError(f"{flag}: a name is empty; expected one for each class")
    seen: set[str] = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)
    if twice is not None:
        raise UserError(f"{flag}: the class '{twice[:40]}' is named twice; expected names that differ")
