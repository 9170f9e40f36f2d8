"""A run that was interrupted ends as one that was not: weights, optimizer, averages, files, all to the last bit."""

import io
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.task.evaluator import ClassificationEvaluator

from tests.e2e.conftest import TINY, Done, Forked, differences, read_lines, read_run
from tests.parts import small_model
from w2s_plugins.run.history import History
from w2s_plugins.training import step

Run = Callable[..., Done]
STUDENT = [*TINY, "--train-slice", "0:96", "--model", "w2s_cnn5", "--epochs", "3", "--opt", "adamw",
           "--lr", "0.003", "--hflip", "0.5"]
SETTINGS = {
    "plain": [],
    "mixup, ema, accumulation": [
        "--mixup", "0.2", "--cutmix", "1", "--model-ema", "--model-ema-decay", "0.8", "--model-ema-warmup",
        "--grad-accum-steps", "2", "--reprob", "0.3", "--drop", "0.2", "--clip-grad", "1", "--smoothing", "0.1"],
    "plateau": ["--sched", "plateau", "--patience-epochs", "0", "--decay-rate", "0.5", "--eval-metric", "loss",
                "--lr", "0.3", "--epochs", "6", "--warmup-epochs", "1", "--lr-noise", "0.2", "0.9"],
    "plateau, counting": [
        "--sched", "plateau", "--patience-epochs", "3", "--decay-rate", "0.5", "--eval-metric", "top1", "--lr", "1e-9",
        "--epochs", "6"],
    "schedule by update": ["--sched", "wsd", "--decay-epochs", "1", "--sched-on-updates", "--warmup-epochs", "1"],
    "float16": ["--amp", "--amp-dtype", "float16", "--opt", "lookahead_momentum"],
    "sizes": ["--train-img-sizes", "8", "12", "--train-size-schedule", "progressive"],
    "cached": ["--teacher-targets", "cached", "--select", "best", "--select-split", "0.15", "--task-loss-weight", "0",
               "--loss", "augconf", "--mixup", "0.3", "--cutmix", "1", "--mixup-mode", "elem"],
    "memory by sample": ["--loss", "sop"],
    "everything": [
        "--amp", "--amp-dtype", "bfloat16", "--loss", "elr", "--mixup", "0.2", "--cutmix", "0.5", "--reprob", "0.5",
        "--aa", "rand-m9-mstd0.5-inc1", "--model-ema", "--model-ema-decay", "0.8", "--grad-accum-steps", "2",
        "--teacher", "w2s_cnn2,w2s_cnn2", "--teacher-checkpoint", "WEAK,OTHER", "--teacher-assign", "student"],
    "best of many": ["--select", "best", "--checkpoint-hist", "2", "--lr", "0.02", "--seed", "1"],
    "adapters": ["--tune", "lora:rank=2", "--model-ema", "--model-ema-decay", "0.8", "--amp",
                 "--amp-dtype", "bfloat16"],
    "last blocks, features": ["--tune", "last:2", "--loss", "ofa", "--model-ema", "--layer-decay", "0.8"],
    "features and memory": ["--loss", "crd", "--loss-kwargs", "negatives=16"],
}


_WHOLE: dict[str, Path] = {}


