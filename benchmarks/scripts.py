"""Training scripts as processes: when the first step was done, how fast the others followed, how long it all took."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# "Train: 0 [   0/16 (  6%)]" of timm, which counts from 0, and "epoch 1/1 step 1/16" of this project
STEP = re.compile(r"Train: \d+ \[ *(?P<index>\d+)/|epoch \d+/\d+ step (?P<number>\d+)/")


@dataclass(frozen=True)
class ScriptTimes:
    """What one run took.

    Args:
        start_up: seconds from the start of the process to the end of the first step.
        processor: seconds of processors that the process itself took until then; its data workers' are not counted.
        rate: images per second from there to the last step.
        total: seconds from the start to the end of the process.
    """

    start_up: float
    processor: float
    rate: float
    total: float


def run_script(command: Sequence[str], images_per_step: int, folder: Path, threads: int) -> ScriptTimes:
    """Run a script for one epoch that logs at least its first and its last step.

    Args:
        command: the command line.
        images_per_step: batch size of all processes together.
        folder: working directory, where the script may write.
        threads: PyTorch's threads in each process.

    Raises:
        RuntimeError: it failed, or logged fewer than two steps; the message has its last lines.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else this project is compiled anew in each run, and timm is not
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines, steps = [], []
    for line in process.stdout:
        lines.append(line)
        if number := step_number(line):
            steps.append((number, time.perf_counter(), _processor_seconds(process.pid)))
    code = process.wait()
    total = time.perf_counter() - started
    if code or len(steps) < 2:
        raise RuntimeError(f"exit code {code}, {len(steps)} steps logged: {' '.join(command)}\n{''.join(lines[-20:])}")
    (first, first_time, processor), (last, last_time, _) = steps[0], steps[-1]
    rate = images_per_step * (last - first) / (last_time - first_time)
    return ScriptTimes(first_time - started, processor, rate, total)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def step_number(line: str) -> int | None:
    """Return the number, from 1, of the step that a line of the log is about; None for other lines."""
    found = STEP.search(line)
    if found is None:
        return None
    return int(found["number"]) if found["number"] else int(found["index"]) + 1
