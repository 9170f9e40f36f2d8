"""What flags and data say of several runs is said before the first one is trained."""

from pathlib import Path

import pytest

from tests.parts import refusal, words, write_digits
from w2s_plugins.cli.parser import parse, train_parser
from w2s_plugins.data import create_dataset
from w2s_plugins.study.carry_out import carry_out

PLUS_FEW = [
    "--unlabeled photos --data-dir birds --teacher labels:answers.csv",
    "--model w2s_cnn5 --img-size 8 --stages weak-labels-plus-few-true --experiment x",
    "--workers 0",
]
DIGITS = ["--dataset w2s/digits --model w2s_cnn2 --img-size 8 --experiment x"]


class FirstRunError(Exception):
    """The first run begins, with these flags."""


def begin(*flags: object) -> None:
    """Carry out a command of several runs until the first one would be trained."""

    def train(flags: dict[str, object]) -> dict:
        raise FirstRunError(flags)

    def audit(*about: object) -> None:
        raise AssertionError("nothing was trained")

    args, names = parse(train_parser(), words(*flags))
    carry_out({name: getattr(args, name) for name in names}, names.typed, train, audit)


@pytest.fixture(autouse=True)
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 labelled images, 60 to measure on, 60 photos with labels in a table, and a table of other images."""
    monkeypatch.chdir(tmp_path)
    write_digits(
        150,
        lambda number, label: (
            Path("photos")
            if number < 60
            else (Path("birds", "train" if number < 90 else "validation", str(label)))
        ),
    )
    labels = create_dataset("w2s/digits", None, "train").targets[:60]
    for file, start in (("answers.csv", ""), ("others.csv", "other")):
        rows = [f"{start}{number}.png,{label}" for number, label in enumerate(labels)]
        Path(file).write_text("\n".join(["filename,label", *rows]))


@pytest.mark.parametrize(
    ("flags", "first", "becomes"),
    [
        (
            PLUS_FEW,
            15,
            [
                f"--stages, {stage}: batch size {size} becomes {count}, because it has {count} training samples"
                for stage, size, count in (
                    ("part", 32, 15),
                    ("whole", 32, 15),
                    ("direct", 64, 30),
                    ("recipe", 64, 60),
                )
            ],
        ),
        (
            [*DIGITS, "--folds 3 --train-slice 0:30"],
            20,
            [
                f"--folds, fold{fold}: batch size 128 becomes 20, because it has 20 training samples"
                for fold in (1, 2, 3)
            ],
        ),
        (
            [
                *DIGITS,
                "--teacher w2s_cnn2 --protocol w2s --train-slice 0:200 --weak-fraction 31",
                "--mixup 0.2",
            ],
            30,
            ["--protocol w2s, weak: batch size 128 becomes 30, because it has 31 training samples"],
        ),
    ],
)
def test_the_batch_fits_few_samples(
    flags: list, first: int, becomes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), pytest.raises(FirstRunError) as begun:
        begin(*flags)
    assert [text for text in caplog.messages if "becomes" in text] == becomes
    assert begun.value.args[0]["batch_size"] == first


def test_without_a_test_set_the_recipe_is_not_trained_for_its_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weak labels alone do not say, either, which classes there are, if they are numbers."""
    with caplog.at_level("INFO"), pytest.raises(FirstRunError):
        begin(*PLUS_FEW, "--val-split ''")
    assert not [text for text in caplog.messages if "recipe" in text]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*PLUS_FEW, "--batch-size 16"],
            "--stages, part: --batch-size 16 is more than 15 training samples on 1 process(es) have; expected 15 at most, or "
            "leave the flag out",
        ),
        (
            [*DIGITS, "--folds 3 --train-slice 0:30 --batch-size 21"],
            "--folds, fold1: --batch-size 21 is more",
        ),
    ],
)
def test_a_batch_that_was_typed_stays(flags: list, message: str) -> None:
    assert refusal(begin, *flags).startswith(message)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            "[{name: a}, {name: b, teacher: 'labels:others.csv', loss: kd}]",
            "--stages, b: --teacher labels:others.csv: is about other data",
        ),
        (
            "[{name: a}, {name: b, select_split: 99}]",
            "--stages, b: --select-split 99: expected less than the 30 training",
        ),
        (
            "[{name: a}, {name: b, val_slice: '0:99'}]",
            "--stages, b: --val-slice 0:99: the split has only 60 samples",
        ),
        (
            "[{name: a}, {name: b, teacher: 'stage:a', unlabeled: photo}]",
            "--stages, b: --unlabeled photo: no such",
        ),
        (
            "[{name: a}, {name: b, class_names: 'a,b'}]",
            "--stages, b: --class-names a,b: has 2 names, the data has 10",
        ),
    ],
)
def test_data_of_a_later_run(stages: str, message: str) -> None:
    Path("stages.yaml").write_text(stages)
    assert message in refusal(
        begin,
        "--data-dir",
        "birds",
        "--model",
        "w2s_cnn2",
        "--img-size",
        8,
        "--stages",
        "stages.yaml",
        "--experiment",
        "x",
    )


def test_a_model_that_is_still_to_be_trained_is_not_asked() -> None:
    """The teacher of images without labels, which says what classes they have, is made by an earlier stage."""
    Path("stages.yaml").write_text(
        "[{name: a}, {name: b, teacher: 'stage:a', unlabeled: photos, val_split: '', data_dir: null, loss: kd}]"
    )
    with pytest.raises(FirstRunError):
        begin(
            "--data-dir birds --model w2s_cnn2 --img-size 8 --stages stages.yaml", "--experiment x"
        )
