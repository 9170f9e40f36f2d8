"""Splits that differ in their classes, as in few-shot learning: base, validation and novel ones.

A split is a folder of its own, or one folder of all classes and a list of those that belong to the split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import IterableDataset

from ..errors import UserError, nearest, one_line
from ..files import read_text
from .datasets import DatasetOptions, class_names_of, create_dataset, labels_of
from .map_style import AnyDataset, MapDataset
from .slices import Subset

if TYPE_CHECKING:
    from typing_extensions import Unpack

LISTS = Path(__file__).with_name("class_lists")


class ClassSubset(Subset):
    """The samples of some classes, which are numbered anew in the order that the dataset has them in."""

    def __init__(self, dataset: MapDataset, classes: Sequence[int]):
        # Numbers in the order of the dataset, whatever order the list has, and without gaps: a head has an output for
        # each listed class and no others.
        numbers = {old: new for new, old in enumerate(classes)}
        labels = labels_of(dataset)
        names = class_names_of(dataset)
        if labels is None:
            raise ValueError("a dataset that does not tell its labels has no classes to choose")
        super().__init__(dataset, [i for i, label in enumerate(labels) if label in numbers])
        self.targets = [numbers[labels[i]] for i in self.indices]
        if names:
            self.classes = [names[c] for c in classes]

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
        image, _ = super().__getitem__(index)
        return image, self.targets[index]


def list_names() -> list[str]:
    """Return the names of the lists that come with the package, such as ``miniimagenet/novel``."""
    return sorted(p.relative_to(LISTS).with_suffix("").as_posix() for p in LISTS.rglob("*.txt"))


def read_class_list(name: str, flag: str) -> list[str]:
    """Read the names of classes, one a line; ``#`` starts a comment.

    Raises:
        UserError: no such list, not a text file, or a list without or with repeated names.
    """
    # a list of the package goes before a file of that name
    of_package = list_names()
    path = LISTS / f"{name}.txt" if name in of_package else Path(name)
    if path.is_dir() or not path.exists():
        raise UserError(
            f"{flag} {name}: no such file{nearest(name, of_package)}; the package has "
            f"{', '.join(of_package)}"
        )
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{flag} {name}: expected a text file with one class a line ({one_line(error)})"
        ) from error
    # a comment begins anywhere in a line
    names = [line.partition("#")[0].strip() for line in lines]
    names = [name for name in names if name]
    if not names or len({*names}) < len(names):
        raise UserError(f"{flag} {name}: expected one class a line, and each once")
    return names


def keep_classes(dataset: AnyDataset, names: Sequence[str], flag: str) -> ClassSubset:
    """Return the samples of the classes ``names``.

    Raises:
        UserError: a class is missing, or the dataset does not tell its classes; ``flag`` begins the message.
    """
    # names and labels are known without a look at the images
    known = class_names_of(dataset)
    labels = labels_of(dataset)
    if isinstance(dataset, IterableDataset) or not known or labels is None:
        raise UserError(
            f"{flag}: this kind of dataset does not tell the names of its classes "
            "without being read; use a folder, torch/, hfds/ or w2s/ dataset"
        )
    present = {known[label] for label in set(labels)}
    # a class that is listed and not there would change the task in silence
    missing = [n for n in names if n not in present]
    if missing:
        raise UserError(
            f"{flag}: the data has no class '{missing[0]}'{nearest(missing[0], known)}; "
            f"{len(missing)} of {len(names)} are missing, it has {len(present)} classes"
        )
    wanted = set(names)
    return ClassSubset(dataset, [i for i, name in enumerate(known) if name in wanted])


def open_split(
    name: str,
    root: str | None,
    split: str,
    class_list: str | None,
    *,
    flag: str,
    list_flag: str = "--class-list",
    **kwargs: "Unpack[DatasetOptions]",
) -> AnyDataset:
    """Open a split as `create_dataset` does, with the classes of a list only where one is given.

    Args:
        name: ``TYPE/NAME`` or empty for a folder.
        root: folder of the data.
        split: name of the split.
        class_list: a file or the name of a list of the package; None or empty for all classes.
        flag: the flag that named the split.
        list_flag: the flag that named the list.
        **kwargs: further arguments of `create_dataset`.

    Raises:
        UserError: as `create_dataset`, `read_class_list` and `keep_classes`.
    """
    names = read_class_list(class_list, list_flag) if class_list else None
    dataset = create_dataset(name, root, split, flag=flag, **kwargs)
    if names is None:
        return dataset
    return keep_classes(dataset, names, f"{list_flag} {class_list}")
