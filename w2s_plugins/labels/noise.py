"""Label noise on a training split: drawn by rule, or read from a file of given labels.

The noise of a sample is a function of its position in the whole split, of the split's labels and of a seed, so that
teacher and student, every slice of the split and every process have the same.
"""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from ..data.datasets import class_names_of, labels_of, num_classes_of
from ..data.keys import file_names, positions_in_split, whole_split
from ..errors import UserError, nearest, one_line
from ..files import check_archive, read_plain
from .relabelled import Relabelled

KINDS = ("symmetric", "asymmetric", "pairflip", "file")
EXPECTED = "expected symmetric:R, asymmetric:R, pairflip:R with a ratio R from 0 to 1, or file:PATH[:COLUMN]"
LARGEST_MATRIX = 100  # classes up to which the confusion matrix is written out

# What is taken for what on CIFAR-10 (Patrini et al. 2017, 1609.03683). On CIFAR-100 a class is taken for the next one
# of its superclass, in the order of the class indices, and the last for the first.
CIFAR10_MAP = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
CIFAR100_SUPERCLASSES = (
    "beaver dolphin otter seal whale",
    "aquarium_fish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweet_pepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "bicycle bus motorcycle pickup_truck train",
    "lawn_mower rocket streetcar tank tractor",
)
GIVEN_COLUMNS = ("given", "label", "noisy_label")  # taken where no column is named
CLEAN_COLUMNS = ("clean", "clean_label")
FILE_COLUMNS = ("filename", "file_name", "file", "path", "file_path", "filepath", "image", "image_path", "img")


@dataclass(frozen=True)
class LabelNoise:
    """The labels that a training split was given, beside its own.

    Args:
        kind: what was asked for, e.g. ``symmetric:0.2``.
        given: label of every sample of the whole split.
        clean: the dataset's own labels.
        num_classes: C.
        source: seed, map or file that the labels come from.
    """

    kind: str
    given: list[int]
    clean: list[int]
    num_classes: int
    source: dict[str, object] = field(default_factory=dict)

    def apply(self, dataset: Dataset) -> Relabelled:
        """Return a part of the split with the given labels."""
        return Relabelled(dataset, [self.given[i] for i in positions_in_split(dataset)])

    def clean_labels(self, dataset: Dataset) -> list[int]:
        """Return the clean labels of a part of the split."""
        return [self.clean[i] for i in positions_in_split(dataset)]

    def record(self, dataset: Dataset) -> dict[str, object]:
        """Return kind, source, rate and confusion of the noise on a part of the split.

        ``rate`` is the share of samples whose given label is not the clean one. ``confusion`` counts samples, a row a
        clean class, a column a given class; None for more than `LARGEST_MATRIX` classes.
        """
        clean, given = np.array(self.clean_labels(dataset)), np.array(labels_of(dataset))
        size = self.num_classes
        matrix = np.bincount(clean * size + given, minlength=size * size).reshape(size, size).tolist() if (
            size <= LARGEST_MATRIX) else None
        changed = int((clean != given).sum())
        return dict(kind=self.kind, **self.source, samples=len(clean), changed=changed, rate=changed / len(clean),
                    confusion=matrix)

    def to_csv(self) -> str:
        """Return the labels of the whole split as text: index, given, clean."""
        rows = "".join(f"{i},{g},{c}\n" for i, (g, c) in enumerate(zip(self.given, self.clean)))
        return f"index,given,clean\n{rows}"


