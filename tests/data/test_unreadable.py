"""Samples that cannot be read: one line with the file's name."""

import io
import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_decoding import CONFIG, CPU
from tests.parts import assert_refused, train_loader, train_settings, write_folder
from w2s_plugins.data import LoaderSettings, TrainLoader, create_dataset, create_eval_loader
from w2s_plugins.training.data import build_data, common_classes


def huge_jpeg(path: Path) -> None:
    """Some hundred bytes whose header says 30000 x 30000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", progressive=True)
    content = bytearray(buffer.getvalue())
    size = content.index(b"\xff\xc2") + 5
    content[size : size + 4] = struct.pack(">HH", 30000, 30000)
    path.write_bytes(content)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN = {
    "truncated": halve,
    "empty": lambda path: path.write_bytes(b""),
    "not an image": lambda path: path.write_text("no"),
    "No such file": lambda path: path.unlink(),
    "a FIFO, not a regular file": lambda path: (path.unlink(), os.mkfifo(path)),
    "decompression bomb": lambda path: Image.new("1", (14000, 14000)).save(path, "PNG"),
    "exceeds limit of 178956970 pixels": huge_jpeg,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, {"train": 24, "validation": 6}, size=(60, 50))


def loader_of(root: Path, *flags: str) -> TrainLoader:
    settings = train_settings(
        f"--data-dir {root} --num-classes 3 --batch-size 8", *flags, dataset=""
    )
    dataset = create_dataset("", str(root), "train", flag="--train-split")
    return train_loader(dataset, settings, CONFIG)


@pytest.mark.parametrize(
    "case, flags",
    [
        *((case, "--seed 42") for case in BROKEN),
        ("truncated", "--workers 1"),
        *((case, "--decoder fast") for case in ("truncated", "empty", "not an image")),
    ],
)
def test_the_file_is_named_in_one_line(folder: Path, case: str, flags: str) -> None:
    loader = loader_of(folder, flags)
    path = folder / "train" / "class1" / "004.jpg"
    BROKEN[case](path)  # after the dataset has listed its files
    why = "(empty|not an image)" if case == "empty" else case
    assert_refused(rf"^{path}: cannot be read \(.*{why}", lambda: list(loader.epoch(0)))


def test_a_picture_in_postscript_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a program, for which Pillow would start Ghostscript."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho 10.0\ntouch {tmp_path / 'ran'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    loader = loader_of(folder)
    path = folder / "train" / "class1" / "004.jpg"
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    assert_refused(r"004\.jpg: cannot be read .*Ghostscript", list, loader.epoch(0))
    assert not (tmp_path / "ran").exists()


def test_an_evaluation_counts_no_sample_in_place_of_another(folder: Path) -> None:
    (folder / "validation" / "class0" / "003.jpg").write_text("no")
    dataset = create_dataset("", str(folder), "validation")
    how = LoaderSettings(batch_size=4, workers=0, device=CPU)
    loader = create_eval_loader(dataset, CONFIG, how)
    assert_refused(r"003\.jpg: cannot be read", list, loader)


@pytest.mark.parametrize("label", [2, 7, -1])
def test_labels_out_of_range(folder: Path, tmp_path: Path, label: int) -> None:
    classes = tmp_path / "classes.txt"
    settings = train_settings(
        f"--data-dir {folder} --class-map {classes} --val-split ''", dataset=""
    )
    classes.write_text("class0\nclass1\nclass2\n")
    assert build_data(settings).split_size == 24
    dataset = create_dataset("", str(folder), "train")
    mapping = {"class0": 0, "class1": label, "class2": 2}
    dataset.reader.samples = [
        (file, mapping[Path(file).parent.name]) for file, _ in dataset.reader.samples
    ]
    check = settings.data, settings.teacher, 3, dict(train=dataset)
    if label == 2:
        common_classes(*check)
    else:
        message = rf"split 'train': class1/001\.jpg has the label {label}; expected 0 to 2"
        assert_refused(message, common_classes, *check)
