"""Kills runs with SIGKILL at random moments, goes on with each, and compares its end with an uninterrupted run.

    python benchmarks/crashes.py --runs 50

Moments are drawn over the whole of a run, or shortly after it has begun to do something that takes little of its time:
to cache targets, to write a checkpoint, to evaluate, or to export.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import train_w2s
from tests import forks
from tests.forks import finish

PHASES: dict[str, Callable[[Path], object] | None] = {
    "any moment": None,
    "caching targets": lambda run: any(run.parent.glob("targets/*/*")),
    "writing a checkpoint": lambda run: any(run.glob(".*.pth.tar.tmp")),
    "evaluating": lambda run: "eval" not in (text := _read(run / "metrics.jsonl")) and text.count('"train"') >= 8,
    "exporting": lambda run: (run / "result.json").exists() or any(run.glob("*export*")),
}
LONGEST = 120  # seconds that a run may take


def flags(folder: Path, name: str) -> list[str]:
    """A run of seconds that does all that a long one does."""
    weak = ["--dataset", "w2s/digits", "--img-size", "8", "--train-slice", "0:128", "--batch-size", "16",
            "--workers", "1", "--warmup-epochs", "0", "--log-interval", "1", "--device", "cpu"]
    if name == "weak":
        return [*weak, "--model", "w2s_cnn2", "--epochs", "2", "--output", str(folder), "--experiment", name]
    output = folder / f"in-{name}"
    return [*weak, "--model", "w2s_cnn5", "--epochs", "3", "--opt", "adamw", "--lr", "0.003", "--reprob", "0.3",
            "--model-ema", "--recovery-interval", "1", "--teacher", "w2s_cnn2", "--teacher-checkpoint",
            str(folder / "weak"), "--teacher-targets", "cached", "--target-cache", str(output / "targets"),
            "--output", str(output), "--experiment", name, "--resume", "auto"]


def start(arguments: list[str], log: Path) -> int:
    """Start a run in a forked process, the leader of a group."""
    return forks.start(train, ["train_w2s.py", *arguments], log, group=True)


def train() -> None:
    """Train with one thread."""
    torch.set_num_threads(1)
    train_w2s.main()


def kill_at(pid: int, reached: Callable[[], object], delay: float) -> bool:
    """Kill a run and its data workers a while after it has reached something. Returns False when it had ended."""
    deadline = time.monotonic() + LONGEST
    while not reached():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) or time.monotonic() > deadline:
            break
        time.sleep(0.001)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return finish(pid) == -signal.SIGKILL


def outcome(run: Path) -> dict[str, str]:
    """What two runs must have in common: hashes of the exported weights and of the figures of all steps."""
    names = "export/model.safetensors", "metrics.jsonl"
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}


def crash(folder: Path, number: int, phase: str, duration: float, draw: random.Random) -> tuple[bool, dict[str, str]]:
    """Kill one run, go on with it, and return whether it was alive when killed, and its outcome."""
    name = f"run{number}"
    run, log = folder / f"in-{name}" / name, folder / f"{name}.log"
    reached = PHASES[phase]
    delay = draw.uniform(0, duration) if reached is None else draw.uniform(0, 0.05)
    run.parent.mkdir()
    killed = kill_at(start(flags(folder, name), log), lambda: reached is None or reached(run), delay)
    code = finish(start(flags(folder, name), log))
    if code:
        raise SystemExit(f"{name}, killed at {phase}, did not finish (exit code {code}):\n{log.read_text()}")
    return killed, outcome(run)


def measure(folder: Path, runs: int, seed: int) -> list[tuple[str, bool]]:
    """Kill so many runs, and return for each the phase it was killed in and whether its end is the same.

    A run that had ended before it could be killed does not count, and another is started.
    """
    if finish(start(flags(folder, "weak"), folder / "weak.log")):
        raise SystemExit((folder / "weak.log").read_text())
    (folder / "in-whole").mkdir()
    duration = time_of(start(flags(folder, "whole"), folder / "whole.log"), folder / "whole.log")
    expected, draw = outcome(folder / "in-whole" / "whole"), random.Random(seed)
    results = []
    for number in range(2 * runs):
        phase = [*PHASES][len(results) % len(PHASES)]
        killed, found = crash(folder, number, phase, duration, draw)
        same = found == expected
        if killed:
            results.append((phase, same))
        print(f"run {number + 1}: {phase}: {'killed' if killed else 'had ended'}, "
              f"{'the same' if same else 'ANOTHER'} end", flush=True)
        if len(results) == runs:
            return results
    raise SystemExit(f"only {len(results)} of {2 * runs} runs could be killed")


def time_of(pid: int, log: Path) -> float:
    """Wait for an uninterrupted run and return its seconds."""
    began = time.monotonic()
    if finish(pid):
        raise SystemExit(log.read_text())
    return time.monotonic() - began


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), args.runs, args.seed)
    print("\n| killed while | runs | same end |\n| --- | ---: | ---: |")
    same = Counter(phase for phase, equal in results if equal)
    for phase, count in Counter(phase for phase, _ in results).items():
        print(f"| {phase} | {count} | {same[phase]} |")
    if same.total() < len(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
