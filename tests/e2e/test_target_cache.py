"""Cached targets through the training script: found again, equal to a teacher beside the student, on two processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import TINY, Done, Forked, differences, read_run

Run = Callable[..., Done]


@pytest.fixture
def student(here: Run, weak: Path) -> Callable[..., Path]:
    """Trains a student in this process and returns its run folder."""
    def student(name: str, *flags: object) -> Path:
        here(*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--task-loss-weight",
             "0", "--no-teacher-eval", "--experiment", name, *flags).ok()
        return Path("output/train", name)
    return student


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_run(folder)["state_dict"]


@pytest.mark.parametrize("flags", [("--reprob", "0.6", "--aa", "rand-m5-mstd0.5", "--grad-accum-steps", "2")])
def test_cached_views_train_the_student_that_a_teacher_beside_it_trains(student, flags: tuple) -> None:
    cached = student("cached", "--teacher-targets", "cached-views:2", "--teacher-cache-dtype", "float32", *flags)
    online = student("online", *flags)
    assert not differences(read_run(cached), read_run(online))
    repeated = student("repeated", "--teacher-targets", "cached-views:1", "--teacher-cache-dtype", "float32", *flags)
    assert differences(weights(repeated), weights(online))


def test_views_that_repeat_go_on_exactly_after_an_interruption(student) -> None:
    flags = ["--teacher-targets", "cached-views:2", "--epochs", "5", "--reprob", "0.5"]
    whole = student("whole", *flags)
    student("parts", *flags, "--stop-epoch", "3")
    parts = student("parts", *flags, "--resume", "auto")
    assert not differences(read_run(whole), read_run(parts))
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()


def test_the_run_records_its_cache_and_others_find_it(student, here: Run, weak: Path) -> None:
    record = json.loads((student("first", "--teacher-targets", "cached") / "result.json").read_text())["teacher"]
    assert record["targets"] == "cached"
    (cache,) = record["cache"]
    assert Path(cache["path"]) == Path("output/targets", cache["key"])
    assert json.loads(Path(cache["path"], "labels.json").read_text())["num_samples"] == 64
    other = here(*TINY, "--model", "w2s_cnn2", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--loss", "kd",
                 "--seed", "3", "--teacher-targets", "cached", "--experiment", "other").ok()
    assert f"Teacher targets found in {cache['path']}" in other.err
    card = Path("output/train/first/export/README.md").read_text()
    assert "Targets: `cached` (the teacher labels each training image once" in card


def test_two_runs_at_once_and_two_processes_share_a_cache(
        fork: Callable[..., Forked], ranks: Run, weak: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--train-slice", "0:900", "--epochs", "1", "--model", "w2s_cnn5", "--teacher", "w2s_cnn2",
             "--teacher-checkpoint", str(weak), "--task-loss-weight", "0", "--teacher-targets", "cached"]
    runs = [fork(*flags, "--experiment", name) for name in ("a", "b")]
    assert [run.wait() for run in runs] == [[0], [0]], runs[0].text(0) + runs[1].text(0)
    outputs = [run.text(0) for run in runs]
    assert sum("to write to" in text for text in outputs) == 1
    train = tmp_path / "output" / "train"
    assert not differences(weights(train / "a"), weights(train / "b"))
    ranks(*flags, "--experiment", "two", "--target-cache", "other", cwd=tmp_path, processes=2).ok()
    (one,), (two,) = ([p for p in (tmp_path / name).iterdir() if p.is_dir()] for name in ("output/targets", "other"))
    assert one.name == two.name
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    assert len(list(one.iterdir())) == 2 + 4


@pytest.mark.parametrize("flags, message", [
    (["--teacher-targets", "cached-views:2", "--reprob", "0.5", "--resplit"], "--resplit"),
    (["--teacher-targets", "cached-views:2", "--train-img-sizes", "8", "16"], "--train-img-sizes"),
    (["--teacher-targets", "cached-views:10000"], "unknown choice 'cached-views:10000'"),
    (["--teacher-targets", "cached-views:2", "--loss", "fitnet"], "use --teacher-targets online"),
    (["--teacher-targets", "cached", "--target-cache", "/proc/none"], ": cannot be written"),
])
def test_refused(here: Run, weak: Path, flags: list[str], message: str) -> None:
    done = here(*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, *flags)
    assert message in done.error
