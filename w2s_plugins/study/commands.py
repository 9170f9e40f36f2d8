"""The sub-commands that plan and run a study: plan, run, run-one, status, submit."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..cli.parser import train_parser
from ..errors import UserError
from ..monitor.console import duration
from .estimate import estimate, makespan
from .layout import (
    PLAN,
    RUNS,
    SPEC,
    STATE,
    PlannedRun,
    find_run,
    finished,
    load_plan,
    save_plan,
    write_json,
    write_shared,
)
from .lease import STALE
from .plan import check_plan, describe_plan, make_plan
from .pool import Pool, Slot, make_slots
from .slurm import Submission
from .spec import Study, read_spec
from .status import ESTIMATE, describe
from .worker import BUSY, FAILED, Stop, work

DEFAULT_ROOT = Path("output/studies")
METHOD = ("some updates and batches\nof evaluation of one run of each kind were measured, one at a time, and "
          "multiplied; losses are taken to cost alike")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the sub-commands."""
    plan = commands.add_parser("plan", help="check a study, show its runs and how long they take", description=(
        "Check every command of a study, show what is shared, measure a few steps of each kind of run and say how long "
        "all of it takes. With --output the folder of the study is made."))
    _add_spec(plan)
    _add_slots(plan)
    plan.add_argument("--no-estimate", action="store_true", help="measure nothing")
    plan.set_defaults(run=run_plan)

    run = commands.add_parser("run", help="train what is not trained yet", description=(
        "Train every run of a study that is not finished. Killed at any moment and started again, it goes on; several "
        "of these may work on one folder. Exit code 1 when a run failed twice."))
    _add_spec(run)
    _add_slots(run)
    _add_stale(run)
    run.set_defaults(run=run_study)

    one = commands.add_parser("run-one", help="train one run of a study: what a task of `submit` does")
    one.add_argument("study", type=Path, metavar="DIR", help="folder of the study")
    one.add_argument("id", metavar="ID", help="the run, as plan.json names it")
    _add_stale(one)
    one.set_defaults(run=run_one)

    status = commands.add_parser("status", help="what runs, what failed, how much time is left")
    status.add_argument("study", type=Path, metavar="DIR", help="folder of the study")
    status.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="show it again every 5 "
                        "seconds, or so many, until all is done")
    _add_stale(status)
    status.set_defaults(run=run_status)

    submit = commands.add_parser("submit", help="write, and submit, a SLURM array of the runs", description=(
        "Write the script of a SLURM job array with one task for each run that is not finished; teachers and ceilings "
        "are one array, the students another one that waits for it."))
    _add_spec(submit)
    submit.add_argument("--submit", action="store_true", help="call sbatch; without it, the commands are printed")
    submit.add_argument("--at-most", type=int, metavar="N", help="tasks of an array that run at the same time")
    submit.add_argument("--sbatch", nargs="*", default=[], metavar="OPTION", help="options of sbatch for all tasks, "
                        "without their dashes: time=04:00:00 partition=gpu gpus=1 cpus-per-task=8")
    submit.add_argument("--activate", metavar="FILE", help="shell file that makes python and torch available")
    submit.set_defaults(run=run_submit)
    for command in (plan, run, one, status, submit):
        command.add_argument("--debug", action="store_true", help="show the traceback of errors")


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, metavar="STUDY.yaml", help="the specification, or the folder of a study")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the study (default: "
                        f"{DEFAULT_ROOT}/NAME, after the file; `plan` makes a folder only where it is given)")


def _add_slots(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, metavar="N", help="runs at the same time on the CPU (default: one for each "
                       "core)")
    where.add_argument("--devices", metavar="I,J", help="GPUs, one run on each at a time: values for "
                       "CUDA_VISIBLE_DEVICES (default: all)")
    parser.add_argument("--threads", type=int, metavar="T", help="threads of a run (default: 1 on the CPU)")


def _add_stale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stale", type=float, default=STALE, metavar="SECONDS", help="without a sign of life for so "
                        "long, a run of another runner is taken over; the same for all runners of a folder")


# ---------------------------------------------------------------- the folder


