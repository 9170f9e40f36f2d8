"""The life of a run, drawn: it is killed, stopped, out of room, damaged, moved, told other flags, validated, pushed.

At its end it is to the last bit what an undisturbed run is. Where its files were damaged one line may say so instead,
with exit code 2. `attacks.py --lives N` draws many.
"""

import collections
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.hub_server import HubServer, hub_env
from tests.warm import Warm

TOP = Path(__file__).parents[1]
SECONDS = 60.0
FLAGS = ["--dataset", "w2s/digits", "--img-size", "8", "--train-slice", "0:32", "--val-slice", "0:32", "--batch-size",
         "8", "--epochs", "2", "--warmup-epochs", "0", "--opt", "adamw", "--lr", "0.01", "--model", "w2s_cnn2",
         "--workers", "0", "--log-interval", "1", "--recovery-interval", "1", "--model-ema", "--mixup", "0.2"]
OTHER = (["--recovery-interval", "2"], ["--checkpoint-hist", "1"], ["--epochs", "3"], ["--lr", "0.02"],
         ["--model", "w2s_cnn5"])
SAME = 2  # of these: they change nothing of the outcome
ENDS = ("export/model.safetensors", "metrics.jsonl", "summary.csv")  # what is compared
# a process that imports what it runs, and in which something happens at a moment of it
PROGRAM = """
import importlib, json, os, resource, signal, sys
(kind, name, number), (module, *flags) = json.loads(sys.argv[1])
sys.argv = [module, *flags]
if kind == "room":
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
elif kind:
    owner = os if name in ("fsync", "replace") else importlib.import_module("w2s_plugins.engine.step")
    original, left = getattr(owner, name), [number]
    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            for signum in {"kill": [9], "stop": [15], "storm": [2, 15] * 5}[kind]:
                os.kill(os.getpid(), signum)
        return original(*args, **kwargs)
    setattr(owner, name, counted)
main = importlib.import_module("w2s_plugins.hub.__main__" if module == "hub" else module).main
importlib.import_module("w2s_plugins.errors").run_main(main, module)
"""
MOMENTS = st.one_of(
    st.tuples(st.sampled_from(["kill", "stop", "storm"]), st.sampled_from(["fsync", "replace"]), st.integers(1, 40)),
    st.tuples(st.sampled_from(["kill", "stop", "storm"]), st.just("seed_step"), st.integers(1, 8)),
    st.tuples(st.just("room"), st.just(""), st.sampled_from([0, 300, 3_000, 30_000, 60_000, 90_000])))
NOTHING = ("", "", 0)
# what, to which file of those that are there, and where in it
HARMS = st.tuples(st.sampled_from(["flip", "cut", "delete"]), st.integers(0, 99), st.floats(0, 1))


class Place:
    """Where lives are led: a process to fork, a Hub, and an undisturbed run, made once."""

    def __init__(self, folder: Path, server: HubServer, python: Warm, env: dict[str, str]):
        self.folder, self.server, self.python, self.env = folder, server, python, env
        self.counts: collections.Counter = collections.Counter()
        code, text = self.run(folder, NOTHING, "train_w2s", *FLAGS, "--experiment", "whole", "--output", ".")
        assert code == 0, text
        self.whole = {name: (folder / "whole" / name).read_bytes() for name in ENDS}
        self.figure = self.measure(folder, "--checkpoint", "whole")

    def run(self, cwd: Path, moment: tuple, *words: str) -> tuple[int, str]:
        """Run a program and return its exit code, negative for a signal, and what it printed."""
        with tempfile.TemporaryFile() as out:
            process = self.python.start(["-c", PROGRAM, json.dumps([moment, words])], self.env, stdout=out, stderr=out,
                                        cwd=cwd)
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                code = None
            text = out.seek(0) or out.read().decode(errors="replace")
        self.counts["programs"] += 1
        self.counts[moment[0] or "let be"] += 1
        self.counts["one line"] += code == 2
        last = (text.splitlines() or [""])[-1]
        ours = {"kill": [-9], "stop": [143, -15], "storm": [130, 143, -15]}.get(moment[0], [])
        fits = code in (0, *ours) or (code == 2 and last.startswith(f"{words[0]}: error: ")) or (
            moment[0] == "room" and code == 2)  # its log has no room either
        assert fits and "Traceback" not in text, (code, words, text[-3000:])
        return code, text

    def measure(self, cwd: Path, *words: str) -> float | None:
        """Return the accuracy that ``validate.py`` finds, None where it has one line."""
        code, text = self.run(cwd, NOTHING, "validate", *words, "--workers", "0", "--dataset", "w2s/digits")
        return json.loads(text.split("--result\n")[1])["top1"] if code == 0 else None


