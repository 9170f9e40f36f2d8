"""One thread a process, as in the scripts that the tests start.

Tests run side by side, a core each; and a process that is forked from one whose OpenMP threads have worked would wait
for them for ever.
"""

import gc
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.fsync = lambda file: None  # no test cuts the power, and a run waits for the disk twenty times

# by seconds of the processor when run alone, 61 for the first to 18 for the twelfth; the last four mostly wait
LONGEST = (
    "tests/e2e/test_resume.py",
    "tests/recipes/test_recipes.py",
    "tests/e2e/test_train.py",
    "tests/test_examples.py",
    "tests/losses/test_every_loss.py",
    "tests/e2e/test_bad_flags.py",
    "tests/e2e/test_predict.py",
    "tests/e2e/test_protocol.py",
    "tests/study/test_running.py",
    "tests/e2e/test_distributed.py",
    "tests/e2e/test_damage.py",
    "tests/e2e/test_teacher_kinds.py",
    "tests/test_install.py",
    "tests/e2e/test_labels_on_hub.py",
    "tests/e2e/test_signals.py",
    "tests/hub/test_hub.py",
)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A run that a signal ends ignores further ones; here its process goes on, and later programs inherit that."""
    watched = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = [signal.getsignal(signum) for signum in watched]
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
    for signum, handler in zip(watched, before):
        signal.signal(signum, handler)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that is called in this process chooses where to and how much it logs; the next test does not."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)  # which clears what loggers have cached of it


@pytest.fixture
def no_group_left() -> Iterator[None]:
    """A sharded run of one process that ends with an error leaves its group behind."""
    yield
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of the package in this process; gives its exit code, output and errors."""
    from tests.parts import words
    from w2s_plugins.errors import run_main

    def run(main: Callable[[], None], name: str, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *words(*flags)])
        capsys.readouterr()
        code = 0
        try:
            run_main(main, name)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(
            "mounting needs privileges; tests with a limit of file size have the same error without them"
        )
    yield disk
    gc.collect()  # an error that ended a run may hold a file
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Write a file that leaves so many bytes free on a disk; return it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - leave))
    return filler


def remount(disk: Path, mode: str) -> None:
    """Make a disk read-only (``ro``) to all who open a file from now on, or writable again (``rw``).

    By another mount over it: a file that is open for writing, as a lock is, keeps its own mount writable.
    """
    command = (
        ["mount", "-o", "bind,ro", str(disk), str(disk)]
        if mode == "ro"
        else ["umount", "-l", str(disk)]
    )
    subprocess.run(command, check=True)


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage, again and again, takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, then those with the most tests: at the end the others would wait for them."""
    counts = Counter(file_of(item) for item in items)

    def rank(item: pytest.Item) -> tuple[int, int, str]:
        file = file_of(item)
        return LONGEST.index(file) if file in LONGEST else len(LONGEST), -counts[file], file

    items.sort(key=rank)


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
