"""The job array of a study, with stand-ins for the commands of SLURM and a real shell."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from w2s_plugins.study.layout import PlannedRun, load_plan
from w2s_plugins.study.slurm import LARGEST_ARRAY, Submission

from .conftest import Cli
from .specs import changed, write

# writes down what it was given and answers with the number of a job
SBATCH = '''#!/usr/bin/env bash
echo "$@" >> "$FAKE/submitted"
[[ -n $REFUSE ]] && { echo "sbatch: error: Batch job submission failed: $REFUSE" >&2; exit 1; }
echo "$((40 + $(wc -l < "$FAKE/submitted")));cluster"
'''
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$FAKE/requeued"\n'
# in the place of python: writes down what it was given, and ends as a run that was stopped by SIGTERM
PYTHON = '''#!/usr/bin/env bash
printf '%s\\n' "$@" "$OMP_NUM_THREADS" > "$FAKE/arguments"
trap 'kill $!; sleep 0.1; exit 143' TERM
[[ $RESULT == run ]] && { sleep 30 & touch "$FAKE/started"; wait; }
exit "$RESULT"
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "activate").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, changed(seeds=2))
    return tmp_path / "out"


def test_two_arrays(root: Path, cli: Cli) -> None:
    code, out, err = cli("submit", "small.yaml", "--output", root, "--submit", "--at-most", 3,
                         "--sbatch", "time=04:00:00", "gpus=1", "exclusive")
    assert code == 0, err
    plan = load_plan(root)
    first, second = (root.parent / "submitted").read_text().splitlines()
    files = [line.split()[-1] for line in (first, second)]
    script = root / "submit.sbatch"
    assert first == f"--parsable --array=0-3%3 {script} {files[0]}"
    assert second == f"--parsable --array=0-3%3 --dependency=afterany:41 {script} {files[1]}"
    assert out.splitlines()[:2] == [f"41: 4 tasks, {Path(files[0]).name}", f"42: 4 tasks, {Path(files[1]).name}"]
    ids = [Path(file).read_text().split() for file in files]
    assert ids == [[run.id for run in plan if run.kind != "student"], [run.id for run in plan if run.kind == "student"]]
    text = script.read_text()
    for option in ("time=04:00:00", "gpus=1", "exclusive", "requeue", f"output={root}/state/%A_%a.out"):
        assert f"\n#SBATCH --{option}\n" in text
    weak = plan[0]
    weak.path.mkdir(parents=True)
    (weak.path / "result.json").write_text("{}")
    code, out, _ = cli("submit", root)
    assert f"job1_0=$(sbatch --parsable --array=0-2 {script}" in out and "afterany:${job1_0}" in out
    assert (root.parent / "submitted").read_text().count("\n") == 2, "only shown"


@pytest.mark.parametrize(("flags", "message"), [
    (["--sbatch", "--time=1"], "unknown argument"), (["--sbatch", "time='1 2'"], "expected NAME=VALUE"),
    (["--activate", "no"], "--activate no: no such file"), (["--at-most", "0"], "expected at least 1"),
])
def test_bad_flags(root: Path, cli: Cli, flags: list[str], message: str) -> None:
    code, _, err = cli("submit", "small.yaml", "--output", root, *flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_a_folder_whose_name_would_be_lines_of_the_script(root: Path, cli: Cli) -> None:
    code, _, err = cli("submit", "small.yaml", "--output", root.parent / "a\n#SBATCH --exclusive")
    assert code == 2 and "control character" in err and len(err.splitlines()) == 1


def test_sbatch_refuses(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSE", "Invalid account")
    code, _, err = cli("submit", "small.yaml", "--output", root, "--submit")
    assert code == 2 and "sbatch refused: sbatch: error: Batch job submission failed: Invalid account" in err
    monkeypatch.setenv("PATH", "")
    code, _, err = cli("submit", "small.yaml", "--output", root, "--submit")
    assert code == 2 and "sbatch: not found" in err


@pytest.fixture
def task(root: Path, cli: Cli) -> Callable[..., subprocess.Popen]:
    """Starts a task of the first array, as SLURM does."""
    cli("submit", "small.yaml", "--output", root, "--activate", "activate")
    file = next((root / "state").glob("array-*-1-0.txt"))

    def start(**variables: object) -> subprocess.Popen:
        env = {"SLURM_JOB_ID": 77, "SLURM_ARRAY_TASK_ID": 2, "SLURM_CPUS_PER_TASK": 6, "RESULT": 0, **variables}
        kept = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        return subprocess.Popen(["bash", root / "submit.sbatch", file], cwd="/", text=True, stderr=subprocess.STDOUT,
                                stdout=subprocess.PIPE, env={**kept, **{k: str(v) for k, v in env.items()}})
    return start


def test_what_a_task_does(root: Path, task: Callable[..., subprocess.Popen]) -> None:
    process = task(RESULT=1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1, out
    third = [run.id for run in load_plan(root) if run.kind != "student"][2]
    assert (root.parent / "arguments").read_text().splitlines() == [
        "-m", "w2s_plugins.study", "run-one", str(root), third, "6"]
    assert not (root.parent / "requeued").exists()


@pytest.mark.parametrize(("signum", "restarts", "requeued"), [
    (signal.SIGUSR1, 0, True), (signal.SIGUSR1, 50, False), (signal.SIGTERM, 0, False)])
def test_signals(
        root: Path, task: Callable[..., subprocess.Popen], signum: int, restarts: int, requeued: bool) -> None:
    process = task(RESULT="run", SLURM_RESTART_COUNT=restarts)
    deadline = time.monotonic() + 30
    while not (root.parent / "started").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert (root.parent / "requeued").exists() == requeued


def test_shellcheck(root: Path, cli: Cli) -> None:
    cli("submit", "small.yaml", "--output", root)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    subprocess.run([shellcheck, "--severity=warning", root / "submit.sbatch"], check=True)


def test_large_arrays(tmp_path: Path) -> None:
    def run(name: str) -> PlannedRun:
        return PlannedRun(name, "weak", name, None, None, None, None, 0, [], [], tmp_path)

    (tmp_path / "state").mkdir()
    submission = Submission(tmp_path, [], None, None)
    (stage,) = submission.write([run(f"r{i}") for i in range(LARGEST_ARRAY + 5)])
    assert [count for _, count in stage] == [LARGEST_ARRAY, 5]
    assert stage[1][0].read_text().split() == [f"r{i}" for i in range(LARGEST_ARRAY, LARGEST_ARRAY + 5)]
