"""Few-shot runs in this process: classifier stage, meta stage, evaluation of both, on digits with five base classes."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import Done, differences, read_lines, read_run

Run = Callable[..., Done]
EPISODES = ["--few-shot-eval", "5x1,3x5:50", "--few-shot-split", "validation"]
SMALL = ["--dataset", "w2s/digits", "--img-size", "8", "--workers", "0", "--warmup-epochs", "0", "--epochs", "2",
         "--hflip", "0", "--color-jitter", "0", "--log-interval", "1", "--val-split", ""]
META = [*SMALL, "--model", "w2s_cnn5", "--episodic", "5x1:2", "--queries", "5",
        "--train-batches-per-epoch", "4", "--lr", "0.01"]


@pytest.fixture
def lists(here: Run, tmp_path: Path) -> list[str]:
    """Flags for base classes 0 to 4 and novel classes 5 to 9; their files are in the working folder."""
    for name, classes in (("base", range(5)), ("novel", range(5, 10))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{c}\n" for c in classes))
    return ["--class-list", "base.txt", *EPISODES, "--few-shot-class-list", "novel.txt"]


@pytest.fixture
def weak5(here: Run, lists: list[str]) -> Path:
    """A weak classifier of the base classes."""
    here(*SMALL, *lists, "--train-slice", "0:64", "--model", "w2s_cnn2", "--batch-size", "16", "--lr", "0.05",
         "--experiment", "weak").ok()
    return Path("output/train/weak")


@pytest.fixture
def validate(here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., dict]:
    """Runs ``validate.py`` in this process, in the working folder of ``here``; a line of errors is returned as text."""
    import validate
    from w2s_plugins.errors import run_main

    def run(*flags: object) -> dict | str:
        monkeypatch.setattr(sys, "argv", ["validate.py", *map(str, flags)])
        capsys.readouterr()
        try:
            run_main(validate.main, "validate.py")
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return json.loads(capsys.readouterr().out.split("--result\n")[1])
    return run


def test_classifier_stage_is_tested_on_novel_classes(here: Run, lists: list[str], weak5: Path, validate) -> None:
    done = here(*SMALL, *lists, "--model", "w2s_cnn5", "--train-slice", "0:64", "--batch-size", "16", "--lr", "0.05",
                "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak5, "--experiment", "run", "--select", "best",
                "--eval-metric", "few-shot").ok()
    events = read_lines(Path("output/train/run/metrics.jsonl"))
    start = next(e for e in events if e["event"] == "start" and e["split"] == "few_shot")
    result = json.loads(Path("output/train/run/result.json").read_text())
    evaluations = [e for e in events if e["event"] == "eval"]
    assert [e["metric"] for e in evaluations] == [e["few_shot"]["5x1"] for e in evaluations]
    best = max(evaluations, key=lambda e: e["metric"])
    assert result["selected"] == {"rule": "best", "epoch": best["epoch"], "split": "episodes of validation"}
    assert result["few_shot"]["metrics"] == best["few_shot"]
    assert result["few_shot"]["data"]["num_classes"] == 5
    with Path("output/train/run/summary.csv").open() as file:
        assert float(list(csv.DictReader(file))[1]["eval_few_shot_5x1"]) == evaluations[1]["few_shot"]["5x1"]
    assert f"{best['few_shot']['3x5']:.2f} ± {best['few_shot']['3x5_ci95']:.2f}" in done.out
    card = Path("output/train/run/export/README.md").read_text()
    assert "| 5-way 1-shot (%) |" in card and f"{best['few_shot']['5x1']:.2f} ± " in card
    # the teacher's own run, and validate.py on checkpoint, export and teacher, all on the same episodes
    weak_result = json.loads((weak5 / "result.json").read_text())["few_shot"]["metrics"]
    assert start["teacher"] == result["few_shot"]["teacher"] == weak_result
    flags = ["--few-shot", "5x1,3x5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak5]
    found = validate("--checkpoint", "output/train/run", *flags)
    assert (found["5x1"], found["3x5_ci95"]) == (
        round(best["few_shot"]["5x1"], 4), round(best["few_shot"]["3x5_ci95"], 4))
    assert (found["teacher_5x1"], found["classes"]) == (round(weak_result["5x1"], 4), 5)
    export = validate("--model", "local-dir:output/train/run/export", "--dataset", "w2s/digits", "--workers", 0,
                      "--split", "validation", "--class-list", "novel.txt", "--few-shot", "5x1,3x5:50")
    assert export["5x1"] == found["5x1"]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_meta_stage_resumes_exactly(
        here: Run, lists: list[str], weak5: Path, monkeypatch: pytest.MonkeyPatch, with_teacher: bool) -> None:
    from w2s_plugins.training import step

    flags = [*META, *lists, "--initial-checkpoint", weak5, "--model", "w2s_cnn2", "--recovery-interval", "3"]
    if with_teacher:
        flags += ["--teacher", "w2s_cnn2", "--teacher-checkpoint", weak5]
    here(*flags, "--experiment", "whole").ok()

    class Crash(Exception):
        pass

    seed_step, steps = step.seed_step, []
    def crash(*args: object) -> None:
        steps.append(args)
        if len(steps) == 8:  # after the recovery checkpoint of the second epoch
            raise Crash
        seed_step(*args)
    monkeypatch.setattr(step, "seed_step", crash)
    with pytest.raises(Crash):
        here(*flags, "--experiment", "parts")
    monkeypatch.setattr(step, "seed_step", seed_step)
    here(*flags, "--experiment", "parts", "--resume", "auto").ok()
    whole, parts = Path("output/train/whole"), Path("output/train/parts")
    assert differences(read_run(whole), read_run(parts)) == []
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    state, start = read_run(whole), read_run(weak5)["state_dict"]
    assert state["task_state"]["extractor.scale"] != 10
    assert torch.equal(state["state_dict"]["fc.weight"], start["fc.weight"])
    assert not torch.equal(state["state_dict"]["stage1.0.weight"], start["stage1.0.weight"])
    terms = next(e for e in read_lines(whole / "metrics.jsonl") if e["event"] == "train")["terms"]
    assert "task" in terms and ("kd" in terms) == with_teacher


@pytest.mark.parametrize("flags, parts", [
    (["--few-shot-eval", "6x1"], ["--few-shot-eval 6x1", "6 ways are more than the 5 classes", "at most 5x1"]),
    (["--few-shot-eval", "5x1", "--queries", "70"], ["class '8' has", "1 shot(s) + 70 queries", "--queries of"]),
    (["--few-shot-split", "novell"], ["--few-shot-split novell", "train and validation"]),
    (["--episodic", "5x1", "--queries", "400"], ["--episodic 5x1", "400 queries"]),
    (["--episodic", "5x1,5x5"], ["episodes of one shape"]),
    (["--episodic", "5x1", "--val-split", "validation"], ["--val-split validation", "--few-shot-eval"]),
    (["--episodic", "5x1", "--teacher", "w2s_cnn2", "--teacher-checkpoint", "WEAK", "--loss", "sop"],
     ["--loss sop", "memory by sample", "adaptconf"]),
])
def test_bad_input(here: Run, lists: list[str], tmp_path: Path, request, flags: list[str], parts: list[str]) -> None:
    if "WEAK" in flags:
        flags = [str(request.getfixturevalue("weak5")) if f == "WEAK" else f for f in flags]
    error = here(*SMALL, *lists, "--model", "w2s_cnn2", "--experiment", "bad", *flags).error
    missing = [part for part in parts if part not in error]
    assert not missing, f"{missing} not in: {error}"
