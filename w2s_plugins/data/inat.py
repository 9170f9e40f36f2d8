"""iNaturalist 2018 and 2021 as published: json lists of images and labels, and the folders they point to."""

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

from timm.data.dataset_factory import _EVAL_SYNONYM, _TRAIN_SYNONYM
from timm.data.readers.reader import Reader
from torchvision.datasets import INaturalist

from ..cli.forms import LIST_FILES
from ..errors import UserError, near_path, nearest, one_line
from ..files import read_text
from .decoding import FileDataset

FORM = ("expected images (id, file_name), annotations (image_id, category_id) and categories (id, name), with texts as "
        "names and whole numbers as ids of classes")
CATEGORIES = "categories.json"  # the names of 2018 in the open, which its lists obfuscate


class ReaderAnnotations(Reader):
    """A timm reader of images that a list names."""

    def __init__(self, root: Path, samples: list[tuple[str, int]], class_to_idx: dict[str, int]):
        super().__init__()
        self.root, self.samples, self.class_to_idx = root, samples, class_to_idx

    def __getitem__(self, index: int) -> tuple[object, int]:
        path, label = self.samples[index]
        return open(path, "rb"), label  # whoever decodes the image closes it, as with timm's readers

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return path if absolute else os.path.basename(path) if basename else os.path.relpath(path, self.root)


def open_inat(
        name: str,
        root: str | None,
        split: str,
        *,
        flag: str,
        image_root: str | None = None,
        **kwargs: object,
) -> FileDataset:
    """Open a split of iNaturalist by its json list.

    The lists are in COCO's form: ``images`` (id, file_name), ``annotations`` (image_id, category_id) and, optionally,
    ``categories`` (id, name), with class ids 0 to N - 1 (Van Horn et al., *The iNaturalist Species Classification and
    Detection Dataset*, 2017, arXiv:1707.06642). Place and date are left alone.

    Args:
        name: one of `LIST_FILES`.
        root: folder with the list, or with a folder ``annotations`` that has it.
        split: train, validation, or any other that there is a list of, such as 2021's train_mini.
        flag: the flag that named the split.
        image_root: what the names of the images are relative to; ``root`` by default.
        **kwargs: further arguments of `FileDataset`.

    Raises:
        UserError: no folder or list, a broken list, missing images.
    """
    if not root:
        raise UserError(f"--dataset {name} needs --data-dir FOLDER, where its json lists and images are")
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"--data-dir {root}: no such folder{near_path(root)}")
    file = find_list(name, folder, split, flag)
    pairs, class_to_idx = read_list(file)
    images = Path(image_root or root)
    samples = [(f"{images}/{file_name}", label) for file_name, label in pairs]
    missing = missing_files([path for path, _ in samples])
    if missing:
        raise UserError(f"{file}: {len(missing)} of {len(samples)} images are missing, the first is {missing[0]}; "
                        "unpack them there, or name the folder that their names are relative to with --image-root")
    return FileDataset(root, reader=ReaderAnnotations(images, samples, class_to_idx), **kwargs)


def find_list(name: str, folder: Path, split: str, flag: str) -> Path:
    """Return the json list of a split. Raises `UserError` where there is none."""
    stem = "train" if split in _TRAIN_SYNONYM else "val" if split in _EVAL_SYNONYM else split
    expected = LIST_FILES[name].format(stem)
    places = [folder, folder / "annotations"]
    for place in places:
        if (place / expected).is_file():
            return place / expected
    found = sorted({p.name for place in places for p in place.glob("*.json")})
    raise UserError(f"--dataset {name}, {flag} {split}: no {expected} in {folder}{nearest(expected, found)}; found: "
                    f"{', '.join(found[:6]) or 'no json file'}")


