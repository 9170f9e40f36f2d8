"""The sub-commands that plan and run a study: plan, run, status."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..cli.parser import train_parser
from ..errors import UserError, write_errors
from ..files import write_text
from ..monitor import format_table
from .layout import PLAN, RUNS, SPEC, PlannedRun, load_plan, save_plan
from .plan import check_plan, describe_plan, make_plan
from .runner import Runner, is_held, last_line, make_slots
from .spec import Study, read_spec

DEFAULT_ROOT = Path("output/studies")
STATES = ("finished", "running", "stopped", "waiting", "failed", "blocked")


def open_study(spec: Path, output: Path | None) -> tuple[Study, list[PlannedRun], Path]:
    """Read a specification or the folder of a study, and check every command of it.

    Returns:
        The study, its runs and its folder, which need not be there.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    if spec.is_dir():
        spec, output = spec / SPEC, output or spec
    parser = train_parser()
    study = read_spec(spec, parser)
    plan = make_plan(study, parser)
    check_plan(study, plan, parser)
    return study, plan, output or DEFAULT_ROOT / spec.stem


def make_folder(study: Study, plan: Sequence[PlannedRun], root: Path) -> list[PlannedRun]:
    """Write specification and plan into the folder of the study; return the runs with their place filled in.

    Runs are known by their commands. Of an earlier plan those that are the same are kept, those that have changed are
    new runs in new folders, and nothing is deleted.

    Raises:
        UserError: the folder has another study, or cannot be written to.
    """
    if (root / PLAN).is_file():
        before, now = {run.id for run in load_plan(root)}, {run.id for run in plan}
        if not before & now:
            raise UserError(f"{root} holds another study: none of its {len(before)} runs is in this one; choose "
                            "another --output")
        if before != now:
            print(f"{root}: {len(now - before)} runs are new; {len(before - now)} of the earlier plan are not in this "
                  "one, their folders are kept")
    with write_errors(root, "choose another --output"):
        (root / RUNS).mkdir(parents=True, exist_ok=True)
    write_text(root / SPEC, study.to_yaml())
    save_plan(root, plan)
    return load_plan(root)


def run_plan(spec: Path, output: Path | None) -> None:
    """Print the runs of a study; make its folder where one is given."""
    study, plan, root = open_study(spec, output)
    print(describe_plan(study, plan))
    if output or spec.is_dir():
        left = sum(not run.finished for run in make_folder(study, plan, root))
        print(f"{root}: {len(plan) - left} of {len(plan)} runs are finished")


def run_study(
        spec: Path,
        output: Path | None,
        jobs: int | None,
        slurm: bool,
        slurm_options: list[str],
) -> None:
    """Work through a study, or hand it to SLURM."""
    study, plan, root = open_study(spec, output)
    plan = make_folder(study, plan, root)
    if slurm:
        from .slurm import submit

        submit(root, [run for run in plan if not run.finished], jobs, slurm_options)
        return
    if slurm_options:
        raise UserError("--slurm-options are for --slurm")
    slots = make_slots(jobs)
    print(f"{root}: {len(plan)} runs, {sum(run.finished for run in plan)} of them finished; {len(slots)} at a time",
          flush=True)
    code = Runner(root, plan, slots, lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)).run()
    print(describe(root))
    sys.exit(code)


def run_status(study: Path) -> None:
    """Show where a study stands."""
    print(describe(study))


def describe(root: Path) -> str:
    """Return a table of the runs that are under way or failed, and how many there are of each state."""
    states: dict[str, str] = {}
    rows = []
    for run in load_plan(root):
        began, failed = run.state_file("log").is_file(), run.state_file("failed").is_file()
        if run.finished:
            state = "finished"
        elif began and is_held(run):
            state = "running"
        elif failed:
            state = "failed"
        elif any(states[needed] in ("failed", "blocked") for needed in run.needs):
            state = "blocked"
        else:
            state = "stopped" if began else "waiting"
        states[run.id] = state
        if state in ("running", "stopped", "failed"):
            rows.append([run.id, state, last_line(run)])
    counts = Counter(states.values())
    summary = f"{len(states)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return (format_table(rows, ["run", "state", "last line of its log"]) + "\n\n" if rows else "") + summary
