"""--data-errors skip:N in whole runs: counted over ranks and interruptions, and beside cached targets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.data.test_unreadable import damage
from tests.e2e.conftest import TINY, Done, read_run
from tests.parts import small_model, write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.data.order import KeyedSampler

Run = Callable[..., Done]
COUNT = 24
MODEL = ["--model", "w2s_cnn2", "--img-size", 16, "--seed", 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", {"train": COUNT, "validation": 6})


def flags_of(folder: Path, batch_size: int, *more: object) -> list[object]:
    return [*TINY[2:], "--data-dir", folder, "--num-classes", 3, "--train-slice", "", "--val-slice", "", *MODEL,
            "--batch-size", batch_size, *more, "--output", folder.parent / "out", "--experiment"]


def places(folder: Path, *numbers: int) -> list[int]:
    """Samples at these places of the first epoch's order; batches have eight."""
    order = [key.index for key in KeyedSampler(COUNT, 3)]
    return [order[number] for number in numbers]


def path_of(folder: Path, sample: int) -> Path:
    return Path(create_dataset("", str(folder), "train").filename(sample, absolute=True))


def record_of(folder: Path, name: str) -> dict:
    return json.loads((folder.parent / "out" / name / "result.json").read_text())


def named(done: Done, path: Path) -> bool:
    return f"{path}: cannot be read" in done.err


def test_ranks_count_together(ranks: Run, here: Run, folder: Path, tmp_path: Path) -> None:
    """One file for each rank: neither knows of the other's until they agree."""
    bad = damage(folder, *places(folder, 0, 9))
    two = ranks(*flags_of(folder, 4, "--data-errors", "skip:2"), "two", processes=2, cwd=tmp_path).ok()
    one = here(*flags_of(folder, 8, "--data-errors", "skip:2"), "one").ok()
    assert all(named(done, path) for done in (one, two) for path in bad)
    records = record_of(folder, "one"), record_of(folder, "two")
    assert [len(r["data"]["unreadable"]) for r in records] == [2, 2]
    assert records[0]["data"]["unreadable"] == records[1]["data"]["unreadable"]
    assert "2 training sample(s) could not be read" in records[1]["warnings"][-1]
    assert "could not be read" in (folder.parent / "out" / "two" / "export" / "README.md").read_text()
    states = [read_run(folder.parent / "out" / name)["state_dict"] for name in ("one", "two")]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)
    past = ranks(*flags_of(folder, 4, "--data-errors", "skip:1"), "past", processes=2, cwd=tmp_path)
    assert 2 in past.codes and set(past.codes) <= {1, 2}, past.err
    assert "that makes 2 unreadable files, --data-errors allows 1" in past.err  # the other rank may speak last
    assert "epoch 1/2 done" not in past.err  # they do not wait for the end of the epoch


def test_the_count_goes_on_after_an_interruption(here: Run, folder: Path) -> None:
    whole = {path: path.read_bytes() for path in (folder / "train").rglob("*.jpg")}
    bad = damage(folder, *places(folder, 0, 17))
    past = here(*flags_of(folder, 8, "--data-errors", "skip:1", "--recovery-interval", 1), "run")
    assert "that makes 2 unreadable files" in past.error
    run = folder.parent / "out" / "run"
    saved = [read_run(run, file.name)["w2s"]["unreadable"] for file in run.glob("recovery-*")]
    assert saved and all(len(messages) == 1 for messages in saved)
    here(*flags_of(folder, 8, "--data-errors", "skip:2", "--stop-epoch", 1), "run", "--resume", "auto").ok()
    for path in bad:
        path.write_bytes(whole[path])
    third = damage(folder, *places(folder, 9))[0]  # one file that is broken now, and two that were
    past = here(*flags_of(folder, 8, "--data-errors", "skip:2"), "run", "--resume", "auto")
    assert "that makes 3 unreadable files, --data-errors allows 2" in past.error and named(past, third)
    past = here(*flags_of(folder, 8, "--data-errors", "skip:1"), "run", "--resume", "auto")
    assert "this run has met 2 unreadable files before it was interrupted" in past.error
    here(*flags_of(folder, 8, "--data-errors", "skip:3"), "run", "--resume", "auto").ok()
    assert len(record_of(folder, "run")["data"]["unreadable"]) == 3


@pytest.mark.parametrize("targets", ["cached", "cached-views:2"])
def test_cached_targets(ranks: Run, here: Run, folder: Path, tmp_path: Path, targets: str) -> None:
    """A stand-in has its own target: the run is that with the stand-ins' files in place of the broken ones."""
    bad, stand_ins = places(folder, 0, 9), places(folder, 1, 10)
    damage(folder, *bad)
    weak = tmp_path / "weak.pth"
    torch.save(small_model(1, num_classes=3).state_dict(), weak)
    teacher = ["--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--teacher-targets", targets, "--loss", "kd",
               "--task-loss-weight", 0, "--no-teacher-eval", "--no-aug", "--epochs", 1, "--target-cache"]
    assert "cannot be read" in here(*flags_of(folder, 8, *teacher, tmp_path / "a"), "raise").error
    past = here(*flags_of(folder, 8, *teacher, tmp_path / "a", "--data-errors", "skip:1"), "past")
    assert "that makes 2 unreadable files, --data-errors allows 1" in past.error
    skip = [*teacher, tmp_path / "a", "--data-errors", "skip:2"]
    here(*flags_of(folder, 8, *skip), "one").ok()
    two = ranks(*flags_of(folder, 4, *teacher, tmp_path / "b", "--data-errors", "skip:2"), "two", processes=2,
                cwd=tmp_path).ok()
    assert all(f"{path_of(folder, i)}: cannot be read" in two.err for i in bad)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / root).rglob("*.safetensors")} for root in "ab")
    assert a == b and len(a) in (1, 2)
    assert [len(record_of(folder, name)["data"]["unreadable"]) for name in ("one", "two")] == [2, 2]
    for broken, other in zip(bad, stand_ins):
        path_of(folder, broken).write_bytes(path_of(folder, other).read_bytes())
    here(*flags_of(folder, 8, *teacher, tmp_path / "c"), "copies").ok()
    states = [read_run(folder.parent / "out" / name)["state_dict"] for name in ("one", "copies", "two")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    for key, value in states[0].items():
        torch.testing.assert_close(states[2][key], value, rtol=1e-4, atol=1e-5)
