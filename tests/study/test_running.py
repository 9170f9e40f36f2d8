"""A study from its start to its end, with everything that can happen to it on the way."""

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import forks
from tests.conftest import fill, remount
from tests.e2e.conftest import differences, environment, read_run, run_script
from tests.e2e.test_untrusted import holders
from tests.parts import write_folder
from w2s_plugins.errors import UserError
from w2s_plugins.study import __main__ as study
from w2s_plugins.study import commands, worker
from w2s_plugins.study.commands import choose_slots
from w2s_plugins.study.layout import PlannedRun, finished, load_plan, read_json, read_result
from w2s_plugins.study.lease import acquire
from w2s_plugins.study.pool import Pool, make_slots
from w2s_plugins.study.worker import Stop, ceiling_flags, work

from .conftest import Cli
from .specs import BASE, changed, write

TOKEN = "hf_" + "T0psecret" * 4
Runners = Callable[..., "Runner"]


class Runner:
    """``study run`` in a forked process; a start takes a tenth of the time."""

    def __init__(self, output: Path, *argv: object):
        self.output, self.code = output, None
        self.pid = forks.start(study.main, ["study", *argv], output)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), f"the runner has ended\n{self.text}"
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def end(self, signum: int = 0) -> int:
        """Send a signal and wait; return the exit code, negative for a signal."""
        if self.code is None:
            os.kill(self.pid, signum)
            self.code = forks.finish(self.pid)
        return self.code


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runners]:
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # every run inherits it
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    started: list[Runner] = []

    def start(*argv: object) -> Runner:
        started.append(Runner(tmp_path / f"runner{len(started)}.txt", "run", *argv))
        return started[-1]

    yield start
    for each in started:
        each.end(signal.SIGKILL)


def times(*runs: PlannedRun) -> dict[Path, int]:
    """Return when each file of some run folders was written."""
    return {path: path.stat().st_mtime_ns for run in runs for path in [run.path, *run.path.rglob("*")]}


def is_trained(run: PlannedRun) -> bool:
    """True while the process that has trained a run last is there."""
    process = Path("/proc", (run.path / ".lock").read_text().split()[1])
    return process.exists() and bool((process / "cmdline").read_bytes())  # empty for one that nobody has reaped


