"""Training samples that cannot be read: one line with the file's name, or another of the batch in their place."""

import io
import logging
import os
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.test_decoding import CONFIG, CPU
from tests.parts import train_args, train_loader, write_folder
from w2s_plugins.build.data import build_data, common_classes
from w2s_plugins.cli.forms import parse_data_errors
from w2s_plugins.data import LoaderSettings, create_dataset, create_eval_loader, take_slice
from w2s_plugins.errors import UserError


def huge_jpeg(path: Path) -> None:
    """Some hundred bytes whose header says 30000 x 30000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", progressive=True)
    content = bytearray(buffer.getvalue())
    size = content.index(b"\xff\xc2") + 5
    content[size:size + 4] = struct.pack(">HH", 30000, 30000)
    path.write_bytes(content)


BROKEN = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "not an image": lambda path: path.write_text("no"),
    "No such file": lambda path: path.unlink(),
    "decompression bomb": lambda path: Image.new("1", (14000, 14000)).save(path, "PNG"),
    "exceeds limit of 178956970 pixels": huge_jpeg,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, {"train": 24, "validation": 6}, size=(60, 50))


def loader_of(root: Path, *flags: str, rank: int = 0, world_size: int = 1, batch_size: int = 8, decoder: str = "pil"):
    args = train_args(
        "--data-dir", str(root), "--num-classes", "3", "--batch-size", str(batch_size), *flags, dataset="")
    args.decoder = decoder
    dataset = take_slice(create_dataset("", str(root), "train", flag="--train-split"), None, 0)
    return train_loader(dataset, args, CONFIG, rank=rank, world_size=world_size)


def damage(dataset_folder: Path, *numbers: int) -> list[Path]:
    """Break samples by their position in the dataset; their files stay as large as they were."""
    dataset = create_dataset("", str(dataset_folder), "train")
    paths = [Path(dataset.filename(n, absolute=True)) for n in numbers]
    for path in paths:
        path.write_bytes(b"no".ljust(path.stat().st_size))
    return paths


@pytest.mark.parametrize("case, workers", [*((case, 0) for case in BROKEN), ("truncated", 1)])
def test_the_file_is_named_in_one_line(folder: Path, case: str, workers: int) -> None:
    loader = loader_of(folder, "--workers", str(workers))
    path = folder / "train" / "class1" / "004.jpg"
    BROKEN[case](path)  # after the dataset has listed its files
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be read (") and "\n" not in text
    assert case in text or (case == "empty" and "not an image" in text)


def test_a_picture_in_postscript_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a program, for which Pillow would start Ghostscript."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho 10.0\ntouch {tmp_path / 'ran'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    loader = loader_of(folder)
    path = folder / "train" / "class1" / "004.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=r"004\.jpg: cannot be read .*Ghostscript"):
        list(loader.epoch(0))
    assert not (tmp_path / "ran").exists()


def epoch_of(loaders: list, epoch: int = 0) -> list[tuple]:
    """Batches of all ranks, put together as one process would have them."""
    steps = zip(*(loader.epoch(epoch) for loader in loaders))
    merged = []
    for parts in steps:
        order = torch.arange(sum(len(p.index) for p in parts)).reshape(len(parts[0].index), -1).T.flatten().argsort()
        merged.append(tuple(torch.cat(t)[order] for t in zip(*(p[:3] for p in parts))))
    return merged


def test_another_sample_of_the_batch_takes_the_place(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = epoch_of([loader_of(folder)])
    first = whole[0][2].tolist()
    bad = first[7], first[0], whole[1][2].tolist()[3]  # one at the end of the batch: it goes on at its start
    paths = damage(folder, *bad)
    with caplog.at_level(logging.WARNING):
        skipping = loader_of(folder, "--data-errors", "skip:3")
        found = epoch_of([skipping])
    for path in paths:
        assert f"{path}: cannot be read" in caplog.text
    assert len(skipping.skipped.messages) == 3
    assert found[0][2].tolist() == [first[1], *first[1:7], first[1]]
    assert torch.equal(found[0][0][0], whole[0][0][1])  # image, label and position of the one that stands in
    assert torch.equal(found[0][1], whole[0][1][[1, 1, 2, 3, 4, 5, 6, 1]])
    assert torch.equal(found[2][0], whole[2][0])
    for others in (
            [loader_of(folder, "--data-errors", "skip:3", "--workers", "2")],
            [loader_of(folder, "--data-errors", "skip:3", rank=r, world_size=2, batch_size=4) for r in (0, 1)]):
        for loader in others:
            loader.skipped.distributed = False
        for one, two in zip(found, epoch_of(others), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_it_stops_past_the_limit_of_files(folder: Path) -> None:
    damage(folder, 2, 9)
    loader = loader_of(folder, "--data-errors", "skip:2")
    assert len(list(loader.epoch(0))) == len(list(loader.epoch(1))) == 3  # a file counts once
    with pytest.raises(UserError, match=r"2 unreadable files, --data-errors allows 1; allow more"):
        list(loader_of(folder, "--data-errors", "skip:1").epoch(0))


def test_an_evaluation_counts_no_sample_in_place_of_another(folder: Path) -> None:
    path = folder / "validation" / "class0" / "003.jpg"
    path.write_text("no")
    loader = create_eval_loader(
        create_dataset("", str(folder), "validation"), CONFIG, LoaderSettings(batch_size=4, workers=0, device=CPU))
    with pytest.raises(UserError, match=r"003\.jpg: cannot be read"):
        list(loader)


@pytest.mark.parametrize("text", ["skip", "skip:0", "skip:-1", "skip:a", "ignore", ""])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="expected raise, or skip:N"):
        parse_data_errors(text)


def test_labels_out_of_range(folder: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    args = train_args("--data-dir", str(folder), "--class-map", str(classes), "--val-split", "", dataset="")
    classes.write_text("class0\nclass1\nclass2\n")
    assert build_data(args).split_size == 24
    for label in (7, -1):
        mapping = {"class0": 0, "class1": label, "class2": 2}
        dataset = create_dataset("", str(folder), "train")
        dataset.reader.samples = [(file, mapping[Path(file).parent.name]) for file, _ in dataset.reader.samples]
        with pytest.raises(UserError, match=rf"split 'train': class1/001\.jpg has the label {label}; expected 0 to 2"):
            common_classes(args, dataset, None, None)
