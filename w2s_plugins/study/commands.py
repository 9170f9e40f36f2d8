"""The sub-commands that plan and run a study: plan, run, status."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..cli.parser import parse, train_parser
from ..errors import UserError, quietly, said_of, write_errors
from ..files import write_text
from ..monitor import format_table
from .controls import Flags, check_comparable, models_of
from .layout import PLAN, RUNS, SPEC, StudyRun, load_plan, save_plan
from .plan import RunPlan
from .planning import plan_study
from .runner import Runner, hold_run, last_line, make_slots
from .spec import read_spec

STATES = ("finished", "running", "stopped", "waiting", "failed")


def open_study(spec: Path) -> list[StudyRun]:
    """Read a specification, or the folder of a study. The parser and the checks of train_w2s.py see every command of a
    specification, of one seed: the others differ in nothing else.

    Raises:
        UserError: one line for the first thing that is wrong, naming the run.
    """
    from ..resolve.fill_in import check_paths
    from ..resolve.train import resolve_train_args  # it imports torch and timm
    from ..training.weights import START
    from .ahead import about_data, check_data
    from .w2s import check_runs_behind, check_teachers

    # a folder has a plan that was checked when it was made
    if spec.is_dir():
        return load_plan(spec)
    plan = plan_study(read_spec(spec))
    known: set[str | None] = {None}
    planned: dict[str, Flags] = {}  # flags of the teachers that are trained here, by name
    for run in plan:
        if run.seed != plan[0].seed:
            continue
        with said_of(f"{spec.stem}: {run.label}: "), quietly():  # hints are about single commands
            args, explicit_flags = parse(train_parser(), run.command)
            settings = resolve_train_args(args, explicit_flags)
            flags, loading = dict(settings.flags), settings.data
            check_comparable(
                flags, with_truth=False
            )  # of images without labels some have no test set
            check_paths(
                loading, settings.teacher, elsewhere=True
            )  # the data may be on another machine
            # what a teacher has seen is known from its run folder, or from the flags that it will be trained with
            if run.kind == "weak":
                planned[run.name] = flags
            data_is_here = (
                loading.dataset or not loading.data_dir or Path(loading.data_dir).exists()
            )
            if run.kind == "student" and loading.train_slice and data_is_here:
                teachers = [planned[name] for name in run.needs if name in planned]
                for teacher in teachers:
                    check_runs_behind(settings, models_of(teacher, START))
                if not teachers:
                    check_teachers(settings)
            # data that several runs have in common are opened once
            about = about_data(flags)
            if about not in known:
                known.add(about)
                check_data(settings, [other.folder for other in plan if other.name in run.needs])
    return plan


def make_folder(spec: Path, plan: Sequence[StudyRun], root: Path) -> list[StudyRun]:
    """Write specification and plan into the folder of the study; return the runs with their place filled in.

    Runs are known by their commands: of an earlier plan those that are the same are kept, and nothing is deleted.
    """
    # a folder with the file of another kind of study.yaml may be anybody's
    content = spec.read_text(encoding="utf-8")
    other = root / SPEC
    if other.is_file() and not (root / PLAN).is_file() and other.read_bytes() != content.encode():
        raise UserError(
            f"--output {root}: has a {SPEC} that is of no study there; expected a new folder, or that of a "
            "study"
        )
    with write_errors(root, "choose another --output"):
        (root / RUNS).mkdir(parents=True, exist_ok=True)
    # each file is written whole, so that several runners may start at the same time
    write_text(other, content)
    save_plan(root, plan)
    return load_plan(root)


def run_plan(spec: Path, output: Path | None) -> None:
    """Print the runs of a study, those of all losses and seeds in one line; make its folder where one is given."""
    plan = open_study(spec)
    # runs that differ in loss or seed alone are one row
    rows = Counter((run.kind, run.set, run.weak, run.strong, run.protocol) for run in plan)
    heads = ["run", "set", "weak", "strong", "protocol", "runs"]
    print(format_table([[*row, count] for row, count in rows.items()], heads))
    kinds = Counter(run.kind for run in plan)
    print(
        f"\n{spec.stem}: {len(plan)} runs, "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    )
    if output and not spec.is_dir():
        make_folder(spec, plan, output)


def run_run(
    spec: Path,
    output: Path | None,
    jobs: int | None,
    slurm: bool,
    slurm_options: dict[str, object],
) -> None:
    """Work through a study, or hand it to SLURM."""
    plan = open_study(spec)
    root = spec
    if not spec.is_dir():
        root = output or Path("output/studies") / spec.stem
        plan = make_folder(spec, plan, root)
    # a scheduler has its own way to wait and to start again
    if slurm:
        from .slurm import submit

        submit(root, [run for run in plan if not run.finished], jobs, slurm_options)
        return
    if slurm_options:
        raise UserError("--slurm-options are for --slurm")
    # here, so many at a time
    slots = make_slots(jobs)
    print(f"{root}: {len(plan)} runs, {len(slots)} at a time", flush=True)
    code = Runner(RunPlan("study run", root, plan), slots).run()
    print(describe(root))
    sys.exit(code)


def run_status(study: Path) -> None:
    """Show where a study stands."""
    print(describe(study))


def describe(root: Path) -> str:
    """Return a table of the runs that are under way or failed, and how many there are of each state."""
    plan = load_plan(root)
    states = [state_of(run) for run in plan]
    rows = [
        [run.name, state, last_line(run)]
        for run, state in zip(plan, states)
        if state not in ("finished", "waiting")
    ]
    counts = Counter(states)
    summary = f"{len(plan)} runs: " + ", ".join(
        f"{counts[state]} {state}" for state in STATES if counts[state]
    )
    table = format_table(rows, ["run", "state", "last line of its log"])
    return f"{table}\n\n{summary}" if rows else summary


def state_of(run: StudyRun) -> str:
    """Return one of `STATES`."""
    if run.finished:
        return "finished"
    if not run.state_file("log").is_file():
        return "waiting"
    # whoever works on a run holds its lock, which the system takes away from the dead
    lock = hold_run(run)
    if lock is None:
        return "running"
    lock.release()
    return "failed" if run.state_file("failed").is_file() else "stopped"
