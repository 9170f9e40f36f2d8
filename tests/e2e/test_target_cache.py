"""Cached targets through the training script: found again, equal to a teacher beside the student, on two processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import TINY, Fork, Run, assert_same_end, differences, read_run, taught


@pytest.fixture
def student(here: Run, weak: Path) -> Callable[..., Path]:
    """Trains a student in this process and returns its run folder."""

    def student(name: str, *flags: object) -> Path:
        here(
            *TINY,
            "--model w2s_cnn5",
            *taught(weak),
            "--task-loss-weight 0 --no-teacher-eval",
            "--experiment",
            name,
            *flags,
        ).ok()
        return Path("output/train", name)

    return student


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_run(folder)["state_dict"]


def test_cached_views_train_the_student_that_a_teacher_beside_it_trains(student) -> None:
    flags = ["--reprob 0.6 --aa rand-m5-mstd0.5 --grad-accum-steps 2"]
    cached = student(
        "cached", "--teacher-targets", "cached-views:2", "--teacher-cache-dtype", "float32", *flags
    )
    online = student("online", *flags)
    assert not differences(read_run(cached), read_run(online))
    repeated = student(
        "repeated",
        "--teacher-targets",
        "cached-views:1",
        "--teacher-cache-dtype",
        "float32",
        *flags,
    )
    assert differences(weights(repeated), weights(online))


def test_the_run_records_its_cache_and_others_find_it(student, here: Run, weak: Path) -> None:
    record = json.loads(
        (student("first", "--teacher-targets", "cached") / "result.json").read_text()
    )["teacher"]
    assert record["targets"] == "cached"
    (cache,) = record["cache"]
    assert Path(cache["path"]) == Path("output/targets", cache["key"])
    assert json.loads(Path(cache["path"], "labels.json").read_text())["num_samples"] == 64
    other = here(
        *TINY,
        "--model w2s_cnn2",
        *taught(weak),
        "--loss kd --seed 3 --teacher-targets cached --experiment other",
    ).ok()
    assert f"Teacher targets found in {cache['path']}" in other.err
    card = Path("output/train/first/export/README.md").read_text()
    assert "Targets: `cached` (the teacher labels each training image once" in card


@pytest.mark.parametrize("processes", [0, 2])
def test_two_runs_at_once_share_a_cache(here: Run, fork: Fork, weak: Path, processes: int) -> None:
    """One of them writes it while the other waits; it is what one run alone writes, and neither disturbs the other."""
    flags = [
        *TINY,
        "--train-slice 0:900 --batch-size 8 --epochs 1 --model w2s_cnn5",
        *taught(weak),
        "--task-loss-weight 0 --teacher-targets cached",
        "--experiment",
    ]
    runs = [fork(*flags, name, processes=processes) for name in ("one", "two")]
    assert [run.wait() for run in runs] == 2 * [[0] * (processes or 1)], runs[0].text(0) + runs[
        1
    ].text(0)
    assert sum("to write to" in run.text(0) for run in runs) == 1
    assert_same_end(Path("output/train/one"), Path("output/train/two"))
    here(*flags, "alone", "--target-cache other").ok()
    (one,), (two,) = (
        [p for p in Path(name).iterdir() if p.is_dir()] for name in ("output/targets", "other")
    )
    assert one.name == two.name
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {
        p.name: p.read_bytes() for p in two.iterdir()
    }
    assert len(list(one.iterdir())) == 2 + 4
