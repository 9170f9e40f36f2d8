"""The scripts of docs/reliability.md, in their short form: kills at random moments, and what a longer run holds."""

import os
from pathlib import Path

import pytest

from benchmarks import crashes, long_run


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes half a minute: W2S_LONG=1")
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    phases = list(crashes.PHASES)
    results = crashes.measure(tmp_path, len(phases), seed=1)
    assert results == [(phase, True) for phase in phases]


def test_memory_and_open_files_do_not_grow(tmp_path: Path) -> None:
    found = long_run.measure(tmp_path, 15, workers=1)
    assert len(found["open files"]) >= 12
    assert found["memory of the main process"].min() > 1000 and found["memory of the workers"].min() > 1000
    assert set(found["processes"].tolist()) == {3}  # a worker each for training and evaluation
    # A sample falls before, in or after the opening of a few files, so single figures differ: a leak of one file an
    # epoch would have added ten to the smallest of the later epochs.
    files = found["open files"]
    assert files[-5:].min() <= files[:5].max() + 4
    assert long_run.slope(found["files in shared memory"]) < 0.5
    for who in ("main process", "workers"):
        assert long_run.slope(found[f"memory of the {who}"]) < 60  # kB; a batch kept would be 12 kB, 16 times an epoch
