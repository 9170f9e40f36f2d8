"""iNaturalist 2018 and 2021 as published: json lists of images and labels, and the folders they point to."""

import json
import os
from collections import Counter
from operator import index
from pathlib import Path

from ..errors import UserError, near_path, nearest, one_line
from ..files import read_text
from ..private_names import EVAL_SYNONYMS, TRAIN_SYNONYMS
from ..settings.forms import LIST_FILES
from .decoding import FileDataset
from .readers import ImageLocation, LocationReader

CATEGORIES = "categories.json"


def open_inat(
    name: str,
    root: str | None,
    split: str,
    *,
    flag: str,
    load_bytes: bool = False,
    input_img_mode: str = "RGB",
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
        load_bytes: give the bytes of a file in place of its image.
        input_img_mode: PIL mode that images are converted to.

    Raises:
        UserError: no folder or list, a broken list, missing images.
    """
    if not root:
        raise UserError(
            f"--dataset {name} needs --data-dir FOLDER, where its json lists and images are"
        )
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"--data-dir {root}: no such folder{near_path(root)}")
    # labels come from the list, images from the folders that it points to
    file = find_list(name, folder, split, flag)
    pairs, class_to_idx = read_list(file)
    images = str(folder)
    names = [name for name, _ in pairs]
    paths = [os.path.join(images, name) for name in names]
    # a look at one: who has not unpacked the images has none of them
    if not os.path.exists(paths[0]):
        raise UserError(
            f"{file}: its images are missing, the first is {paths[0]}; unpack them "
            "there: names in the list are relative to --data-dir"
        )
    locations = [ImageLocation(path) for path in paths]
    labels = [label for _, label in pairs]
    reader = LocationReader(images, names, locations, labels, class_to_idx)
    return FileDataset(root, reader=reader, load_bytes=load_bytes, input_img_mode=input_img_mode)


def find_list(name: str, folder: Path, split: str, flag: str) -> Path:
    """Return the json list of a split. Raises `UserError` where there is none."""
    # timm's synonyms of the splits
    stem = split
    if split in TRAIN_SYNONYMS:
        stem = "train"
    elif split in EVAL_SYNONYMS:
        stem = "val"
    expected = LIST_FILES[name].format(stem)
    # beside the images, or in a folder of their own
    present: set[str] = set()
    for parent in (folder, folder / "annotations"):
        if (parent / expected).is_file():
            return parent / expected
        present |= {path.name for path in parent.glob("*.json")}
    names = sorted(present)
    raise UserError(
        f"--dataset {name}, {flag} {split}: no {expected} in {folder}{nearest(expected, names)}; "
        f"found: {', '.join(names[:6]) or 'no json file'}"
    )


def read_list(file: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Read a list.

    Returns:
        (file name, class index) of each image in the order of ``images``, and the classes' names with their indices.

    Raises:
        UserError: not json, or not of that form.
    """
    # the names of 2018 in the open, which its lists obfuscate, lie in a file beside them
    content = read_json(file)
    source = file.with_name(CATEGORIES)
    categories = read_json(source) if source.is_file() else content
    try:
        if not isinstance(content, dict) or not isinstance(categories, (dict, list)):
            raise TypeError("it is no mapping")
        images = {image["id"]: image["file_name"] for image in content["images"]}
        labels = {note["image_id"]: index(note["category_id"]) for note in content["annotations"]}
        if isinstance(categories, dict):
            categories = categories.get("categories") or ()
        names = {index(category["id"]): str(category["name"]) for category in categories}
        paths = [os.path.normpath(name) for name in images.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a list of iNaturalist's form: expected images (id, file_name), "
            "annotations (image_id, category_id) and categories (id, name), with whole numbers as "
            "ids of classes; a list of test images has no annotations "
            f"({one_line(error)})"
        ) from error

    # every image once, with a label, inside the folder; classes are numbered from 0
    listed = len(content["images"])
    if not images or labels.keys() != images.keys() or len({*paths}) < listed:
        raise UserError(
            f"{file}: {listed} images and labels of {len(labels)}; expected one label "
            "of each, and every image once"
        )
    count = len(names) or max(labels.values()) + 1
    if not all(0 <= number < count for number in (*labels.values(), *names)):
        raise UserError(
            f"{file}: a class is not one of its {count} classes; expected ids from 0 to {count - 1}"
        )
    for path in paths:
        if os.path.isabs(path) or path.startswith(".."):
            raise UserError(f"{file}: file_name {path!r} is no path inside --data-dir")
    # a name that several classes have is followed by the number of the class: labels are compared by name
    counts = Counter(names.values())
    by_name = {}
    for number, name in sorted(names.items()):
        by_name[f"{name} {number}" if counts[name] > 1 else name] = number
    return list(zip(paths, (labels[image] for image in images))), by_name


def read_json(file: Path) -> object:
    """Read a json file. Raises `UserError` when it is none."""
    try:
        return json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a readable json file: {one_line(error)}") from error
