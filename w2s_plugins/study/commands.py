"""The sub-commands that plan and run a study: plan, run, run-one, status, submit."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..cli.parser import train_parser
from ..data import KEPT_VIEWS
from ..errors import UserError
from ..monitor.console import duration
from ..quiet import quietly
from ..warm import Warm
from .layout import (
    DEFAULT_ROOT,
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
from .plan import describe_plan, make_plan
from .pool import Pool, Slot, child_env, make_slots
from .slurm import Submission
from .spec import Study, read_spec
from .status import ESTIMATE, describe, makespan
from .worker import BUSY, FAILED, MODULES, Start, Stop, work

METHOD = ("one run of each kind has\nmade some updates on a few samples, one at a time; losses are taken to cost alike")


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
    from .check import check_plan

    with quietly():  # hints are about single commands
        check_plan(study, plan, root, parser)
    return study, plan, root


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
    import torch

    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else map(str.strip, given.split(","))
    return list(names)[:count]


def choose_slots(jobs: int | None, devices: str | None, threads: int | None) -> list[Slot]:
    """Return where runs can be: on the GPUs ``I,J``, else on so many CPU cores, else on all that there is."""
    import torch

    wanted = [d.strip() for d in (devices or "").split(",") if d.strip()]
    if len(set(wanted)) != len(wanted):
        raise UserError(f"--devices {devices}: a device is there twice")
    if wanted and not torch.cuda.is_available():
        raise UserError(f"--devices {devices}: CUDA is not available here; use --jobs N for CPU cores")
    if wanted or jobs is None:
        visible = visible_devices()
        named = "CUDA_VISIBLE_DEVICES" in os.environ  # without it, a GPU may be given by its UUID as well
        if strange := [d for d in wanted if d not in visible and (named or d.isdecimal())]:
            raise UserError(f"--devices {devices}: {strange[0]} is not one of {', '.join(visible)}, the GPUs that "
                            "this process may use (CUDA_VISIBLE_DEVICES)")
        wanted = wanted or visible
    return make_slots(jobs, wanted, threads)


@contextlib.contextmanager
def shared(slots: Sequence[Slot]) -> Iterator[Start]:
    """Yield what starts processes on these slots that share what they import, and the views that they make."""
    with view_folder() as views, Warm(MODULES, child_env(slots[0].env)) as python:
        for slot in slots:
            slot.env[KEPT_VIEWS] = str(views)
        yield python.start


@contextlib.contextmanager
def view_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, which is removed afterwards: after a process that was killed by the next one.
    """
    from filelock import FileLock, Timeout

    place = Path(tempfile.gettempdir())
    for lock in place.glob("w2s-views-*.lock"):
        with contextlib.suppress(OSError, Timeout), FileLock(lock, timeout=0):  # its process is gone
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    folder = place / f"w2s-views-{uuid.uuid4().hex[:12]}"
    with FileLock(f"{folder}.lock"):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.lock").unlink(missing_ok=True)


# ---------------------------------------------------------------- the commands


def run_plan(
        spec: Path,
        output: Path | None,
        jobs: int | None,
        devices: str | None,
        threads: int | None,
        no_estimate: bool,
) -> None:
    """Print the runs of a study and how long they take."""
    study, plan, root = open_study(spec, output)
    from .estimate import estimate

    slots, seconds = choose_slots(jobs, devices, threads), {}
    print(describe_plan(study, plan), flush=True)
    if not no_estimate:
        started = time.monotonic()
        seconds = estimate(plan, train_parser(), slots[0].env)
        print(f"\nestimated: {duration(sum(seconds.values()))} of work, "
              f"{duration(makespan(plan, seconds, len(slots)))} with {len(slots)} at a time; {METHOD} "
              f"({duration(time.monotonic() - started)})")
    if not output and not spec.is_dir():
        return
    left = [run for run in make_folder(study, plan, root) if not finished(run)]
    print(f"{root}: {len(plan) - len(left)} of {len(plan)} runs are finished", end="")
    if seconds:
        write_json(root / STATE / ESTIMATE, seconds)
        print(f", {duration(makespan(left, seconds, len(slots)))} left", end="")
    print()


def run_study(
        spec: Path,
        output: Path | None,
        jobs: int | None,
        devices: str | None,
        threads: int | None,
        stale: float,
) -> None:
    """Work through a study."""
    study, plan, root = open_study(spec, output)
    slots = choose_slots(jobs, devices, threads)
    plan = make_folder(study, plan, root)
    with shared(slots) as start:
        pool = Pool(plan, slots, stale, lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True), start)
        print(f"{root}: {len(plan)} runs, {len(pool.out.done)} of them finished; {len(slots)} at a time", flush=True)
        out = pool.run()
    print(describe(root, stale))
    if out.exit_code:
        sys.exit(out.exit_code)


def run_one(study: Path, run_id: str, stale: float) -> None:
    """Train one run."""
    run = find_run(load_plan(study), run_id)
    with Stop() as stop:
        code = work(run, stop, stale)
    message = {FAILED: "failed", BUSY: "another runner works on it"}.get(code, "stopped" if code else "finished")
    print(f"{run.id}: {message}; its log: {run.state_file('log')}")
    sys.exit(code)


def run_status(study: Path, watch: float | None, stale: float) -> None:
    """Show where a study stands, once or again and again."""
    while True:
        text = describe(study, stale)
        if watch is None:
            print(text)
            return
        print(f"\x1b[H\x1b[J{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)
        if "time left" not in text:
            return
        time.sleep(watch)


def run_submit(
        spec: Path,
        output: Path | None,
        submit: bool,
        at_most: int | None,
        sbatch: Sequence[str],
        activate: str | None,
) -> None:
    """Write the script of an array, and submit it."""
    study, plan, root = open_study(spec, output)
    plan = make_folder(study, plan, root)
    submission = Submission(root, sbatch, activate, at_most)
    stages = submission.write([run for run in plan if not finished(run)])
    if not stages:
        print(f"{root}: all {len(plan)} runs are finished")
    elif submit:
        submission.submit(stages)
    else:
        print(submission.explain(stages))
