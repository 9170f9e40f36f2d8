"""What the system refuses, rights and limits, ends in one line."""

import codecs
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

import train_w2s
import validate
from tests.e2e.conftest import TINY, Forked
from tests.parts import write_folder
from w2s_plugins.run.find import find_resume

Fork = Callable[..., Forked]
FLAGS = [*TINY, "--model", "w2s_cnn2", "--epochs", "1"]


@pytest.fixture
def theirs(weak: Path) -> Iterator[Path]:
    """The run of a teacher and a folder to write to, both of another user than root, who may read anything."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(weak, folder / "weak")
    (folder / "out").mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *((65534, 65534) if os.geteuid() == 0 else (-1, -1)))
    yield folder
    shutil.rmtree(folder)


def drop_rights(rank: int) -> None:
    load_digits()  # what it imports may lie in root's own folder, as may the names of files in a zip file
    codecs.lookup("cp437")
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


def only_line(run: Forked) -> str:
    assert run.wait() == [2] and "Traceback" not in run.text(0), run.text(0)
    return run.text(0).splitlines()[-1]


@pytest.mark.parametrize(("closed", "flags", "named"), [
    ("weak", ["--teacher", "weak"], "weak/export/config.json"),
    ("weak/export", ["--teacher", "weak"], "weak/export/config.json"),
    ("weak/export/model.safetensors", ["--teacher", "weak"], "weak/export"),
    ("weak", ["--initial-checkpoint", "weak/last.pth.tar"], "weak/last.pth.tar"),
    ("weak/last.pth.tar", ["--initial-checkpoint", "weak/last.pth.tar"], "weak/last.pth.tar"),
    ("weak", ["--resume", "weak"], "weak"),
    ("weak", ["--checkpoint", "weak"], "weak/args.yaml"),
])
def test_what_nobody_may_read(
        fork: Fork, theirs: Path, monkeypatch: pytest.MonkeyPatch, closed: str, flags: list[str], named: str) -> None:
    """It is named, and none of it is taken for a run without checkpoints."""
    os.chmod(theirs / closed, 0)
    try:
        flag, path = flags
        if flag == "--checkpoint":
            monkeypatch.setattr(train_w2s, "main", validate.main)
            run = fork(flag, theirs / path, "--workers", 0, before=drop_rights)
        else:
            run = fork(*FLAGS, "--output", theirs / "out", flag, theirs / path, before=drop_rights)
        line = only_line(run)
        assert re.search(rf"{theirs / named}\S* .*[Pp]ermission denied", line), line
    finally:
        os.chmod(theirs / closed, 0o755)


@pytest.mark.parametrize("closed", ["train/class1", "validation/class2", "validation"])
def test_a_class_that_may_not_be_read(fork: Fork, theirs: Path, closed: str) -> None:
    """It is not taken for one that is not there."""
    write_folder(theirs / "data", {"train": 12, "validation": 6}, size=(8, 8))
    os.chmod(theirs / "data" / closed, 0)
    try:
        line = only_line(fork("--data-dir", theirs / "data", "--model", "w2s_cnn2", "--img-size", 8, "--output",
                              theirs / "out", before=drop_rights))
        assert re.search(rf"{theirs / 'data' / closed}: Permission denied", line), line
    finally:
        os.chmod(theirs / "data" / closed, 0o755)


def test_a_fifo_among_checkpoints(here: Callable, theirs: Path) -> None:
    """Whoever opens it waits for ever."""
    last = theirs / "weak/last.pth.tar"
    last.unlink()
    os.mkfifo(last)
    assert f"{last} is a FIFO" in here(*FLAGS, "--output", theirs / "out", "--initial-checkpoint", last).error
    assert find_resume(theirs / "weak").path.name == "checkpoint-19.pth.tar"


def test_a_folder_with_a_comma(here: Callable, theirs: Path) -> None:
    (theirs / "weak").rename(theirs / "a,b")
    flags = [*FLAGS, "--output", theirs / "out", "--teacher"]
    here(*flags, theirs / "a,b").ok()
    here(*flags, "w2s_cnn2", "--teacher-checkpoint", theirs / "a,b" / "last.pth.tar").ok()
