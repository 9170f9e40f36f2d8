"""A run that was interrupted ends as one that was not: weights, optimizer, averages, files, all to the last bit.

One that goes on with other flags, models or data is refused by name.
"""

import io
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from timm.models import save_for_hf
from timm.task.evaluator import ClassificationEvaluator

from tests.e2e.conftest import (
    TINY,
    Fork,
    Run,
    assert_same_end,
    call_before,
    differences,
    in_step,
    kill,
    read_result,
    read_run,
    taught,
)
from tests.parts import flags_in, refusal, small_model, words
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.models.loading import read_checkpoint
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.run.find import find_resume
from w2s_plugins.run.history import History
from w2s_plugins.run.restore import check_resumable
from w2s_plugins.training import step

STUDENT = [
    *TINY,
    "--train-slice 0:96 --model w2s_cnn5 --epochs 3 --opt adamw --lr 0.003",
    "--hflip 0.5",
]
SETTINGS = yaml.safe_load("""
plain: ""
mixup, ema, accumulation: >-
  --mixup 0.2 --cutmix 1 --model-ema --model-ema-decay 0.8 --model-ema-warmup --grad-accum-steps 2 --reprob 0.3
  --drop 0.2 --clip-grad 1 --smoothing 0.1
plateau: >-
  --sched plateau --patience-epochs 0 --decay-rate 0.5 --eval-metric loss --lr 0.3 --epochs 6 --warmup-epochs 1
  --lr-noise 0.2 0.9
plateau, counting: --sched plateau --patience-epochs 3 --decay-rate 0.5 --eval-metric top1 --lr 1e-9 --epochs 6
schedule by update: --sched wsd --decay-epochs 1 --sched-on-updates --warmup-epochs 1
float16: --amp --amp-dtype float16 --opt lookahead_momentum
sizes: --train-img-sizes 8 12 --train-size-schedule progressive
cached: >-
  --teacher-targets cached --select best --select-split 0.15 --task-loss-weight 0 --loss augconf --mixup 0.3
  --cutmix 1 --mixup-mode elem
everything: >-
  --amp --amp-dtype bfloat16 --loss elr --mixup 0.2 --cutmix 0.5 --reprob 0.5 --aa rand-m9-mstd0.5-inc1 --model-ema
  --model-ema-decay 0.8 --grad-accum-steps 2 --teacher w2s_cnn2,w2s_cnn2 --teacher-checkpoint WEAK,OTHER
  --teacher-assign student
best of many: --select best --checkpoint-hist 2 --lr 0.02 --seed 1
adapters: --tune lora:rank=2 --model-ema --model-ema-decay 0.8 --amp --amp-dtype bfloat16
last blocks, features: --tune last:2 --loss ofa --model-ema --layer-decay 0.8
features and memory: --loss crd --loss-kwargs negatives=16
""")


_WHOLE: dict[str, Path] = {}