def parse_noise(text: str) -> tuple[str, float | str]:
    """Parse ``--label-noise``: its kind, and the ratio or the file with its column.

    Raises:
        UserError: of no such form.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"--label-noise {text}: unknown kind '{kind}'{nearest(kind, KINDS)}; {EXPECTED}")
    if kind == "file":
        if not rest:
            raise UserError(f"--label-noise {text}: names no file; {EXPECTED}")
        return kind, rest
    try:
        ratio = float(rest)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:  # not a number is refused too
        raise UserError(f"--label-noise {text}: {EXPECTED}, e.g. {kind}:0.2")
    return kind, ratio


def create_label_noise(text: str, dataset: Dataset, *, seed: int = 0, map_file: str | None = None) -> LabelNoise:
    """Give the samples of a whole training split the labels that ``--label-noise`` describes.

    - ``symmetric:R``: a random share R of the samples gets a label drawn uniformly from all classes, their own
      included.
    - ``asymmetric:R``: each sample of a class that is mapped to another one gets that class with probability R.
    - ``pairflip:R``: the same, where the map takes every class to the next one and the last to the first (Han et al.
      2018, 1804.06872).
    - ``file:PATH[:COLUMN]``: see `read_labels`.

    With one seed, the samples that noise of a low ratio changes are among those that a higher one does.

    Args:
        text: ``--label-noise``.
        dataset: the whole split, map-style.
        seed: seed of the draws.
        map_file: json or yaml with the map of asymmetric noise, for data other than CIFAR.

    Raises:
        UserError: labels that cannot be known in advance, unknown classes, or a file that does not fit.
    """
    kind, value = parse_noise(text)
    clean = None if isinstance(dataset, IterableDataset) else labels_of(dataset)
    if clean is None:
        raise UserError("--label-noise: this kind of dataset does not tell its labels without being read; use a "
                        "folder, torch/, hfds/ or w2s/ dataset")
    names, size = class_names_of(dataset), num_classes_of(dataset)
    if kind == "file":
        given, source = read_labels(value, dataset, clean, size, names)
        return LabelNoise(text, given, clean, size, source)
    # the legacy generator: NumPy promises that its stream stays the same
    rng, labels = np.random.RandomState(seed), np.array(clean)
    if kind == "symmetric":
        order, drawn = rng.permutation(len(labels)), rng.randint(size, size=len(labels), dtype=np.int64)
        chosen = order[:int(value * len(labels) + 0.5)]
        labels[chosen] = drawn[chosen]
    else:
        mapping = [*range(1, size), 0] if kind == "pairflip" else asymmetric_map(names, size, map_file)
        labels = np.where(rng.random_sample(len(labels)) < value, np.array(mapping)[labels], labels)
    source = {"seed": seed} if map_file is None else {"seed": seed, "map": map_file}
    return LabelNoise(text, labels.tolist(), clean, size, source)


def asymmetric_map(names: Sequence[str] | None, size: int, map_file: str | None) -> list[int]:
    """Return the class that each class is taken for: from a file, or as published for CIFAR-10 and CIFAR-100.

    Raises:
        UserError: no map is known for these classes, or the file does not fit them.
    """
    if map_file is not None:
        return read_class_map(map_file, names, size)
    names = list(names or ())
    if size == 10 and {*CIFAR10_MAP, *CIFAR10_MAP.values()} <= set(names):
        return [names.index(CIFAR10_MAP.get(name, name)) for name in names]
    groups = [group.split() for group in CIFAR100_SUPERCLASSES]
    published = sorted(name for group in groups for name in group)
    # by position: copies of the dataset spell single names in their own ways
    if size != 100 or sum(a == b for a, b in zip(names, published)) < 95:
        raise UserError("--label-noise asymmetric: the map of classes is known for CIFAR-10 and CIFAR-100 only; give "
                        "--label-noise-map FILE (json or yaml, class: class)")
    follows = {group[i - 1]: group[i] for group in map(sorted, groups) for i in range(len(group))}
    return [published.index(follows[name]) for name in published]


def read_class_map(file: str, names: Sequence[str] | None, size: int) -> list[int]:
    """Read ``--label-noise-map``: json or yaml, class to class, by name or index; classes left out stay as they are.

    Raises:
        UserError: unreadable, or unknown classes.
    """
    flag, path = f"--label-noise-map {file}", Path(file)
    try:
        content = read_plain(path)
    except OSError as error:
        raise UserError(f"{flag}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{flag}: neither json nor yaml: {one_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{flag}: expected a mapping of classes to classes, such as cat: dog")
    mapping = list(range(size))
    for source, target in content.items():
        mapping[class_index(source, names, size, flag)] = class_index(target, names, size, flag)
    return mapping


def class_index(label: object, names: Sequence[str] | None, size: int, flag: str) -> int:
    """Return the index of a class given by name or index. Raises `UserError` with the nearest names."""
    text = str(label).strip()
    if names and text in names:
        return names.index(text)
    if text.lstrip("-").isdigit():
        if 0 <= int(text) < size:
            return int(text)
        raise UserError(f"{flag}: class {text} is out of range; expected 0 to {size - 1}")
    raise UserError(f"{flag}: unknown class '{text[:40]}'{nearest(text, names or ())}; expected "
                    f"{'a class name or ' if names else ''}an index from 0 to {size - 1}")


# ---------------------------------------------------------------- files of given labels


def read_labels(
        text: str,
        dataset: Dataset,
        clean: Sequence[int],
        size: int,
        names: Sequence[str] | None,
) -> tuple[list[int], dict[str, object]]:
    """Read the given label of every sample of a split, and say where they come from.

    Files: csv with a header, or without one and a single column; npy with one array; pt with a dictionary of arrays, as
    CIFAR-10N and CIFAR-100N are published. Labels are indices, in csv also class names. A column of file names, or an
    ``index`` column, says which sample a row belongs to; rows of a file with nothing but labels are in the order of the
    dataset. Where the file also has clean labels (`CLEAN_COLUMNS`), they must be those of the dataset.

    Args:
        text: ``PATH`` or ``PATH:COLUMN``.
        dataset: the whole split.
        clean: labels of the split.
        size: number of classes.
        names: names of the classes.

    Raises:
        UserError: unreadable, another number of labels, unknown labels, made for other data, or not clear about which
            sample a row belongs to.
    """
    path, column = Path(text), None
    if not path.is_file():
        file, _, column = text.rpartition(":")
        path = Path(file)
        if not file or not path.is_file():
            raise UserError(f"--label-noise file:{text}: no such file")
    flag = f"--label-noise file:{path}"
    table = _read_table(path, flag, names)
    files = file_names(dataset)
    meant = _samples_by_name(dataset, files)
    keys = [name for name, values in table.items() if name == "index" or name.lower() in FILE_COLUMNS or any(
        str(value).strip() in meant for value in values)]
    column = _choose_column(column, table, keys, flag)
    order = _row_order(table, keys, files, meant, len(clean), flag)
    if order is None:
        _refuse_unclear(table, column, names, size, files, flag)

    def labels(name: str) -> list[int]:
        values = table[name]
        if len(values) != len(clean):
            raise UserError(f"{flag}: {len(values)} labels for {len(clean)} training samples; expected one for each "
                            "sample of the whole training split")
        found = [class_index(value, names, size, flag) for value in values]
        return [found[row] for row in order] if order is not None else found

    given = labels(column)
    for name in CLEAN_COLUMNS:
        if name in table and name != column:
            odd = [i for i, (a, b) in enumerate(zip(labels(name), clean)) if a != b]
            if odd:
                raise UserError(f"{flag}: its column {name} differs from the dataset's labels in {len(odd)} of "
                                f"{len(clean)} samples (first: {odd[0]}); it is for other data or another order")
    return given, dict(file=str(path), column=column, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def _read_table(path: Path, flag: str, names: Sequence[str] | None) -> dict[str, Sequence]:
    """Return the columns of a file of labels by name."""
    try:
        if path.suffix == ".pt":
            content = load_arrays(path)
        elif path.suffix == ".npy":
            content = {"label": np.load(path, allow_pickle=False)}
        else:
            return _read_csv(path.read_text(encoding="utf-8"), flag, names)
    except UserError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise UserError(f"{flag}: cannot be read as {path.suffix[1:] or 'csv'} ({one_line(error, 120)}); expected a "
                        "csv, an npy without pickled objects, or a pt with a dictionary of arrays") from error
    table = {}
    for name, values in (content.items() if isinstance(content, dict) else ()):
        values = np.asarray(values)
        if values.ndim == 1 and (np.issubdtype(values.dtype, np.integer) or values.dtype.kind == "U"):  # U: file names
            table[str(name)] = values.tolist()
    if not any(isinstance(value, int) for values in table.values() for value in values[:1]):
        raise UserError(f"{flag}: holds no whole numbers; expected one-dimensional arrays of class indices")
    return table


def load_arrays(path: Path) -> object:
    """Load a file of `torch.save` that may hold NumPy arrays; anything that would run code is refused."""
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "f4", "f8")},
               *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]
    check_archive(path)
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_csv(text: str, flag: str, names: Sequence[str] | None) -> dict[str, Sequence]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise UserError(f"{flag}: the file is empty")
    known = set(names or ())
    header = [cell.strip() for cell in rows[0]]
    if all(cell in known or cell.lstrip("-").isdigit() for cell in header):
        if len(header) > 1:
            raise UserError(f"{flag}: has {len(header)} columns and no header; expected one such as index,label")
        header = ["label"]
    else:
        rows = rows[1:]
    odd = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if odd is not None:
        raise UserError(f"{flag}: row {odd + 1} has {len(rows[odd])} values, the header {len(header)}")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _choose_column(column: str | None, table: dict[str, Sequence], keys: Sequence[str], flag: str) -> str:
    if column is not None:
        if column not in table:
            raise UserError(f"{flag}:{column}: no such column{nearest(column, table)}; it has {', '.join(table)}")
        return column
    candidates = [name for name in table if name not in (*CLEAN_COLUMNS, *keys)]
    usual = [name for name in GIVEN_COLUMNS if name in table]
    if usual or len(candidates) == 1:
        return (usual or candidates)[0]
    example = (candidates or list(table))[0]
    raise UserError(f"{flag}: name the column, e.g. file:PATH:{example}; it has {', '.join(table)}")


def _samples_by_name(dataset: Dataset, files: Sequence[str]) -> dict[str, list[int]]:
    """Return the samples that a name may mean: a path in the folder of the split, an absolute one, or a name alone."""
    root = getattr(getattr(whole_split(dataset), "reader", None), "root", None)
    roots = {os.path.abspath(root), os.path.realpath(root)} if root and os.path.isdir(root) else set()
    meant: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        for name in {PurePosixPath(file).name, *(f"{root}/{file}" for root in roots)}:
            meant.setdefault(name, []).append(i)
    return meant | {file: [i] for i, file in enumerate(files)}


def _row_order(
        table: dict[str, Sequence],
        keys: Sequence[str],
        files: Sequence[str],
        meant: dict[str, list[int]],
        count: int,
        flag: str,
) -> list[int] | None:
    """Return the row of each sample, or None where no column says which sample a row belongs to."""
    found = [_by_index(table["index"], count, flag) if key == "index" else _by_file(key, table[key], files, meant, flag)
             for key in keys]
    odd = next((key for key, positions in zip(keys, found) if positions != found[0]), None)
    if odd is not None:
        row = next(i for i, (a, b) in enumerate(zip(found[0], found[keys.index(odd)])) if a != b)
        raise UserError(f"{flag}: its columns {keys[0]} and {odd} name different samples in row {row + 1} "
                        f"({table[keys[0]][row]}, {table[odd][row]}); leave one of them out")
    return sorted(range(count), key=found[0].__getitem__) if found else None


def _by_index(values: Sequence, count: int, flag: str) -> list[int]:
    """Return the sample of each row, by its position."""
    try:
        index = [int(i) for i in values]
    except ValueError as error:
        raise UserError(f"{flag}: column index: {one_line(error)}") from error
    if sorted(index) != list(range(count)):
        raise UserError(f"{flag}: column index: {len(index)} rows, expected each of 0 to {count - 1} once, the "
                        "samples of the whole training split")
    return index


def _by_file(
        column: str, values: Sequence, files: Sequence[str], meant: dict[str, list[int]], flag: str) -> list[int]:
    """Return the sample of each row, by the name of its file."""
    where = f"{flag}: column {column}"
    if not files:
        raise UserError(f"{where}: the samples of this dataset are not files; name them by their positions in the "
                        "training split, in a column index")
    rows: dict[int, int] = {}
    for row, value in enumerate(values, start=1):
        name = PurePosixPath(str(value).strip()).as_posix()  # without ./
        same = meant.get(name, [])
        if not same:
            raise UserError(f"{where}: row {row} names '{name}', which is no file of the training split"
                            f"{nearest(name, files)}; expected paths in its folder, such as {files[0]}")
        if len(same) > 1:
            raise UserError(f"{where}: row {row} names '{name}', but {len(same)} files have that name; expected paths, "
                            f"such as {files[same[0]]}")
        if same[0] in rows:
            raise UserError(f"{where}: rows {rows[same[0]]} and {row} both name {files[same[0]]}; expected one label "
                            "for each training sample")
        rows[same[0]] = row
    if len(rows) < len(files):
        absent = next(file for i, file in enumerate(files) if i not in rows)
        raise UserError(f"{where}: {len(files) - len(rows)} of {len(files)} training samples are missing (first: "
                        f"{absent}); expected one label for each sample of the whole training split")
    return list(rows)


def _refuse_unclear(
        table: dict[str, Sequence],
        column: str,
        names: Sequence[str] | None,
        size: int,
        files: Sequence[str],
        flag: str,
) -> None:
    """Refuse a file with a column that is neither labels nor a key: it may say which sample a row belongs to."""
    known = {*map(str, range(size)), *(names or ())}
    for name, values in table.items():
        odd = next((str(value).strip() for value in values if str(value).strip() not in known), None)
        if odd is not None and name not in (column, *CLEAN_COLUMNS):
            example = f"filename with paths such as {files[0]}" if files else "index with positions from 0"
            raise UserError(f"{flag}: its column {name} ({odd[:40]}) has no labels, and no column says which sample a "
                            f"row belongs to; add a column {example}, or leave {name} out if rows are in the order of "
                            "the dataset")
