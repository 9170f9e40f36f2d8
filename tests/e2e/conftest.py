"""The scripts, run as a person would: as processes, under torchrun, or, for speed, in the process of the tests."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forks
from tests.hub_server import hub_server  # noqa: F401  (a fixture)
from tests.parts import words
from tests.processes import python
from w2s_plugins.training import step

ROOT = Path(__file__).parents[2]
BRIEF = [
    "--img-size 8 --batch-size 16 --epochs 2 --warmup-epochs 0 --lr 0.05 --workers 0 --log-interval 1"
]
# Two epochs of four steps on 64 images; evaluated on 60 images of the test split.
TINY = ["--dataset w2s/digits --train-slice 0:64 --val-slice 0:60", *BRIEF]

DRIVER = """
import contextlib, importlib, io, json, sys, time
import train_w2s
from w2s_plugins.errors import run_main

time.sleep = lambda seconds: None  # the waits between huggingface_hub's retries are left out, the retries are not
results = []
for flags in json.loads(sys.argv.pop()):
    main = train_w2s.main
    if flags[0] == "-m":
        main, flags = importlib.import_module(f"{flags[1]}.__main__").main, flags[2:]
    sys.argv = ["train_w2s.py", *flags]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_main(main, "train_w2s.py")
        except SystemExit as end:
            code = end.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@dataclass
class Done:
    """A run that has ended."""

    code: int
    out: str
    err: str
    codes: tuple[int, ...] = ()  # of each rank

    @property
    def error(self) -> str:
        """The one line that a run with bad input ends with, without its prefix."""
        lines = self.err.strip().splitlines() or [""]
        errors = [line for line in lines if line.startswith("train_w2s.py: error: ")]
        assert self.code == 2, f"exit code {self.code}\n{self.err}"
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0], self.err
        assert "Traceback" not in self.err
        return errors[0].removeprefix("train_w2s.py: error: ")

    def ok(self) -> "Done":
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

    def refused(self, message: str = "") -> "Done":
        """It has ended with one line, in which there is a text."""
        assert self.code == 2 and self.err.count("\n") == 1 and message in self.err, self
        return self

    @property
    def figures(self) -> Any:
        """What ``validate.py`` has measured."""
        return json.JSONDecoder().raw_decode(self.ok().out.split("--result\n")[1])[0]


Run = Callable[..., Done]


def taught(*checkpoints: object) -> list[str]:
    """Flags of small teachers with these weights."""
    return [
        "--teacher",
        ",".join(["w2s_cnn2"] * len(checkpoints)),
        "--teacher-checkpoint",
        ",".join(map(str, checkpoints)),
    ]


def in_file(file: Path, flags: Sequence[object]) -> list[object]:
    """Write flags with a value each into a file, over which those of a stage win, and return the flag that names it."""
    typed = words(*flags)
    values = {name[2:]: value for name, value in zip(typed[::2], typed[1::2], strict=True)}
    file.write_text(json.dumps(values))
    return ["--config", file]


