"""A study from its start to its end, with everything that can happen to it on the way."""

import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

import train_w2s
from tests import forks
from tests.e2e.conftest import differences, environment, read_run, run_script
from tests.e2e.test_untrusted import holders
from tests.parts import small_model, write_digits, write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.study import __main__ as study
from w2s_plugins.study import runner as runner_module
from w2s_plugins.study.layout import StudyRun, load_plan, read_record
from w2s_plugins.study.runner import hold_run, make_slots

from .conftest import Cli
from .specs import BASE, changed, write

TOKEN = "hf_" + "T0psecret" * 4
Runners = Callable[..., "Started"]


class Started:
    """``study run`` in a forked process; a start takes a tenth of the time."""

    def __init__(self, output: Path, *argv: object):
        self.output, self.code = output, None
        self.pid = forks.start(study.main, ["study", *argv], output)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
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


class Training:
    """In place of `subprocess.Popen` of a training: forked, which takes a tenth of the time."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], stdout: IO, **kwargs: object
    ):
        def before() -> None:
            os.environ.update(env)
            signal.pthread_sigmask(
                signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT}
            )  # as no data worker has them
            for number in os.listdir(
                "/proc/self/fd"
            ):  # the runner's locks, which a new process would not have
                if os.path.realpath(f"/proc/self/fd/{number}").endswith("lock"):
                    os.close(int(number))

        self.returncode = None
        self.pid = forks.start(
            train_w2s.main,
            ["train_w2s.py", *command[2:]],
            Path(stdout.name),
            group=True,
            before=before,
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runners]:
    """Starts runners whose trainings are forks; the study of `test_install.py` has processes as users have them."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(runner_module, "subprocess", SimpleNamespace(Popen=Training, DEVNULL=None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # every run inherits it
    started: list[Started] = []

    def start(*argv: object) -> Started:
        started.append(Started(tmp_path / f"runner{len(started)}.txt", "run", *argv))
        return started[-1]

    yield start
    for each in started:
        each.end(signal.SIGKILL)


def times(*runs: StudyRun) -> dict[Path, int]:
    """Return when each file of some run folders was written."""
    return {
        path: path.stat().st_mtime_ns
        for run in runs
        for path in [run.folder, *run.folder.rglob("*")]
    }


