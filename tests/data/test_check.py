"""``python -m w2s_plugins.data check``: what is wrong with a folder, before a training finds it."""

import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_decoding import FILES, PHOTOGRAPHS
from tests.data.test_unreadable import huge_jpeg
from tests.parts import write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.data.__main__ import main
from w2s_plugins.data.check import check_folder
from w2s_plugins.errors import UserError

SAVED = {**FILES, "one pixel": ("png", lambda image, path: image.resize((1, 1)).save(path)),
         "animated": ("png", lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(90)])),
         "bomb": ("png", lambda image, path: Image.new("1", (14000, 14000)).save(path)),
         "huge": ("jpg", lambda image, path: huge_jpeg(path)), "fifo": ("jpg", lambda image, path: os.mkfifo(path)),
         "link to a fifo": ("jpg", lambda image, path: path.symlink_to("fifo.jpg"))}
ERRORS = {"truncated": "truncated", "truncated late": "truncated", "truncated header": "Truncated File Read",
          "empty": "empty file", "text": "not an image", "bomb": "decompression bomb",
          "huge": "900000000 pixels", "fifo": "a FIFO, not a regular file", "link to a fifo": "a FIFO"}
NOTES = {"rotated by EXIF": "orientation 6", "CMYK": "CMYK", "PNG called JPEG": "is a PNG file",
         "PNG palette": "palette", "PNG alpha": "transparency", "PNG 16 bit": "more than 8 bits", "one pixel": "1 x 1",
         "animated": "2 frames"}


def test_every_kind_of_file(tmp_path: Path) -> None:
    image = Image.open(PHOTOGRAPHS[0]).resize((200, 150))
    for name, (suffix, save) in SAVED.items():
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        save(image, tmp_path / "train" / "a" / f"{name}.{suffix}")
    found = {Path(f.path).stem: f for f in check_folder(tmp_path, workers=2).findings if "copies" not in f.text}
    assert {k for k, f in found.items() if f.error} == ERRORS.keys()
    for name, text in {**ERRORS, **NOTES}.items():
        assert text in found[name].text
        assert found[name].error == (name in ERRORS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", {"train": 9, "validation": 6})


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["data", "check", str(folder), "-j", "1"])
    main()
    assert capsys.readouterr().out == "15 images, 0 errors, 0 notes\n"
    (folder / "train" / "class1" / "001.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"error: {folder}/train/class1/001.jpg: ")
    assert out[1] == "15 images, 1 errors, 0 notes"


def test_links_are_followed_as_in_training(folder: Path, tmp_path: Path) -> None:
    """A folder of links to classes elsewhere; one that leads nowhere, and one to a folder that it is in."""
    links = tmp_path / "links"
    for split in ("train", "validation"):
        (links / split).mkdir(parents=True)
        for name in ("class0", "class1", "class2"):
            (links / split / name).symlink_to(folder / split / name)
    (folder / "train" / "class0" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "train" / "class1" / "loop").symlink_to("..")
    for root in (folder, links):
        report = check_folder(root)
        assert report.images == 15 and len(create_dataset("", str(root), "train")) > 15  # round and round
        loop, gone = report.errors
        assert loop.path == f"{root}/train/class1/loop" and "a folder that it is in" in loop.text
        assert gone.path == f"{root}/train/class0/gone.jpg"
        assert gone.text == "cannot be read (No such file or directory)"
    (folder / "train" / "class1" / "loop").unlink()
    assert len(create_dataset("", str(links), "train")) == 10, "9 and the one that is gone"


@pytest.mark.parametrize(("name", "shown"), [
    (b"a\nb.jpg", r"a\nb.jpg"), (b"\x1b[2J.jpg", r"\x1b[2J.jpg"), (b"\xff.jpg", r"\udcff.jpg"),
    ("\u00fc.jpg".encode(), "\u00fc.jpg")])
def test_names_that_cannot_be_printed(folder: Path, name: bytes, shown: str) -> None:
    (folder / "train" / "class1" / os.fsdecode(name)).touch()
    line, _ = check_folder(folder).lines()
    assert line == f"error: {folder}/train/class1/{shown}: empty file" and line.encode()


def test_class_folders_and_copies(folder: Path) -> None:
    (folder / "train" / "empty").mkdir()
    shutil.copy(folder / "train" / "class0" / "000.jpg", folder / "validation" / "class0" / "copy.jpg")
    shutil.copy(folder / "train" / "class0" / "003.jpg", folder / "train" / "class0" / "copy.jpg")
    (folder / "train" / "class0" / "list.txt").write_text("names")
    lines = [*check_folder(folder).lines()]
    assert lines == [
        f"error: {folder}/train/class0/000.jpg: the same file is in another split: "
        f"{folder}/validation/class0/copy.jpg",
        f"error: {folder}/train/empty: class folder without images",
        f"note: {folder}/train: 1 files are copies of others in it",
        f"note: {folder}/train/class0/list.txt: no image by its name: is not read",
        f"note: {folder}/validation/empty: class of other splits, but not of this one",
        "17 images, 2 errors, 3 notes"]


def test_images_without_labels(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = f"training takes these as images without labels, whatever folders they are in: --unlabeled {folder} " \
             "--teacher NAME"
    shutil.rmtree(folder / "validation" / "class1")
    (folder / "train" / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["data", "check", str(folder), "--unlabeled", "-j", "1"])
    main()  # ends without an error
    assert capsys.readouterr().out.splitlines() == [layout, "13 images, 0 errors, 0 notes"]
    (folder / "validation" / "class0" / "000.jpg").rename(folder / "flat.jpg")
    assert not check_folder(folder).layout  # there are splits
    photos = write_folder(folder, {"photos": 2}) / "photos"
    assert f"no split, and not read by training: {photos}; --unlabeled {photos} --teacher NAME takes it as " \
        f"images without labels, and with --data-dir {folder} --task-loss-weight W" in check_folder(folder).layout
    shutil.rmtree(photos)
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "validation")
    assert [*check_folder(folder).lines()] == [layout, "1 images, 0 errors, 0 notes"]


def test_archives(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(folder / "train", "train")
        end = archive.offset
    assert [*check_folder(whole).lines()] == ["9 images, 0 errors, 0 notes"]
    for size, images in ((end // 2, range(1, 9)), (end, (9,))):  # within a file, and between two
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole.read_bytes()[:size])
        report = check_folder(cut)
        assert [f.path for f in report.errors] == [str(cut)]
        assert "cut off" in report.errors[0].text and report.images in images


def test_nothing_to_check(tmp_path: Path) -> None:
    for path, text in ((tmp_path, "no images"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError, match=text):
            check_folder(path)
