"""miniImageNet's pickles become folders; a pickle that holds code is refused, and the code does not run."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from w2s_plugins.data.__main__ import main
from w2s_plugins.data.pickles import convert_pickle, read_pickle
from w2s_plugins.errors import UserError, run_main

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
NAMES = ["n01", "n02", "n01", "n03", "n02", "n03", "n03"]
FORMS = {
    "labels": {"data": IMAGES, "labels": [4, 5, 4, 6, 5, 6, 6]},
    "array of labels": {"data": IMAGES, "labels": np.array([4, 5, 4, 6, 5, 6, 6])},
    "numpy numbers": {"data": list(IMAGES), "labels": list(np.array([4, 5, 4, 6, 5, 6, 6]))},
    "bytes as keys": {b"data": IMAGES, b"labels": [4, 5, 4, 6, 5, 6, 6]},
    "names": {"data": IMAGES, "labels": [4, 5, 4, 6, 5, 6, 6], "catname2label": {"n01": 4, "n02": 5, "n03": 6}},
    "class_dict": {"image_data": IMAGES, "class_dict": {"n02": [1, 4], "n01": np.array([0, 2]), "n03": [3, 5, 6]}},
}


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def read_back(folder: Path) -> dict[int, tuple[str, np.ndarray]]:
    return {int(p.stem): (p.parent.name, np.asarray(Image.open(p))) for p in folder.rglob("*.png")}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_both_forms(tmp_path, form, protocol):
    source = write(tmp_path / "mini.pickle", FORMS[form], protocol)
    assert convert_pickle(source, tmp_path / "out" / "base") == (7, 3)
    found = read_back(tmp_path / "out" / "base")
    own = form in ("names", "class_dict")
    for number, image in enumerate(IMAGES):
        name, pixels = found[number]
        assert (pixels == image).all()
        assert name == (NAMES[number] if own else f"class{int(NAMES[number][1:]) + 3:03}")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["base"]


class Payload:
    def __init__(self, function: object, *args: object):
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("function, name", [
    (os.system, r"(posix|nt)\.system"), (eval, r"builtins\.eval"), (np.load, r"numpy\.load"),
    (getattr, r"builtins\.getattr")])
def test_a_payload_is_refused_and_does_not_run(tmp_path, function, name):
    mark = tmp_path / "ran"
    text = f"open({str(mark)!r}, 'w')" if function is eval else f"touch {mark}"
    arguments = (text, "strip") if function is getattr else (text,)
    for place in ({"data": IMAGES, "labels": Payload(function, *arguments)}, Payload(function, *arguments)):
        source = write(tmp_path / "mini.pickle", place)
        with pytest.raises(UserError, match=f"refused: the pickle calls {name}, which might run code") as error:
            convert_pickle(source, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not mark.exists() and not (tmp_path / "out").exists()
    if function is os.system:
        pickle.loads(source.read_bytes())  # what pickle itself does with it
        assert mark.exists()


def test_arrays_of_objects_are_refused(tmp_path):
    """They hold addresses; a dtype of objects is refused even where it stands alone."""
    for content in (np.array([1, "a", None], dtype=object), np.zeros(2, "u1,O"), Payload(np.dtype, "O8", False, True)):
        with pytest.raises(UserError, match=r"arrays of (O|V)\d+ are not read"):
            read_pickle(write(tmp_path / "mini.pickle", {"data": IMAGES, "labels": content}))


def test_other_codecs_and_kinds_of_arrays_are_refused(tmp_path):
    import codecs
    for call in (Payload(codecs.encode, "x", "rot13"), Payload(np.ndarray.__reduce__(IMAGES)[0], dict, (0,), b"b")):
        with pytest.raises(UserError, match=r"refused|cannot be read"):
            read_pickle(write(tmp_path / "mini.pickle", call, 2))


@pytest.mark.parametrize("content, message", [
    (b"\x80\x04not a pickle", "cannot be read as a pickle"),
    (b"", "cannot be read as a pickle"),
    (pickle.dumps(FORMS["labels"])[:-200], "cannot be read as a pickle"),
    (pickle.dumps({"data": IMAGES[:0], "labels": []}), "mini.pickle: it has no image"),
    (pickle.dumps({"image_data": [], "class_dict": {}}), "mini.pickle: it has no image"),
    (pickle.dumps([1, 2]), "found: no dictionary"),
    (pickle.dumps({"images": 1}), "found: images"),
    (pickle.dumps({"data": IMAGES, "labels": [1]}), "7 images, but labels for 1"),
    (pickle.dumps({"data": IMAGES.astype(float), "labels": [1] * 7}), r"expected images as uint8 .*, found float64"),
    (pickle.dumps({"data": [IMAGES[0], IMAGES[0, 1:]], "labels": [1, 2]}), "not all of one size"),
    (pickle.dumps({"image_data": IMAGES, "class_dict": {"a": [0, 7]}}), "class 'a' has image 7, but there are 7"),
    (pickle.dumps({"image_data": IMAGES, "class_dict": {"a": [0]}}), "7 images, but labels for 1"),
    (pickle.dumps({"image_data": IMAGES, "class_dict": {"a/b": [0, 1, 2], "a_b": [3, 4, 5, 6]}}), "the same name"),
])
def test_refused(tmp_path, content, message):
    source = tmp_path / "mini.pickle"
    source.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        convert_pickle(source, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_names_cannot_leave_the_folder(tmp_path):
    source = write(tmp_path / "mini.pickle", {"image_data": IMAGES, "class_dict": {"../../up": range(7)}})
    with pytest.raises(UserError):  # a range is not among what is read
        convert_pickle(source, tmp_path / "out")
    source = write(tmp_path / "mini.pickle", {"image_data": IMAGES, "class_dict": {"../../up": list(range(7))}})
    convert_pickle(source, tmp_path / "a" / "out")
    assert [p.name for p in (tmp_path / "a" / "out").iterdir()] == ["_.._up"]


def test_command_line(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "mini.pickle", FORMS["labels"])
    def run(*argv: object) -> int:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, argv)])
        try:
            run_main(main, "w2s_plugins.data")
        except SystemExit as end:
            return end.code
        return 0
    assert run("convert-pickle", source, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 7 images in 3 classes\n"
    for argv, message in (
            (("convert-pickle", source, tmp_path / "out"), "is there already"),
            (("convert-pickle", tmp_path / "mini.pickl", tmp_path / "x"), "no such file (nearest: "),
            (("convert",), "invalid choice")):
        assert run(*argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0]
