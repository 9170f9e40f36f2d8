"""Several runs of several classes an image, and what is made of their students."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import w2s_plugins as w2s
from tests.hub_server import HubServer, hub_env
from tests.parts import words
from tests.teacher_models import make_hf
from w2s_plugins.hub import __main__ as hub
from w2s_plugins.study.chain import choose_best

from . import test_several_labels
from .conftest import ROOT, Run, assert_same_end, environment, read_result, run_many
from .test_several_labels import NAMES, STUDENT, TRUTH, WEAK

pairs = test_several_labels.pairs  # the fixture


def test_protocol(pairs: Run) -> None:
    """Teacher, ceiling, student and a control, compared in mAP."""
    flags = "--protocol w2s --teacher w2s_cnn2 --controls direct --weak-fraction 0.3 --loss bce"
    done = pairs(*STUDENT, TRUTH, flags, "--epochs 4 --experiment p").ok()
    record = read_result("output/train/p")
    for name in ("weak", "student", "ceiling"):
        run = read_result(Path("output/train/p", name))
        assert record[name]["value"] == pytest.approx(run["metrics"]["map"], abs=0.01)
        assert record[name]["low"] < record[name]["high"]
    gap = record["ceiling"]["value"] - record["weak"]["value"]
    if gap > 0:
        gained = record["student"]["value"] - record["weak"]["value"]
        assert record["pgr"]["value"] == pytest.approx(gained / gap, abs=0.01)
    assert "mAP (95 % interval)" in done.out and "above direct" in done.out


def test_stages_with_few_true_labels(pairs: Run) -> None:
    """The teachers of the last stage are averaged, and the stage that would tell how to weigh them is left out."""
    recipe = "--stages weak-labels-plus-few-true --unlabeled test --teacher labels:test.csv"
    flags = "--data-dir . --train-split train --train-labels train.csv --val-split train --val-labels train.csv"
    done = pairs(*STUDENT, flags, recipe, "--tune all --epochs 2 --experiment few").ok()
    record = read_result("output/train/few")
    assert [*record["stages"]] == ["direct", "recipe", "student"]
    assert record["stages"]["student"]["teacher"].get("assign") in (None, "mean")
    assert done.err.count("teachers are averaged class by class") == 1
    assert "without the stage part" in done.err and "without the stage whole" in done.err


def test_what_is_trained_is_measured_by_map(pairs: Run) -> None:
    """Of several classes an image, too, if nobody has typed it."""
    recipe = "--stages weak-labels-plus-few-true --unlabeled test --teacher labels:test.csv"
    flags = "--data-dir . --train-split train --train-labels train.csv --val-split ''"
    done = pairs(*STUDENT, flags, recipe, "--epochs 1 --experiment measured").ok()
    stages = read_result("output/train/measured")["stages"]
    assert [*stages] == ["part", "whole", "direct", "student"]  # nothing measures the recipe
    best = choose_best(["part", "whole"], stages)
    tuned = [stages[name]["model"].get("tune") for name in (best, "direct", "student")]
    assert len({*tuned}) == 1 and f"as the stage {best} (right: part" in done.err


def test_stages_of_candidates(pairs: Run) -> None:
    recipe = "--stages weak-labels-candidates --epochs 1 --experiment all"
    done = pairs(*STUDENT, WEAK, recipe).ok()
    stages = read_result("output/train/all")["stages"]
    assert [*stages] == ["probe", "last", "adapters", "all", "student"]
    assert all(math.isfinite(stage["metrics"]["map"]) for stage in stages.values())
    assert {stage["loss"]["name"] for stage in stages.values()} == {"bce", "elr"}
    assert "--task multilabel: --loss elr (--for-multilabel)" in done.err
    assert "--task multilabel: no part of the student is chosen, because" in done.err
    # nothing is chosen, so the recipe is not trained twice
    assert "without the stage recipe, because student is trained alike" in done.err


def test_folds(pairs: Run) -> None:
    """What each model says of images that it has not seen is a table that teaches."""
    done = pairs(*STUDENT, TRUTH, "--folds 2 --experiment folds").ok()
    record = read_result("output/train/folds")
    assert record["out_of_fold"]["samples"] == 64 and record["out_of_fold"]["map"] > 15
    assert "mAP" in done.out
    with Path("output/train/folds/out_of_fold.csv").open(newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    with Path("train.csv").open(newline="") as file:
        assert {row["filename"]: row["labels"] for row in csv.DictReader(file)} == {
            name: row["truth"] for name, row in rows.items()
        }
    teacher = "--teacher labels:output/train/folds/out_of_fold.csv"
    pairs(*STUDENT, "--unlabeled train --loss bce --experiment again", teacher).ok()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_and_its_report(pairs: Run, capsys: pytest.CaptureFixture) -> None:
    given = words(*STUDENT, TRUTH)
    base = dict(zip((name[2:].replace("-", "_") for name in given[::2]), given[1::2], strict=True))
    base |= dict(weak_fraction="0.4", model=None)
    lines = [f"  {name}: {value}" for name, value in base.items() if value is not None]
    model = "[{name: cnn2, flags: {model: w2s_cnn2}}]"
    head = f"weak: {model}\nstrong: {model}\nlosses: [bce, asl]\nseeds: 1\nbase:\n"
    Path("study.yaml").write_text(head + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "w2s_plugins.study"]
    env = environment(PYTHONPATH=str(ROOT))
    for rest in (
        "run study.yaml --output output/s --jobs 2",
        "report output/s",
    ):
        done = subprocess.run([*command, *rest.split()], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    report = Path("output/s/report/README.md").read_text()
    assert "has the highest mean mAP" in report and "accuracy" not in report.lower()
    assert "| loss | seeds | mAP |" in report


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--model test_vit --img-size 32 --tune", part], id=part)
        for part in ("lora", "head", "norm", "bias", "last:1")
    ]
    + [
        pytest.param("--grad-accum-steps 2 --channels-last --clip-grad 1", id="accumulated"),
        pytest.param("--torchcompile eager", id="compiled"),
    ],
)
def test_ways_to_train(pairs: Run, flags: object) -> None:
    """The export is the student that was measured."""
    pairs(*STUDENT, WEAK, "--loss bce --epochs 1", flags, "--experiment student").ok()
    export = "--model local-dir:output/train/student/export --data-dir . --split test"
    found = pairs(export, "--val-labels test.csv", script="validate").figures
    assert found["map"] == pytest.approx(
        read_result("output/train/student")["metrics"]["map"], abs=1e-3
    )


def test_a_run_is_killed_within_an_epoch(pairs: Run, at_step: Callable[..., None]) -> None:
    flags = [*STUDENT, WEAK, "--loss elr --checkpoint-hist 1 --recovery-interval 1 --output ends"]
    pairs(*flags, "--experiment whole").ok()
    at_step(7)
    with pytest.raises(RuntimeError, match="power cut"):
        pairs(*flags, "--experiment parts")
    pairs(*flags, "--experiment parts --resume auto").ok()
    assert_same_end(Path("ends/whole"), Path("ends/parts"))


def test_two_ranks_with_weights_in_parts(pairs: Run, ranks: Run, tmp_path: Path) -> None:
    flags = [*STUDENT, WEAK, "--loss bce --batch-size 8 --fsdp --experiment two"]
    assert ranks(*flags, processes=2, cwd=tmp_path).codes == (0, 0)
    found = pairs("--checkpoint output/train/two", script="validate").figures
    assert found["map"] == pytest.approx(read_result("output/train/two")["metrics"]["map"], abs=0.1)


# ---------------------------------------------------------------- other data than tables


def write_columns(folder: Path) -> None:
    """Write a data set of the Hub's library in a folder: lists of classes, a row of 0 and 1, and three columns."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    names = dict(names=NAMES, _type="ClassLabel")
    features = {
        "image": {"_type": "Image"},
        "labels": {"feature": names, "_type": "List"},
        "hot": {"feature": {"dtype": "int8", "_type": "Value"}, "_type": "List"},
        **{name: {"dtype": "int8", "_type": "Value"} for name in NAMES[:3]},
    }
    for split, name in (("train", "train"), ("test", "validation")):
        with Path(f"{split}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        has = [[NAMES.index(label) for label in row["labels"].split(",")] for row in rows]
        hot = [[int(i in classes) for i in range(len(NAMES))] for classes in has]
        files = [Path(split, row["filename"]) for row in rows]
        columns = {
            "image": [dict(bytes=file.read_bytes(), path=file.name) for file in files],
            "labels": has,
            "hot": hot,
            **{name: [row[i] for row in hot] for i, name in enumerate(NAMES[:3])},
        }
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pyarrow.table(columns).replace_schema_metadata(about)
        parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")


def test_columns_of_a_dataset(pairs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of classes and rows of 0 and 1 teach what a table does, to the last bit."""
    pytest.importorskip("datasets", reason="pip install datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("cache").absolute())
    write_columns(Path("columns"))
    data = "--dataset hfds/columns"
    pairs(*STUDENT, TRUTH, "--experiment table").ok()
    pairs(*STUDENT, data, "--target-key labels --experiment lists").ok()
    pairs(*STUDENT, data, "--target-key hot --target-format multihot --experiment rows").ok()
    expected = test_several_labels.weights("table")
    for name in ("lists", "rows"):
        found = test_several_labels.weights(name)
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    few = [word for word in words(*STUDENT) if not word.startswith("d0,")]
    few.remove("--class-names")
    pairs(*few, data, "--target-key d0,d1,d2 --experiment few").ok()
    assert read_result("output/train/few")["model"]["class_names"] == NAMES[:3]
    said = "each label has 10 numbers, all 0 or 1; if these are one for each class, give --target-format multihot"
    assert said in pairs(*STUDENT, data, "--target-key hot --experiment x").error
    assert "by --target-key" in pairs(*STUDENT, data, "--target-key d0 --experiment x").error


def test_labels_of_one_class_are_refused(pairs: Run) -> None:
    said = "of this kind of dataset one label an image can be read; expected hfds/NAME, or a folder"
    # streams and the like are refused before anything is opened
    for dataset in ("w2s/digits", "hfids/me/x", "wds/me/x", "tfds/coco", "torch/cifar10"):
        data = f"--dataset {dataset} --data-dir . --experiment x"
        assert said in pairs(*STUDENT, data).error
        beside = "labels of images in a folder or a tar file, which --data-dir names alone"
        assert beside in pairs(*STUDENT, data, "--train-labels train.csv").error
    for split in ("train", "validation"):
        for name in NAMES:
            Path("folders", split, name).mkdir(parents=True)
            shutil.copy("test/000.png", Path("folders", split, name))
    said = "split 'train': folders of classes say one class an image; expected a table of labels by --train-labels"
    assert said in pairs(*STUDENT, "--data-dir folders --experiment x").error


# ---------------------------------------------------------------- what is made of a student


def test_the_card_of_an_export(pairs: Run) -> None:
    """Its words and its metadata are of several labels, and its lines of Python print what is above the threshold."""
    folder = Path("output/train/teacher/export")
    text = (folder / "README.md").read_text()
    assert "A classifier of several labels an image trained" in text and "softmax" not in text
    assert ".sigmoid()" in text and "| mAP (%) |" in text
    data = ModelCard(text).data
    measured = {(one.metric_type, one.metric_name): one.metric_value for one in data.eval_results}
    found = read_result(folder.parent)["metrics"]
    assert measured["mean_average_precision", "mAP (%)"] == pytest.approx(found["map"])
    assert measured["f1", "Micro F1 (%)"] == pytest.approx(found["micro_f1"])
    assert "multi-label-classification" in data.tags


def test_a_published_student_teaches(pairs: Run, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add_user("me", "hf_me")
    env = hub_env(hub_server, tmp_path, "hf_me")
    push = ["-m", "w2s_plugins.hub", "push", "output/train/teacher", "me/pairs"]
    taught = words(*STUDENT, WEAK.replace("labels:weak.csv", "hf-hub:me/pairs"), "--loss bce")
    pushed, done = run_many([push, [*taught, "--experiment", "student"]], env, tmp_path)
    assert pushed.ok().out.startswith(hub_server.url)
    assert read_result("output/train/student")["teacher"]["map"] == pytest.approx(
        read_result("output/train/teacher")["metrics"]["map"], abs=1e-3
    ), done.ok().err


def test_onnx_and_transformers_say_the_same(pairs: Run) -> None:
    """An ONNX file knows what its labels are, and so does the wrapper of transformers: scores are sigmoids."""
    pytest.importorskip("onnxruntime")
    from transformers import pipeline

    folder = Path("output/train/teacher/export")
    hub.export(str(folder.parent), Path("teacher.onnx"), None, [])
    flags = "--unlabeled train --data-dir . --val-split test --val-labels test.csv --loss bce"
    pairs(*STUDENT, flags, "--teacher onnx:teacher.onnx --experiment student").ok()
    taught_by = read_result("output/train/student")["teacher"]
    found = read_result(folder.parent)["metrics"]
    assert taught_by["map"] == pytest.approx(found["map"], abs=1e-3)

    image = Image.open("test/000.png").convert("RGB")
    student = w2s.load_student(folder)
    with torch.inference_mode():
        expected = student(student.transform(image)[None]).sigmoid()[0].tolist()
    said = pipeline("image-classification", str(folder))(image, top_k=10)
    assert {row["label"]: row["score"] for row in said} == pytest.approx(
        dict(zip(NAMES, expected)), abs=1e-5
    )


def test_a_classifier_of_transformers_teaches(pairs: Run) -> None:
    pytest.importorskip("transformers")
    make_hf(Path("vit"), NAMES)
    flags = "--unlabeled train --data-dir . --val-split test --val-labels test.csv --loss bce"
    said = "gives labels of one class an image, the student learns several"
    assert said in pairs(*STUDENT, flags, "--teacher hf:vit --experiment one").error
    config = json.loads(Path("vit/config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    Path("vit/config.json").write_text(json.dumps(config))
    pairs(*STUDENT, flags, "--teacher hf:vit --experiment student").ok()
    assert math.isfinite(read_result("output/train/student")["teacher"]["map"])


# ---------------------------------------------------------------- from Python


def test_from_python(pairs: Run) -> None:
    given = words(*STUDENT, TRUTH)
    flags = {name[2:].replace("-", "_"): given[i + 1] for i, name in enumerate(given) if i % 2 == 0}
    numbers = ("img_size", "batch_size", "epochs", "warmup_epochs", "workers", "log_interval")
    typed = {
        name: int(value) if name in numbers else float(value) if name == "lr" else value
        for name, value in flags.items()
    }
    record = w2s.train(**typed, experiment="python")
    assert math.isfinite(record["metrics"]["map"])
    for row in w2s.predict("output/train/teacher", "test", all=True, multilabel_threshold=0.2):
        assert row["labels"] == [name for name in NAMES if row[name] >= 0.2], row

    student = w2s.load_student("output/train/python")
    assert student.task == "multilabel" and student.class_names == NAMES
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    # the student says what its labels are, unless that is said here
    teacher = w2s.create_teacher(["output/train/teacher", "output/train/python"], student)
    first, second = (
        w2s.load_student(f"output/train/{name}")(images).sigmoid() for name in ("teacher", "python")
    )
    torch.testing.assert_close(teacher(images).sigmoid(), (first + second) / 2)
    model = nn.Linear(1, 3)
    model.num_classes = 3
    asked = w2s.create_teacher(lambda batch: batch.mean((2, 3)), model, task="multilabel")
    assert asked(images).shape == (2, 3) and asked.target_kind.task == "multilabel"
    with pytest.raises(w2s.UserError, match="unknown task 'several'; expected classification or"):
        w2s.create_teacher("output/train/teacher", student, task="several")
