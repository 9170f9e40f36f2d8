"""A teacher has seen none of the student's images, which are known by their content, nor has what it was made of."""

import logging
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.e2e.conftest import Run, here  # noqa: F401  (a fixture)
from tests.parts import refusal, train_settings, write_digits
from w2s_plugins.files import write_json
from w2s_plugins.made_of import to_plain
from w2s_plugins.study.w2s import check_teachers
from w2s_plugins.training.data import open_splits, sources_of

from .conftest import Cli
from .specs import BASE, changed, write

SEEN = "60 of the 60 samples that it is trained on are among the student's 60 samples"


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    write_digits(
        160,
        lambda number, label: (
            tmp_path / "birds" / ("train" if number < 120 else "validation") / str(label)
        ),
    )
    return tmp_path / "birds"


def write_run(folder: Path, data: Path, train_slice: str, **flags: object) -> Path:
    """A run folder, as far as it tells what a run was trained on."""
    folder.mkdir()
    settings = train_settings("--data-dir", str(data), "--train-slice", train_slice, dataset="")
    plain = {**settings.flags, **{name: str(value) for name, value in flags.items()}}
    (folder / "args.yaml").write_text(yaml.safe_dump(plain))
    splits = open_splits(settings.data, 3, settings.run.seed)
    made_of = to_plain(sources_of(settings.data, settings.labels, splits))
    write_json(folder / "result.json", dict(data={}, made_of=made_of))
    return folder


def check(data: Path, teacher: Path, train_slice: str = "60:120") -> list[Path]:
    """Check the teacher of a student."""
    flags = [
        "--teacher w2s_cnn2",
        "--teacher-checkpoint",
        str(teacher),
        "--train-slice",
        train_slice,
    ]
    return check_teachers(train_settings("--data-dir", str(data), *flags, dataset=""))


def test_a_copy_of_the_images(tmp_path: Path, birds: Path) -> None:
    teacher = write_run(tmp_path / "teacher", birds, "60:120")
    copy = shutil.copytree(birds, tmp_path / "copy")
    assert SEEN in refusal(check, copy, teacher)
    assert check(copy, teacher, "0:60") == [teacher]
    # a part of them, in a split of another size, among others of the same names
    for file in sorted((copy / "train/3").iterdir())[1:]:
        Image.new("RGB", (8, 8)).save(file)
    shutil.rmtree(copy / "train/4")
    assert "samples that it is trained on are among the student's" in refusal(
        check, copy, teacher, "0:60"
    )


def test_images_that_were_moved(
    tmp_path: Path, birds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are known by what the run has noted of them; nothing can be said of images that are gone."""
    teacher = write_run(tmp_path / "teacher", birds, "60:120")
    moved = birds.rename(tmp_path / "moved")
    assert SEEN in refusal(check, moved, teacher)
    next((moved / "train").rglob("*.png")).unlink()
    with caplog.at_level(logging.WARNING):
        assert check(moved, teacher, "60:119") == [teacher]
    assert "what it was trained on is not there any more; see to it yourself" in caplog.text


@pytest.mark.parametrize(
    "flag", ["initial_checkpoint", "finetune", "pretrained_path", "teacher_checkpoint", "teacher"]
)
def test_a_teacher_that_was_made_of_another_run(tmp_path: Path, birds: Path, flag: str) -> None:
    first = write_run(tmp_path / "first", birds, "60:120")
    path = f"local-dir:{first}/export" if flag == "teacher" else first / "export/model.safetensors"
    second = write_run(tmp_path / "second", birds, "0:30", **{flag: path})
    third = write_run(tmp_path / "third", birds, "0:30", initial_checkpoint=second / "last.pth.tar")
    message = refusal(check, birds, third)
    assert f"--teacher-checkpoint {third}, which was made of {first}: {SEEN}" in message
    assert check(birds, write_run(tmp_path / "fourth", birds, "0:30")) == [tmp_path / "fourth"]


def test_a_teacher_that_is_trained_here(here: Run, cli: Cli, tmp_path: Path, birds: Path) -> None:  # noqa: F811
    """It may begin from a run that has seen them."""
    first = write_run(tmp_path / "first", birds, "60:120")
    (tmp_path / "weak.yaml").write_text(f"initial_checkpoint: {first}\n")
    error = here(
        "--data-dir",
        birds,
        "--protocol w2s --teacher w2s_cnn2 --model w2s_cnn2 --weak-fraction 60",
        "--weak-config",
        tmp_path / "weak.yaml",
        "--experiment x",
    ).error
    assert f"--initial-checkpoint {first}: {SEEN}" in error
    weak = [{"name": "a", "flags": {"model": "w2s_cnn2", "initial_checkpoint": str(first)}}]
    base = {
        **BASE,
        "dataset": "",
        "data_dir": str(birds),
        "train_slice": "0:120",
        "weak_fraction": 60,
    }
    code, _, error = cli("plan", write(tmp_path, changed(base=base, weak=weak)))
    assert code == 2 and f"--initial-checkpoint {first}: {SEEN}" in error


def test_what_a_teacher_was_made_of_is_gone(
    birds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing tells then what it has seen, which is said."""
    first = write_run(tmp_path / "first", birds, "0.0:1.0")
    second = write_run(
        tmp_path / "second", birds, "0.0:0.5", initial_checkpoint=first / "last.pth.tar"
    )
    flags = ["--teacher w2s_cnn2", "--teacher-checkpoint", str(second), "--train-slice 0.5:1.0"]
    student = train_settings("--data-dir", str(birds), *flags, dataset="")
    assert "60 of the 120 samples that it is trained on are among" in refusal(
        check_teachers, student
    )
    shutil.rmtree(first)
    with caplog.at_level(logging.WARNING):
        check_teachers(student)
    assert f"{second} was made of {first}, which is not there any more" in caplog.text
