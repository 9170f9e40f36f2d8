"""``--protocol w2s``: three runs, one table."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TINY, Fork, Run, assert_same_end, in_step, kill, read_result, run_script

FLAGS = [
    *TINY,
    "--train-slice 0:200 --model w2s_cnn5 --teacher w2s_cnn2 --protocol w2s",
    "--epochs 6 --val-interval 6 --lr 0.1 --hflip 0 --scale 0.8 1 --color-jitter 0",
    "--experiment p",
]


def test_protocol(here: Run, tmp_path: Path) -> None:
    flags = [*FLAGS, "--weak-fraction 40 --config flags/protocol.yaml"]
    (tmp_path / "flags").mkdir()
    (tmp_path / "flags/protocol.yaml").write_text(
        "weak_config: weak.yaml\nceiling_config: ceiling.yaml\n"
    )  # beside it
    (tmp_path / "flags/ceiling.yaml").write_text("epochs: 7\n")
    (tmp_path / "flags/weak.yaml").write_text(
        "epochs: 6\nbatch_size: 8\nmodel: w2s_cnn2\ntrain_slice: 0:40\n"
    )
    done = here(*flags).ok()
    folder = Path("output/train/p")
    record, runs = (
        read_result(folder),
        {name: read_result(folder / name) for name in ("weak", "ceiling", "student")},
    )
    assert [runs[n]["data"]["train_samples"] for n in runs] == [40, 160, 160]
    assert [run["last"]["epoch"] for run in runs.values()] == [5, 6, 5]
    assert record["splits"]["student"] == record["splits"]["ceiling"] != record["splits"]["weak"]
    assert runs["weak"]["teacher"] is None and runs["ceiling"]["teacher"] is None
    assert (
        runs["student"]["loss"]["task_loss_weight"] == 0
        and runs["student"]["loss"]["name"] == "adaptconf"
    )
    for name in ("weak", "ceiling", "student"):
        assert record[name]["value"] == pytest.approx(runs[name]["metrics"]["top1"])
    assert record["agreement"]["value"] == pytest.approx(runs["student"]["metrics"]["agreement"])
    assert record["pgr"]["value"] == pytest.approx(runs["student"]["pgr"])
    assert record["weak"]["low"] <= record["weak"]["value"] <= record["weak"]["high"]
    assert re.search(r"^PGR +-?\d", done.out, re.MULTILINE) and "95 % interval" in done.out
    assert 0 <= runs["student"]["metrics"]["copied"] <= 100

    before = {n: (folder / n / "last.pth.tar").stat().st_mtime_ns for n in runs}
    (folder / "student" / "result.json").unlink()
    again = here(*flags, "--resume auto").ok()
    assert "weak is complete" in again.err and "ceiling is complete" in again.err
    assert {n: (folder / n / "last.pth.tar").stat().st_mtime_ns for n in runs} == before
    assert read_result(folder) == record


@pytest.fixture
def trained(here: Run, made_once: Callable) -> Path:
    """A protocol of one epoch whose teacher has 40 samples."""

    def train() -> Path:
        here(*FLAGS, "--weak-fraction 40 --epochs 1").ok()
        return Path("output/train/p")

    return made_once("protocol", train)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--teacher-checkpoint P/weak --weak-fraction 20",
            "20 of the 40 samples that it is trained on",
        ),
        (
            "--teacher-checkpoint P/weak/export --train-split training --weak-fraction 20",
            "20 of the 40 samples",
        ),
        (
            "--teacher local-dir:P/weak/export --weak-fraction 20",
            "--teacher local-dir:P/weak/export: 20 of the 40 samples that it is trained on are among the student's 180",
        ),
        (
            "--teacher-checkpoint P/ceiling,P/weak --teacher w2s_cnn5,w2s_cnn2 --weak-fraction 40",
            "160 of the 160 samples that it is trained on",
        ),
        (
            "--teacher local-dir:P/weak/export --weak-fraction 40 --train-split test --val-split train --val-slice 30:",
            "10 of the 40 samples that it is trained on are among the test 1167 samples",
        ),
    ],
)
def test_a_teacher_that_is_there_has_seen_no_sample_of_student_or_test(
    here: Run, trained: Path, flags: str, message: str
) -> None:
    """By whatever name."""
    error = here(*FLAGS, "--experiment q", flags.replace("P/", f"{trained}/")).error
    assert message.replace("P/", f"{trained}/") in error


def test_a_teacher_that_is_there(here: Run, trained: Path) -> None:
    flags = [*FLAGS, "--weak-fraction 40 --epochs 1"]
    here(*flags, "--teacher", f"local-dir:{trained / 'weak/export'}", "--experiment q").ok()
    record, other = read_result(trained), read_result(Path("output/train/q"))
    assert not Path("output/train/q/weak").exists() and other["weak"] == record["weak"]
    assert other["splits"]["weak"] == record["splits"]["weak"]
    assert other["runs"]["weak"] == str(trained / "weak")


def test_a_teacher_of_which_nobody_knows_what_it_has_seen(here: Run, trained: Path) -> None:
    """That is said at the end too."""
    shutil.copy(trained / "weak/last.pth.tar", "bare.pth.tar")
    flags = [*FLAGS, "--weak-fraction 40 --epochs 1 --experiment bare"]
    done = here(*flags, "--teacher-checkpoint bare.pth.tar").ok()
    warning = read_result(Path("output/train/bare"))["warnings"][0]
    said = "--teacher-checkpoint bare.pth.tar: nothing tells what it was trained on"
    assert warning.startswith(said) and f"result.json\nWARNING: {warning}\n" in done.out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protocol run with label noise whose checkpoints a held-out part has chosen."""
    folder = tmp_path_factory.mktemp("whole")
    run_script(*CHOSEN, cwd=folder).ok()
    return folder / "output/train/p"