place: Place | None = None  # of this process


@contextmanager
def a_place() -> Iterator[Place]:
    """Let lives be led while it is entered."""
    global place
    with tempfile.TemporaryDirectory() as name, HubServer() as server:
        server.add_user("me", "token")
        env = hub_env(server, Path(name), "token")
        modules = ["train_w2s", "validate", "w2s_plugins.hub.push"]
        with Warm(modules, env) as python:
            place = Place(Path(name), server, python, env)
            yield place


class Life(RuleBasedStateMachine):
    """A run from its start to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=place.folder))
        self.name, self.moves, self.begun, self.harmed = "run", 0, False, False

    def files(self) -> list[Path]:
        """Those of the run, but for its lock."""
        return sorted(p for p in (self.folder / self.name).rglob("*") if p.is_file() and not p.name.startswith("."))

    def train(self, moment: tuple, *more: str) -> int:
        return place.run(self.folder, moment, "train_w2s", *FLAGS, *more, "--experiment", self.name, "--output", ".",
                         "--resume", "auto")[0]

    @initialize(moment=MOMENTS, harm=st.one_of(HARMS, HARMS, st.none()))  # a rule is left out of many lives
    def begins(self, moment: tuple, harm: tuple | None) -> None:
        self.begun = True
        self.train(moment)
        if harm and self.files():
            self.damage(*harm)

    @rule(moment=MOMENTS)
    def goes_on(self, moment: tuple) -> None:
        self.train(moment)

    @rule(number=st.integers(0, len(OTHER) - 1), moment=MOMENTS)
    def other_flags(self, number: int, moment: tuple) -> None:
        """Refused where there is a run, but for those that change nothing."""
        if number < SAME:
            self.train(moment, *OTHER[number])
        elif list((self.folder / self.name).glob("*.pth.tar")):
            assert self.train(NOTHING, *OTHER[number]) == 2

    @precondition(lambda self: (self.folder / self.name).is_dir())
    @rule()
    def is_moved(self) -> None:
        self.moves += 1
        (self.folder / self.name).rename(self.folder / f"run{self.moves}")
        self.name = f"run{self.moves}"

    @precondition(lambda self: self.files())
    @rule(harm=HARMS)
    def is_damaged(self, harm: tuple) -> None:
        self.damage(*harm)

    def damage(self, how: str, which: int, where: float) -> None:
        """Flip a bit of a file, cut it off, to nothing perhaps, or delete it."""
        file = self.files()[which % len(self.files())]
        content = bytearray(file.read_bytes())
        at = min(int(where * len(content)), len(content) - 1)
        if how == "delete" or not content:
            file.unlink()
        elif how == "flip":
            content[at] ^= 4
            file.write_bytes(content)
        else:
            file.write_bytes(content[:at])
        self.harmed = True
        place.counts[how] += 1
        note(f"{how} {file.relative_to(self.folder)} at {at}")

    @precondition(lambda self: self.files())
    @rule()
    def is_validated(self) -> None:
        """With what is there."""
        place.measure(self.folder, "--checkpoint", self.name)

    @precondition(lambda self: (self.folder / self.name / "export").is_dir())
    @rule()
    def is_pushed(self) -> None:
        """And pulled; what came through is the undisturbed one."""
        repo = f"me/{self.folder.name}"
        if place.run(self.folder, NOTHING, "hub", "push", self.name, repo)[0] == 0:
            assert place.measure(self.folder, "--model", f"hf-hub:{repo}", "--val-slice", "0:32") == place.figure

    def teardown(self) -> None:
        if not self.begun:  # drawn in part only
            return
        code = self.train(NOTHING)
        place.counts["lives"] += 1
        place.counts["with damage"] += self.harmed
        if code == 0:
            for name, content in place.whole.items():
                assert (self.folder / self.name / name).read_bytes() == content, name
            assert place.measure(self.folder, "--checkpoint", self.name) == place.figure
        else:
            assert code == 2 and self.harmed, code
            place.counts["ended by one line"] += 1
        shutil.rmtree(self.folder)


def lead(count: int, drawn_anew: bool = True) -> collections.Counter:
    """Lead so many lives, until one ends badly, whose steps are then printed; return what was counted."""
    with a_place() as here:
        run_state_machine_as_test(Life, settings=settings(
            max_examples=count, stateful_step_count=6, deadline=None, database=None, derandomize=not drawn_anew,
            phases=[Phase.generate],  # fewer steps that end badly, too, would take an hour to find
            suppress_health_check=[*HealthCheck], report_multiple_bugs=False))
    return here.counts
