"""A preempted run stops after the step in hand, and goes on as if nothing had happened."""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.task.evaluator import ClassificationEvaluator

import train_w2s
from tests.e2e.conftest import (
    ROOT,
    TINY,
    Fork,
    Run,
    assert_same_end,
    call_before,
    environment,
    in_step,
)
from tests.parts import words
from tests.processes import wait_until
from w2s_plugins.study import ahead
from w2s_plugins.training import finish

FLAGS = [
    *TINY,
    "--model w2s_cnn5 --mixup 0.2 --model-ema --model-ema-decay 0.9 --opt adamw",
    "--lr 0.001",
]


def signal_group(signum: int) -> None:
    """A signal to this process and its data workers, as from outside: workers obey their own main process."""
    forked, done_forking = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signum, signal.SIG_IGN)
        os.read(forked, 1)  # Python drops what a signal raises within its fork
        os.killpg(0, signum)
        os._exit(0)
    os.write(done_forking, b"1")
    os.waitpid(pid, 0)
    os.close(forked)
    os.close(done_forking)


def storm(signals: list[int]) -> None:
    for signum in signals:
        signal_group(signum)


def at(number: int, signum: int, only_rank: int | None = None) -> Callable[[int], None]:
    """A signal to the whole group of the process, data workers too, in a training step."""
    return in_step(number, lambda: signal_group(signum), only_rank)


def in_evaluation(number: int, signum: int, only_rank: int | None = None) -> Callable[[int], None]:
    return lambda rank: (
        only_rank in (None, rank)
        and call_before(ClassificationEvaluator, "update", number, lambda: signal_group(signum))
    )