CHOSEN = [
    *FLAGS,
    "--weak-fraction 40 --epochs 8 --val-interval 2 --select best --select-split 0.2",
    "--label-noise symmetric:0.3 --recovery-interval 4",
]


def test_labels_and_choice_of_checkpoints(whole: Path) -> None:
    """Teacher and student have the labels there are, the ceiling clean ones; a held-out part has chosen the epochs."""
    record, runs = (
        read_result(whole),
        {name: read_result(whole / name) for name in ("weak", "ceiling", "student")},
    )
    assert (
        runs["weak"]["data"]["label_noise"]["rate"]
        > 0.1
        < runs["student"]["data"]["label_noise"]["rate"]
    )
    assert (
        runs["ceiling"]["data"]["label_noise"] is None and record["label_noise"]["ceiling"] is None
    )
    assert (
        record["label_noise"]["weak"]["kind"] == "symmetric:0.3"
        and "confusion" not in record["label_noise"]["weak"]
    )
    assert [runs[n]["data"]["train_samples"] for n in runs] == [40, 128, 128]
    assert [record["selected"][name]["rule"] for name in runs] == ["last", "best", "best"]
    assert (
        record["selected"]["student"]["split"]
        == "held-out part of the training split, scored against the teacher"
    )
    assert record["selected"]["ceiling"]["split"] == "held-out part of the training split"
    assert record["splits"].keys() == {"test", "held_out", "weak", "ceiling", "student"}
    assert record["splits"]["held_out"]["num_samples"] == 32


def test_killed_at_any_stage(here: Run, fork: Fork, whole: Path) -> None:
    """Started again, it goes on in the stage where it was, and comes to the same end to the last bit."""
    folder, complete = Path("output/train/p"), []
    for number, stage in ((11, "weak"), (21, "ceiling"), (61, "student")):
        assert fork(*CHOSEN, "--resume auto", before=in_step(number, kill)).wait() == [
            -signal.SIGKILL
        ]
        assert sorted(p.parent.name for p in folder.glob("*/result.json")) == sorted(complete), (
            stage
        )
        assert (folder / stage / "args.yaml").exists()
        complete.append(stage)
    times = {
        name: (folder / name / "result.json").stat().st_mtime_ns for name in ("weak", "ceiling")
    }
    here(*CHOSEN, "--resume auto").ok()
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in times} == times
    assert read_result(folder) == read_result(whole)
    for name in ("weak", "ceiling", "student"):
        assert_same_end(folder / name, whole / name)


@pytest.fixture
def again(whole: Path) -> list[object]:
    """Flags that take teacher and ceiling from an earlier protocol run."""
    given = ["--teacher-checkpoint", whole / "weak", "--ceiling-checkpoint", whole / "ceiling"]
    return [*CHOSEN, "--loss kd", *given, "--experiment kd"]


