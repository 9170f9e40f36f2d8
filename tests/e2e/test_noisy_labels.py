"""Noisy labels through the training script: recorded, the same for every run, selected from, refused in one line."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.parts import train_settings
from w2s_plugins.data import create_dataset

from .conftest import TINY, Run, assert_goes_on, differences, read_run, taught

NOISY = [*TINY, "--train-slice 0:200 --label-noise symmetric:0.4"]
STUDENT = [*NOISY, "--model w2s_cnn5 --teacher w2s_cnn2 --no-teacher-eval"]


def result(name: str) -> dict:
    return json.loads(Path("output/train", name, "result.json").read_text())["data"]


def labels(name: str) -> list[tuple[int, int]]:
    """(given, clean) of every sample of the split."""
    with open(Path("output/train", name, "labels.csv")) as file:
        return [(int(row["given"]), int(row["clean"])) for row in csv.DictReader(file)]


def selected(name: str) -> list[int]:
    return [
        int(line)
        for line in Path("output/train", name, "selected.txt").read_text().splitlines()[1:]
    ]


def test_teacher_and_student_are_given_the_same_labels_and_validation_keeps_its_own(
    here: Run,
) -> None:
    here(*NOISY, "--model w2s_cnn2 --seed 1 --experiment a").ok()
    here(
        *NOISY,
        "--train-slice 200:400 --model w2s_cnn2 --seed 2 --select best --select-split 50",
        "--experiment b",
    ).ok()
    assert labels("a") == labels("b")
    here(*NOISY, "--model w2s_cnn2 --noise-seed 1 --epochs 1 --experiment c").ok()
    assert labels("a") != labels("c")
    digits = create_dataset("w2s/digits", None, "train")
    assert [clean for _, clean in labels("a")] == digits.targets
    noise = result("a")["label_noise"]
    assert noise["kind"] == "symmetric:0.4" and noise["seed"] == 0 and noise["samples"] == 200
    assert 0.25 < noise["rate"] < 0.45
    assert sum(noise["confusion"][c][c] for c in range(10)) == 200 - noise["changed"]
    here(*TINY, "--train-slice 0:200 --model w2s_cnn2 --epochs 1 --experiment clean").ok()
    assert (
        not Path("output/train/clean/labels.csv").exists()
        and result("clean")["label_noise"] is None
    )
    assert result("clean")["splits"]["val"] == result("a")["splits"]["val"]
    assert (
        result("clean")["fingerprint"] != result("a")["fingerprint"] != result("c")["fingerprint"]
    )
    card = Path("output/train/a/export/README.md").read_text()
    assert (
        f"`symmetric:0.4`, {100 * noise['rate']:.2f} % of the labels are not the clean ones" in card
    )


def test_labels_of_a_file_train_what_the_noise_trained(here: Run) -> None:
    flags = [*NOISY, "--model w2s_cnn2 --epochs 1"]
    here(*flags, "--experiment drawn").ok()
    file = "output/train/drawn/labels.csv"
    here(*flags, "--label-noise", f"labels:{file}", "--experiment read").ok()
    weights = [read_run(Path("output/train", name))["state_dict"] for name in ("drawn", "read")]
    assert not differences(*weights)
    assert result("read")["label_noise"]["file"] == "labels.csv"


@pytest.mark.parametrize(
    ("rule", "precision", "sizes"),  # the second rule does not look at labels
    [("knn:10", 0.9, range(1, 200)), ("entropy:0.5", 0.0, [100])],
)
def test_selection_by_the_teacher_is_reported_saved_and_used_again(
    here: Run, weak: Path, rule: str, precision: float, sizes: Sequence[int]
) -> None:
    done = here(
        *STUDENT, "--teacher-checkpoint", weak, "--clean-select", rule, "--experiment first"
    ).ok()
    given, record, kept = labels("first"), result("first")["clean_select"], selected("first")
    right = {i for i, (g, c) in enumerate(given) if g == c}
    assert (
        record["rule"] == rule
        and record["models"][0]["name"] == "w2s_cnn2"
        and record["candidates"] == 200
    )
    assert record["selected"] == len(kept) == result("first")["train_samples"]
    assert record["precision"] == len(right & set(kept)) / len(kept)
    assert record["precision"] > precision and len(kept) in sizes
    assert record["recall"] * (200 - result("first")["label_noise"]["changed"]) == pytest.approx(
        len(right & set(kept))
    )
    assert f"Clean selection {rule}: {len(kept)} of 200" in done.err
    again = ["--clean-select file:output/train/first/selected.txt --experiment again"]
    here(*STUDENT, "--teacher-checkpoint", weak, *again).ok()
    assert selected("again") == kept and result("again")["clean_select"]["made_by"] == rule
    assert not differences(
        *(read_run(Path("output/train", name))["state_dict"] for name in ("first", "again"))
    )


def test_selection_by_another_model(here: Run, weak: Path) -> None:
    flags = [*NOISY, "--model w2s_cnn5 --clean-select knn:10 --epochs 1"]
    here(*flags, "--clean-select-model", weak, "--experiment folder").ok()
    here(
        *flags, "--clean-select-model", f"w2s_cnn2={weak / 'last.pth.tar'}", "--experiment file"
    ).ok()
    here(
        *STUDENT,
        "--teacher-checkpoint",
        weak,
        "--clean-select knn:10 --epochs 1 --experiment teacher",
    ).ok()
    assert selected("folder") == selected("file") == selected("teacher")


def test_a_resumed_run_keeps_its_selection(here: Run, weak: Path) -> None:
    flags = [
        *STUDENT,
        "--teacher-checkpoint",
        weak,
        "--clean-select knn:10 --teacher-targets cached",
    ]
    whole = assert_goes_on(here, *flags)
    assert (whole / "selected.txt").read_text() == (whole.parent / "parts/selected.txt").read_text()
    here(*flags, "--output ends --label-noise pairflip:0.2 --clean-select knn:5").ok()
    assert len(list(Path().rglob("targets/*/labels.json"))) == 2  # other labels, other data


@pytest.mark.parametrize("kind", ["noise", "selection"])
def test_a_resumed_run_needs_its_labels_and_its_selection(here: Run, weak: Path, kind: str) -> None:
    flags = [
        *STUDENT,
        "--teacher-checkpoint",
        weak,
        "--label-noise labels:noise.csv --experiment run",
    ]
    if kind == "selection":
        flags += ["--clean-select knn:10"]
    here(*NOISY, "--model w2s_cnn2 --epochs 1 --experiment drawn").ok()
    Path("noise.csv").write_text(Path("output/train/drawn/labels.csv").read_text())
    here(*flags, "--stop-epoch 1").ok()
    if kind == "noise":
        Path("noise.csv").write_text(
            re.sub("^([0-9]+),3,", "\\1,4,", Path("noise.csv").read_text(), flags=re.M)
        )
        expected = "the labels of --label-noise labels:noise.csv changed since it was written"
    else:
        file = Path("output/train/run/selected.txt")
        file.write_text("".join(file.read_text().splitlines(True)[:-1]))
        expected = "the selection of --clean-select changed since it was written"
    assert expected in here(*flags, "--resume auto").error


@pytest.mark.slow
def test_two_processes_select_what_one_does(
    ranks: Run, here: Run, weak: Path, tmp_path: Path
) -> None:
    flags = [
        *STUDENT,
        "--teacher-checkpoint",
        weak,
        "--clean-select knn:10 --epochs 1",
        "--val-split",
        "",
    ]
    here(*flags, "--experiment one").ok()
    ranks(*flags, "--experiment two", processes=2, cwd=tmp_path).ok()
    assert selected("one") == selected("two") and labels("one") == labels("two")


def test_selection_by_several_teachers(here: Run, weak: Path) -> None:
    flags = [*STUDENT, *taught(weak, weak), "--epochs 1"]
    here(*flags, "--clean-select entropy:0.5 --experiment mean").ok()
    assert len(result("mean")["clean_select"]["models"]) == 2 and len(selected("mean")) == 100


@pytest.mark.parametrize("dataset, temperature", [("cifar10", 10), ("cifar100", 1)])
@pytest.mark.parametrize("kind", ["symmetric:0.2", "asymmetric:0.4"])
def test_recipes(dataset: str, temperature: float, kind: str) -> None:
    flags = ["--label-noise", kind, "--config", f"noisy-{dataset}-preact18-preact34"]
    settings = train_settings(*flags, dataset=f"torch/{dataset}")
    labels, optim = settings.labels, settings.optim
    assert (labels.label_noise, labels.clean_select, optim.lr, optim.epochs) == (
        kind,
        "knn:250",
        0.001,
        70,
    )
    assert settings.views.mixup == 1.0
    assert settings.loss.loss_kwargs == {
        "temperature": 0.5,
        "kd_temperature": temperature,
        "ramp": 0.25,
    }
    flags += ["ceiling", "--model preact_resnet18", "--clean-select", ""]
    weak = train_settings(*flags, dataset=f"torch/{dataset}")
    assert (weak.student.model, weak.teacher.teacher, weak.labels.clean_select) == (
        "preact_resnet18",
        "",
        "",
    )
    assert (weak.loss.loss, weak.loss.task_loss) == (None, "ce")
