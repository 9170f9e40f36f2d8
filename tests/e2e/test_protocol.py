"""``--protocol w2s``: three runs, one table."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from w2s_plugins.protocol import read_predictions

from .conftest import TINY, Done, run_script

Run = Callable[..., Done]
FLAGS = [*TINY, "--train-slice", "0:200", "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--protocol", "w2s",
         "--epochs", 12, "--val-interval", 12, "--lr", 0.1, "--hflip", 0, "--scale", 0.8, 1, "--color-jitter", 0,
         "--experiment", "p"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_protocol(here: Run, tmp_path: Path) -> None:
    flags = [*FLAGS, "--weak-fraction", 40, "--weak-config", "weak.yaml"]
    (tmp_path / "weak.yaml").write_text("epochs: 6\nbatch_size: 8\n")
    done = here(*flags).ok()
    folder = Path("output/train/p")
    record, runs = result(folder), {name: result(folder / name) for name in ("weak", "ceiling", "student")}
    assert [runs[n]["data"]["train_samples"] for n in runs] == [40, 160, 160]
    assert runs["weak"]["last"]["epoch"] == 5 and runs["student"]["last"]["epoch"] == 11
    assert record["splits"]["student"] == record["splits"]["ceiling"] != record["splits"]["weak"]
    assert runs["weak"]["teacher"] is None and runs["ceiling"]["teacher"] is None
    assert runs["student"]["loss"]["task_loss_weight"] == 0 and runs["student"]["loss"]["name"] == "adaptconf"
    for name in ("weak", "ceiling", "student"):
        assert record[name]["value"] == pytest.approx(runs[name]["metrics"]["top1"])
    assert record["agreement"]["value"] == pytest.approx(runs["student"]["metrics"]["agreement"])
    assert record["pgr"]["value"] == pytest.approx(runs["student"]["pgr"])
    assert record["weak"]["low"] <= record["weak"]["value"] <= record["weak"]["high"]
    assert "PGR" in done.out.splitlines()[-2] and "95 % interval" in done.out
    table = read_predictions(folder / "student" / "predictions_last.csv")
    assert 100 * (table["student"] == table["target"]).mean() == pytest.approx(runs["student"]["metrics"]["top1"])
    assert 100 * (table["teacher"] == table["target"]).mean() == pytest.approx(runs["weak"]["metrics"]["top1"])

    before = {n: (folder / n / "last.pth.tar").stat().st_mtime_ns for n in runs}
    (folder / "student" / "result.json").unlink()
    again = here(*flags, "--resume", "auto").ok()
    assert "weak is complete" in again.err and "ceiling is complete" in again.err
    assert {n: (folder / n / "last.pth.tar").stat().st_mtime_ns for n in runs} == before
    assert result(folder) == record

    given = ["--teacher-checkpoint", folder / "weak", "--weak-fraction"]
    message = here(*FLAGS[:-1], "q", *given, 20).error
    assert "20 of the 40 samples that it was trained on are among the student's 180" in message
    here(*FLAGS[:-1], "q", *given, 40, "--epochs", 1).ok()
    assert not Path("output/train/q/weak").exists() and result(Path("output/train/q"))["weak"] == record["weak"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--teacher", ""], "needs a --teacher"),
    (["--experiment", ""], "name it with --experiment"),
    (["--select", "best"], "would choose the checkpoint by test labels"),
    (["--weak-fraction", "1.5"], "expected a share between 0 and 1"),
    (["--ceiling-acc", "90"], "leave it out"),
    (["--teacher", "w2s_cnn2,w2s_cnn5"], "names several"),
    (["--weak-config", "no.yaml"], "no such file"),
    (["--episodic", "5x1"], "--episodic trains none"),
])
def test_refused(here: Run, flags: list[str], message: str) -> None:
    assert message in here(*FLAGS, *flags).error


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    run_script(*FLAGS, "--weak-fraction", 0.3, "--lr", 0.2, "--batch-size", 8, cwd=tmp_path, processes=2).ok()
    folder = tmp_path / "output/train/p"
    record = result(folder)
    assert record["student"]["value"] == pytest.approx(result(folder / "student")["metrics"]["top1"])
    assert record["ceiling"]["value"] == pytest.approx(result(folder / "ceiling")["metrics"]["top1"])