def flags_of(setting: str, weak: Path, folder: Path) -> list[object]:
    other = weak.parent / "other.pth"
    if not other.exists():
        torch.save(small_model(3, "w2s_cnn2").state_dict(), other)
    own = [
        flag.replace("WEAK", str(weak)).replace("OTHER", str(other))
        for flag in SETTINGS[setting].split()
    ]
    return [*STUDENT, *taught(weak), *own, "--output", folder, "--experiment"]


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_interrupted(
    here: Run, weak: Path, whole: Callable, tmp_path: Path, at_step: Callable, setting: str
) -> None:
    """In the first epoch, when there is no ``last``; then between two epochs; then inside a later one."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval 1"]
    run, named = tmp_path / "parts", [*flags, "--experiment parts"]
    # of a plateau, two epochs without progress have been counted by then, and its best is that of the first
    done_epochs = 3 if setting == "plateau, counting" else 1
    at_step(4)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*named)
    assert len(list(run.glob("recovery-*.pth.tar"))) in (1, 2)
    done = here(*named, "--resume auto", "--stop-epoch", done_epochs).ok()
    assert "goes on with epoch 1, step" in done.err
    at_step(4)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "--resume", run)  # the name of the run comes from the folder
    done = here(*named, "--resume auto").ok()
    assert f"goes on with epoch {done_epochs + 1}, step" in done.err and "step 0" not in done.err
    assert_same_end(whole(setting), run)


def die_at(event: int) -> Callable[[int], None]:
    """SIGKILL of rank 0 at one of many moments: before a step or a batch of an evaluation, with half of a file written,
    before and after a file takes its place, and before an old one is deleted."""

    def prepare(rank: int) -> None:
        left = event

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                kill()

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
                file.write(data.getvalue()[: data.tell() // 2])
                file.flush()
                count()
                file.write(data.getvalue()[data.tell() // 2 :])

        save, torch.save = torch.save, half_written
        for owner, name in (
            (step, "seed_step"),
            (os, "fsync"),
            (os, "replace"),
            (os, "link"),
            (Path, "unlink"),
            (History, "write"),
            (ClassificationEvaluator, "update"),
        ):
            before(owner, name)

    return lambda rank: prepare(rank) if rank == 0 else None


def kill_until_done(
    here: Run, fork: Fork, flags: list[object], run: Path, moments: list[int], processes: int = 0
) -> int:
    """Go on with a run time and again, killed at each of these moments, and to the end after that."""
    killed = 0
    for moment in moments:
        forked = fork(*flags, "--resume auto", processes=processes, before=die_at(moment))
        codes = forked.wait(kill_others=True)
        assert codes[0] in (0, -signal.SIGKILL), forked.text(0)
        # another rank may notice that rank 0 is gone, and end with an error, before it is killed as well
        assert set(codes[1:]) <= {0, -signal.SIGKILL} | ({1} if codes[0] else set()), forked.text(1)
        killed += codes[0] != 0
        if codes[0] == 0:
            break
    if processes:
        forked = fork(*flags, "--resume auto", processes=processes)
        assert forked.wait() == [0] * processes, forked.text(0)
    else:
        here(*flags, "--resume auto").ok()
    return killed


@pytest.mark.parametrize("setting", ["everything", "best of many"])
def test_killed_at_any_moment(
    here: Run, fork: Fork, weak: Path, whole: Callable, tmp_path: Path, setting: str
) -> None:
    """SIGKILL, with recovery checkpoints written after every update."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval 1 --experiment parts"]
    draw = random.Random(setting)
    moments = [draw.randrange(10, 50) for _ in range(8)]
    assert kill_until_done(here, fork, flags, tmp_path / "parts", moments) > 4
    assert_same_end(whole(setting), tmp_path / "parts")


@pytest.mark.parametrize("link", [1, 2, 3], ids=["checkpoint-0", "model_best", "milestone-1"])
def test_killed_after_last_was_written(
    here: Run, fork: Fork, weak: Path, made_once: Callable, link: int
) -> None:
    """The copies of ``last`` that its epoch had earned are made when the run goes on, each at its own moment."""
    flags = [*flags_of("best of many", weak, Path())[:-1], "--save-epochs 1", "--experiment"]
    made_once("saved", lambda: here(*flags, "whole").ok())
    run = fork(*flags, "parts", before=lambda rank: call_before(os, "link", link, kill))
    assert run.wait() == [-signal.SIGKILL], run.text(0)
    assert Path("parts/last.pth.tar").exists() and not Path("parts/milestone-1.pth.tar").exists()
    done = here(*flags, "parts", "--resume auto").ok()
    assert "goes on with epoch 2, step 0" in done.err
    assert len([*Path("parts").glob("*.pth.tar")]) == 5
    assert_same_end(Path("whole"), Path("parts"))


