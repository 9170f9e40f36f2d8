"""``--task multilabel``: students, teachers, evaluations and predictions of several classes an image."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from w2s_plugins.data.datasets import create_dataset

from .conftest import BRIEF, Run, assert_goes_on, read_result

NAMES = [f"d{digit}" for digit in range(10)]
TASK = ["--task multilabel --class-names", ",".join(NAMES)]
STUDENT = [*BRIEF, *TASK, "--model w2s_cnn2 --lr 0.02 --opt adamw --img-size 16"]
TRUTH = "--data-dir . --train-split train --train-labels train.csv --val-split test --val-labels test.csv"
WEAK = "--unlabeled train --teacher labels:weak.csv --data-dir . --val-split test --val-labels test.csv"


def write_pairs(folder: Path, table: Path, first: int, count: int) -> None:
    """Write images of two digits side by side, and a table whose cells list them; one image has an unknown digit."""
    digits = create_dataset("w2s/digits", None, "train")
    folder.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "labels"])
        for number in range(count):
            pair = [digits[first + 2 * number + side] for side in (0, 1)]
            image = Image.new("L", (16, 16))
            for side, (digit, _) in enumerate(pair):
                image.paste(digit.convert("L"), (8 * side, 4))
            image.save(folder / f"{number:03}.png")
            writer.writerow([f"{number:03}.png", ",".join(sorted({f"d{n}" for _, n in pair}))])


def write_weak(truth: Path, table: Path) -> None:
    """Write probabilities of each digit, most of which are right, and some cells empty."""
    rng = np.random.default_rng(0)
    with truth.open(newline="") as file, table.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["filename", *NAMES])
        for row in csv.DictReader(file):
            has = [name in row["labels"].split(",") for name in NAMES]
            says = [0.8 if yes != (rng.random() < 0.1) else 0.1 for yes in has]
            cells = ["" if rng.random() < 0.1 else f"{share:.2f}" for share in says]
            writer.writerow([row["filename"], *cells])


@pytest.fixture
def pairs(here: Run, made_once: Callable, tmp_path: Path) -> Run:
    """A folder with images to train on and to measure on, their tables, and a teacher."""

    def make() -> None:
        write_pairs(Path("train"), Path("train.csv"), 0, 64)
        write_pairs(Path("test"), Path("test.csv"), 200, 40)
        write_weak(Path("train.csv"), Path("weak.csv"))
        here(*STUDENT, TRUTH, "--epochs 8", "--experiment teacher").ok()

    made_once("pairs", make)
    return here


def figures(name: str) -> dict:
    return read_result(Path("output/train", name))["metrics"]


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(Path("output/train", name, "export/model.safetensors"))


def test_true_labels_are_learned_as_timm_has_it(pairs: Run) -> None:
    """Its figures are there, the head has begun with the shares, and the export says what its labels are."""
    measured = figures("teacher")
    assert {"map", "micro_f1", "macro_f1", "sample_f1", "loss"} <= measured.keys()
    assert "top1" not in measured and measured["map"] > 25  # 20 % of the pairs have a digit
    config = json.loads(Path("output/train/teacher/export/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label_names"] == NAMES


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--loss", loss], id=loss)
        for loss in ("bce", "asl", "kd", "elr", "adaptconf", "an", "wan", "ll_r", "ll_ct", "nvum")
    ]
    + [
        pytest.param("--amp --amp-dtype bfloat16 --loss bce", id="amp"),
        pytest.param("--model-ema --model-ema-decay 0.5 --loss bce", id="ema"),
        pytest.param("--mixup 0.5 --loss bce", id="mixup"),
        pytest.param("--select-split 0.2 --select best --loss bce", id="select"),
        pytest.param("--linear-probe --loss bce", id="probe"),
        pytest.param(
            "--clean-select entropy:0.5 --clean-select-model output/train/teacher --loss bce",
            id="certain",
        ),
        pytest.param(
            "--config weak-labels --tune all --loss bce --epochs 1 --batch-size 16", id="recipe"
        ),
    ],
)
def test_weak_labels_teach(pairs: Run, flags: object) -> None:
    done = pairs(*STUDENT, WEAK, flags, "--experiment student").ok()
    assert math.isfinite(figures("student")["map"]), done.err
    # an epoch that the teacher chooses is hardly chosen
    assert ("no threshold is chosen" in done.err + done.out) == ("--select-split" in flags)


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(["--teacher output/train/teacher"], id="a run"),
        pytest.param(["--teacher output/train/teacher --teacher-targets cached"], id="cached"),
        pytest.param(
            ["--teacher output/train/teacher --teacher-targets cached-views:2"], id="views"
        ),
        pytest.param(["--teacher output/train/teacher,labels:weak.csv"], id="a run and labels"),
        pytest.param(
            ["--teacher output/train/teacher,output/train/teacher --teacher-assign student"],
            id="student",
        ),
    ],
)
def test_teachers(pairs: Run, teacher: list[str]) -> None:
    flags = "--unlabeled train --data-dir . --val-split test --val-labels test.csv --loss bce"
    pairs(*STUDENT, flags, *teacher, "--experiment student").ok()
    assert figures("student")["map"] > 15


def test_true_and_weak_labels_in_one_batch(pairs: Run) -> None:
    shutil.copytree("train", "others")
    flags = TRUTH.replace("--train-split train ", "--train-split train ")
    flags += " --unlabeled others --teacher labels:weak.csv --task-loss-weight 0.5 --strong-views rand-m5-n2"
    pairs(*STUDENT, flags, "--loss elr --experiment student").ok()
    assert math.isfinite(figures("student")["map"])


def test_without_any_ground_truth(pairs: Run) -> None:
    pairs(
        *STUDENT, "--unlabeled train --teacher labels:weak.csv --loss bce --experiment student"
    ).ok()
    assert "map" not in read_result("output/train/student").get("metrics", {})


def test_a_run_goes_on_to_the_same_bit(pairs: Run) -> None:
    assert_goes_on(pairs, *STUDENT, WEAK, "--loss nvum --model-ema")


def test_two_ranks_measure_what_one_measures(pairs: Run, ranks: Run, tmp_path: Path) -> None:
    flags = [*STUDENT, WEAK, "--loss bce --batch-size 8 --experiment two"]
    assert ranks(*flags, processes=2, cwd=tmp_path).codes == (0, 0)
    measured = pairs("--checkpoint output/train/two", script="validate").figures
    for name in ("map", "micro_f1", "macro_f1", "sample_f1"):
        assert measured[name] == pytest.approx(figures("two")[name], abs=2e-3), name


def test_an_evaluation_of_a_run_and_of_its_export(pairs: Run) -> None:
    run = pairs("--checkpoint output/train/teacher", script="validate").figures
    export = [
        "--model local-dir:output/train/teacher/export --data-dir . --split test --val-labels test.csv"
    ]
    again = pairs(
        *export, "--teacher output/train/teacher --ceiling-acc 99", script="validate"
    ).figures
    assert run["map"] == again["map"] == again["teacher_map"] and again["agreement"] == 100
    assert again["pgr"] == 0
    assert pairs(*export, "--task multilabel", script="validate").figures["map"] == run["map"]


def test_true_labels_that_never_say_no_measure_nothing(pairs: Run) -> None:
    """No epoch has an easy 100 and is exported as best, no threshold is chosen, and evaluations of the run agree."""
    truth = TRUTH.replace("test.csv", "test.csv?unlisted=unknown")
    flags = "--train-labels train.csv?unlisted=unknown --select best --select-split 0.4 --epochs 3"
    done = pairs(*STUDENT, truth, flags, "--experiment one").ok()
    record = read_result("output/train/one")
    assert record["metrics"].keys() == {"loss"} and record["selected"]["epoch"] == 2
    said = "no epoch is best by --eval-metric map, and the last one is exported: no class has both"
    assert said in record["warnings"][-1] and f"WARNING: {record['warnings'][-1]}" in done.out
    assert set(record["thresholds"]) == {0.5} and "mAP" not in done.out
    (remark,) = (line for line in done.err.splitlines() if "none is left" in line)
    assert "10 have no negative image and leave mAP and F1; none is left, so there is no" in remark
    with Path("output/train/one/classes.csv").open(newline="") as file:
        assert {(row["AP"], row["F1"]) for row in csv.DictReader(file)} == {("", "")}
    check = "--checkpoint output/train/one --teacher output/train/teacher --ceiling-acc 99"
    found = pairs(check, script="validate").figures
    assert "map" not in found and "top1" not in found and "pgr" not in found
    # one class of which images are known not to have it is all that counts
    rows = Path("test.csv").read_text().splitlines()
    partly = ["filename,d1,d2", *(f"{r.split(',')[0]},{int('d1' in r)},1" for r in rows[1:])]
    Path("partly.csv").write_text("\n".join(partly))
    only = pairs(check, "--val-labels partly.csv", script="validate").figures
    pairs(*STUDENT, TRUTH.replace("test.csv", "partly.csv"), "--experiment two").ok()
    record = read_result("output/train/two")
    again = pairs("--checkpoint output/train/two", script="validate").figures
    assert record["metrics"]["map"] == pytest.approx(again["map"], abs=1e-3)
    assert 0 < only["map"] < 100 and 0 < again["map"] < 100


def test_some_classes_count_alone(pairs: Run) -> None:
    """As those of the run's own table of classes."""
    Path("few.txt").write_text("7\n2\n3\n")
    flags = "--checkpoint output/train/teacher --teacher output/train/teacher --valid-labels"
    few = pairs(flags, "few.txt", script="validate").figures
    with Path("output/train/teacher/classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for figure, column in (("map", "AP"), ("macro_f1", "F1")):
        expected = sum(float(rows[number][column]) for number in (7, 2, 3)) / 3
        assert few[figure] == few[f"teacher_{figure}"] == pytest.approx(expected, abs=1e-3)
    assert few["agreement"] == 100
    Path("high.txt").write_text("7\n10\n")
    said = "high.txt: has 10, but the model has 10 classes; expected numbers from 0 to 9"
    assert said in pairs(flags, "high.txt", script="validate").error


def test_predictions_are_a_table_that_teaches(pairs: Run) -> None:
    from w2s_plugins.predictions.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        for form in ([], ["--all"]):
            patch.setattr(
                "sys.argv", ["predict", "output/train/teacher", "test", "--output", "p.csv", *form]
            )
            main()
            with Path("p.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == 40
            for row in rows:
                # an empty cell would be no answer
                said = set() if row["labels"] == "[]" else {*row["labels"].split(",")}
                assert said <= {*NAMES}
                if form:
                    assert said == {name for name in NAMES if float(row[name]) >= 0.5}
    pairs(*STUDENT, "--unlabeled test --teacher labels:p.csv --loss bce --experiment again").ok()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--loss dkd",
            "loss 'dkd' cannot learn labels of several classes an image; losses that can: ",
        ),
        (
            "--loss bce --refine-labels --teacher-targets cached",
            "--refine-labels: labels of several classes",
        ),
        ("--loss ce", "--loss ce is a criterion on ground truth and would not use --teacher"),
        ("--loss bce --target-format multihot", "--target-format: is for --task multilabel with"),
        ("--loss bce --eval-metric top1", "--eval-metric top1: expected"),
        ("--loss kd --task classification", "of an image; add --task multilabel"),
    ],
)
def test_what_does_not_go_together_is_refused(pairs: Run, flags: str, message: str) -> None:
    weak = WEAK.replace("weak.csv", "train.csv")
    assert message in pairs(*STUDENT, weak, flags, "--experiment student").error


def test_a_teacher_of_one_class_is_refused(pairs: Run) -> None:
    one = [*BRIEF, "--dataset w2s/digits --train-slice 0:64 --val-slice 0:60 --model w2s_cnn2"]
    pairs(*one, "--experiment one").ok()
    flags = "--unlabeled train --teacher output/train/one --loss bce --experiment student"
    said = "gives labels of one class an image, the student learns several"
    assert said in pairs(*STUDENT, flags).error


def test_a_criterion_leaves_out_what_is_unknown(pairs: Run) -> None:
    """Columns of 0, 1 and empty cells as true labels."""
    with Path("train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with Path("columns.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *NAMES])
        for number, row in enumerate(rows):
            cells = [str(int(name in row["labels"].split(","))) for name in NAMES]
            cells[number % 10] = ""
            writer.writerow([row["filename"], *cells])
    flags = TRUTH.replace("--train-labels train.csv", "--train-labels columns.csv")
    pairs(*STUDENT, flags, "--experiment student").ok()
    done = pairs(*STUDENT, flags, "--task-loss asl --experiment asl")
    assert "of the true labels are unknown; expected --task-loss bce" in done.error
