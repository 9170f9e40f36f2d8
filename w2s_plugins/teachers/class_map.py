"""``--teacher-class-map``: which class of the data each class of a teacher stands for."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, near_path, nearest, one_line
from ..files import read_plain

_logger = logging.getLogger(__name__)

Classes = tuple[Sequence[str] | None, int]  # names, where there are any, and number


def read_class_map(file: str, teacher: Classes, student: Classes) -> Tensor:
    """Read a map from teacher classes to student classes.

    The file is json or yaml: a list with the student class (or null) of every teacher class, or a mapping from teacher
    class to student class, in which absent classes have that of their name, if any. A class is a name, or the number of
    its position.

    Returns:
        (T,) student classes, -1 for none.

    Raises:
        UserError: unreadable, or classes that there are not.
    """
    where = f"--teacher-class-map {file}"
    if not Path(file).is_file():
        raise UserError(f"{where}: no such file{near_path(file)}")
    try:
        content = read_plain(Path(file))
        pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{where}: expected a list or a mapping of classes ({one_line(error)})") from error
    # A mapping is for those whose names differ; a list says everything.
    class_map = [-1] * teacher[1]
    if isinstance(content, dict) and teacher[0] and student[0]:
        numbers = {name: number for number, name in enumerate(student[0])}
        class_map = [numbers.get(name, -1) for name in teacher[0]]
    # What the file says wins over equal names.
    for theirs, ours in pairs:
        number = _class_number(theirs, teacher, f"{where}: teacher")
        class_map[number] = -1 if ours in (None, -1) else _class_number(ours, student, f"{where}: student")
    mapped = [number for number in class_map if number >= 0]
    if not mapped:
        raise UserError(f"{where}: no teacher class is mapped")
    _logger.info(f"{where}: {len(mapped)} of {teacher[1]} classes of the teacher are mapped, to {len(set(mapped))} "
                 "classes of the data")
    return torch.tensor(class_map)


def _class_number(said: object, classes: Classes, whose: str) -> int:
    """Return the number of a class that a file names."""
    names, count = list(classes[0] or ()), classes[1]
    if said in names:
        return names.index(said)
    if str(said).isdecimal() and int(str(said)) < count:
        return int(str(said))
    raise UserError(f"{whose} class {str(said)[:60]} is not known{nearest(str(said), names)}; expected a name, or 0 to "
                    f"{count - 1}")
