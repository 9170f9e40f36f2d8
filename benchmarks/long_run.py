"""Measures what the processes of a run hold, epoch by epoch: memory, open files and shared memory.

    python benchmarks/long_run.py --epochs 50

The slopes are those of a straight line through the later two thirds of the epochs, in kB and in files an epoch.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.crashes import start
from tests.forks import finish

WARM_UP = 1 / 3  # of the epochs: allocators and caches grow at first


def flags(folder: Path, epochs: int, workers: int) -> list[str]:
    return ["--dataset", "w2s/digits", "--img-size", "8", "--train-slice", "0:256", "--batch-size", "16", "--workers",
            str(workers), "--warmup-epochs", "0", "--model", "w2s_cnn5", "--epochs", str(epochs), "--device", "cpu",
            "--model-ema", "--mixup", "0.2", "--recovery-interval", "8", "--output", str(folder), "--experiment", "run"]


def children(pid: int) -> list[int]:
    """Return the processes that the threads of a process have started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()]


def memory(pid: int) -> int:
    """Return the memory in kB of a process that is no file's, with what it shares with the process it was forked from.

    The part that it does not share grows for a long time without anything being allocated: whenever an object of the
    parent is used, its count of references changes, and the system gives the process a copy of the page.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def sample(pid: int) -> dict[str, int]:
    """Return what a run holds now."""
    workers = children(pid)
    return {
        "memory of the main process": memory(pid),
        "memory of the workers": sum(map(memory, workers)),
        "open files": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": 1 + len(workers),
        "files in shared memory": len(os.listdir("/dev/shm")),
    }


def measure(folder: Path, epochs: int, workers: int = 2) -> dict[str, np.ndarray]:
    """Run a training and return a figure of each kind for each of its epochs but the last."""
    log, metrics = folder / "log", folder / "run" / "metrics.jsonl"
    pid = start(flags(folder, epochs, workers), log)
    samples: list[dict[str, int]] = []
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        done = metrics.read_text().count('"event": "eval"') if metrics.exists() else 0
        if len(samples) < done < epochs:
            samples.append(sample(pid))
        time.sleep(0.005)
    if finish(pid):
        raise SystemExit(log.read_text())
    return {name: np.array([s[name] for s in samples]) for name in samples[0]}


def slope(figures: np.ndarray) -> float:
    """Return the growth by epoch once the run is warm."""
    warm = figures[int(len(figures) * WARM_UP):]
    return float(np.polyfit(np.arange(len(warm)), warm, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.epochs, args.workers)
    print("| what | after a third | at the end | slope an epoch |\n| --- | ---: | ---: | ---: |")
    for name, figures in found.items():
        print(f"| {name} | {figures[int(len(figures) * WARM_UP)]} | {figures[-1]} | {slope(figures):.3g} |")


if __name__ == "__main__":
    main()
