"""A rank that is lost ends the run, promptly and with its name."""

import datetime
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

import train_w2s
from tests.e2e.conftest import TINY, Done, Forked, run_script

pytestmark = pytest.mark.slow
Run = Callable[..., Done]
# A loss in whose third call on rank 1 something happens, after the time for a sign of life.
LOST = '''
import os, signal, time
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("lost")
def lost(inputs):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "1":
        time.sleep(1)
        EVENT
    return {"distance": (inputs.student_logits - inputs.teacher_logits).square().mean()}
'''


def flags_of(folder: Path, weak: Path, event: str) -> list[object]:
    (folder / "lost.py").write_text(LOST.replace("EVENT", event))
    return [*TINY, "--model", "w2s_cnn2", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--batch-size", 4,
            "--no-teacher-eval", "--plugins", "lost.py", "--loss", "lost", "--dist-timeout", 3]


def error_of(done: Done) -> str:
    lines = [line for line in done.err.splitlines() if line.startswith("train_w2s.py: error: ")]
    assert done.code != 0 and len(lines) == 1, done.err
    return lines[0].removeprefix("train_w2s.py: error: ")


LOST_RANK = r"rank 1 \(.+, process \d+\), last heard of in the forward pass of batch 3, epoch 1, "


def test_killed_under_torchrun(weak: Path, tmp_path: Path) -> None:
    flags = flags_of(tmp_path, weak, "os.kill(os.getpid(), signal.SIGKILL)")
    killed = error_of(run_script(*flags, cwd=tmp_path, processes=2, timeout=100))
    assert re.match(LOST_RANK + "has died without a message, killed or out of memory; rank 0", killed), killed


def test_stopped(fork: Callable[..., Forked], weak: Path, tmp_path: Path) -> None:
    run = fork(*flags_of(tmp_path, weak, "os.kill(os.getpid(), signal.SIGSTOP)"), processes=2)
    code, _ = run.wait(kill_others=True)
    stopped = error_of(Done(code, "", run.text(0) + run.text(1)))
    assert re.match(LOST_RANK + r"has given no sign of life for 3 s \(--dist-timeout\)", stopped), stopped


def test_error_on_one_rank(ranks: Run, weak: Path, tmp_path: Path) -> None:
    done = ranks(*flags_of(tmp_path, weak, "raise ValueError('broken')"), cwd=tmp_path, processes=4)
    error = error_of(done)
    assert error.startswith("rank 1 (")
    assert error.endswith("), in the forward pass of batch 3, epoch 1: ValueError: broken")
    assert done.err.count("Traceback") == 1 and done.codes == (1, 1, 1, 1)


def test_rank_that_is_alive_and_does_not_go_on(ranks: Run, weak: Path, tmp_path: Path) -> None:
    """--dist-timeout is about the limit of an exchange as well."""
    error = error_of(ranks(*flags_of(tmp_path, weak, "time.sleep(60)"), cwd=tmp_path, processes=2))
    assert error.startswith("rank 1 (")
    assert "in the forward pass of batch 3, epoch 1, does not go on; rank 0, in the backward pass of batch 3" in error


def test_no_limit_of_an_exchange_ends_a_run_whose_export_takes_longer(
        fork: Callable[..., Forked], tmp_path: Path) -> None:
    """Rank 0 alone exports and pushes, while the others wait for it."""
    def before(rank: int) -> None:
        trained, finish = train_w2s.trained_student, train_w2s.finish

        def trained_student(*args: object) -> object:
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2))
            return trained(*args)

        train_w2s.trained_student = trained_student
        train_w2s.finish = lambda *args: time.sleep(4) or finish(*args)

    run = fork(*TINY, "--model", "w2s_cnn2", "--batch-size", 8, "--output", tmp_path, processes=2, before=before)
    assert run.wait() == [0, 0], run.text(0) + run.text(1)
