"""The SLURM file with stand-ins for the commands of SLURM, and the elastic one: what they start, and what follows."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, Done, environment, here, read_lines, read_run  # noqa: F401  (a fixture)
from tests.processes import wait_until

SCRIPTS = [
    ROOT / ".ci/run",
    *(path for path in sorted((ROOT / "scripts").iterdir()) if path.suffix != ".py"),
]
# srun starts the command once for each node, as the task that signals go to; scancel sends them; scontrol writes down.
FAKES = {
    "srun": """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 SLURM_NTASKS=$SLURM_JOB_NUM_NODES "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$FAKE/tasks"
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
""",
    "scancel": """#!/usr/bin/env bash
[[ $1 == --signal=TERM && $2 == "$SLURM_JOB_ID" ]] || exit 1
for pid in $(cat "$FAKE/tasks"); do kill -TERM "$pid"; done
""",
    "scontrol": """#!/usr/bin/env bash
case $1 in
    show) [[ $2 == hostnames && $3 == "node[1-2]" ]] && printf 'localhost\\nnode2\\n' ;;
    requeue) echo "$2" >> "$FAKE/requeued" ;;
esac
""",
}
# in the place of torchrun: writes down what it was given, and ends as it is told
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FAKE/arguments$SLURM_NODEID"
echo "$OMP_NUM_THREADS" > "$FAKE/threads"
trap 'kill $!; exit 1' TERM
[[ $RESULT == run ]] && { sleep 30 & touch "$FAKE/started$SLURM_NODEID"; wait; }
exit "$RESULT"
"""
Slurm = Callable[..., subprocess.Popen]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    """Starts the SLURM file with the stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def start(
        *flags: object, script: str = "slurm.sbatch", **variables: object
    ) -> subprocess.Popen:
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        job = {
            "SLURM_JOB_ID": 7,
            "SLURM_JOB_NAME": "run",
            "SLURM_JOB_NUM_NODES": 2,
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": 8,
            "SLURM_GPUS_ON_NODE": 2,
            "ACTIVATE": "",
            "OUTPUT": tmp_path,
            "FAKE": tmp_path,
        }
        env = environment(**{k: str(v) for k, v in {**job, **variables}.items()}, PATH=path)
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / script), *map(str, flags)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def fake_python(slurm: Slurm, tmp_path: Path) -> Path:
    (tmp_path / "bin/python").write_text(PYTHON)
    (tmp_path / "bin/python").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    done = subprocess.run(
        [shellcheck, "--severity=warning", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_is_started_on_each_node(slurm: Slurm, fake_python: Path) -> None:
    (fake_python / "train").mkdir()
    with tarfile.open(fake_python / "data.tar", "w") as file:
        file.add(fake_python / "train", "train")
    process = slurm(
        "--loss",
        "kd",
        "--workers",
        "5",
        RESULT=0,
        DATA_TAR=fake_python / "data.tar",
        LOCAL_DIR=fake_python / "local dir",
    )
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert not (fake_python / "requeued").exists()
    assert not (fake_python / "local dir").exists(), "the disk of the node is left as it was"
    for node, hosts in ((0, 1), (1, 0)):
        assert (fake_python / f"arguments{node}").read_text().splitlines() == [
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "2",
            "--rdzv-id",
            "7",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:20007",
            "--rdzv-conf",
            f"is_host={hosts}",
            "train_w2s.py",
            "--output",
            str(fake_python),
            "--experiment",
            "run",
            "--resume",
            "auto",
            "--recovery-interval",
            "1000",
            "--workers",
            "3",
            "--data-dir",
            str(fake_python / "local dir"),
            "--loss",
            "kd",
            "--workers",
            "5",
        ]
    assert (fake_python / "threads").read_text() == "1\n", "of 4 CPUs, 3 load images"


@pytest.mark.parametrize(
    ("signals", "variables", "code", "requeued"),
    [
        ([signal.SIGUSR1], {}, 138, True),
        ([signal.SIGUSR1], {"SLURM_RESTART_COUNT": 3, "MAX_REQUEUES": 3}, 1, False),
        (
            [signal.SIGTERM],
            {},
            1,
            False,
        ),  # cancelled, or preempted: then SLURM itself requeues the job
        ([], {"RESULT": 1}, 1, False),
    ],
    ids=["usr1", "too often", "term", "failed"],
)
def test_what_becomes_of_the_job(
    slurm: Slurm,
    fake_python: Path,
    signals: list[int],
    variables: dict[str, object],
    code: int,
    requeued: bool,
) -> None:
    process = slurm(**{"RESULT": "run", **variables})
    if signals:
        wait_until(lambda: all((fake_python / f"started{node}").exists() for node in (0, 1)))
    for number in signals:
        process.send_signal(number)
    if signal.SIGTERM in signals:  # as SLURM does it: the tasks are told as well, a moment later
        time.sleep(0.2)
        assert process.poll() is None, "the script outlives the signal"
        for pid in (fake_python / "tasks").read_text().split():
            os.kill(int(pid), signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code, out
    assert (fake_python / "requeued").exists() == requeued, out