@pytest.fixture(scope="module")
def whole(ranks: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that no signal has reached, on one process and on two."""
    folder = tmp_path_factory.mktemp("whole")
    for processes in (1, 2):
        ranks(
            *FLAGS,
            "--batch-size",
            16 // processes,
            "--output",
            folder,
            "--experiment",
            processes,
            processes=processes,
            cwd=folder,
        ).ok()
    return folder


@pytest.mark.parametrize(
    ("signum", "code", "workers"),
    [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 2), (signal.SIGUSR1, 138, 0)],
)
def test_in_a_step(
    here: Run, fork: Fork, whole: Path, tmp_path: Path, signum: int, code: int, workers: int
) -> None:
    """The step in hand is finished and saved, whatever else the signal reaches."""
    flags = [*FLAGS, "--workers", workers, "--output", tmp_path, "--experiment"]
    run = fork(*flags, "parts", before=at(6, signum))
    assert run.wait() == [code], run.text(0)
    assert "Traceback" not in run.text(0)
    assert (
        f"stopped in epoch 2, step 2; go on with the same command and --resume {tmp_path / 'parts'}"
        in run.text(0)
    )
    saved = sorted(p.name for p in (tmp_path / "parts").glob("*recovery*"))
    assert saved == ["recovery-1-1.pth.tar"]
    here(*flags, "parts", "--resume auto").ok()
    assert_same_end(whole / "1", tmp_path / "parts")


@pytest.mark.parametrize(
    "before",
    [
        at(6, signal.SIGTERM),
        at(6, signal.SIGTERM, only_rank=1),
        in_evaluation(3, signal.SIGTERM),
        in_evaluation(8, signal.SIGTERM, only_rank=1),  # its last batch: the other may be done
    ],
    ids=["step", "step, one rank", "evaluation", "evaluation, one rank"],
)
def test_two_ranks_stop_at_the_same_place(
    fork: Fork, whole: Path, tmp_path: Path, before: Callable
) -> None:
    flags = [*FLAGS, "--batch-size 8", "--output", tmp_path, "--experiment"]
    run = fork(*flags, "parts", processes=2, before=before)
    assert run.wait() == [143, 143], run.text(0) + run.text(1)
    assert run.text(0).count("stopped in epoch") == 1
    assert len(list((tmp_path / "parts").glob("recovery-*.pth.tar"))) == 1
    run = fork(*flags, "parts", "--resume auto", processes=2)
    assert run.wait() == [0, 0], run.text(0)
    assert_same_end(whole / "2", tmp_path / "parts")


# what a run does from the first signal to its end
UNTIL_THE_END = [
    (train_w2s, "stop_early"),
    (torch, "save"),
    (os, "replace"),
    (finish, "end_process"),
]


def then(
    signum: int, moment: tuple[object, str], only_rank: int | None = None
) -> Callable[[int], None]:
    """A signal in the sixth step, and another one at a moment of what follows from it."""
    first = {signal.SIGTERM: signal.SIGUSR1, signal.SIGINT: signal.SIGINT}[signum]

    def prepare(rank: int) -> None:
        if only_rank in (None, rank):
            at(6, first)(rank)
            more = functools.partial(storm, [signum] * (2 if signum == signal.SIGINT else 1))
            call_before(train_w2s, "stop_early", 1, lambda: call_before(*moment, 1, more))
            if moment == UNTIL_THE_END[0]:
                call_before(*moment, 1, more)

    return prepare


@pytest.mark.parametrize("moment", UNTIL_THE_END, ids=[name for _, name in UNTIL_THE_END])
def test_a_second_signal_loses_no_checkpoint(fork: Fork, tmp_path: Path, moment: tuple) -> None:
    """SLURM sends USR1 and then TERM, which may come while the checkpoint of the first is written."""
    flags = [*FLAGS, "--output", tmp_path, "--experiment run"]
    run = fork(*flags, before=then(signal.SIGTERM, moment))
    assert run.wait() == [138], run.text(0)
    assert [p.name for p in (tmp_path / "run").glob("*recovery*")] == ["recovery-1-1.pth.tar"]


def test_a_later_interrupt_ends_at_once(fork: Fork, tmp_path: Path) -> None:
    """Also within the checkpoint of the first; the one before it stays."""

    def before(rank: int) -> None:
        at(6, signal.SIGINT)(rank)

        def later() -> None:
            time.sleep(1.1)
            signal_group(signal.SIGINT)

        call_before(train_w2s, "stop_early", 1, lambda: call_before(os, "replace", 1, later))

    run = fork(*FLAGS, "--output", tmp_path, "--experiment run", before=before)
    assert run.wait() == [130] and "Traceback" not in run.text(0), run.text(0)
    assert [p.name for p in (tmp_path / "run").glob("*recovery*")] == []
    assert (tmp_path / "run" / "last.pth.tar").is_file() and not list(
        (tmp_path / "run").glob(".*.tmp")
    )


def in_finish(rank: int) -> None:
    """Ten signals before the export, and more when all is written; the other rank waits for it."""
    if rank == 0:
        # on a machine that is busy the last may come a second after the first, when another SIGINT would end all
        call_before(
            finish,
            "export_model",
            1,
            lambda: storm([signal.SIGTERM, signal.SIGINT, *8 * [signal.SIGTERM]]),
        )
        call_before(finish, "write_json", 1, lambda: storm(5 * [signal.SIGTERM]))
    call_before(train_w2s, "broadcast_from_rank0", 2, lambda: storm(5 * [signal.SIGTERM]))


def test_a_storm_while_a_run_is_finished(fork: Fork, whole: Path, tmp_path: Path) -> None:
    """All that was trained is there: the export is made, and the run is a whole one."""
    flags = [*FLAGS, "--workers 1", "--output", tmp_path, "--experiment"]
    run = fork(*flags, "run", before=in_finish)
    assert run.wait() == [0] and "Traceback" not in run.text(0) and "exported to" in run.text(0), (
        run.text(0)
    )
    assert_same_end(whole / "1", tmp_path / "run")


def test_a_storm_between_two_runs_of_two_ranks(fork: Fork, tmp_path: Path) -> None:
    """The first is a whole one, the second is not begun."""
    (tmp_path / "stages.yaml").write_text("[{name: first}, {name: second}]")
    flags = [
        *TINY,
        "--epochs 1 --batch-size 8 --model w2s_cnn2",
        "--output",
        tmp_path,
        "--experiment run",
        "--stages",
        tmp_path / "stages.yaml",
        "--resume auto",
    ]
    run = fork(*flags, processes=2, before=in_finish)
    assert run.wait() == [143, 143], run.text(0) + run.text(1)
    assert "Traceback" not in run.text(
        0
    ) and "SIGTERM: stopped between two runs; go on with" in run.text(0)
    results = tmp_path / "run" / "first" / "result.json"
    assert [*(tmp_path / "run").rglob("result.json")] == [results]
    written = results.stat().st_mtime_ns
    assert fork(*flags, processes=2).wait() == [0, 0] and results.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("signum", "code", "moment", "processes"),
    [
        (signal.SIGTERM, 143, (train_w2s, "prepare", 2), 0),
        (signal.SIGINT, 130, (ahead, "open_data", 1), 0),
        (signal.SIGUSR1, 138, (train_w2s, "prepare", 2), 2),
    ],
)
def test_a_signal_while_no_run_is_trained(
    fork: Fork, tmp_path: Path, signum: int, code: int, moment: tuple, processes: int
) -> None:
    """As while the data of the next run are opened: it is said in a line, and the same command goes on."""
    (tmp_path / "stages.yaml").write_text("[{name: first}, {name: second}]")
    flags = [
        *TINY,
        "--epochs 1 --batch-size 8 --model w2s_cnn2",
        "--output",
        tmp_path,
        "--experiment run",
        "--stages",
        tmp_path / "stages.yaml",
        "--resume auto",
    ]
    run = fork(
        *flags,
        processes=processes,
        before=lambda rank: call_before(*moment, lambda: os.kill(os.getpid(), signum)),
    )
    assert run.wait() == [code] * (processes or 1), run.text(0)
    assert "Traceback" not in run.text(0)
    assert (
        run.text(0).count(
            f"{signal.Signals(signum).name}: stopped between two runs; go on with the same"
        )
        == 1
    )
    assert fork(*flags, processes=processes).wait() == [0] * (processes or 1)


@pytest.mark.slow
def test_torchrun_passes_the_signal_on(tmp_path: Path) -> None:
    """To the process groups of the ranks, with their data workers; torchrun itself ends with 1."""
    import subprocess

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(ROOT / "train_w2s.py"),
        *words(
            *FLAGS, "--batch-size 8 --epochs 400 --workers 1 --val-interval 400 --experiment run"
        ),
        "--output",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) >= 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)  # until the last rank has closed it
    assert process.returncode == 1 and "killed by signal" not in err, err
    assert (
        len(list((tmp_path / "run").glob("recovery-*.pth.tar")))
        == err.count("stopped in epoch")
        == 1
    ), err
    assert f"{ROOT}/w2s_plugins" not in err, err  # no traceback of ours
