"""Images without labels, and in each batch some labelled ones beside them."""

from pathlib import Path

import pytest

from tests.parts import write_digits

from .conftest import BRIEF, Fork, Run, assert_goes_on, read_events, read_result

FLAGS = [
    *BRIEF,
    "--unlabeled photos --data-dir data --task-loss-weight 0.5 --model w2s_cnn2",
    "--output out --teacher w2s_cnn2",
]


@pytest.fixture(autouse=True)
def digits(tmp_path: Path) -> None:
    write_digits(
        200,
        lambda number, label: (
            tmp_path / "photos"
            if number < 100
            else (tmp_path / "data" / ("train" if number < 140 else "validation") / str(label))
        ),
    )


@pytest.mark.parametrize(
    "flags",
    [
        "--amp --model-ema --model-ema-decay 0.9 --grad-accum-steps 2 --loss elr --train-slice 0:30 --select best "
        "--select-split 0.1",
        "--teacher-targets cached-views:2 --loss adaptconf",
        "--teacher-targets cached-views:2 --loss elr --strong-views rand-m10-n3-mstd101 --amp --amp-dtype bfloat16 "
        "--model-ema --model-ema-decay 0.9 --train-slice 0:30 --select best --select-split 0.1",
    ],
)
def test_an_interrupted_run_goes_on_exactly(here: Run, weak: Path, flags: str) -> None:
    whole = assert_goes_on(here, *FLAGS, "--teacher-checkpoint", weak, *flags.split())
    record = read_result(whole)
    assert all("task" in event["terms"] for event in read_events(whole, "train"))
    splits, semi = record["data"]["splits"], "--train-slice" in flags
    assert (splits["train"]["name"], splits["train"]["num_samples"]) == (
        "unlabeled",
        90 if semi else 100,
    )
    assert (splits["labelled"]["split"], splits["labelled"]["num_samples"]) == (
        "train",
        30 if semi else 40,
    )
    assert record["selected"]["split"].endswith("scored against the teacher") == semi
    assert (
        f"| labelled samples beside these | {30 if semi else 40} |"
        in (whole / "export/README.md").read_text()
    )
    assert "top1" in record["metrics"] and record["loss"]["task_loss_weight"] == 0.5


def test_labels_of_a_file_are_needed_of_images_without_labels_only(
    here: Run, tmp_path: Path
) -> None:
    rows = [
        f"{file.name},{number % 10}" for number, file in enumerate(sorted(Path("photos").iterdir()))
    ]
    Path("crowd.csv").write_text("\n".join(["filename,label", *rows]))
    done = here(*FLAGS, "--teacher labels:crowd.csv?missing=error --loss kd").ok()
    assert "4 of the 16 samples of a batch are of the 40 labelled ones in 'train'" in done.err


def test_strong_views_without_true_labels(here: Run, weak: Path, tmp_path: Path) -> None:
    """Nothing but the teacher and the student itself says what is on an image."""
    flags = [
        *BRIEF,
        "--unlabeled photos --class-names 0,1,2,3,4,5,6,7,8,9 --model w2s_cnn2 --output out",
    ]
    teacher = ["--teacher w2s_cnn2 --teacher-checkpoint", weak]
    here(*flags, *teacher, "--strong-views rand-m5-n2 --experiment run").ok()
    terms = [event["terms"] for event in read_events(tmp_path / "out/run", "train")]
    assert terms and all(each["strong"] > 0 for each in terms)


@pytest.mark.parametrize("how", ["--fsdp", "--strong-views rand-m5-n2 --teacher-targets cached"])
def test_two_ranks(fork: Fork, weak: Path, tmp_path: Path, how: str) -> None:
    run = fork(
        *FLAGS, "--teacher-checkpoint", weak, f"--batch-size 8 {how} --experiment two", processes=2
    )
    assert run.wait() == [0, 0], run.text(0) + run.text(1)
    (last,) = (e for e in read_events(tmp_path / "out/two", "eval") if e["epoch"] == 1)
    assert last["train"]["task"] > 0 and last["val"]["top1"] > 0
