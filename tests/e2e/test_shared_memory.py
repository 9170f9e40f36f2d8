"""A small /dev/shm, as Docker's, mounted for one run alone: said at the start, and never waited for without end."""

from pathlib import Path

import pytest

from tests.processes import python

from .conftest import ROOT, TINY, Done, environment

FLAGS = [*TINY, "--model", "w2s_cnn2", "--img-size", "64", "--epochs", "1", "--val-split", "", "--workers", "2"]
BATCH = 16 * 3 * 64 * 64
FULL = """
import contextlib
import os
import torch
from w2s_plugins.data import workers
from w2s_plugins.errors import UserError

workers.PATIENCE = 0.5
def fill(worker):
    with contextlib.suppress(OSError), open("/dev/shm/other", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

samples = [(torch.zeros(3, 64, 64), 0)] * 32
collate = workers.SharedCollate(torch.utils.data.default_collate)
own = workers.SharedCollate(lambda batch: torch.stack([image for image, _ in batch]).clone())
for function in (collate, own):
    try:
        list(torch.utils.data.DataLoader(
            samples, batch_size=16, num_workers=1, collate_fn=function, worker_init_fn=fill))
    except workers.WorkerError as error:
        assert isinstance(error, UserError)
        print(error)
    os.unlink("/dev/shm/other")
"""


SMALL = """
import ctypes, runpy, subprocess, sys
size, *sys.argv = sys.argv[1:]
mount = f"mount --make-rprivate / && mount -t tmpfs -o size={size} tmpfs /dev/shm"
if ctypes.CDLL(None).unshare(0x20000) or subprocess.run(mount, shell=True).returncode:  # CLONE_NEWNS
    sys.exit(75)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def with_memory(size: int, script: Path, *flags: object, cwd: Path) -> Done:
    """Run a script with so many bytes of shared memory."""
    done = python("-c", SMALL, size, script, *flags, env=environment(PYTHONPATH=str(ROOT)), cwd=cwd)
    if done.returncode == 75:
        pytest.skip("a file system cannot be mounted here")
    return Done(done.returncode, done.stdout, done.stderr)


def train(size: int, cwd: Path) -> Done:
    return with_memory(size, ROOT / "train_w2s.py", *FLAGS, "--output", cwd, cwd=cwd)


def test_not_one_batch_fits(tmp_path: Path) -> None:
    error = train(BATCH // 2 // 4096 * 4096, tmp_path).error
    assert error.startswith("/dev/shm has 0.1 MB free, and training batches need 1.0 MB of it (--workers 2 x 2 batches")
    assert "not one batch fits" in error and "--shm-size" in error and "--workers 0" in error


def test_fewer_workers_are_used_where_not_all_fit(tmp_path: Path) -> None:
    done = train(BATCH * 4, tmp_path).ok()
    assert "WARNING: /dev/shm has 0.8 MB free, and training batches need 1.0 MB" in done.err
    assert "1 of the workers are used" in done.err
    assert "WARNING: /dev/shm" not in train(BATCH * 6, tmp_path).ok().err


def test_memory_that_others_fill_is_an_error_of_the_run(tmp_path: Path) -> None:
    """It was a traceback of a thread of the worker, and a main process that waited for ever."""
    (tmp_path / "full.py").write_text(FULL)
    done = with_memory(2 ** 20, tmp_path / "full.py", cwd=tmp_path).ok()
    lines = done.out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("/dev/shm, which data workers use, is full; give it") for line in lines)