def flags_of(setting: str, weak: Path, folder: Path) -> list[object]:
    other = weak.parent / "other.pth"
    if not other.exists():
        torch.save(small_model(3, "w2s_cnn2").state_dict(), other)
    own = [flag.replace("WEAK", str(weak)).replace("OTHER", str(other)) for flag in SETTINGS[setting]]
    return [*STUDENT, "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, *own, "--output", folder, "--experiment"]


def assert_same_run(
        a: Path, b: Path, checkpoints: tuple[str, ...] = ("last.pth.tar", "model_best.pth.tar"),
        lost: frozenset[str] = frozenset()) -> None:
    for name in checkpoints:
        assert differences(read_run(a, name), read_run(b, name)) == [], name
    for name in ("metrics.jsonl", "summary.csv", "export/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert {p.name for p in a.iterdir()} - lost == {p.name for p in b.iterdir()}


@pytest.fixture
def whole(here: Run, weak: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the uninterrupted run of a setting, once."""
    def make(setting: str) -> Path:
        if setting not in _WHOLE:
            folder = tmp_path_factory.mktemp("whole")
            here(*flags_of(setting, weak, folder), "whole").ok()
            _WHOLE[setting] = folder / "whole"
        return _WHOLE[setting]

    return make


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next run crash when it has trained on so many batches."""
    from w2s_plugins.training import step

    original = step.seed_step

    def after(batches: int) -> None:
        left = batches

        def seed_step(*key: int) -> None:
            nonlocal left
            if left == 0:
                monkeypatch.setattr(step, "seed_step", original)
                raise RuntimeError("power cut")
            left -= 1
            original(*key)

        monkeypatch.setattr(step, "seed_step", seed_step)

    return after


@pytest.mark.parametrize("setting", SETTINGS)
def test_interrupted(
        here: Run, weak: Path, whole: Callable, tmp_path: Path, interrupt: Callable, setting: str) -> None:
    """In the first epoch, when there is no ``last``; then between two epochs; then inside a later one."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval", 1]
    run, named = tmp_path / "parts", [*flags, "--experiment", "parts"]
    # of a plateau, two epochs without progress have been counted by then, and its best is that of the first
    done_epochs = 3 if setting == "plateau, counting" else 1
    interrupt(3)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*named)
    assert len(list(run.glob("recovery-*.pth.tar"))) in (1, 2)
    done = here(*named, "--resume", "auto", "--stop-epoch", done_epochs).ok()
    assert "goes on with epoch 1, step" in done.err
    interrupt(3)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "--resume", run)  # the name of the run comes from the folder
    done = here(*named, "--resume", "auto").ok()
    assert f"goes on with epoch {done_epochs + 1}, step" in done.err and "step 0" not in done.err
    assert_same_run(whole(setting), run)


def die_at(event: int) -> Callable[[int], None]:
    """SIGKILL of rank 0 at one of many moments: before a step or a batch of an evaluation, with half of a file written,
    before and after a file takes its place, and before an old one is deleted."""
    def prepare(rank: int) -> None:
        left = event

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def before(owner: object, name: str) -> None:
            original = getattr(owner, name)

            def counted(*args: object, **kwargs: object) -> object:
                count()
                return original(*args, **kwargs)

            setattr(owner, name, counted)

        def half_written(state: object, path: object, **kwargs: object) -> None:
            if not isinstance(path, Path):  # an exchange between ranks
                save(state, path, **kwargs)
                return
            data = io.BytesIO()
            save(state, data)
            with open(path, "wb") as file:
                file.write(data.getvalue()[:data.tell() // 2])
                file.flush()
                count()
                file.write(data.getvalue()[data.tell() // 2:])

        save, torch.save = torch.save, half_written
        for owner, name in (
                (step, "seed_step"), (os, "fsync"), (os, "replace"), (os, "link"), (Path, "unlink"),
                (History, "write"), (ClassificationEvaluator, "update")):
            before(owner, name)

    return lambda rank: prepare(rank) if rank == 0 else None


def kill_until_done(
        here: Run, fork: Callable[..., Forked], flags: list[object], run: Path, moments: list[int], processes: int = 0,
) -> int:
    """Go on with a run time and again, killed at each of these moments, and to the end after that."""
    killed = 0
    for moment in moments:
        forked = fork(*flags, "--resume", "auto", processes=processes, before=die_at(moment))
        codes = forked.wait(kill_others=True)
        assert codes[0] in (0, -signal.SIGKILL), forked.text(0)
        # another rank may notice that rank 0 is gone, and end with an error, before it is killed as well
        assert set(codes[1:]) <= {0, -signal.SIGKILL} | ({1} if codes[0] else set()), forked.text(1)
        killed += codes[0] != 0
        if codes[0] == 0:
            break
    if processes:
        forked = fork(*flags, "--resume", "auto", processes=processes)
        assert forked.wait() == [0] * processes, forked.text(0)
    else:
        here(*flags, "--resume", "auto").ok()
    return killed


@pytest.mark.parametrize("setting", ["everything", "best of many"])
def test_killed_at_any_moment(
        here: Run, fork: Callable[..., Forked], weak: Path, whole: Callable, tmp_path: Path, setting: str) -> None:
    """SIGKILL, with recovery checkpoints written after every update."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval", 1, "--experiment", "parts"]
    draw = random.Random(setting)
    moments = [draw.randrange(10, 50) for _ in range(8)]
    assert kill_until_done(here, fork, flags, tmp_path / "parts", moments) > 4
    assert_same_run(whole(setting), tmp_path / "parts")


def test_killed_after_last_was_written(
        here: Run, fork: Callable[..., Forked], weak: Path, whole: Callable, tmp_path: Path) -> None:
    """The copies of ``last`` that its epoch had earned are made when the run goes on, each at its own moment."""
    flags = [*flags_of("best of many", weak, tmp_path)[:-1], "--save-epochs", 1, "--experiment"]
    here(*flags, "whole").ok()
    for link in (1, 2, 3):  # checkpoint-0, model_best, milestone-1
        def before(rank: int, link: int = link) -> None:
            original, left = os.link, [link]

            def counted(*args: object) -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*args)

            os.link = counted

        name = f"parts{link}"
        assert fork(*flags, name, before=before).wait() == [-signal.SIGKILL]
        assert (tmp_path / name / "last.pth.tar").exists()
        assert not (tmp_path / name / "milestone-1.pth.tar").exists()
        done = here(*flags, name, "--resume", "auto").ok()
        assert "goes on with epoch 2, step 0" in done.err
        names = [p.name for p in (tmp_path / "whole").glob("*.pth.tar")]
        assert len(names) == 5
        assert_same_run(tmp_path / "whole", tmp_path / name, tuple(names))


def test_two_ranks_killed_at_any_moment(
        here: Run, fork: Callable[..., Forked], weak: Path, tmp_path: Path) -> None:
    flags = [*flags_of("everything", weak, tmp_path)[:-1], "--batch-size", 8, "--recovery-interval", 1]
    forked = fork(*flags, "--experiment", "whole", processes=2)
    assert forked.wait() == [0, 0], forked.text(0) + forked.text(1)
    flags += ["--experiment", "parts"]
    assert kill_until_done(here, fork, flags, tmp_path / "parts", [47, 90, 33], processes=2) == 3
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_any_number_of_data_workers(here: Run, weak: Path, whole: Callable, tmp_path: Path) -> None:
    here(*flags_of("everything", weak, tmp_path), "run", "--workers", 3).ok()
    assert_same_run(whole("everything"), tmp_path / "run")


def test_finished_run(here: Run, weak: Path, tmp_path: Path) -> None:
    """Resuming what is complete changes nothing and writes the same result."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "run").ok()
    before = {n: (tmp_path / "run" / n).read_bytes() for n in ("metrics.jsonl", "summary.csv", "last.pth.tar")}
    here(*flags, "run", "--resume", "auto").ok()
    assert {n: (tmp_path / "run" / n).read_bytes() for n in before} == before


def test_the_best_epoch_is_remembered(here: Run, tmp_path: Path) -> None:
    """Of epochs that are equally good it is the first, also where the run goes on after it."""
    flags = [*TINY, "--model", "w2s_cnn2", "--lr", "1e-9", "--output", tmp_path, "--experiment", "run"]
    here(*flags, "--stop-epoch", 1).ok()
    here(*flags, "--resume", "auto").ok()
    assert [read_run(tmp_path / "run", name)["epoch"] for name in ("model_best.pth.tar", "last.pth.tar")] == [0, 1]


def test_more_epochs(here: Run, weak: Path, tmp_path: Path) -> None:
    """A finished run can be made longer; the schedule is that of the new length."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "run", "--epochs", 2).ok()
    assert "--epochs 2 -> 4" in here(*flags, "run", "--epochs", 4, "--resume", "auto").error
    here(*flags, "run", "--epochs", 4, "--resume", "auto", "--resume-changes", "epochs").ok()
    rates = [e["lr"] for e in read_lines(tmp_path / "run" / "metrics.jsonl") if e["event"] == "train"]
    assert rates[-1] == pytest.approx(0.003 * 0.5 * (1 + math.cos(3 / 4 * math.pi)))


def test_resume_into_another_folder(here: Run, weak: Path, whole: Callable, tmp_path: Path) -> None:
    """A checkpoint of one run continued under another name leaves the first as it is."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch", 1).ok()
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    here(*flags, "second", "--resume", tmp_path / "first" / "last.pth.tar").ok()
    assert differences(read_run(tmp_path / "second"), read_run(whole("plain"))) == []
    for name in ("metrics.jsonl", "summary.csv"):
        assert (tmp_path / "second" / name).read_bytes() == (whole("plain") / name).read_bytes()
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_was_moved(here: Run, weak: Path, whole: Callable, tmp_path: Path) -> None:
    """A run is its folder, wherever it lies, and whatever the flags say of the place of runs."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch", 1).ok()
    (tmp_path / "first").rename(tmp_path / "moved")
    here(*flags[:-3], "--resume", tmp_path / "moved").ok()
    assert_same_run(whole("plain"), tmp_path / "moved")