def starts(run: PlannedRun) -> int:
    return sum(line.startswith("$ ") for line in run.state_file("log").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.timeout(600)  # twelve trainings are started one after another
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_from_start_to_end(tmp_path: Path, runner: Runners, cli: Cli) -> None:
    weights = tmp_path / "weights.pth"
    late = {"model": "w2s_cnn2", "initial_checkpoint": str(weights), "epochs": 200, "val_interval": 200}
    weak = [{"name": "a", "flags": {"model": "w2s_cnn2"}}, {"name": "late", "flags": late}]
    images = write_folder(tmp_path / "images", {"train": 160, "validation": 40})
    base = {**BASE, "dataset": "", "data_dir": str(images)}
    spec = write(tmp_path, changed(base=base, weak=weak))
    root = tmp_path / "out"
    flags = [spec, "--output", root, "--jobs", 1]

    # ---- a run fails twice, the others go on
    first = runner(*flags)
    assert first.end() == 1
    plan = load_plan(root)
    by_kind = {(run.kind, run.weak, run.loss): run for run in plan}
    bad, students = by_kind["weak", "late", None], [run for run in plan if run.kind == "student"]
    done = [run for run in plan if finished(run)]
    assert {run.weak for run in done} == {"a", None} and len(done) == 4
    assert f"FAILED {bad.id}: exit code 2: train_w2s.py: error: --initial-checkpoint {weights}" in first.text
    assert "7 runs: 4 finished, 1 failed, 2 blocked" in first.text and starts(bad) == 2
    assert [starts(run) for run in done] == [1, 1, 1, 1]
    ceiling = by_kind["ceiling", None, None]
    for run in students[:2]:
        result = read_result(run)
        assert result["teacher"]["top1"] == read_result(by_kind["weak", "a", None])["metrics"]["top1"]
        assert result["ceiling_acc"] in (None, read_result(ceiling)["metrics"]["top1"])
        assert (run.path / "predictions_last.csv").is_file() and result["loss"]["task_loss_weight"] == 0
    assert len(list((root / "targets").glob("*.lock"))) == 1, "one cache for two students"

    # ---- what was wrong is put right; SIGTERM ends the runner, its run saves where it is
    weights.write_bytes((done[0].path / "last.pth.tar").read_bytes())
    before = times(*done)
    metrics = bad.path / "metrics.jsonl"
    second = runner(*flags)
    second.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    code, out, _ = cli("status", root)
    assert code == 0 and re.search(rf"{bad.id} +running +epoch \d+ of 200", out) and "time left" in out
    assert second.end(signal.SIGTERM) == 143
    assert not is_trained(bad) and read_json(bad.state_file("json"))["state"] == "stopped"
    assert "7 runs: 4 finished, 2 waiting, 1 stopped" in second.text

    # ---- SIGKILL: what the runner has started ends by itself, and saves where it is
    third = runner(*flags)
    third.wait_until(lambda: "Resumed" in bad.state_file("log").read_text())
    saved = list(bad.path.glob("recovery-*"))
    length = len(metrics.read_text())
    third.wait_until(lambda: len(metrics.read_text()) > length)
    assert third.end(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while "1 stopped" not in cli("status", root)[1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not is_trained(bad)
    assert list(bad.path.glob("recovery-*")) != saved, "it has got further"

    # ---- two runners share what is left
    both = [runner(*flags), runner(*flags)]
    assert [each.end() for each in both] == [0, 0]
    assert all("7 runs: 7 finished" in each.text for each in both) and all(map(finished, plan))
    assert starts(bad) == 5 and [starts(run) for run in students] == [1, 1, 1, 1]
    assert sorted(re.findall(r"\] (\S+):", both[0].text + both[1].text)) == sorted(
        run.id for run in plan if run not in done), "each by one of them"
    assert times(*done) == before
    run_script(*students[0].argv, *ceiling_flags(done), "--output", tmp_path / "alone", cwd=tmp_path).ok()
    assert not differences(read_run(tmp_path / "alone" / students[0].folder), read_run(students[0].path))

    code, out, _ = cli("status", root, "--watch")
    assert code == 0 and out.strip() == "7 runs: 7 finished", "nothing to watch any more"

    # ---- nothing is left to do; a changed study keeps what is the same
    before = times(*plan)
    code, out, err = cli("run", root)
    assert code == 0 and "7 runs, 7 of them finished" in out, err
    write(tmp_path, changed(base=base, weak=weak, losses=["hard", "bkd"]))
    code, out, _ = cli("plan", *flags, "--no-estimate")
    assert "2 runs of the earlier plan are not in this one; their folders are kept" in out and "2 runs are new" in out
    assert "5 of 7 runs are finished" in out and len(load_plan(root)) == 7 and times(*plan) == before
    write(tmp_path, changed(base={**base, "lr": 0.2}))
    code, _, err = cli("run", *flags)
    assert code == 2 and "holds another study: none of its 7 runs is in this one; choose another --output" in err
    assert not holders(tmp_path, TOKEN) and TOKEN not in first.text


def test_slots() -> None:
    assert [slot.env for slot in make_slots(None, ["0", "3"], None)] == [
        {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    (slot,) = make_slots(1, [], 4)
    assert slot.env == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    assert len(make_slots(None, [], None)) == len(os.sched_getaffinity(0)) and len(make_slots(3, [], None)) == 3


@pytest.mark.parametrize("given, expected", [
    (None, {"0", "1"}), ("6,7", {"6", "7"}), ("GPU-8932f937, MIG-41b3a0c7", {"GPU-8932f937", "MIG-41b3a0c7"}),
])
def test_trainings_get_the_gpus_that_the_study_was_given(
        tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: set[str]) -> None:
    """Not those with the numbers 0 and 1, which are somebody else's; what a training sees is told by itself."""
    script = tmp_path / "tells.py"  # in place of a training
    script.write_text("import os, sys\nprint('sees', os.environ.get('CUDA_VISIBLE_DEVICES'))\nsys.exit(2)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)
    monkeypatch.setattr(commands, "MODULES", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    root = tmp_path / "out"
    cli("run", write(tmp_path, changed()), "--output", root)
    seen = [line.split(maxsplit=1)[1] for run in load_plan(root)[:2]
            for line in run.state_file("log").read_text().splitlines() if line.startswith("sees ")]
    assert set(seen) == expected


def test_devices_of_others_are_refused(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert [slot.env for slot in choose_slots(None, "7", None)] == [
        {"CUDA_VISIBLE_DEVICES": "7"}]
    code, _, err = cli("run", write(tmp_path, changed()), "--output", tmp_path / "out", "--devices", "0,6")
    assert code == 2 and "--devices 0,6: 0 is not one of 6, 7, the GPUs that this process may use" in err
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert choose_slots(None, "GPU-8932f937", None)[0].env == {
        "CUDA_VISIBLE_DEVICES": "GPU-8932f937"}
    with pytest.raises(UserError, match="2 is not one of 0, 1"):
        choose_slots(None, "2", None)
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all("CUDA_VISIBLE_DEVICES" not in slot.env for slot in choose_slots(
        None, None, None)), "on the CPU"


@pytest.mark.parametrize(("flags", "message"), [
    (["--jobs", "0"], "--jobs: expected at least 1, found 0"), (["--devices", "0,0"], "a device is there twice"),
    (["--devices", "0", "--jobs", "1"], "not allowed with argument"), (["--job", "1"], "nearest: --jobs"),
])
def test_bad_flags(tmp_path: Path, cli: Cli, flags: list[str], message: str) -> None:
    code, _, err = cli("run", write(tmp_path, changed()), "--output", tmp_path / "out", *flags)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_run_one(tmp_path: Path, cli: Cli) -> None:
    """What a task of an array meets: a run that it needs is not there, or somebody else has it."""
    root = tmp_path / "out"
    cli("plan", write(tmp_path, changed()), "--output", root, "--no-estimate")
    weak, ceiling, student, _ = load_plan(root)
    code, out, _ = cli("run-one", root, student.id)
    assert code == 1 and f"needs {weak.id}, {ceiling.id}, not finished" in out
    weak.state_file("1.lock").write_text('{"host": "node7", "place": "node7", "pid": 1}')
    code, out, _ = cli("run-one", root, weak.id)
    assert code == 75 and "another runner works on it" in out and not weak.path.exists()
    code, out, _ = cli("status", root)
    assert re.search(rf"{weak.id} +running +epoch 0 of 1 .* node7", out)
    assert "1 running, 2 waiting, 1 blocked; time left: unknown" in out
    code, _, err = cli("run-one", root, weak.id[:-1])
    assert code == 2 and f"(nearest: {weak.id}" in err


def test_a_training_that_is_killed(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system that ran out of memory, for one: it gets one more try, then the reason is told."""
    root, said = tmp_path / "out", []
    cli("plan", write(tmp_path, changed()), "--output", root, "--no-estimate")
    weak = load_plan(root)[0]
    script = tmp_path / "dies.py"  # in place of a training
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)
    out = Pool([weak], make_slots(1, [], None), say=said.append).run()
    assert out.exit_code == 1 and starts(weak) == 2
    assert said[0].startswith(f"{weak.id}: exit code -9: ") and said[0].endswith("; trying once more")
    assert said[1].startswith(f"FAILED {weak.id}: exit code -9: ")
    _, text, _ = cli("status", root)
    assert "1 failed" in text and f"FAILED {weak.id}: exit code -9" in text

    script.write_text(f"open({str(weak.path / 'result.json')!r}, 'w').write('{{}}')\nraise SystemExit(1)\n")
    weak.path.mkdir(exist_ok=True)
    assert Pool([weak], make_slots(1, [], None), say=said.append).run().exit_code == 0
    assert f"[1/1] {weak.id}" in said[-1], "it had come to its end"


def test_full_disk(disk: Path, tmp_path: Path, cli: Cli) -> None:
    """What cannot be noted ends the runner with one line, and the command goes on when there is room."""
    root, said = disk / "out", []
    spec = write(tmp_path, changed())
    cli("plan", spec, "--output", root, "--no-estimate")
    plan = load_plan(root)
    before = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    filler = fill(disk)
    code, _, err = cli("run", spec, "--output", root, "--jobs", 1)
    assert code == 2 and re.search(r"error: \S+study.yaml: cannot be written .*make room and start the same", err)
    with pytest.raises(UserError, match=r"state/\S+: cannot be written .*No space left"):
        Pool(plan, make_slots(1, [], None), say=said.append).run()
    now = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    assert said == [] and {path: text for path, text in now.items() if text} == before  # a log may have its name
    filler.unlink()
    assert acquire(plan[0], 120.0).number == 1, "free at once"


def test_what_runs_is_stopped_when_nothing_can_be_noted(
        tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner ends with one line for the run whose log cannot be written, and the other run saves."""
    root, said = tmp_path / "out", []
    cli("plan", write(tmp_path, changed()), "--output", root, "--no-estimate")
    weak, ceiling, *_ = load_plan(root)
    script = tmp_path / "saves.py"  # in place of a training
    script.write_text("import signal, sys, time\n"
                      "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
                      "print('ready', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)
    pool = Pool([weak, ceiling], make_slots(2, [], None), say=said.append)
    log = weak.state_file("log")

    class Ready(Stop):
        def __bool__(self) -> bool:
            if log.exists() and "ready" in log.read_text() and not ceiling.state_file("log").exists():
                ceiling.state_file("log").mkdir()
                pool.slots.append(make_slots(1, [], None)[0])
            return super().__bool__()

    pool.slots.pop()
    pool.stop = Ready()
    with pytest.raises(UserError, match=rf"{ceiling.id}.log: cannot be written"):
        pool.run()
    assert said[-1] == "an error: 1 runs are saving where they are" and log.read_text().endswith("saved\n")
    assert read_json(weak.state_file("json"))["state"] == "stopped" and acquire(weak, 120.0), "the lock is free"


def test_a_training_without_a_lock_to_touch_is_stopped(
        disk: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its sign of life is so old that others take it over; it has time to save."""
    root = tmp_path / "out"
    cli("plan", write(tmp_path, changed()), "--output", root, "--no-estimate")
    weak = load_plan(root)[0]
    (root / "state").rmdir()
    (disk / "state").mkdir()
    (root / "state").symlink_to(disk / "state")
    weak.state_file("log").symlink_to(tmp_path / "log")  # an open file would keep the disk writable
    script = tmp_path / "saves.py"  # in place of a training
    script.write_text("import signal, sys, time\n"
                      "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
                      "print('ready', flush=True)\n"
                      "time.sleep(60)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)

    class ReadOnly(Stop):
        mounted = False

        def __bool__(self) -> bool:
            log, lock = tmp_path / "log", weak.state_file("1.lock")
            if not self.mounted and "child" in lock.read_text() and log.is_file() and "ready" in log.read_text():
                remount(disk, "ro")
                self.mounted = True
            return super().__bool__()

    try:
        with ReadOnly() as stop, pytest.raises(UserError, match=r"json: cannot be written .*make the folder writable"):
            work(weak, stop, stale=2.0)
    finally:
        remount(disk, "rw")
    assert (tmp_path / "log").read_text().splitlines()[-1] == "saved"


def test_a_run_that_was_taken_over_is_left_alone(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept wakes up: others hold its run, so its process ends without a word to disk."""
    root = tmp_path / "out"
    cli("plan", write(tmp_path, changed()), "--output", root, "--no-estimate")
    weak = load_plan(root)[0]
    script = tmp_path / "sleeps.py"  # in place of a training
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)
    said: list[str] = []

    class Sleepy(Stop):
        def __bool__(self) -> bool:
            if weak.state_file("1.lock").exists():
                weak.state_file("2.lock").write_text('{"host": "node7", "place": "node7", "pid": 1}')
            return super().__bool__()

    with Sleepy() as stop:
        assert work(weak, stop, stale=0.6, say=said.append) == 75
    assert said == [f"{weak.id}: another runner has taken it over"]
    assert weak.state_file("2.lock").exists() and read_json(weak.state_file("json"))["state"] == "running"