def starts(run: StudyRun) -> int:
    return sum(line.startswith("$ ") for line in run.state_file("log").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twelve trainings, one or two at a time
def test_from_start_to_end(tmp_path: Path, runner: Runners, cli: Cli) -> None:
    weights = tmp_path / "weights.pth"
    late = {
        "model": "w2s_cnn2",
        "initial_checkpoint": str(weights),
        "epochs": 300,
        "val_interval": 300,
    }
    weak = [{"name": "a", "flags": {"model": "w2s_cnn2"}}, {"name": "late", "flags": late}]
    images = write_folder(tmp_path / "images", {"train": 160, "validation": 40})
    base = {**BASE, "dataset": "", "data_dir": str(images), "recovery_interval": 5}
    spec = write(tmp_path, changed(base=base, weak=weak))
    root = tmp_path / "out"
    flags = [spec, "--output", root, "--jobs"]

    # ---- a run fails: it is told and gone round, with those that need it; the others go on
    first = runner(*flags, 2)
    assert first.end() == 1
    plan = load_plan(root)
    by_kind = {(run.kind, run.weak, run.loss): run for run in plan}
    bad, students = by_kind["weak", "late", None], [run for run in plan if run.kind == "student"]
    done = [run for run in plan if run.finished]
    assert {run.weak for run in done} == {"a", None} and len(done) == 4
    assert (
        f"FAILED {bad.name}: exit code 2: train_w2s.py: error: --initial-checkpoint {weights}"
        in first.text
    )
    assert (
        "7 runs: 4 finished, 2 waiting, 1 failed" in first.text
        and first.text.count("left out") == 2
    )
    assert re.search(r"\[4/7\] .*: top-1 \d+\.\d", first.text)
    assert [starts(run) for run in (bad, *done)] == [1] * 5
    ceiling, teacher = by_kind["ceiling", None, None], by_kind["weak", "a", None]
    for run in (ceiling, teacher):
        run.record = read_record(run.folder / "result.json")
    for run in done[2:]:
        result = read_record(run.folder / "result.json")
        assert (
            result["teacher"]["top1"] == teacher.headline
            and result["loss"]["task_loss_weight"] == 0
        )
        assert result["ceiling_acc"] == ceiling.headline
        assert (run.folder / "predictions_last.csv").is_file()
    assert len(list((root / "targets").glob("*.lock"))) == 1, "one cache for two students"

    # ---- what was wrong is put right; SIGTERM ends the runner, its run saves where it is
    weights.write_bytes((teacher.folder / "last.pth.tar").read_bytes())
    before = times(*done)
    metrics = bad.folder / "metrics.jsonl"
    second = runner(*flags, 1)
    second.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    code, out, _ = cli("status", root)
    assert code == 0 and re.search(rf"{bad.name} +running +\S.*epoch \d+/300", out), out
    assert second.end(signal.SIGTERM) == 143
    assert "7 runs: 4 finished, 1 stopped, 2 waiting" in second.text and "FAILED" not in second.text
    assert list(bad.folder.glob("recovery-*")), "it has saved where it was"

    # ---- SIGKILL: what the runner has started goes on, and the next runner leaves it alone until it has ended
    third = runner(*flags, 1)
    third.wait_until(lambda: "Resumed" in bad.state_file("log").read_text())
    length = len(metrics.read_text())
    third.wait_until(lambda: len(metrics.read_text()) > length)
    assert third.end(signal.SIGKILL) == -signal.SIGKILL
    assert "1 running" in cli("status", root)[1] and hold_run(bad) is None

    # ---- two runners share what is left
    both = [runner(*flags, 2), runner(*flags, 1)]
    assert [each.end() for each in both] == [0, 0]
    assert all("7 runs: 7 finished" in each.text for each in both) and all(
        run.finished for run in plan
    )
    assert starts(bad) == 3 and [starts(run) for run in students] == [1, 1, 1, 1]
    assert times(*done) == before
    command = shlex.split(students[0].state_file("log").read_text().splitlines()[0])
    run_script(*command[3:], "--output", tmp_path / "alone", cwd=tmp_path).ok()
    assert not differences(
        read_run(tmp_path / "alone" / students[0].name), read_run(students[0].folder)
    )

    # ---- nothing is left to do; a changed study keeps what is the same
    before = times(*plan)
    code, out, err = cli("run", root)
    assert code == 0 and out.endswith("7 runs: 7 finished\n"), err
    write(tmp_path, changed(base=base, weak=weak, losses=["hard", "bkd"]))
    assert cli("plan", *flags[:-1])[0] == 0 and times(*plan) == before
    assert "7 runs: 5 finished, 2 waiting" in cli("status", root)[1]
    assert not holders(tmp_path, TOKEN) and TOKEN not in first.text


def test_images_that_were_deleted_between_two_runs(tmp_path: Path, runner: Runners) -> None:
    """A run on other images ends the study in one line; so does the next one, until they are back."""
    images = write_folder(tmp_path / "images", {"train": 160, "validation": 40})
    base = {**BASE, "dataset": "", "data_dir": str(images), "train_slice": "0:120"}
    flags = ["--output", tmp_path / "out", "--jobs", 1]
    assert runner(write(tmp_path, changed(base=base, losses=["hard"])), *flags).end() == 0
    (lost,) = (path for path in images.rglob("017.jpg") if "train" in path.parts)
    content = lost.read_bytes()
    lost.unlink()
    later = write(tmp_path, changed(base=base))
    for _ in range(2):
        again = runner(later, *flags)
        assert again.end() == 2, again.text
        assert "cannot be compared: 'train' changed between them: 160 samples" in again.text
        assert "159 samples" in again.text and "Traceback" not in again.text
    lost.write_bytes(content)


def write_teacher(file: Path, seed: int) -> None:
    """Weights, or a table of labels, of a teacher of digits."""
    if file.suffix == ".pth":
        torch.save(small_model(seed).state_dict(), file)
        return
    labels = create_dataset("w2s/digits", None, "train").targets
    rows = [f"{index},{(label + seed) % 10}" for index, label in enumerate(labels)]
    file.write_text("\n".join(["index,label", *rows]))


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.csv"])
def test_a_teacher_that_was_trained_anew_between_two_losses(
    tmp_path: Path, runner: Runners, name: str
) -> None:
    """The second student is not trained with another teacher than the first one had, or with other labels."""
    file = tmp_path / name
    write_teacher(file, 0)
    weak = [{"name": "a", "flags": {"model": "w2s_cnn2"}, "checkpoint": str(file)}]
    if file.suffix == ".csv":
        weak = [{"name": "a", "flags": {"model": f"labels:{file}"}}]
    flags = ["--output", tmp_path / "out", "--jobs", 1]
    assert runner(write(tmp_path, changed(weak=weak, losses=["hard"])), *flags).end() == 0
    write_teacher(file, 1)
    again = runner(write(tmp_path, changed(weak=weak)), *flags)
    assert again.end() == 2, again.text
    assert re.search(
        f"the (weights|labels) of --teacher.* .*{name} changed between them", again.text
    ), again.text
    (student,) = (run for run in load_plan(tmp_path / "out") if run.loss == "kd")
    assert not student.folder.exists(), "known before it is trained"


def test_images_without_labels(tmp_path: Path, runner: Runners, cli: Cli) -> None:
    """Losses and seeds on labels in a file: means, intervals, paired comparisons, and a reason why there is no PGR."""
    write_digits(
        260,
        lambda number, label: (
            tmp_path / ("photos" if number < 128 else f"birds/validation/{label}")
        ),
    )
    digits = create_dataset("w2s/digits", None, "train").targets[:128]
    table = tmp_path / "answers.csv"
    base = {
        **BASE,
        "dataset": "",
        "unlabeled": str(tmp_path / "photos"),
        "data_dir": str(tmp_path / "birds"),
        "train_slice": None,
        "hflip": 0,
        "color_jitter": 0,
        "scale": [0.8, 1],
        "batch_size": 16,
        "epochs": 8,
    }
    del base["weak_fraction"]
    weak = [{"name": "crowd", "flags": {"model": f"labels:{table}"}}]
    spec, root = write(tmp_path, changed(base=base, weak=weak, seeds=2)), tmp_path / "out"

    table.write_text("filename,label\na.png,1\nb.png,2\n")
    code, _, err = cli("run", spec, "--output", root)
    assert code == 2 and "is about other data: none of its 2 answers" in err and not root.exists()
    table.write_text(
        "\n".join(["filename,label", *(f"{i}.png,{label}" for i, label in enumerate(digits))])
    )
    done = runner(spec, "--output", root, "--jobs", 2)
    assert done.end() == 0 and "4 runs: 4 finished" in done.text, done.text
    plan = load_plan(root)
    assert {run.kind for run in plan} == {"student"}

    code, out, err = cli("report", root)
    assert code == 0 and (root / "report" / "index.html").is_file(), err
    figure = r"\d+\.\d\d ± \d+\.\d\d \(\d+\.\d\d\)"
    versus = r"[+-]\d+\.\d\d \[[+-].*, [+-].*\] \| \d\.\d{3} \| (better|tie|worse)"
    assert re.search(rf"\| `hard` \| 2 \| {figure} \| {versus} \|", out), out
    assert (
        out.count("there is no PGR, for which the accuracy of the weak teacher and of the ceiling")
        == 1
    )


def test_trainings_get_the_gpus_that_the_study_was_given(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those with the numbers 0 and 1, which are somebody else's; what a training sees is told by itself."""
    script = tmp_path / "tells.py"  # in place of a training
    script.write_text(
        "import os, sys\nprint('sees', os.environ.get('CUDA_VISIBLE_DEVICES'))\nsys.exit(2)\n"
    )
    monkeypatch.setattr(runner_module, "SCRIPT", script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937, MIG-41b3a0c7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    spec = write(tmp_path, changed())
    assert cli("run", spec)[0] == 1
    root = Path("output/studies", spec.stem)
    logs = [run.state_file("log").read_text() for run in load_plan(root)[:2]]
    assert sorted(log.splitlines()[-1] for log in logs) == [
        "sees GPU-8932f937",
        "sees MIG-41b3a0c7",
    ]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert make_slots(3) == [{"CUDA_VISIBLE_DEVICES": name} for name in "010"]


def test_slots_of_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert make_slots(3) == [{"OMP_NUM_THREADS": "1"}] * 3 and len(make_slots(None)) > 0, (
        "what the user says counts"
    )


def test_states_are_told_of_whatever_is_in_the_folder(tmp_path: Path, cli: Cli) -> None:
    assert "no folder of a study" in cli("status", tmp_path)[2]
    assert (
        cli("plan", write(tmp_path, changed(losses=["hard"])), "--output", tmp_path / "out")[0] == 0
    )
    assert (
        "--slurm-options are for --slurm"
        in cli("run", tmp_path / "out", "--slurm-options timeout_min=3")[2]
    )
    weak, ceiling, student = load_plan(tmp_path / "out")
    (tmp_path / "out/state").mkdir()
    assert cli("status", tmp_path / "out")[1] == "3 runs: 3 waiting\n"
    ceiling.state_file("log").write_bytes(b"began\n\xff\x1b[2J\n\n")
    weak.state_file("log").write_text("no such file\n")
    weak.state_file("failed").write_text("exit code 1: no such file\n")
    code, out, _ = cli("status", tmp_path / "out")
    assert code == 0 and "3 runs: 1 stopped, 1 waiting, 1 failed" in out and "\x1b" not in out
    assert re.search(rf"{weak.name} +failed +no such file", out)
    lock = hold_run(ceiling)
    assert hold_run(ceiling) is None and re.search(
        rf"{ceiling.name} +running", cli("status", tmp_path / "out")[1]
    )
    lock.release()
    assert not student.finished