def test_weak_and_ceiling_of_another_run(here: Run, whole: Path, again: list[object]) -> None:
    """They are taken if they are what another loss would train."""
    here(*again, "--workers 0 --log-interval 5").ok()
    folder = Path("output/train/kd")
    record, first = read_result(folder), read_result(whole)
    assert sorted(p.name for p in folder.iterdir()) == ["result.json", "student"]
    places = {name: str(whole / name) for name in ("weak", "ceiling")}
    assert record["runs"] == {**places, "student": "student"}
    assert record["selected"].keys() == first["selected"].keys()
    shared = ("weak", "ceiling", "splits")
    assert [record[name] for name in shared] == [first[name] for name in shared]
    assert record["loss"]["name"] == "kd"
    error = here(*again, "--resume auto --loss-kwargs temperature=2.0").error
    assert "--loss-kwargs {} -> {'temperature': 2.0}; repeat them" in error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--epochs 9", "had other flags: --epochs 8 -> 9; repeat them"),
        ("--seed 1 --lr 0.2", "--lr 0.1 -> 0.2; --seed 42 -> 1"),
        ("--weak-fraction 50", "--train-slice 40:200 -> 50:200"),
        (
            "--ceiling-checkpoint WHOLE/cieling",
            "no result.json of a complete run there (nearest: ceiling",
        ),
    ],
)
def test_weak_and_ceiling_of_another_run_with_other_flags(
    here: Run, whole: Path, again: list[object], changed: str, message: str
) -> None:
    assert message in here(*again, changed.replace("WHOLE", str(whole))).error
    assert not Path("output/train/kd").exists()


def test_a_ceiling_of_other_test_samples_or_without_predictions(
    here: Run, whole: Path, again: list[object]
) -> None:
    other = shutil.copytree(whole / "ceiling", "other")
    text = Path("other/result.json").read_text()
    split = json.loads(text)["made_of"][1]["fingerprint"]
    Path("other/result.json").write_text(text.replace(split, "0" * 16))
    error = here(*again, "--ceiling-checkpoint", other).error
    assert (
        "'validation' changed between them: 600 samples, fingerprint 0000000000000000 for ceiling, 600 "
        in error
    )
    Path("other/predictions_best.csv").unlink()
    Path("other/result.json").write_text(text)
    error = here(*again, "--ceiling-checkpoint", other).error
    assert "predictions_best.csv: expected the predictions that an evaluation" in error
    assert not Path("output/train/kd").exists()


def test_controls(here: Run, whole: Path) -> None:
    """What the student is compared with: the same test samples and updates, its flags but for model or teacher."""
    flags = [
        *CHOSEN,
        "--teacher-checkpoint",
        whole / "weak",
        "--ceiling-checkpoint",
        whole / "ceiling",
        "--controls direct same-size strong-to-strong --experiment c",
    ]
    done, folder = here(*flags).ok(), Path("output/train/c")
    record, names = read_result(folder), ["direct", "same-size", "strong-to-strong"]
    assert list(record["controls"]) == names
    assert record["controls"]["direct"]["labels"] == 40
    runs = {name: read_result(folder / name) for name in ("student", *names)}
    for name in names:
        assert runs[name]["data"]["splits"]["val"] == record["splits"]["test"]
        figure, top1 = record["controls"][name], runs[name]["metrics"]["top1"]
        assert figure["value"] == pytest.approx(top1) and figure["low"] < top1 < figure["high"]
        assert figure["student_above"]["value"] == pytest.approx(record["student"]["value"] - top1)
    assert runs["direct"]["data"]["splits"]["train"] == record["splits"]["weak"], (
        "the teacher's own samples"
    )
    assert runs["direct"]["data"]["label_noise"]["rate"] == record["label_noise"]["weak"]["rate"], (
        "and labels"
    )
    assert [runs[n]["data"]["train_samples"] for n in names] == [40, 128, 128]
    assert [runs[n]["model"]["name"] for n in names] == ["w2s_cnn5", "w2s_cnn2", "w2s_cnn5"]
    assert runs["strong-to-strong"]["teacher"]["top1"] == pytest.approx(
        runs["direct"]["metrics"]["top1"]
    )
    assert runs["same-size"]["teacher"]["top1"] == pytest.approx(record["weak"]["value"])
    assert runs["same-size"]["loss"] == runs["strong-to-strong"]["loss"] == runs["student"]["loss"]
    steps = {
        n: (folder / n / "metrics.jsonl").read_text().count('"event": "train"')
        for n in ("student", "direct")
    }
    assert steps["direct"] == 80 > steps["student"] == 64, (
        "an epoch of direct has the samples before --select-split"
    )
    assert all(f"\n{name}" in done.out for name in names)
    (folder / "direct/result.json").unlink()
    again = here(*flags, "--resume auto").ok()
    assert again.err.count("is complete") == 4 and read_result(folder) == record


@pytest.mark.slow
def test_two_processes(ranks: Run, tmp_path: Path) -> None:
    ranks(*FLAGS, "--weak-fraction 0.3 --lr 0.2 --batch-size 8", cwd=tmp_path, processes=2).ok()
    folder = tmp_path / "output/train/p"
    record = read_result(folder)
    assert record["student"]["value"] == pytest.approx(
        read_result(folder / "student")["metrics"]["top1"]
    )
    assert record["ceiling"]["value"] == pytest.approx(
        read_result(folder / "ceiling")["metrics"]["top1"]
    )
