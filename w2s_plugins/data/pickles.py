"""miniImageNet's pickles turned into folders of images, without running what a pickle may hold.

Two forms are in use: ``data`` (images) with ``labels``, and ``image_data`` with ``class_dict`` (class to positions).
"""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, near_path, one_line

NO_PICKLE = "cannot be read as a pickle of arrays: truncated, damaged or of another kind"


class _Dtype:
    """Stands for a NumPy dtype: numbers and texts only. NumPy's own would take its flags from the pickle."""

    def __init__(self, name: str, *_: object):
        if not re.fullmatch(r"[biufSU]\d+", name):
            raise pickle.UnpicklingError(f"arrays of {name} are not read")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(f"{self.order}{self.name}")


class _Array:
    """Stands for a NumPy array while it is read; `value` is the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: bytes | str, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content  # a text of Python 2
    return np.frombuffer(content, dtype.numpy()).reshape(shape, order=order)


def _reconstruct(*_: object) -> _Array:
    return _Array()  # its state follows


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.value = _array(content, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, content: bytes | str) -> object:
    return _array(content, dtype, (1,), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old protocols; other codecs than this one are not needed."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding} is not read")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, which cannot be called
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.{module}", name): function for core in ("core", "_core") for module, name, function in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _frombuffer))},
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and Python's own containers, numbers and texts; anything else is refused, not called."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ALLOWED[module, name]


def _plain(value: object) -> object:
    """Return a value with arrays in the place of what stood for them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, _Array) else value


def read_pickle(path: Path) -> object:
    """Read a pickle of arrays and containers, also one of Python 2.

    Raises:
        UserError: not a pickle, or one with anything else in it, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _plain(ArrayUnpickler(file, encoding="latin1").load())
    except pickle.UnpicklingError as error:
        if "." in str(error) and " " not in str(error):
            raise UserError(f"{path}: refused: the pickle calls {error}, which might run code; expected NumPy arrays, "
                            "lists and dictionaries only") from error
        raise UserError(f"{path}: {NO_PICKLE}{f' ({error})' if 'not read' in str(error) else ''}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # damaged pickles fail in many ways
        raise UserError(f"{path}: {NO_PICKLE}") from error


def labelled_images(content: object, path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the images (N, H, W, 3) and the name of the class of each.

    Raises:
        UserError: neither of the two forms, or images and labels that do not match.
    """
    content = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()} if isinstance(
        content, dict) else {}
    if {"data", "labels"} <= content.keys():
        images, labels = content["data"], np.asarray(content["labels"]).tolist()
    elif {"image_data", "class_dict"} <= content.keys():
        images, labels = content["image_data"], [None] * len(content["image_data"])
        for name, positions in content["class_dict"].items():
            for position in np.asarray(positions).ravel().tolist():
                if not 0 <= position < len(labels):
                    raise UserError(f"{path}: class '{name}' has image {position}, but there are {len(labels)}")
                labels[position] = name
    else:
        found = ", ".join(map(str, list(content)[:5])) or "no dictionary"
        raise UserError(f"{path}: expected the keys data and labels, or image_data and class_dict; found: {found}")
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise UserError(f"{path}: its images are not all of one size") from error
    if not len(images):
        raise UserError(f"{path}: it has no image")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{path}: expected images as uint8 (N, H, W, 3), found {images.dtype} {images.shape}")
    if len(labels) != len(images) or None in labels:
        raise UserError(f"{path}: {len(images)} images, but labels for {len(labels) - labels.count(None)}")
    return images, _class_names(labels, content.get("catname2label"), path)


def _class_names(labels: list, numbers: object, path: Path) -> list[str]:
    """Names of folders: the class's own where the pickle has them, else class followed by its number."""
    own = {number: name for name, number in numbers.items()} if isinstance(numbers, dict) else {}
    names = {}
    for label in set(labels):
        name = own.get(label, label)
        name = name.decode("latin1") if isinstance(name, bytes) else name
        text = name if isinstance(name, str) else f"class{int(name):03}"
        names[label] = "".join(c if c.isalnum() or c in "-_." else "_" for c in text).lstrip(".") or "_"
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: two of its classes have the same name")
    return [names[label] for label in labels]


def convert_pickle(source: Path, target: Path) -> tuple[int, int]:
    """Write the images of a pickle as ``target/CLASS/NUMBER.png``; the folder appears when it is complete.

    Returns:
        The numbers of images and classes.

    Raises:
        UserError: as `read_pickle` and `labelled_images`; or the folder is there already.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file{near_path(source)}")
    if target.exists():
        raise UserError(f"{target}: is there already; give a new folder, such as DIR/base, DIR/validation or DIR/novel")
    images, names = labelled_images(read_pickle(source), source)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for number, (image, name) in enumerate(zip(images, names)):
            (part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(part / name / f"{number:06}.png")
        os.replace(part, target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({one_line(error)})") from error
    return len(images), len(set(names))