def environment(**extra: str) -> dict[str, str]:
    """Environment of a script: one thread, nothing of a Hub account or of the caller's own data."""
    dropped = ("HF_", "IMAGENET_DIR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def run_script(
    *flags: object,
    cwd: Path,
    processes: int = 0,
    script: str = "train_w2s.py",
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> Done:
    """Run a script as `python` does, or under torchrun, from the very start, when ``processes`` is not 0."""
    command, env = [str(ROOT / script), *words(*flags)], env or environment()
    if processes:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
        done = subprocess.run(
            [*launcher, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
        )
    else:
        done = python(*command, env=env, cwd=cwd)
    return Done(done.returncode, done.stdout, done.stderr)


def run_many(commands: list[list[str]], env: dict[str, str], cwd: Path) -> list[Done]:
    """Run several command lines in one fresh process, whose Hub is that of ``env``; those that begin with ``-m MODULE``
    are not of ``train_w2s.py``."""
    typed = json.dumps([words(*command) for command in commands])
    done = python("-c", DRIVER, typed, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [
        Done(*result) for result in json.JSONDecoder().raw_decode(done.stdout)[0]
    ]  # packages may print at the end


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_events(run: Path | str, kind: str = "") -> list[dict]:
    """What a run has written of its training, or what of that is of one kind."""
    return [
        event for event in read_lines(Path(run, "metrics.jsonl")) if kind in ("", event["event"])
    ]


def read_result(run: Path | str) -> dict:
    return json.loads(Path(run, "result.json").read_text())


def read_run(folder: Path, name: str = "last.pth.tar") -> dict:
    """Everything in a checkpoint that decides how a run goes on."""
    from w2s_plugins.models.loading import read_checkpoint

    content = read_checkpoint(folder / name, "test")
    return {k: v for k, v in content.items() if k not in ("args", "saver")}


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Where two nested values differ, to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}/{k} is in one only" for k in a.keys() ^ b.keys()]
        return found + [
            d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{path}/{k}")
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    else:
        same = isinstance(a, bool) == isinstance(b, bool) and a == b
    return [] if same else [path]


def assert_same_end(whole: Path, run: Path) -> None:
    """Two runs have ended alike, to the last bit, and none has left more files behind than the other."""
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in run.iterdir()) and "result.json" in names
    for name in (*names, "export/model.safetensors"):
        if name.endswith(".pth.tar"):
            assert differences(read_run(whole, name), read_run(run, name)) == [], name
        elif name.endswith((".csv", ".jsonl", ".safetensors")):
            assert (whole / name).read_bytes() == (run / name).read_bytes(), name


def assert_goes_on(train: Callable[..., object], *flags: object, stop: int = 1) -> Path:
    """A run that stops after some epochs and goes on ends as one that does not, whose folder is returned."""
    train(*flags, "--output", "ends", "--experiment", "whole")
    train(*flags, "--output", "ends", "--experiment", "parts", "--stop-epoch", stop)
    train(*flags, "--output", "ends", "--experiment", "parts", "--resume", "auto")
    assert_same_end(Path("ends/whole"), Path("ends/parts"))
    return Path("ends/whole")


def call_before(
    owner: object,
    name: str,
    number: int,
    action: Callable[[], object],
    put: Callable[[object, str, object], None] = setattr,
) -> None:
    """Take an action before the call of a function with that number, from 1."""
    original, left = getattr(owner, name), [number]

    def counted(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            action()
        return original(*args, **kwargs)

    put(owner, name, counted)


def in_step(
    number: int, action: Callable[[], object], only_rank: int | None = 0
) -> Callable[[int], None]:
    """For `fork`: one rank, or all, take an action before a step of training, counted from 1."""
    return lambda rank: only_rank in (None, rank) and call_before(step, "seed_step", number, action)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something, or breaks off, before a step of training in this process, counted from 1 from now on."""

    def arrange(number: int, action: Callable[[], object] | None = None) -> None:
        call_before(step, "seed_step", number, action or power_cut, monkeypatch.setattr)

    return arrange


def power_cut() -> None:
    raise RuntimeError("power cut")


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script on several ranks, in a tenth of torchrun's time."""

    def run(*flags: object, processes: int, cwd: Path, script: str = "train_w2s") -> Done:
        def before(rank: int) -> None:
            for name in set(os.environ) - set(environment()):
                del os.environ[name]
            os.chdir(cwd)

        folder = tmp_path_factory.mktemp("ranks")
        outputs = [folder / f"{rank}.log" for rank in range(processes)]
        main = importlib.import_module(script).main
        codes = [
            forks.finish(pid)
            for pid in forks.start_ranks(main, [f"{script}.py", *flags], outputs, before=before)
        ]
        texts = [output.read_text() for output in outputs]
        return Done(max(codes, key=abs), texts[0], "".join(texts), tuple(codes))

    return run


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Run]:
    """Runs a script in this process, in an empty folder; a start takes a tenth of the time."""
    from timm.layers import is_fast_norm, set_fast_norm

    from w2s_plugins.errors import run_main
    from w2s_plugins.run.lock import unlock_run

    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    threads, fast_norm = torch.get_num_threads(), is_fast_norm()
    torch.set_num_threads(1)

    def run(*flags: object, script: str = "train_w2s") -> Done:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words(*flags)])
        capsys.readouterr()
        code = 0
        try:
            run_main(importlib.import_module(script).main, "train_w2s.py")
        except SystemExit as end:
            code = int(end.code or 0)
            if code == 1 and end.__context__ is not None:
                raise end.__context__ from None  # what nobody expected: a process prints its traceback
        finally:
            unlock_run()  # as the end of its process would
        return Done(code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)
    set_fast_norm(fast_norm)


