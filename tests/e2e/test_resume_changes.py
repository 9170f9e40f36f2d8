"""A run that goes on with other flags is refused by name, or goes on with them and says so in its record."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import TINY, Done, Forked, read_run
from tests.e2e.test_run_lock import in_step
from tests.parts import small_model
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.errors import UserError
from w2s_plugins.models.loading import read_checkpoint
from w2s_plugins.run.find import find_resume
from w2s_plugins.run.restore import check_resumable
from w2s_plugins.training.flags import resolve_train_args

Run = Callable[..., Done]
FLAGS = [*TINY, "--epochs", "3", "--model", "w2s_cnn5", "--no-teacher-eval", "--val-slice", "0:40"]
CHANGES = [
    "--batch-size 32", "--seed 1", "--train-slice 0:96", "--loss kd", "--loss-kwargs temperature=2", "--lr 0.1",
    "--opt adamw", "--momentum 0.5", "--weight-decay 0.1", "--epochs 4", "--sched step", "--warmup-epochs 1",
    "--smoothing 0.3", "--mixup 0.2", "--cutmix 1", "--hflip 0", "--color-jitter 0", "--aa rand-m9", "--reprob 0.3",
    "--scale 0.5 1", "--task-loss-weight 0", "--teacher-checkpoint other.pth", "--teacher-targets cached",
    "--grad-accum-steps 2", "--clip-grad 1", "--drop 0.2", "--label-noise symmetric:0.2", "--slice-seed 1",
    "--val-slice 0:80", "--eval-metric loss", "--amp"]
NEUTRAL = [
    "--workers 2", "--checkpoint-hist 3", "--recovery-interval 2", "--log-interval 7", "--stop-epoch 2",
    "--data-dir moved", "--output elsewhere", "--experiment other", "--push-to-hub a/b", "--lr-base 3",
    "--target-cache c", "--amp-dtype float16", "--no-resume-opt --opt adamw", "--start-epoch 1", "--save-epochs 2",
    "--ceiling-acc 90"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A run that was stopped inside its second epoch, and its flags without output and name."""
    folder = tmp_path_factory.mktemp("stopped")
    torch.save(small_model(1).state_dict(), folder / "weak.pth")
    return folder, [*FLAGS, "--teacher", "w2s_cnn2", "--teacher-checkpoint", str(folder / "weak.pth")]


@pytest.fixture
def run(stopped: tuple[Path, list[str]], fork: Callable[..., Forked], tmp_path: Path) -> tuple[Path, list[object]]:
    """A copy of that run, and the command that goes on with it."""
    folder, flags = stopped
    if not (folder / "run").is_dir():
        first = fork(*flags, "--output", folder, "--experiment", "run",
                     before=in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert first.wait() == [143], first.text(0)
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", [*flags, "--output", tmp_path, "--experiment", "run", "--resume", "auto"]


def compare(run: Path, flags: list[object]) -> dict[str, list[str]]:
    """What a run that goes on finds changed."""
    args, given = parse(train_parser(), [*map(str, flags), "--device", "cpu"])
    resolve_train_args(args, given)
    args.num_classes = 10
    checkpoint = find_resume(run)
    return check_resumable(checkpoint.content, vars(args), checkpoint.path)


def test_every_flag_that_changes_the_result(run: tuple[Path, list[object]]) -> None:
    folder, flags = run
    assert compare(folder, flags) == {}
    for change in CHANGES:
        name, *values = change.split()
        with pytest.raises(UserError) as error:
            compare(folder, [*flags, name, *values])
        assert f"that run had other settings: {name} " in str(error.value), change
        if name == "--opt":  # whose state does not fit another one
            assert str(error.value).endswith("begin the optimizer's state anew with --no-resume-opt")
            continue
        assert str(error.value).endswith(f"go on with the new ones by --resume-changes {name[2:]}"), change
        assert [*compare(folder, [*flags, name, *values, "--resume-changes", name[2:]])] == [
            name[2:].replace("-", "_")], change


def test_flags_that_change_nothing(run: tuple[Path, list[object]]) -> None:
    folder, flags = run
    for change in NEUTRAL:
        assert compare(folder, [*flags, *change.split()]).keys() <= {"opt"}, change


def test_refused_and_allowed(here: Run, run: tuple[Path, list[object]]) -> None:
    """Nothing is touched by the one; the other has its effect, and stands in the record whatever comes after it."""
    folder, flags = run
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}
    error = here(*flags, "--weight-decay", 0.1, "--seed", 7).error
    assert "that run had other settings: --seed 42 -> 7; --weight-decay 2e-05 -> 0.1; repeat them" in error
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"} == before
    changed = [*flags, "--weight-decay", 0.1]
    done = here(*changed, "--resume-changes", "weight-decay", "--stop-epoch", 2).ok()
    assert "goes on with other settings: --weight-decay 2e-05 -> 0.1" in done.err
    assert {group["weight_decay"] for group in read_run(folder)["optimizer"]["param_groups"]} == {0.0, 0.1}
    here(*changed, "--momentum", 0.5, "--resume-changes", "momentum").ok()
    record = json.loads((folder / "result.json").read_text())
    assert record["changes"] == [
        {"epoch": 1, "update": 2, "flags": {"weight_decay": ["2e-05", "0.1"]}},
        {"epoch": 2, "update": 0, "flags": {"momentum": ["0.9", "0.5"]}}]
    assert ("the run went on with other flags from epoch 2, step 2 on: --weight-decay 2e-05 -> 0.1; "
            "from epoch 3, step 0 on: --momentum 0.9 -> 0.5") in record["warnings"]
    assert {group["momentum"] for group in read_run(folder)["optimizer"]["param_groups"]} == {0.5}


