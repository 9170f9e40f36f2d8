"""What several runs were made of is compared before figures of them stand in one table (--protocol, --stages, --folds)."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_w2s
from tests.parts import small_model, write_digits

from .conftest import BRIEF, Run, in_file, read_result

FLAGS = [*BRIEF, "--batch-size 8 --epochs 1"]
KINDS = {
    "--folds": ["--folds 3 --model w2s_cnn2"],
    "--protocol w2s": ["--protocol w2s --weak-fraction 40 --teacher w2s_cnn2 --model w2s_cnn2"],
    "--stages": ["--model w2s_cnn2 --stages stages.yaml"],
}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Images of digits in folders of classes, 120 to train on, 40 to measure on."""
    write_digits(
        160,
        lambda number, label: (
            tmp_path / "birds" / ("train" if number < 120 else "validation") / str(label)
        ),
    )
    (tmp_path / "stages.yaml").write_text("[{name: one}, {name: two, lr: 0.01}]")
    return tmp_path / "birds"


def after_the_first_run(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[int]:
    """Call ``change`` once, when the first of several runs has ended; return the list that counts runs."""
    ended: list[int] = []

    def between() -> None:
        ended.append(1)
        if len(ended) == 1:
            change()

    monkeypatch.setattr(train_w2s, "stop_between_runs", between)
    return ended


def delete_a_third(split: Path) -> None:
    for number, file in enumerate(sorted(split.rglob("*.png"))):
        if number % 3 == 0:
            file.unlink()


@pytest.mark.parametrize("flag", KINDS)
def test_images_deleted_between_runs(
    here: Run, birds: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """The second run is not trained; nor does a table come of it when the command is started again."""
    ended = after_the_first_run(monkeypatch, lambda: delete_a_third(birds / "train"))
    flags = [
        "--data-dir",
        birds,
        *FLAGS,
        *KINDS[flag],
        "--output",
        birds.parent,
        "--experiment several",
    ]
    error = here(*flags).error
    assert (
        error.startswith(flag) and "'train' changed between them: 120 samples, fingerprint" in error
    )
    assert "80 samples, fingerprint" in error and len(ended) == 1
    assert not (birds.parent / "several" / "result.json").exists()
    again = here(*flags, "--resume auto").error
    assert "'train' changed between them: 120 samples" in again and "80 samples" in again


def write_answers(file: Path, images: list[Path], names: dict[str, str]) -> None:
    with file.open("w", newline="") as table:
        csv.writer(table).writerows(
            [("filename", "label"), *((image.name, names[image.parent.name]) for image in images)]
        )


@pytest.mark.parametrize("flags", [("--teacher", "--loss", "kd"), ("--label-noise",)])
def test_labels_rewritten_between_runs(
    here: Run, birds: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """Those of a teacher, and those in place of the true ones."""
    images = sorted((birds / "train").rglob("*.png"))
    file = birds.parent / "answers.csv"
    names = {str(label): str(label) for label in range(10)}
    write_answers(file, images, names)
    after_the_first_run(
        monkeypatch, lambda: write_answers(file, images[::-1], {**names, "3": "4", "5": "4"})
    )
    flag, *more = flags
    error = here(
        "--data-dir",
        birds,
        *FLAGS,
        *KINDS["--stages"],
        flag,
        f"labels:{file}",
        *more,
        "--output",
        birds.parent,
        "--experiment x",
    ).error
    assert f"the labels of {flag} labels:answers.csv changed between them" in error
    record = read_result(birds.parent / "x" / "one")
    assert str(birds.parent) not in json.dumps(record["made_of"]), (
        "others may read it: places are hashes"
    )


def test_rows_of_a_table_in_another_order(here: Run, birds: Path) -> None:
    """Say the same, and a changed label does not; of a record of before, which knows the file alone, it may."""
    images = sorted((birds / "train").rglob("*.png"))
    file, names = birds.parent / "answers.csv", {str(label): str(label) for label in range(10)}
    write_answers(file, images, names)
    flags = ["--data-dir", birds, *FLAGS, *KINDS["--stages"], "--loss kd --label-noise"]
    flags += [f"labels:{file}", "--teacher", f"labels:{file}", "--output", birds.parent]
    flags.append("--experiment x --resume auto")
    here(*flags).ok()
    write_answers(file, images[::-1], names)
    assert here(*flags).ok().err.count("is complete") == 2
    write_answers(file, images, {**names, "3": "4"})
    changed = "the labels of --teacher labels:answers.csv changed between them"
    assert changed in here(*flags).error

    for stage in ("one", "two"):
        record = read_result(birds.parent / "x" / stage)
        for source in record["made_of"]:
            if source["role"].startswith("labels"):
                source["fingerprint"] = source["fingerprint"].split()[-1]
        (birds.parent / "x" / stage / "result.json").write_text(json.dumps(record))
    write_answers(file, images, names)
    assert here(*flags).ok().err.count("is complete") == 2
    write_answers(file, images[::-1], names)
    assert changed in here(*flags).error


def write_weights(file: Path, seed: int) -> Path:
    torch.save(small_model(seed).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("kind", "flag", "more"),
    [
        ("--folds", "--initial-checkpoint", []),
        ("--stages", "--teacher-checkpoint", ["--teacher w2s_cnn2 --loss kd"]),
        ("--stages", "--finetune", []),
        ("--stages", "--clean-select-model", ["--clean-select entropy:0.9"]),
        ("--protocol w2s", "--pretrained-path", []),
    ],
)
def test_weights_exchanged_between_runs(
    here: Run, birds: Path, monkeypatch: pytest.MonkeyPatch, kind: str, flag: str, more: list[str]
) -> None:
    """The second run that begins with them is not trained, and runs that are complete are not taken for others."""
    file = write_weights(birds.parent / "w.pth", 0)
    named = f"w2s_cnn2={file}" if flag == "--clean-select-model" else file
    flags = [
        "--data-dir",
        birds,
        *FLAGS,
        *KINDS[kind],
        flag,
        named,
        *more,
        "--output",
        birds.parent,
    ]
    users = (
        2 if kind == "--protocol w2s" else 1
    )  # the first run that uses them: of the protocol it is the ceiling
    ended: list[int] = []

    def between() -> None:
        ended.append(1)
        if len(ended) == users:
            write_weights(file, 1)

    monkeypatch.setattr(train_w2s, "stop_between_runs", between)
    error = here(*flags, "--experiment x").error
    assert f"the weights of {flag} w.pth changed between them" in error and len(ended) == users
    again = here(*flags, "--experiment x --resume auto").error
    assert (
        f"the weights of {flag} w.pth changed between them" in again and "the same run now" in again
    )


def test_a_teacher_exchanged_after_its_students(here: Run, birds: Path) -> None:
    """A complete student is not taken for one of the teacher that is there now."""
    file = write_weights(birds.parent / "w.pth", 0)
    flags = [
        "--data-dir",
        birds,
        *FLAGS,
        *KINDS["--protocol w2s"],
        "--teacher-checkpoint",
        file,
        "--output",
        birds.parent,
        "--experiment x",
    ]
    here(*flags).ok()
    write_weights(file, 1)
    error = here(*flags, "--resume auto").error
    assert "x/student: student and the same run now cannot be compared" in error
    assert "the weights of --teacher-checkpoint w.pth changed between them" in error


def test_a_ceiling_of_other_first_weights(here: Run, birds: Path) -> None:
    file = write_weights(birds.parent / "w.pth", 0)
    flags = [
        "--data-dir",
        birds,
        *FLAGS,
        *KINDS["--protocol w2s"],
        "--initial-checkpoint",
        file,
        "--output",
        birds.parent,
        "--experiment",
    ]
    here(*flags, "first").ok()
    write_weights(file, 1)
    error = here(*flags, "second", "--ceiling-checkpoint", birds.parent / "first/ceiling").error
    assert (
        "--ceiling-checkpoint" in error
        and "the weights of --initial-checkpoint w.pth changed between" in error
    )
    assert not (birds.parent / "second").exists()


def test_a_ceiling_of_other_images(here: Run, birds: Path) -> None:
    """The same names, number and labels at another place; one image is another one."""
    flags = ["--data-dir", birds, *FLAGS, *KINDS["--protocol w2s"], "--output", birds.parent]
    here(*flags, "--experiment first").ok()
    moved = birds.rename(birds.with_name("moved"))
    file = next((moved / "train").rglob("*.png"))
    Image.new("RGB", (90, 90)).save(file)
    error = here(
        *flags,
        "--data-dir",
        moved,
        "--experiment second",
        "--ceiling-checkpoint",
        birds.parent / "first/ceiling",
    ).error
    assert "'train' changed between them: 120 samples" in error
    assert not (birds.parent / "second").exists()


def test_stages_with_classes_in_another_order(here: Run, birds: Path) -> None:
    """One has its classes in another order: the same test images, compared by name."""
    photos = birds.parent / "photos"
    shutil.copytree(birds / "train", photos)
    images = sorted(photos.rglob("*.png"))
    file = birds.parent / "answers.csv"
    with file.open("w", newline="") as table:
        csv.writer(table).writerows(
            [
                ("filename", *"9876543210"),
                *(
                    (
                        image.relative_to(photos),
                        *(int(label == image.parent.name) for label in "9876543210"),
                    )
                    for image in images
                ),
            ]
        )
    (birds.parent / "stages.yaml").write_text(
        "- {name: direct, unlabeled: null, teacher: null, class_names: null, epochs: 20}\n"
        "- {name: student, lr: 1.0e-9, loss: kd}"
    )
    taught = [
        "--unlabeled",
        photos,
        "--teacher",
        f"labels:{file}",
        "--class-names 9,8,7,6,5,4,3,2,1,0",
    ]
    both = [*taught, "--labeled-share 0.5 --task-loss-weight 0.5"]
    trained = in_file(birds.parent / "flags.yaml", FLAGS)
    here(
        "--data-dir",
        birds,
        *trained,
        *both,
        "--val-slice 0:30 --train-slice 0:60",
        *KINDS["--stages"],
        "--output",
        birds.parent,
        "--experiment x",
    ).ok()
    record = read_result(birds.parent / "x")
    direct, student = (record["stages"][name] for name in ("direct", "student"))
    assert direct["model"]["class_names"] == list("0123456789")
    assert student["model"]["class_names"] == list("9876543210")
    assert (
        direct["data"]["splits"]["val"]["fingerprint"]
        == student["data"]["splits"]["val"]["fingerprint"]
    )
    assert direct["data"]["fingerprint"] == student["data"]["splits"]["labelled"]["fingerprint"]
    gain = student["metrics"]["top1"] - direct["metrics"]["top1"]
    assert record["last_above"]["direct"]["value"] == pytest.approx(gain) and gain < 0
    assert record["warnings"][-1].startswith("the last stage, student, is below an earlier one")
