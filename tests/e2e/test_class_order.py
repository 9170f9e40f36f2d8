"""Classes in another order, or under other names, than those that a model was trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from tests.parts import assert_refused, change_json, random_images, write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.models.class_names import names_of_data
from w2s_plugins.settings.teacher_name import TeacherName
from w2s_plugins.target_kind import UNMAPPED_LOGIT
from w2s_plugins.teachers.teacher import StudentInput, open_teacher

from .conftest import BRIEF, Run, read_result

NAMES = ["class2", "class0", "class1"]  # as the teacher's class map numbers them
FLAGS = [*BRIEF, "--batch-size 8 --epochs 1 --lr 0.1 --no-aug --model w2s_cnn2"]


@pytest.fixture
def teacher(here: Run, made_once: Callable) -> Path:
    """A run whose classes are in another order, on a folder ``data``."""

    def train() -> Path:
        write_folder(Path("data"), {"train": 24, "validation": 24})
        Path("order.txt").write_text("\n".join(NAMES) + "\n")
        Path("sorted.txt").write_text("\n".join(sorted(NAMES)) + "\n")
        here(*FLAGS, "--data-dir data --class-map order.txt --experiment weak").ok()
        return Path("output/train/weak")

    return made_once("other order", train)


def ask(names: list[str], name: str, *checkpoint: str) -> torch.Tensor:
    student = StudentInput((0.5,) * 3, (0.5,) * 3, 3, 3, names)
    model = open_teacher([TeacherName.parse(name)], checkpoint, student, device=torch.device("cpu"))
    return model(random_images(size=8))


def test_names_are_kept(teacher: Path) -> None:
    assert json.loads((teacher / "class_names.json").read_text()) == NAMES
    exported = timm.create_model(f"local-dir:{teacher / 'export'}", pretrained=True)
    assert exported.pretrained_cfg["label_names"] == NAMES


@pytest.mark.parametrize(
    "where",
    [
        ["w2s_cnn2", "output/train/weak"],
        ["w2s_cnn2", "output/train/weak/export/model.safetensors"],
        ["w2s_cnn2", "output/train/weak/last.pth.tar"],
        ["local-dir:output/train/weak/export"],
    ],
)
def test_logits_are_matched_by_name_wherever_the_teacher_lies(
    teacher: Path, where: list[str]
) -> None:
    assert torch.equal(ask(sorted(NAMES), *where), ask(NAMES, *where)[:, [1, 2, 0]])


def test_logits_of_classes_that_only_one_side_has(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    where = f"local-dir:{teacher / 'export'}"
    plain = ask(NAMES, where)
    partly = ask(["cat", "class1", "class0"], where)
    torch.testing.assert_close(partly.softmax(1)[:, 1:], plain[:, [2, 1]].softmax(1))
    assert (partly[:, 0] == UNMAPPED_LOGIT).all()
    assert (
        "1 of its classes are not in the data (class2); 1 classes of the data it does not know (cat)"
        in caplog.text
    )
    message = r"none of its 3 classes .* is one of the 3 of the data .*--class-names"
    assert_refused(message, ask, ["cat", "dog", "hen"], where)
    assert torch.equal(ask(None, where), plain)


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
        "--data-dir data",
        "--teacher",
        f"local-dir:{teacher / 'export'},w2s_cnn2",
        "--teacher-checkpoint",
        f"{teacher},{teacher / 'last.pth.tar'}",
        "--loss kd",
        *flags,
    ]
    done = here(*run, "--experiment student").ok()
    assert done.err.count("matched by name") == 2 + ("--clean-select" in flags)
    record = read_result("output/train/student")
    own = read_result(teacher)
    assert record["teacher"]["loss"] == pytest.approx(own["metrics"]["loss"], abs=1e-4)


def validate(here: Run, *flags: object) -> tuple[float, str]:
    done = here("--workers 0", *flags, script="validate")
    return done.figures["top1"], done.err


@pytest.mark.parametrize(
    "subject",
    [
        "--checkpoint output/train/weak",
        "--model local-dir:output/train/weak/export --data-dir data",
    ],
)
def test_validation_is_by_name(here: Run, teacher: Path, subject: str) -> None:
    top1, log = validate(here, "--checkpoint", teacher)
    again, other_log = validate(here, subject, "--class-map sorted.txt")
    assert again == top1 and "WARNING" not in log + other_log


def test_validation_says_which_classes_are_others(here: Run, teacher: Path) -> None:
    shutil.copytree("data/validation", "fewer")
    shutil.rmtree("fewer/class2")
    log = validate(here, "--checkpoint", teacher, "--data-dir fewer", "--class-map", "")[1]
    assert "has 2 of the 3 classes; it lacks class2" in log
    other = shutil.copytree(teacher / "export", "other")
    change_json(Path(other, "config.json"), label_names=["a", "b", "c"])
    log = validate(here, "--model", f"local-dir:{other}", "--data-dir data")[1]
    assert "(class 0 is 'a' there, " in log


def test_a_run_does_not_go_on_with_classes_in_another_order(here: Run, teacher: Path) -> None:
    run = [*FLAGS, "--epochs 2 --sched none --data-dir data", "--experiment mapped"]
    here(*run, "--class-map order.txt --stop-epoch 1").ok()
    shutil.copy("sorted.txt", "order.txt")
    error = here(*run, "--class-map order.txt --resume auto").error
    assert "has them in another order (class 0 is 'class2' there, 'class0' here)" in error


@pytest.mark.parametrize("content", ["[1, 2, 3]", '["a", "a", "b"]', "{}"])
def test_names_that_are_none_are_left_aside(
    teacher: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (teacher / "class_names.json").write_text(content)
    caplog.set_level("INFO")
    ask(sorted(NAMES), "w2s_cnn2", str(teacher / "last.pth.tar"))
    assert "its classes are taken by position" in caplog.text


def test_a_file_of_names_that_is_damaged_is_refused(teacher: Path) -> None:
    (teacher / "class_names.json").write_text("{")
    checkpoint = str(teacher / "last.pth.tar")
    assert_refused("not a JSON file", ask, sorted(NAMES), "w2s_cnn2", checkpoint)


@pytest.mark.parametrize(
    ("numbers", "names"), [([0, 1, 1], None), ([2, 1, 0], ["class2", "class1", "class0"])]
)
def test_a_class_map_that_joins_classes_has_no_names(
    tmp_path: Path, numbers: list[int], names: list[str] | None
) -> None:
    root = write_folder(tmp_path / "data", {"train": 6})
    class_map = dict(zip(["class0", "class1", "class2"], numbers))
    assert names_of_data(create_dataset("", str(root), "train", class_map=class_map)) == names
