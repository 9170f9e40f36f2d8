"""A rank that is lost ends the run."""

import datetime
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

import train_w2s
from tests.e2e.conftest import TINY, Done, Forked, run_script

pytestmark = pytest.mark.slow
Run = Callable[..., Done]
# A loss in whose third call on rank 1 something happens.
LOST = '''
import os, signal, time
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("lost")
def lost(inputs):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "1":
        EVENT
    return {"distance": (inputs.student_logits - inputs.teacher_logits).square().mean()}
'''


def flags_of(folder: Path, weak: Path, event: str) -> list[object]:
    (folder / "lost.py").write_text(LOST.replace("EVENT", event))
    return [*TINY, "--model", "w2s_cnn2", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--batch-size", 4,
            "--no-teacher-eval", "--plugins", "lost.py", "--loss", "lost", "--dist-timeout", 3]


def test_killed_under_torchrun(weak: Path, tmp_path: Path) -> None:
    flags = flags_of(tmp_path, weak, "os.kill(os.getpid(), signal.SIGKILL)")
    assert run_script(*flags, cwd=tmp_path, processes=2, timeout=100).code != 0


def test_error_on_one_rank(ranks: Run, weak: Path, tmp_path: Path) -> None:
    done = ranks(*flags_of(tmp_path, weak, "raise ValueError('broken')"), cwd=tmp_path, processes=4)
    assert done.err.count("Traceback") == 1 and "ValueError: broken" in done.err and done.codes == (1, 1, 1, 1)


def test_rank_that_is_alive_and_does_not_go_on(ranks: Run, weak: Path, tmp_path: Path) -> None:
    """--dist-timeout is the limit of an exchange."""
    done = ranks(*flags_of(tmp_path, weak, "time.sleep(60)"), cwd=tmp_path, processes=2)
    assert done.codes[0] == 1 and "Timed out" in done.err


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