def test_a_change_that_does_not_fit(here: Run, run: tuple[Path, list[object]]) -> None:
    _, flags = run
    assert "--model w2s_cnn5 -> w2s_cnn2; repeat them, or start a new run with --initial-checkpoint" in here(
        *flags, "--model", "w2s_cnn2", "--resume-changes", "model").error
    assert "does not fit this run" in here(*flags, "--loss", "crd", "--resume-changes", "loss").error
    assert "--resume-changes batchsize: no such flag (nearest: batch-size" in here(
        *flags, "--resume-changes", "batchsize").error


def test_another_number_of_processes(fork: Callable[..., Forked], tmp_path: Path) -> None:
    """Inside an epoch it is refused; at the end of one it goes on with the same batch of all processes, and says so."""
    before, after = 2, 1
    flags = [*FLAGS, "--lr-base", 0.1, "--output", tmp_path, "--experiment", "run", "--resume", "auto"]
    flags.remove("0.05")
    flags.remove("--lr")

    def start(processes: int, *more: object, **kwargs: object) -> Forked:
        more = ["--batch-size", 16 // processes, *more]
        done = fork(*flags, *more, processes=processes if processes > 1 else 0, **kwargs)
        done.wait()
        return done

    def text(run: Forked) -> str:
        return "".join(map(run.text, range(len(run.codes))))

    stopped = start(before, before=in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped.codes == [143] * before, stopped.text(0)
    refused = start(after)
    assert refused.codes == [2] * after, text(refused)
    assert f"other settings: {before} -> {after} processes; it was stopped inside an epoch" in text(refused)
    assert "--resume-changes processes" in text(refused)
    assert start(before, "--stop-epoch", 2).codes == [0] * before
    other = start(after, "--batch-size", 32)
    assert other.codes == [2] * after and f"--batch-size {16 // before} x {before} -> 32 x {after}" in text(other)
    done = start(after)
    assert done.codes == [0] * after and f"other settings: {before} -> {after} processes" in done.text(0), done.text(0)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["changes"] == [{"epoch": 2, "update": 0, "flags": {"processes": [str(before), str(after)]}}]


def test_a_checkpoint_of_timm(here: Run, run: tuple[Path, list[object]], tmp_path: Path) -> None:
    """It has no part of ours, and other defaults."""
    folder, flags = run
    content = read_checkpoint(folder / "last.pth.tar", "test")
    own = {k: v for k, v in content.items() if k not in ("w2s", "saver", "task_state")}
    vars(own["args"]).update(data_dir="x", seed=7)
    (tmp_path / "timm").mkdir()
    torch.save(own, tmp_path / "timm" / "last.pth.tar")
    more = ["--resume", tmp_path / "timm" / "last.pth.tar", "--experiment", "new"]
    assert "--opt sgd -> adamw" in here(*flags, *more, "--opt", "adamw").error
    assert "goes on with epoch 2" in here(*flags, *more).ok().err


# ---------------------------------------------------------------- models that a run is made of beside its student


def spoil(path: Path) -> None:
    """Train a model anew at the same path."""
    torch.save({name: value + 0.01 if value.is_floating_point() else value
                for name, value in torch.load(path, weights_only=True).items()}, path)


@pytest.mark.parametrize(("flags", "message"), [
    ("--teacher w2s_cnn2 --teacher-checkpoint w.pth", "the weights of --teacher w2s_cnn2 are others than"),
    ("--initial-checkpoint w.pth", "the weights of --initial-checkpoint w.pth are others than"),
    ("--finetune w.pth --teacher labels:said.csv --refine-labels --loss kd", "the weights of --finetune w.pth are"),
])
def test_a_model_that_was_exchanged(here: Run, tmp_path: Path, flags: str, message: str) -> None:
    torch.save(small_model(1).state_dict(), "w.pth")
    Path("said.csv").write_text("index,label\n" + "".join(f"{i},{i % 10}\n" for i in range(1197)))
    run = [*TINY, "--model", "w2s_cnn2", *flags.split(), "--no-teacher-eval", "--experiment", "run"]
    here(*run, "--stop-epoch", 1).ok()
    kept = Path("w.pth").read_bytes()
    spoil(Path("w.pth"))
    error = here(*run, "--resume", "auto").error
    flag = message.partition("--")[2].split()[0]
    assert message in error and error.endswith(f"or go on with these by --resume-changes {flag}")
    Path("w.pth").write_bytes(kept)
    assert "goes on with epoch 2" in here(*run, "--resume", "auto", "--stop-epoch", 2).ok().err


def test_an_export_that_was_exchanged_is_taken_if_it_is_meant(here: Run, weak: Path, tmp_path: Path) -> None:
    shutil.copytree(weak / "export", tmp_path / "export")
    run = [*TINY, "--model", "local-dir:export", "--pretrained", "--experiment", "run"]
    here(*run, "--stop-epoch", 1).ok()
    weights = load_file("export/model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, "export/model.safetensors")
    assert "the weights of --pretrained are others than" in here(*run, "--resume", "auto").error
    here(*run, "--resume", "auto", "--resume-changes", "pretrained").ok()
