"""iNaturalist 2018 and 2021 as published: json lists of images and labels, and the folders they point to."""

import json
import os
from collections import Counter
from pathlib import Path

from timm.data.dataset_factory import _EVAL_SYNONYM, _TRAIN_SYNONYM
from torchvision.datasets import INaturalist

from ..cli.forms import LIST_FILES
from ..errors import UserError, near_path, nearest, one_line
from ..files import read_text
from .decoding import FileDataset
from .readers import Place, PlaceReader

FORM = ("expected images (id, file_name), annotations (image_id, category_id) and categories (id, name), with texts as "
        "names and whole numbers as ids of classes")
CATEGORIES = "categories.json"  # the names of 2018 in the open, which its lists obfuscate


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
    images = str(Path(image_root or root))
    names = [os.path.normpath(name) for name, _ in pairs]
    paths = [os.path.join(images, name) for name in names]
    missing = missing_files(paths)
    if missing:
        raise UserError(f"{file}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}; "
                        "unpack them there, or name the folder that their names are relative to with --image-root")
    reader = PlaceReader(images, names, list(map(Place, paths)), [label for _, label in pairs], class_to_idx)
    return FileDataset(root, reader=reader, **kwargs)


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
    if isinstance(content, dict) and "annotations" not in content:
        raise UserError(f"{file}: it has no annotations, and so no labels; the lists of test images have none")
    images = read_entries(file, content, "images", id=(int, str), file_name=(str,))
    labels = read_entries(file, content, "annotations", image_id=(int, str), category_id=(int,))
    check_paths(file, list(images.values()))
    if labels.keys() != images.keys():
        odd = next(iter(labels.keys() ^ images.keys()))
        raise UserError(f"{file}: {len(images)} images and labels of {len(labels)}; image {odd} is in one only")
    if not images:
        raise UserError(f"{file}: it lists no image")

    # classes: by the names of the list or of the file beside it, else as many as there are labels
    source = file.with_name(CATEGORIES)
    if source.is_file():
        categories = {"categories": read_json(source)}
    else:
        source, categories = file, content
    names = {}
    if categories.get("categories"):
        names = read_entries(source, categories, "categories", id=(int,), name=(str,))
    count = len(names) or max(labels.values()) + 1
    odd = [number for number in (*labels.values(), *names) if not 0 <= number < count]
    if odd:
        raise UserError(f"{file}: class {odd[0]} is not one of its {count} classes; expected ids from 0 to {count - 1}")
    return [(name, labels[image]) for image, name in images.items()], index_by_name(names)


def check_paths(file: Path, names: list[str]) -> None:
    """Raise a `UserError` for a name that leads out of the folder of the images, or that comes twice."""
    for number, name in enumerate(names):
        if not name or os.path.isabs(name) or ".." in name.split("/"):
            raise UserError(f"{file}: images[{number}]: file_name {shown(name)} is no path inside the folder of the "
                            "images; --image-root is what names are relative to")
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UserError(f"{file}: images have {shown(name)} twice; expected every image once")


def read_entries(file: Path, content: object, key: str, **fields: tuple[type, ...]) -> dict:
    """Return the second field of each entry of the list ``key`` in a file by the first, in their order.

    Raises:
        UserError: naming the entry and its field; one comes twice.
    """
    entries = content.get(key) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not isinstance(entries, list):
        raise UserError(f"{file}: not a list of iNaturalist's form: {key} is {shown(entries)}; {FORM}")
    found = {}
    for number, entry in enumerate(entries):
        values = []
        for field, kinds in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if type(value) not in kinds:  # true is no number
                raise UserError(f"{file}: {key}[{number}]: {field} is {shown(value)}; {FORM}")
            values.append(value)
        if values[0] in found:
            raise UserError(f"{file}: {key} have {shown(values[0])} twice; expected every image once")
        found[values[0]] = values[1]
    return found


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