def test_two_ranks_killed_at_any_moment(here: Run, fork: Fork, weak: Path, tmp_path: Path) -> None:
    flags = [
        *flags_of("everything", weak, tmp_path)[:-1],
        "--batch-size 8 --recovery-interval 1 --val-interval 2",
    ]  # between evaluations the statistics of the ranks differ
    forked = fork(*flags, "--experiment whole", processes=2)
    assert forked.wait() == [0, 0], forked.text(0) + forked.text(1)
    flags += ["--experiment parts"]
    assert kill_until_done(here, fork, flags, tmp_path / "parts", [47, 90, 33], processes=2) == 3
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_finished_run(here: Run, weak: Path, tmp_path: Path) -> None:
    """Resuming what is complete changes nothing and writes the same result."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "run").ok()
    before = {
        n: (tmp_path / "run" / n).read_bytes()
        for n in ("metrics.jsonl", "summary.csv", "last.pth.tar")
    }
    here(*flags, "run", "--resume auto").ok()
    assert {n: (tmp_path / "run" / n).read_bytes() for n in before} == before


def test_resume_into_another_folder(here: Run, weak: Path, whole: Callable, tmp_path: Path) -> None:
    """A checkpoint of one run continued under another name leaves the first as it is."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch 1").ok()
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    here(*flags, "second", "--resume", tmp_path / "first" / "last.pth.tar").ok()
    assert differences(read_run(tmp_path / "second"), read_run(whole("plain"))) == []
    for name in ("metrics.jsonl", "summary.csv"):
        assert (tmp_path / "second" / name).read_bytes() == (whole("plain") / name).read_bytes()
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_was_moved(here: Run, weak: Path, whole: Callable, tmp_path: Path) -> None:
    """A run is its folder, wherever it lies, and whatever the flags say of the place of runs."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch 1").ok()
    (tmp_path / "first").rename(tmp_path / "moved")
    here(*flags[:-3], "--resume", tmp_path / "moved").ok()
    assert_same_end(whole("plain"), tmp_path / "moved")


# ---------------------------------------------------------------- with other flags


FLAGS = [*TINY, "--epochs 3 --model w2s_cnn5 --no-teacher-eval --val-slice 0:40"]
CHANGES = """
--batch-size 32 | --seed 1 | --train-slice 0:96 | --loss kd | --loss-kwargs temperature=2 | --lr 0.1
--opt adamw | --momentum 0.5 | --weight-decay 0.1 | --epochs 4 | --sched step | --warmup-epochs 1
--smoothing 0.3 | --mixup 0.2 | --cutmix 1 | --hflip 0 | --color-jitter 0 | --aa rand-m9 | --reprob 0.3
--scale 0.5 1 | --save-epochs 1 | --task-loss-weight 0 | --teacher-checkpoint other.pth | --teacher-targets cached
--grad-accum-steps 2 | --clip-grad 1 | --drop 0.2 | --label-noise symmetric:0.2 | --slice-seed 1
--val-slice 0:80 | --eval-metric loss | --amp | --model w2s_cnn2 | --img-size 16 | --model-ema | --gp max
"""
NEUTRAL = """
--workers 2 | --checkpoint-hist 3 | --recovery-interval 2 | --log-interval 7 | --stop-epoch 2 | --data-dir moved
--output elsewhere | --experiment other | --push-to-hub a/b | --lr-base 3 | --target-cache c
--amp-dtype float16 | --no-resume-opt --opt adamw | --start-epoch 1 | --ceiling-acc 90
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was stopped inside its second epoch, and its flags without output and name."""
    folder = tmp_path_factory.mktemp("stopped")
    torch.save(small_model(1).state_dict(), folder / "weak.pth")
    return folder, [*FLAGS, "--teacher w2s_cnn2", "--teacher-checkpoint", str(folder / "weak.pth")]


@pytest.fixture
def run(stopped: tuple[Path, list[str]], fork: Fork, tmp_path: Path) -> tuple[Path, list[object]]:
    """A copy of that run, and the command that goes on with it."""
    folder, flags = stopped
    if not (folder / "run").is_dir():
        first = fork(
            *flags,
            "--output",
            folder,
            "--experiment run",
            before=in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
        assert first.wait() == [143], first.text(0)
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", [*flags, "--output", tmp_path, "--experiment run --resume auto"]


def compare(run: Path, flags: list[object]) -> dict[str, list[str]]:
    """What a run that goes on finds changed."""
    args, given = parse(train_parser(), words(*flags, "--device cpu"))
    flags = resolve_train_args(args, given).flags
    checkpoint = find_resume(run)
    # as the data and the student's network make them
    return check_resumable(checkpoint, {**flags, "num_classes": 10, "channels_last": True})


@pytest.mark.parametrize("change", flags_in(CHANGES))
def test_every_flag_that_changes_the_result(run: tuple[Path, list[object]], change: str) -> None:
    folder, flags = run
    message = refusal(compare, folder, [*flags, *change.split()])
    assert f"that run had other settings: {change.split()[0]} " in message


@pytest.mark.parametrize("change", flags_in(NEUTRAL))
def test_flags_that_change_nothing(run: tuple[Path, list[object]], change: str) -> None:
    folder, flags = run
    assert compare(folder, [*flags, *change.split()]).keys() <= {"opt"}


def test_what_is_shown_and_saved_otherwise_is_said(
    run: tuple[Path, list[object]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, flags = run
    assert compare(folder, flags) == {} and "something else" not in caplog.text
    assert compare(folder, [*flags, "--recovery-interval 2 --log-interval 7 --workers 1"]) == {}
    assert (
        "shows or saves something else, which changes no weights: --log-interval 1 -> 7; --recovery-interval 0 -> 2"
    ) in caplog.text


def test_other_flags(here: Run, run: tuple[Path, list[object]]) -> None:
    """Are refused, and nothing is touched; of an optimizer that begins anew they are taken, which the record says."""
    folder, flags = run
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}
    assert f"run folder {folder} exists already" in here(*flags, "--resume", "").error
    changed = [*flags, "--weight-decay 0.1"]
    assert here(*changed, "--seed 7").error.endswith(
        "that run had other settings: --seed 42 -> 7; --weight-decay 2e-05 -> 0.1; repeat them, begin a new run, or "
        "start one from its weights by --initial-checkpoint"
    )
    assert {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"
    } == before
    done = here(*changed, "--no-resume-opt --stop-epoch 2").ok()
    assert "goes on with other settings: --weight-decay 2e-05 -> 0.1" in done.err
    assert {group["weight_decay"] for group in read_run(folder)["optimizer"]["param_groups"]} == {
        0.0,
        0.1,
    }
    here(*changed, "--momentum 0.5 --no-resume-opt").ok()
    record = read_result(folder)
    assert record["changes"] == [
        {"epoch": 1, "update": 2, "flags": {"weight_decay": ["2e-05", "0.1"]}},
        {"epoch": 2, "update": 0, "flags": {"momentum": ["0.9", "0.5"]}},
    ]
    assert (
        "the run went on with other flags from epoch 2, step 2 on: --weight-decay 2e-05 -> 0.1; "
        "from epoch 3, step 0 on: --momentum 0.9 -> 0.5"
    ) in record["warnings"]
    assert {group["momentum"] for group in read_run(folder)["optimizer"]["param_groups"]} == {0.5}


def test_another_number_of_processes(fork: Fork, tmp_path: Path) -> None:
    """It goes on with the same batch of all processes, inside an epoch as well, and says so; with another it does not."""
    typed = " ".join(FLAGS).replace("--lr 0.05", "--lr-base 0.1")
    flags = [typed, "--output", tmp_path, "--experiment run --resume auto"]
    stopped = fork(
        *flags,
        "--batch-size 8",
        processes=2,
        before=in_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    )
    assert stopped.wait() == [143, 143], stopped.text(0)
    other = fork(*flags, "--batch-size 32")
    assert other.wait() == [2] and "--batch-size 8 x 2 -> 32 x 1; repeat them" in other.text(0)
    done = fork(*flags, "--batch-size 16")
    assert done.wait() == [0] and "goes on with other settings: 2 -> 1 processes" in done.text(0), (
        done.text(0)
    )
    record = read_result(tmp_path / "run")
    assert record["changes"] == [{"epoch": 1, "update": 2, "flags": {"processes": ["2", "1"]}}]


def test_a_checkpoint_of_timm(here: Run, run: tuple[Path, list[object]], tmp_path: Path) -> None:
    """It has no part of ours, and other defaults."""
    folder, flags = run
    content = read_checkpoint(folder / "last.pth.tar", "test")
    own = {k: v for k, v in content.items() if k not in ("w2s", "saver", "task_state")}
    vars(own["args"]).update(data_dir="x", seed=7)
    (tmp_path / "timm").mkdir()
    torch.save(own, tmp_path / "timm" / "last.pth.tar")
    more = ["--resume", tmp_path / "timm" / "last.pth.tar", "--experiment new"]
    assert "--opt sgd -> adamw" in here(*flags, *more, "--opt adamw").error
    assert "goes on with epoch 2" in here(*flags, *more).ok().err


# ---------------------------------------------------------------- models that a run is made of beside its student


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--teacher w2s_cnn2 --teacher-checkpoint w.pth",
            "the weights of --teacher w2s_cnn2 changed since",
        ),
        ("--initial-checkpoint w.pth", "the weights of --initial-checkpoint w.pth changed since"),
        (
            "--finetune w.pth --teacher labels:said.csv --refine-labels --loss kd",
            "the weights of --finetune w.pth changed since",
        ),
        ("--model local-dir:. --pretrained", "the weights of --pretrained changed since"),
    ],
)
def test_a_model_that_was_exchanged(here: Run, flags: str, message: str) -> None:
    """Another one has been trained and written to the same path."""

    def write(seed: int) -> None:
        model = small_model(seed)
        torch.save(model.state_dict(), "w.pth")
        save_for_hf(model, ".", safe_serialization=True)

    write(1)
    Path("said.csv").write_text("index,label\n" + "".join(f"{i},{i % 10}\n" for i in range(1197)))
    run = [*TINY, "--model w2s_cnn2", *flags.split(), "--no-teacher-eval --experiment run"]
    here(*run, "--stop-epoch 1").ok()
    write(2)
    error = here(*run, "--resume auto").error
    assert message in error and error.endswith("put it back as it was, or start a new run")
    write(1)
    assert "goes on with epoch 2" in here(*run, "--resume auto --stop-epoch 2").ok().err