def open_study(spec: Path, output: Path | None) -> tuple[Study, list[PlannedRun], Path]:
    """Read a specification or the folder of a study, and check every command of it.

    Returns:
        The study, its runs and its folder, which need not be there.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    if spec.is_dir():
        spec, output = spec / SPEC, output or spec
    root, parser = output or DEFAULT_ROOT / spec.stem, train_parser()
    study = read_spec(spec, parser)
    plan = make_plan(study, parser)
    shown = logging.root.manager.disable
    logging.disable(logging.WARNING)  # hints about single commands
    try:
        check_plan(study, plan, root, parser)
    finally:
        logging.disable(shown)
    return study, plan, root


def settle(study: Study, plan: Sequence[PlannedRun], root: Path) -> list[PlannedRun]:
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
        if before - now:
            print(f"{root}: {len(before - now)} runs of the earlier plan are not in this one; their folders are kept")
        if now - before:
            print(f"{root}: {len(now - before)} runs are new")
    try:
        for folder in (RUNS, STATE):
            (root / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {root}: cannot be written to ({error.strerror}); choose another folder") from error
    write_shared(root / SPEC, study.to_yaml())
    save_plan(root, plan)
    return load_plan(root)


def visible_devices() -> list[str]:
    """Return the GPUs that this process may use, each as its children have to be told in ``CUDA_VISIBLE_DEVICES``.

    Those of a job are often named, by numbers that do not begin at 0 or by UUIDs, in the variable that it was given.
    """
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else map(str.strip, given.split(","))
    return list(names)[:count]


def slots_of(args: argparse.Namespace) -> list[Slot]:
    """Return where runs can be, as the flags say."""
    for flag in ("jobs", "threads"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: expected at least 1")
    devices = [d.strip() for d in (args.devices or "").split(",") if d.strip()]
    if args.devices and len(set(devices)) != len(devices):
        raise UserError(f"--devices {args.devices}: a device is there twice")
    if args.devices and not torch.cuda.is_available():
        raise UserError(f"--devices {args.devices}: CUDA is not available here; use --jobs N for CPU cores")
    if args.devices or args.jobs is None:
        visible = visible_devices()
        named = "CUDA_VISIBLE_DEVICES" in os.environ  # without it, a GPU may be given by its UUID as well
        if strange := [d for d in devices if d not in visible and (named or d.isdecimal())]:
            raise UserError(f"--devices {args.devices}: {strange[0]} is not one of {', '.join(visible)}, the GPUs that "
                            "this process may use (CUDA_VISIBLE_DEVICES)")
        devices = devices or visible
    return make_slots(args.jobs, devices, args.threads)


# ---------------------------------------------------------------- the commands


def run_plan(args: argparse.Namespace) -> None:
    """Print the runs of a study and how long they take."""
    study, plan, root = open_study(args.spec, args.output)
    slots, seconds = slots_of(args), {}
    print(describe_plan(study, plan), flush=True)
    if not args.no_estimate:
        started = time.monotonic()
        seconds = estimate(plan, train_parser(), slots[0].env)
        print(f"\nestimated: {duration(sum(seconds.values()))} of work, "
              f"{duration(makespan(plan, seconds, len(slots)))} with {len(slots)} at a time; {METHOD} "
              f"({duration(time.monotonic() - started)})")
    if not args.output and not args.spec.is_dir():
        return
    left = [run for run in settle(study, plan, root) if not finished(run)]
    print(f"{root}: {len(plan) - len(left)} of {len(plan)} runs are finished", end="")
    if seconds:
        write_json(root / STATE / ESTIMATE, seconds)
        print(f", {duration(makespan(left, seconds, len(slots)))} left", end="")
    print()


def run_study(args: argparse.Namespace) -> None:
    """Work through a study."""
    study, plan, root = open_study(args.spec, args.output)
    slots = slots_of(args)
    plan = settle(study, plan, root)
    pool = Pool(plan, slots, args.stale, say=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True))
    print(f"{root}: {len(plan)} runs, {len(pool.out.done)} of them finished; {len(slots)} at a time", flush=True)
    out = pool.run()
    print(describe(root, args.stale))
    if out.exit_code:
        sys.exit(out.exit_code)


def run_one(args: argparse.Namespace) -> None:
    """Train one run."""
    run = find_run(load_plan(args.study), args.id)
    with Stop() as stop:
        code = work(run, stop, args.stale)
    message = {FAILED: "failed", BUSY: "another runner works on it"}.get(code, "stopped" if code else "finished")
    print(f"{run.id}: {message}; its log: {run.state_file('log')}")
    sys.exit(code)


def run_status(args: argparse.Namespace) -> None:
    """Show where a study stands, once or again and again."""
    while True:
        text = describe(args.study, args.stale)
        if args.watch is None:
            print(text)
            return
        print(f"\x1b[H\x1b[J{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)
        if "time left" not in text:
            return
        time.sleep(args.watch)


def run_submit(args: argparse.Namespace) -> None:
    """Write the script of an array, and submit it."""
    study, plan, root = open_study(args.spec, args.output)
    plan = settle(study, plan, root)
    submission = Submission(root, args.sbatch, args.activate, args.at_most)
    stages = submission.write([run for run in plan if not finished(run)])
    if not stages:
        print(f"{root}: all {len(plan)} runs are finished")
        return
    if args.submit:
        submission.submit(stages)
    else:
        print(submission.explain(stages))