_MADE: dict[str, tuple[Path, Any]] = {}


@pytest.fixture
def made_once(
    here: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Callable[[], Any]], Any]:
    """Fills the folder of the test by a function that is called once, for all tests, and returns what it returned."""

    def fill(name: str, make: Callable[[], Any]) -> Any:
        if name not in _MADE:
            value = make()
            _MADE[name] = tmp_path_factory.mktemp(name) / "all", value
            shutil.copytree(tmp_path, _MADE[name][0])
        folder, value = _MADE[name]
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        return value

    return fill


@dataclass
class Forked:
    """Processes of one run, forked from the one of the tests, each with a process group of its own."""

    pids: list[int]
    outputs: list[Path]
    codes: list[int | None]

    def send(self, signum: int, group: bool = False) -> None:
        """Send a signal to all ranks that still run, with their data workers or without."""
        for pid in (p for p, code in zip(self.pids, self.codes) if code is None):
            os.killpg(pid, signum) if group else os.kill(pid, signum)

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert os.waitpid(self.pids[0], os.WNOHANG) == (0, 0), (
                f"the run has ended\n{self.text(0)}"
            )
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def text(self, rank: int) -> str:
        return self.outputs[rank].read_text()

    def wait(self, kill_others: bool = False) -> list[int]:
        """Return the exit codes, negative for a signal; rank 0 is waited for first."""
        for rank, pid in enumerate(self.pids):
            if rank and kill_others:
                os.kill(pid, signal.SIGKILL)
            if self.codes[rank] is None:
                deadline = time.monotonic() + 60
                while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
                    if time.monotonic() > deadline:
                        self.send(signal.SIGKILL, group=True)
                    time.sleep(0.002)
                self.codes[rank] = os.waitstatus_to_exitcode(ended[1])
        return self.codes


Fork = Callable[..., Forked]


@pytest.fixture
def fork(here: Run, tmp_path: Path) -> Fork:
    """Runs ``train_w2s.py`` in forked processes, which can be killed; a start takes a tenth of the time."""
    import train_w2s

    started: list[Forked] = []

    def start(
        *flags: object,
        processes: int = 0,
        before: Callable[[int], object] = lambda rank: None,
        main: Callable[[], None] = train_w2s.main,
    ) -> Forked:
        outputs = [tmp_path / f"rank{rank}-{len(started)}.log" for rank in range(processes or 1)]
        argv = ["train_w2s.py", *flags]
        pids = (
            forks.start_ranks(main, argv, outputs, before=before)
            if processes
            else [forks.start(main, argv, outputs[0], group=True, before=lambda: before(0))]
        )
        started.append(Forked(pids, outputs, [None] * len(pids)))
        return started[-1]

    yield start
    for run in started:
        for pid, code in zip(run.pids, run.codes):
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@pytest.fixture(scope="session")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a weak teacher: 80 labelled images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("weak")
    import train_w2s

    flags = [
        *BRIEF,
        "--dataset w2s/digits --train-slice 0:80 --model w2s_cnn2 --epochs 20 --lr 0.1 --val-interval 20",
        "--hflip 0 --scale 0.8 1 --color-jitter 0 --experiment weak --output",
        folder,
    ]
    pid = forks.start(train_w2s.main, ["train_w2s.py", *flags], folder / "log.txt")
    assert forks.finish(pid) == 0, (folder / "log.txt").read_text()
    return folder / "weak"