def read_list(file: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Read a list.

    Returns:
        (file name, class index) of each image in the order of ``images``, and the classes' names with their indices.

    Raises:
        UserError: not json, or not of that form.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a list of iNaturalist's form; {FORM}")
    if "annotations" not in content:
        raise UserError(f"{file}: it has no annotations, and so no labels; the lists of test images have none")
    images = read_entries(file, content, "images", id=(int, str), file_name=(str,))
    annotations = read_entries(file, content, "annotations", image_id=(int, str), category_id=(int,))
    for key, values in (("images", (i for i, _ in images)), ("images", (name for _, name in images)),
                        ("annotations", (i for i, _ in annotations))):
        if (odd := first_twice(values)) is not None:
            raise UserError(f"{file}: {key} have {shown(odd)} twice; expected every image once")
    for number, (_, name) in enumerate(images):
        if not name or os.path.isabs(name) or ".." in name.split("/"):
            raise UserError(f"{file}: images[{number}]: file_name {shown(name)} is no path inside the folder of the "
                            "images; --image-root is what names are relative to")
    named = file.with_name(CATEGORIES)
    source, categories = (named, {"categories": read_json(named)}) if named.is_file() else (file, content)
    has_names = bool(categories.get("categories"))
    names = dict(read_entries(source, categories, "categories", id=(int,), name=(str,))) if has_names else {}
    images, labels = dict(images), dict(annotations)
    if labels.keys() != images.keys():
        odd = next(iter(labels.keys() ^ images.keys()))
        raise UserError(f"{file}: {len(images)} images and labels of {len(labels)}; image {odd} is in one only")
    if not images:
        raise UserError(f"{file}: it lists no image")
    ids = set(names) or set(range(max(labels.values()) + 1))
    odd = next((i for i in (*labels.values(), *ids) if not (i in ids and 0 <= i < len(ids))), None)
    if odd is not None:
        raise UserError(f"{file}: class {odd} is not one of its {len(ids)} classes; expected ids from 0 to "
                        f"{len(ids) - 1}")
    return [(name, labels[i]) for i, name in images.items()], index_by_name(names)


def read_entries(file: Path, content: dict, key: str, **fields: tuple[type, ...]) -> list[tuple]:
    """Return some fields of each entry of the list ``key`` in a file, in their order.

    Raises:
        UserError: naming the entry and its field.
    """
    entries = content.get(key)
    if not isinstance(entries, list):
        raise UserError(f"{file}: not a list of iNaturalist's form: {key} is {shown(entries)}; {FORM}")
    for number, entry in enumerate(entries):
        for field, kinds in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if type(value) not in kinds:  # true is no number
                raise UserError(f"{file}: {key}[{number}]: {field} is {shown(value)}; {FORM}")
    return [tuple(entry[field] for field in fields) for entry in entries]


def first_twice(values: Iterable[Hashable]) -> Hashable | None:
    """Return the first value that comes a second time."""
    seen = set()
    return next((v for v in values if v in seen or seen.add(v)), None)


def shown(value: object) -> str:
    """Return a value as json writes it, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(file: Path) -> object:
    """Read a json file. Raises `UserError` when it is none."""
    try:
        return json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a readable json file: {one_line(error)}") from error


def index_by_name(names: dict[int, str]) -> dict[str, int]:
    """Return the classes' indices by name; a name that several classes have is followed by the class's number."""
    counts = Counter(names.values())
    return {f"{name} {i}" if counts[name] > 1 else name: i for i, name in sorted(names.items())}


def missing_files(paths: list[str]) -> list[str]:
    """Return the files that do not exist; each folder is read once, which is faster than asking for each file."""
    present: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in present[folder]:
            missing.append(path)
    return missing


def torchvision_labels(dataset: INaturalist) -> tuple[list[int], list[str]]:
    """Return label and class names of torchvision's dataset, which tells neither; its samples are sorted first.

    torchvision takes files in the order of the file system, which other machines need not have.

    Raises:
        UserError: it has several labels a sample.
    """
    if len(dataset.target_type) > 1:
        raise UserError(f"torch/inaturalist: expected one kind of label, not {' and '.join(dataset.target_type)}; name "
                        "it before the version, such as family/2021_train")
    dataset.index.sort()
    (kind,), species = dataset.target_type, [label for label, _ in dataset.index]
    if kind == "full":
        return species, list(dataset.all_categories)
    classes = dataset.categories_index[kind]
    return [dataset.categories_map[label][kind] for label in species], sorted(classes, key=classes.get)
