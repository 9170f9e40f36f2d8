"""A study as job arrays of SLURM: one task a run, with the folder of the study as the only thing that tasks share."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, one_line
from ..files import TOP, write_text
from .layout import STATE, PlannedRun

LARGEST_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless set otherwise
OPTION = re.compile(r"[a-z][a-z-]*(=[^\s'\"\\$`]+)?")
SCRIPT = """\
#!/usr/bin/env bash
# One run of a study: task N works on line N + 1 of the file in $1. Written by `study submit`.
# A task that runs out of time saves a checkpoint, is requeued and goes on; one whose node dies is requeued by SLURM.
#SBATCH --job-name={name}
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output={state}/%A_%a.out
{options}
cd {cwd} || exit 1
{activate}
export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}
id=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")
received=
stop() {{
    received=$1
    kill -TERM "$pid"
}}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
{python} -m w2s_plugins.study run-one {root} "$id" &
pid=$!
status=0
wait "$pid" || status=$?
while kill -0 "$pid" 2>/dev/null; do # a signal came, and it is still saving
    status=0
    wait "$pid" || status=$?
done
if [[ $received == USR1 && $status -ne 0 && ${{SLURM_RESTART_COUNT:-0}} -lt {requeues} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
MAX_REQUEUES = 50


class Submission:
    """Job arrays for the runs of a study, in stages: what a run needs is in an earlier one.

    Args:
        root: folder of the study, seen by all nodes.
        options: of sbatch, without dashes: ``time=04:00:00``.
        activate: shell file that makes python available; None uses the python that runs now.
        at_most: tasks of an array that run at the same time; None leaves it to SLURM.

    Raises:
        UserError: an option that is none, no such file, or a folder whose name cannot stand in a line of the script.
    """

    def __init__(self, root: Path, options: Sequence[str], activate: str | None, at_most: int | None):
        for option in options:
            if not OPTION.fullmatch(option):
                raise UserError(f"--sbatch {option}: expected NAME=VALUE or NAME, without dashes: time=04:00:00 gpus=1")
        if activate is not None and not Path(activate).is_file():
            raise UserError(f"--activate {activate}: no such file; expected one such as .venv/bin/activate")
        if not str(root.resolve()).isprintable():  # what follows a line break would be options, or commands
            raise UserError(f"{root}: its name has a line break or another control character, which cannot stand in a "
                            "script of sbatch; rename the folder")
        self.root, self.options, self.activate, self.at_most = root.resolve(), options, activate, at_most
        self.script = self.root / "submit.sbatch"

    def write(self, runs: Sequence[PlannedRun]) -> list[list[tuple[Path, int]]]:
        """Write the script, and the files that say which task works on which run.

        Returns:
            For each stage its arrays: a file with an id a line, and the number of lines.
        """
        write_text(self.script, SCRIPT.format(
            name=f"study-{self.root.name}", state=self.root / STATE, cwd=shlex.quote(str(Path.cwd())),
            options="".join(f"#SBATCH --{option}\n" for option in self.options),
            activate=f"source {shlex.quote(str(Path(self.activate).resolve()))} || exit 1" if self.activate else "",
            python="python" if self.activate else shlex.quote(sys.executable), root=shlex.quote(str(self.root)),
            package=shlex.quote(str(TOP)), requeues=MAX_REQUEUES))
        first, later = ([run for run in runs if bool(run.needs) == waits] for waits in (False, True))
        stamp, stages = time.strftime("%Y%m%d-%H%M%S"), []
        for number, stage in enumerate(filter(None, (first, later)), start=1):
            arrays = []
            for first in range(0, len(stage), LARGEST_ARRAY):
                part = stage[first:first + LARGEST_ARRAY]
                file = self.root / STATE / f"array-{stamp}-{number}-{first}.txt"
                write_text(file, "".join(f"{run.id}\n" for run in part))
                arrays.append((file, len(part)))
            stages.append(arrays)
        return stages

    def command(self, file: Path, count: int, after: Sequence[str]) -> list[str]:
        """Return the command that submits one array, to start when the jobs ``after`` have ended, well or not."""
        limit = f"%{self.at_most}" if self.at_most else ""
        wait = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        return ["sbatch", "--parsable", f"--array=0-{count - 1}{limit}", *wait, str(self.script), str(file)]

    def submit(self, stages: Sequence[Sequence[tuple[Path, int]]]) -> None:
        """Submit the arrays, each stage after the one before.

        Raises:
            UserError: there is no sbatch, or it refuses.
        """
        after: list[str] = []
        for arrays in stages:
            jobs = []
            for file, count in arrays:
                command = self.command(file, count, after)
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                except FileNotFoundError as error:
                    raise UserError("sbatch: not found; submit where SLURM is, or leave out --submit") from error
                except subprocess.CalledProcessError as error:
                    raise UserError(f"sbatch refused: {one_line(Exception(error.stderr))}") from error
                jobs.append(done.stdout.strip().split(";")[0])
                print(f"{jobs[-1]}: {count} tasks, {file.name}")
            after = jobs

    def explain(self, stages: Sequence[Sequence[tuple[Path, int]]]) -> str:
        """Return the commands that would submit the arrays."""
        lines, after = [f"{self.script} is written; these commands, or --submit, submit it:"], []
        for number, arrays in enumerate(stages, start=1):
            names = [f"job{number}_{part}" for part in range(len(arrays))]
            for name, (file, count) in zip(names, arrays):
                lines.append(f"{name}=$({' '.join(self.command(file, count, after))})")
            after = [f"${{{name}}}" for name in names]
        return "\n".join(lines)
