"""Where a study stands: what runs, what failed, and how much time is left."""

import heapq
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..monitor import format_table
from ..monitor.console import duration
from .layout import STATE, PlannedRun, finished, is_time, load_plan, read_json, read_state
from .lease import locked_runs, look

ESTIMATE = "estimate.json"  # seconds by id, of `study plan`
STATES = ("finished", "running", "waiting", "stopped", "failed", "blocked")


@dataclass(frozen=True)
class Standing:
    """Where one run stands.

    Args:
        state: one of `STATES`; stopped are those that were begun and that nobody works on now.
        host: where it runs.
        epoch: epochs that are complete.
        epochs: of the whole run, None where its command does not say.
        seconds: spent on it.
        error: why it failed.
    """

    state: str
    host: str = ""
    epoch: int = 0
    epochs: int | None = None
    seconds: float = 0.0
    error: str = ""


def standing(run: PlannedRun, locked: bool, stale: float) -> Standing:
    """Look where a run stands; without a lock nobody works on it."""
    state = read_state(run)
    if finished(run):
        return Standing("finished", seconds=state.get("seconds", 0.0))
    about = dict(epoch=epochs_done(run), epochs=epochs_of(run), error=state.get("error", ""))
    if locked and not (held := look(run, stale)).free:
        since = max(0.0, time.time() - state.get("started", time.time()))  # another machine may be ahead
        return Standing("running", held.host, seconds=state.get("earlier", 0.0) + since, **about)
    kind = {"failed": "failed", "blocked": "blocked", None: "waiting"}.get(state.get("state"), "stopped")
    return Standing(kind, state.get("host", ""), seconds=state.get("seconds", 0.0), **about)


def standings(root: Path, plan: Sequence[PlannedRun], stale: float) -> dict[str, Standing]:
    """Look where all runs stand; those that need a failed one are blocked."""
    found: dict[str, Standing] = {}
    locked = locked_runs(root)
    for run in plan:
        found[run.id] = standing(run, run.id in locked, stale)
        lost = [i for i in run.needs if found[i].state in ("failed", "blocked")]
        if lost and found[run.id].state == "waiting":
            found[run.id] = Standing("blocked", error=f"needs {lost[0]}")
    return found


def epochs_of(run: PlannedRun) -> int | None:
    """Return the number of epochs that the command of a run asks for."""
    text = run.flag("--stop-epoch") or run.flag("--epochs") or ""
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def epochs_done(run: PlannedRun) -> int:
    """Return the number of complete epochs: the last update of each is in metrics.jsonl."""
    try:
        with (run.path / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, (run.path / "metrics.jsonl").stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return 0
    epochs = re.findall(r'"epoch": (\d{1,9})\b', text)
    return int(epochs[-1]) + ('"event": "eval"' in text.splitlines()[-1]) if epochs else 0


def time_left(
        plan: Sequence[PlannedRun],
        found: Mapping[str, Standing],
        estimated: Mapping[str, float],
) -> float | None:
    """Return the seconds until the last run ends, with as many at a time as there are now; None if nothing is known.

    A run takes as long as the finished ones of its cell, or else of its kind and models; what is left of it is what
    its epochs tell. Where no such run is finished, `study plan` may have estimated it.
    """
    spent: dict[object, list[float]] = {}
    for run in plan:
        if found[run.id].state == "finished" and found[run.id].seconds:
            for key in _keys(run):
                spent.setdefault(key, []).append(found[run.id].seconds)
    left = {}
    for run in plan:
        stands = found[run.id]
        if stands.state not in ("running", "waiting", "stopped"):
            continue
        whole = next((statistics.mean(spent[key]) for key in _keys(run) if key in spent), estimated.get(run.id))
        if whole is None:
            return None
        share = stands.epoch / stands.epochs if stands.epochs else 0.0
        left[run.id] = whole * (1 - min(share, 1.0))
    return makespan(plan, left, max(1, sum(s.state == "running" for s in found.values())))


def makespan(plan: Sequence[PlannedRun], seconds: Mapping[str, float], slots: int) -> float:
    """Return the time until the last run has ended, so many at a time; runs that are not in ``seconds`` take none.

    Args:
        plan: the runs, each after those that it needs.
        seconds: duration of each run, by id.
        slots: runs at a time.
    """
    free, ends = [0.0] * slots, {}
    for run in plan:
        if run.id not in seconds:
            continue
        start = max([heapq.heappop(free), *(ends[i] for i in run.needs if i in ends)])
        ends[run.id] = start + seconds[run.id]
        heapq.heappush(free, ends[run.id])
    return max(ends.values(), default=0.0)


def _keys(run: PlannedRun) -> list[tuple]:
    return [(run.label,), (run.kind, run.set, run.weak, run.strong), (run.kind, run.set, run.strong or run.weak),
            (run.kind,)]


def describe(root: Path, stale: float) -> str:
    """Return the table of what runs and what failed, and the counts."""
    plan = load_plan(root)
    found = standings(root, plan, stale)
    counts = Counter(stands.state for stands in found.values())
    rows = []
    for run in plan:
        stands = found[run.id]
        if stands.state in ("running", "stopped"):
            of = f"epoch {stands.epoch} of {stands.epochs or '?'}"
            rows.append([run.id, stands.state, of, duration(stands.seconds), stands.host])
    table = format_table(rows, ["run", "state", "progress", "time", "on"]) + "\n\n" if rows else ""
    failed = [f"FAILED {run.id}: {found[run.id].error} ({run.state_file('log')})" for run in plan
              if found[run.id].state == "failed"]
    estimated = {k: v for k, v in (read_json(root / STATE / ESTIMATE) or {}).items() if is_time(v)}
    left = time_left(plan, found, estimated)
    known = "unknown until a run of each kind has finished" if left is None else duration(left)
    ended = not counts["running"] + counts["waiting"] + counts["stopped"]
    summary = f"{len(plan)} runs: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])
    return table + "".join(f"{line}\n" for line in failed) + summary + ("" if ended else f"; time left: {known}")
