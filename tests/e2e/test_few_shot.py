"""Few-shot runs in this process: classifier stage, meta stage, evaluation of both, on digits with five base classes."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import Run, assert_same_end, read_events, read_result, read_run, taught

EPISODES = ["--few-shot-eval 5x1,3x5:50 --few-shot-split validation"]
SMALL = [
    "--dataset w2s/digits --img-size 8 --workers 0 --warmup-epochs 0 --epochs 2",
    "--hflip 0 --color-jitter 0 --log-interval 1",
    "--val-split",
    "",
]
META = [
    *SMALL,
    "--model w2s_cnn5 --episodic 5x1:2 --queries 5 --train-batches-per-epoch 4",
    "--lr 0.01",
]


@pytest.fixture
def lists(here: Run, tmp_path: Path) -> list[str]:
    """Flags for base classes 0 to 4 and novel classes 5 to 9; their files are in the working folder."""
    for name, classes in (("base", range(5)), ("novel", range(5, 10))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{c}\n" for c in classes))
    return ["--class-list base.txt", *EPISODES, "--few-shot-class-list novel.txt"]


@pytest.fixture
def weak5(here: Run, lists: list[str]) -> Path:
    """A weak classifier of the base classes."""
    here(
        *SMALL,
        *lists,
        "--train-slice 0:64 --model w2s_cnn2 --batch-size 16 --lr 0.05 --experiment weak",
    ).ok()
    return Path("output/train/weak")


def test_classifier_stage_is_tested_on_novel_classes(
    here: Run, lists: list[str], weak5: Path
) -> None:
    done = here(
        *SMALL,
        *lists,
        "--model w2s_cnn5 --train-slice 0:64 --batch-size 16 --lr 0.05",
        *taught(weak5),
        "--experiment run --select best --eval-metric few-shot",
    ).ok()
    start = next(e for e in read_events("output/train/run", "start") if e["split"] == "few_shot")
    result = read_result("output/train/run")
    evaluations = read_events("output/train/run", "eval")
    assert [e["metric"] for e in evaluations] == [e["few_shot"]["5x1"] for e in evaluations]
    best = max(evaluations, key=lambda e: e["metric"])
    assert result["selected"] == {
        "rule": "best",
        "epoch": best["epoch"],
        "split": "episodes of validation",
    }
    assert result["few_shot"]["metrics"] == best["few_shot"]
    assert result["few_shot"]["data"]["num_classes"] == 5
    with Path("output/train/run/summary.csv").open() as file:
        assert (
            float(list(csv.DictReader(file))[1]["eval_few_shot_5x1"])
            == evaluations[1]["few_shot"]["5x1"]
        )
    assert f"{best['few_shot']['3x5']:.2f} ± {best['few_shot']['3x5_ci95']:.2f}" in done.out
    card = Path("output/train/run/export/README.md").read_text()
    assert "| 5-way 1-shot (%) |" in card and f"{best['few_shot']['5x1']:.2f} ± " in card
    # the teacher's own run, and validate.py on checkpoint, export and teacher, all on the same episodes
    weak_result = read_result(weak5)["few_shot"]["metrics"]
    assert start["teacher"] == result["few_shot"]["teacher"] == weak_result
    flags = ["--few-shot 5x1,3x5 --channels-last", *taught(weak5)]
    found = here("--checkpoint output/train/run", *flags, script="validate").figures
    assert (found["5x1"], found["3x5_ci95"]) == (
        round(best["few_shot"]["5x1"], 4),
        round(best["few_shot"]["3x5_ci95"], 4),
    )
    assert (found["teacher_5x1"], found["classes"]) == (round(weak_result["5x1"], 4), 5)
    export = here(
        "--model local-dir:output/train/run/export --dataset w2s/digits --workers 0",
        "--split validation --class-list novel.txt --few-shot 5x1,3x5:50",
        script="validate",
    ).figures
    assert export["5x1"] == found["5x1"]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_meta_stage_resumes_exactly(
    here: Run, lists: list[str], weak5: Path, at_step: Callable, with_teacher: bool
) -> None:
    flags = [*META, *lists, "--initial-checkpoint", weak5, "--model w2s_cnn2 --recovery-interval 3"]
    if with_teacher:
        flags += [*taught(weak5)]
    here(*flags, "--experiment whole").ok()

    at_step(8)  # after the recovery checkpoint of the second epoch
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "--experiment parts")
    here(*flags, "--experiment parts --resume auto").ok()
    whole, parts = Path("output/train/whole"), Path("output/train/parts")
    assert_same_end(whole, parts)
    state, start = read_run(whole), read_run(weak5)["state_dict"]
    assert state["task_state"]["extractor.scale"] != 10
    assert torch.equal(state["state_dict"]["fc.weight"], start["fc.weight"])
    assert not torch.equal(state["state_dict"]["stage1.0.weight"], start["stage1.0.weight"])
    terms = next(e for e in read_events(whole, "train"))["terms"]
    assert "task" in terms and ("kd" in terms) == with_teacher
