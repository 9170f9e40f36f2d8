"""What the system refuses, rights and limits, ends in one line."""

import codecs
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

import validate
from tests.e2e.conftest import TINY, Fork, Forked

FLAGS = [*TINY, "--model w2s_cnn2 --epochs 1"]


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


@pytest.mark.parametrize(
    ("closed", "flags", "named"),
    [
        ("weak/export", "--teacher weak", "weak/export/config.json"),
        ("weak/last.pth.tar", "--initial-checkpoint weak/last.pth.tar", "weak/last.pth.tar"),
        ("weak", "--resume weak", "weak"),
        ("weak", "--checkpoint weak", "weak/export/config.json"),
    ],
)
def test_what_nobody_may_read(
    fork: Fork, theirs: Path, closed: str, flags: str, named: str
) -> None:
    """It is named, and none of it is taken for a run without checkpoints."""
    os.chmod(theirs / closed, 0)
    try:
        flag, path = flags.split()
        if flag == "--checkpoint":
            run = fork(flag, theirs / path, "--workers 0", main=validate.main, before=drop_rights)
        else:
            run = fork(*FLAGS, "--output", theirs / "out", flag, theirs / path, before=drop_rights)
        line = only_line(run)
        assert re.search(rf"{theirs / named}\S* .*[Pp]ermission denied", line), line
    finally:
        os.chmod(theirs / closed, 0o755)
