"""A folder of images, a teacher, and no label anywhere."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml

from tests.parts import write_digits
from w2s_plugins.labels.answers import write_arrays

from .conftest import BRIEF, Run, assert_goes_on, read_events, read_result

NAMES = [*"0123456789"]
FLAGS = [*BRIEF, "--model w2s_cnn2 --output out --teacher w2s_cnn2"]
OF_TRUTH = ("top1", "top5", "many", "few", "confusion", "precision")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos``: 100 digits in folders that mean nothing; ``val``: others in folders of classes, without 3 and 7."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(
        180,
        lambda number, label: (
            root / "photos" / ("album/1", "3", "")[number % 3]
            if number < 100
            else (None if label in (3, 7) else root / "val" / "validation" / str(label))
        ),
    )
    return root


@pytest.fixture
def train(here: Run, weak: Path, digits: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *flags: object) -> Path:
        here(
            "--unlabeled",
            digits / "photos",
            *FLAGS,
            "--teacher-checkpoint",
            weak,
            "--experiment",
            name,
            *flags,
        ).ok()
        return tmp_path / "out" / name

    return run


def test_nothing_but_images(train: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    run = train("plain")
    record, args = read_result(run), yaml.safe_load((run / "args.yaml").read_text())
    assert (record["metrics"], record["last"]) == ({}, {"epoch": 1})
    assert not any(word in json.dumps(record["data"]) for word in OF_TRUTH)
    assert record["data"]["splits"]["train"]["name"] == record["data"]["dataset"] == "unlabeled"
    assert record["data"]["fingerprint"]
    assert (args["task_loss_weight"], args["val_split"]) == (0, "")
    assert (
        record["model"]["class_names"]
        == json.loads((run / "class_names.json").read_text())
        == NAMES
    )
    assert (
        timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).pretrained_cfg[
            "label_names"
        ]
        == NAMES
    )
    card = (run / "export/README.md").read_text()
    assert (
        "| names of the classes | `0`, `1`, `2`" in card
        and "ccuracy" not in card.split("## Citation")[0]
    )
    assert {p.name for p in run.iterdir()}.isdisjoint(
        {"labels.csv", "class_counts.json", "predictions_last.csv"}
    )
    assert {event["event"] for event in read_events(run)} == {"train", "eval"}


def test_a_held_out_part_is_scored_against_the_teacher(
    here: Run, weak: Path, digits: Path, tmp_path: Path
) -> None:
    done = here(
        "--unlabeled",
        digits / "photos",
        *FLAGS,
        "--teacher-checkpoint",
        weak,
        "--experiment held --select best --select-split 0.3 --long-tail auto",
    ).ok()
    run = tmp_path / "out" / "held"
    evaluations = read_events(run, "eval")
    assert [{*e["select"]} for e in evaluations] == [{"confidence", "agreement"}] * 2
    assert [e["metric"] for e in evaluations] == [e["select"]["agreement"] for e in evaluations]
    record = read_result(run)
    best = max(evaluations, key=lambda e: e["metric"])
    assert record["metrics"] == best["select"] and 0 < record["metrics"]["confidence"] < 100
    assert record["selected"]["split"].endswith("scored against the teacher")
    assert not any(
        word in line
        for line in done.err.splitlines()
        for word in ("top-1", "top1", "chance", "Long tail")
    )


def test_average_mixing_and_resumption(train: Callable[..., Path]) -> None:
    flags = [
        "--amp --model-ema --model-ema-decay 0.9 --mixup 0.4 --select best",
        "--select-split 20 --epochs 3",
    ]
    assert_goes_on(functools.partial(train, "parts"), *flags)


def test_a_run_goes_on_with_the_same_images_only(
    here: Run, train: Callable[..., Path], weak: Path, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits / "photos", tmp_path / "photos")
    run = train("run", "--unlabeled photos --stop-epoch 1")
    before = (run / "last.pth.tar").read_bytes()
    (tmp_path / "photos" / "0.png").write_bytes((digits / "photos" / "album/1/0.png").read_bytes())
    flags = [
        "--unlabeled photos",
        *FLAGS,
        "--teacher-checkpoint",
        weak,
        "--experiment run --resume auto",
    ]
    assert "the images of --unlabeled changed since it was written" in here(*flags).error
    assert (run / "last.pth.tar").read_bytes() == before
    (tmp_path / "photos" / "0.png").unlink()
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    here(*flags, "--unlabeled moved").ok()


def test_the_student_is_the_same_whoever_hands_the_labels_over(
    here: Run, weak: Path, digits: Path, tmp_path: Path
) -> None:
    """A model whose answers are stored, and these as a table without it: names, start and steps are the same."""
    flags = ["--unlabeled", digits / "photos", *FLAGS]
    here(
        *flags,
        "--teacher",
        weak,
        "--teacher-targets cached --teacher-cache-dtype float32 --experiment model",
    ).ok()
    stored = read_result(tmp_path / "out/model")["teacher"]["cache"][0]["path"]
    write_arrays(Path(stored), Path("stored.npz"))
    here(*flags, "--teacher labels:stored.npz --experiment labels").ok()
    weights = [
        (tmp_path / "out" / run / "export/model.safetensors").read_bytes()
        for run in ("model", "labels")
    ]
    assert weights[0] == weights[1]


def test_a_validation_split_with_fewer_classes(
    here: Run, train: Callable[..., Path], digits: Path
) -> None:
    run = train("val", "--data-dir", digits / "val", "--epochs 1")
    record = read_result(run)
    assert record["data"]["splits"]["val"]["num_classes"] == record["model"]["num_classes"] == 10
    assert record["teacher"]["top1"] > 50  # of labels that stand for the teacher's classes
    rows = np.loadtxt(run / "predictions_last.csv", delimiter=",", skiprows=1, dtype=int)
    assert not {3, 7} & set(rows[:, 0]) and 9 in rows[:, 0]
    found = here("--checkpoint", run, "--device cpu --workers 0", script="validate").figures
    assert found["top1"] == pytest.approx(record["metrics"]["top1"], abs=1e-4)


def test_other_names_are_refused(here: Run, weak: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "val", tmp_path / "labelled")
    (tmp_path / "labelled/validation/8").rename(tmp_path / "labelled/validation/eight")
    flags = ["--unlabeled", digits / "photos", *FLAGS, "--teacher-checkpoint", weak]
    assert (
        "'eight' of 'validation' is none of the 10 of --teacher w2s_cnn2"
        in here(*flags, "--data-dir labelled").error
    )
