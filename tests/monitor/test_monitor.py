"""Console, metrics.jsonl and trackers."""

import io
import logging
import os
import subprocess
import sys

import pytest

from tests.parts import assert_refused
from tests.test_documents import ROOT
from w2s_plugins.monitor import Console, Trackers, format_table, setup_logging
from w2s_plugins.monitor.console import tqdm


def test_table():
    table = format_table([["teacher", 56.6, None], ["a longer name", 100.0, 3]], ["", "top-1", "n"])
    assert table.splitlines() == [
        "                top-1  n",
        "-------------  ------  -",
        "teacher         56.60  -",
        "a longer name  100.00  3",
    ]
    assert format_table([], ["a", "bc"]).splitlines() == ["a  bc", "-  --"]


def test_log_lines_have_terms_rate_and_time_left(caplog):
    caplog.set_level(logging.INFO)
    console = Console(primary=True, total=100, done=20)
    assert console.bar is None and console.wrap("text") is None
    for _ in console.timed(range(20)):
        console.update(32)
    console.started -= 10  # seconds ago
    console.waited += 2.5
    console.log(2, 5, 9, 15, {"loss": 1.23456, "kd": 0.5}, 0.01)
    (line,) = [r.message for r in caplog.records]
    assert line.startswith("epoch 3/5 step 10/15 loss 1.235 kd 0.5 lr 1.00e-02 ")
    assert (
        " 64 img/s, data 25 %, " in line
    )  # 640 images in 10 seconds, a quarter of which none was there
    assert line.endswith("00:30 left")  # 20 of 80 updates took 10 seconds
    console.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = Console(primary=True, total=10, done=4)
    console.update(8)
    console.log(0, 2, 4, 5, {"loss": 1.5}, 0.1)
    console.bar.refresh()
    assert (console.bar.n, console.bar.total) == (5, 10)
    assert list(console.wrap("teacher labels")([1, 2, 3])) == [1, 2, 3]
    console.close()
    shown = terminal.getvalue()
    assert all(part in shown for part in ("epoch 1/2", "loss 1.5", "5/10", "teacher labels"))
    assert not caplog.text


def test_a_closed_stderr_ends_a_command_and_a_full_disk_does_not() -> None:
    """As of `2>&1 | head`: who is not read any more need not go on."""
    code = "from w2s_plugins.monitor import setup_logging; setup_logging(True); import logging; "
    code += "[logging.getLogger('w2s_plugins').info('x' * 9000) for _ in range(99)]; print('on')"
    closed = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}" 2> >(true); echo $?'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "on" not in closed.stdout, closed
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, cwd=ROOT)
    assert done.stdout == "on\n"


@pytest.mark.parametrize("primary", [True, False])
def test_logging_is_on_stderr_and_on_rank_0(capsys, primary):
    setup_logging(primary)
    logging.getLogger("w2s_plugins.x").info("a line")
    logging.getLogger("httpx").info("noise")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" a line\n") == primary
    assert "noise" not in captured.err
    logging.getLogger("w2s_plugins.x").error("a failure")
    assert "a failure" in capsys.readouterr().err


def test_a_process_that_is_killed_while_it_writes_holds_up_no_other():
    setup_logging(primary=True)
    pid = os.fork()
    if pid == 0:
        tqdm.get_lock().acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    assert tqdm.get_lock().acquire(timeout=5)
    tqdm.get_lock().release()


@pytest.mark.parametrize(
    "asked, modules, message",
    [
        (
            {"tensorboard": True},
            ["torch.utils.tensorboard", "tensorboard"],
            "--log-tensorboard .* install tensorboard",
        ),
        ({"wandb": {}}, ["wandb"], "--log-wandb needs a package: pip install wandb"),
    ],
    ids=["tensorboard", "wandb"],
)
def test_package_that_is_not_installed(tmp_path, monkeypatch, asked, modules, message):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    assert_refused(message, Trackers, tmp_path, **asked)
