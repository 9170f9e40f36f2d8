"""Tasks of SLURM: what one does when it is told to make room. A real cluster is that of benchmarks/slurm_on_loopback.sh.
"""

import pickle
import signal
import threading
import time
from pathlib import Path

import pytest

from w2s_plugins.errors import UserError
from w2s_plugins.study.layout import load_plan
from w2s_plugins.study.slurm import Task

from .conftest import Cli
from .specs import BASE, changed, write

pytest.importorskip("submitit")


@pytest.fixture
def root(tmp_path: Path, cli: Cli) -> Path:
    base = {**BASE, "epochs": 400, "val_interval": 400}
    assert cli("plan", write(tmp_path, changed(base=base, losses=["hard"])), "--output", tmp_path / "out")[0] == 0
    return tmp_path / "out"


@pytest.mark.slow
def test_a_task_that_is_told_to_make_room_goes_on_later(root: Path) -> None:
    weak = load_plan(root)[0]
    task, outcome = Task(root, weak.id), []
    pickle.dumps(task)  # so it travels

    def work() -> None:
        try:
            outcome.append(task())
        except UserError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    metrics, deadline = weak.path / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = task.checkpoint()
    assert list(weak.path.glob("recovery-*")) and not weak.finished
    assert (again.function.root, again.function.run_id) == (root, weak.id) and again.function.process is None
    assert task.process.returncode == 128 + signal.SIGTERM
    thread.join(timeout=60)
    assert outcome == ["stopped"]


def test_a_task_whose_needs_are_not_there_says_so(root: Path) -> None:
    student = load_plan(root)[-1]
    with pytest.raises(UserError, match=f"{student.id} needs {student.needs[0]}, which is not finished"):
        Task(root, student.id)()


@pytest.mark.parametrize(("options", "message"), [
    ([], "--slurm: "), (["timeout=3"], "timeout"), (["slurm_partitoin=gpu"], "slurm_partitoin"),
])
def test_what_submitit_refuses_is_one_line(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch,
                                           options: list[str], message: str) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # no sbatch there
    more = ["--slurm-options", *options] if options else []
    code, _, err = cli("run", root, "--slurm", *more)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err
