"""Classes in another order, or under other names, than those that a model was trained on."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from tests.parts import random_images, write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.errors import UserError
from w2s_plugins.models.class_names import names_of_data
from w2s_plugins.teachers.name import TeacherName
from w2s_plugins.teachers.teacher import UNMAPPED_LOGIT, StudentInput, open_teacher

from .conftest import BRIEF, Run, read_result

NAMES = ["class2", "class0", "class1"]  # as the teacher's class map numbers them
FLAGS = [*BRIEF, "--batch-size", 8, "--epochs", 1, "--lr", 0.1, "--no-aug", "--model", "w2s_cnn2"]


@pytest.fixture
def teacher(here: Run, tmp_path: Path) -> Path:
    """A run whose classes are in another order, on a folder ``data``."""
    write_folder(tmp_path / "data", {"train": 24, "validation": 24})
    Path("order.txt").write_text("\n".join(NAMES) + "\n")
    here(*FLAGS, "--data-dir", "data", "--class-map", "order.txt", "--experiment", "weak").ok()
    return Path("output/train/weak")


def ask(names: list[str], name: str, *checkpoint: str) -> torch.Tensor:
    student = StudentInput((0.5,) * 3, (0.5,) * 3, 3, 3, names)
    model = open_teacher([TeacherName.parse(name)], checkpoint, student, device=torch.device("cpu"))
    return model(random_images(size=8))


def test_logits_are_matched_by_name_wherever_the_teacher_lies(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert json.loads((teacher / "class_names.json").read_text()) == NAMES
    assert (
        timm.create_model(f"local-dir:{teacher / 'export'}", pretrained=True).pretrained_cfg[
            "label_names"
        ]
        == NAMES
    )
    places = [
        ("w2s_cnn2", teacher),
        ("w2s_cnn2", teacher / "export/model.safetensors"),
        ("w2s_cnn2", teacher / "last.pth.tar"),
        (f"local-dir:{teacher / 'export'}",),
    ]
    caplog.set_level("INFO")
    for name, *checkpoint in places:
        where = name, *map(str, checkpoint)
        plain = ask(NAMES, *where)
        assert torch.equal(ask(sorted(NAMES), *where), plain[:, [1, 2, 0]])

    # Of the last of them, what classes only one side has come to.
    partly = ask(["cat", "class1", "class0"], *where)
    torch.testing.assert_close(partly.softmax(1)[:, 1:], plain[:, [2, 1]].softmax(1))
    assert (partly[:, 0] == UNMAPPED_LOGIT).all()
    assert (
        "1 of its classes are not in the data (class2); 1 classes of the data it does not know (cat)"
        in caplog.text
    )
    with pytest.raises(
        UserError, match=r"none of its 3 classes .* is one of the 3 of the data .*--class-names"
    ):
        ask(["cat", "dog", "hen"], *where)
    assert torch.equal(ask(None, *where), plain)


@pytest.mark.parametrize(
    "flags",
    [
        ("--teacher-targets", "cached"),
        ("--clean-select", "entropy:0.5", "--clean-select-model", "output/train/weak"),
    ],
)
def test_a_student_of_a_teacher_with_another_order(here: Run, teacher: Path, flags: tuple) -> None:
    run = [
        *FLAGS,
        "--data-dir",
        "data",
        "--teacher",
        f"local-dir:{teacher / 'export'},w2s_cnn2",
        "--teacher-checkpoint",
        f"{teacher},{teacher / 'last.pth.tar'}",
        "--loss",
        "kd",
        *flags,
    ]
    done = here(*run, "--experiment", "student").ok()
    assert done.err.count("matched by name") == 2 + ("--clean-select" in flags)
    record = read_result("output/train/student")
    own = read_result(teacher)
    assert record["teacher"]["loss"] == pytest.approx(own["metrics"]["loss"], abs=1e-4)


def test_validation_is_by_name(here: Run, teacher: Path) -> None:
    def run(*flags: object) -> tuple[float, str]:
        done = here("--workers", 0, *flags, script="validate")
        return done.figures["top1"], done.err

    top1, found = run("--checkpoint", teacher)
    assert "WARNING" not in found
    Path("sorted.txt").write_text("\n".join(sorted(NAMES)) + "\n")
    for subject in (
        ["--checkpoint", teacher],
        ["--model", f"local-dir:{teacher / 'export'}", "--data-dir", "data"],
    ):
        again, found = run(*subject, "--class-map", "sorted.txt")
        assert again == top1 and "WARNING" not in found
    # images of another folder, of fewer classes
    shutil.copytree("data/validation", "fewer")
    shutil.rmtree("fewer/class2")
    found = run("--checkpoint", teacher, "--data-dir", "fewer", "--class-map", "")[1]
    assert "has 2 of the 3 classes; it lacks class2" in found
    other = shutil.copytree(teacher / "export", "other")
    config = json.loads((teacher / "export/config.json").read_text())
    Path(other, "config.json").write_text(json.dumps({**config, "label_names": ["a", "b", "c"]}))
    assert (
        "(class 0 is 'a' there, " in run("--model", f"local-dir:{other}", "--data-dir", "data")[1]
    )


def test_a_run_does_not_go_on_with_classes_in_another_order(here: Run, teacher: Path) -> None:
    run = [
        *FLAGS,
        "--epochs",
        2,
        "--sched",
        "none",
        "--data-dir",
        "data",
        "--class-map",
        "order.txt",
        "--experiment",
        "mapped",
    ]
    Path("order.txt").write_text("\n".join(NAMES) + "\n")
    here(*run, "--stop-epoch", 1).ok()
    Path("order.txt").write_text("\n".join(sorted(NAMES)) + "\n")
    error = here(*run, "--resume", "auto").error
    assert "has them in another order (class 0 is 'class2' there, 'class0' here)" in error


@pytest.mark.parametrize("content", ["[1, 2, 3]", '["a", "a", "b"]', "{}"])
def test_names_that_are_none_are_left_aside(
    teacher: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (teacher / "class_names.json").write_text(content)
    caplog.set_level("INFO")
    ask(sorted(NAMES), "w2s_cnn2", str(teacher / "last.pth.tar"))
    assert "its classes are taken by position" in caplog.text
    (teacher / "class_names.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        ask(sorted(NAMES), "w2s_cnn2", str(teacher / "last.pth.tar"))


def test_a_class_map_that_joins_classes_has_no_names(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"train": 6})
    for joined, expected in (
        ({"class0": 0, "class1": 1, "class2": 1}, None),
        ({"class0": 2, "class1": 1, "class2": 0}, ["class2", "class1", "class0"]),
    ):
        assert names_of_data(create_dataset("", str(root), "train", class_map=joined)) == expected
