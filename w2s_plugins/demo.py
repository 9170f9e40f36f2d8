"""The main job on scikit-learn's digits: weak teacher, strong student on its labels, ceiling, over several seeds.

And what its 80 labels are worth without the teacher: the same student on them alone, and on them beside the teacher's
labels. Each seed is two plain runs of train_w2s.py, printed before they start. Ends with a table.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm.std import tqdm

from .cli.declare import Parser
from .errors import UserError, called, run_main, typed
from .files import TOP
from .monitor import format_table
from .settings.field import Concern, Count, Range, flag, flags_of

RECIPE, FEW_TRUE = "digits-cnn2-cnn5", "digits-plus-few-true"
COLUMNS = ["teacher", "student", "direct", "both", "ceiling", "agreement", "PGR"]
# the models of a seed in their order, with the seconds that each has taken on a core
SECONDS = {"weak": 9, "ceiling": 22, "student": 28, "direct": 20, "both": 53}


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Concern):
    """What the demo can be told."""

    seeds: Annotated[int, Range(1, 100)] = flag(3, "number of seeds")
    output: str = flag("output/demo", "folder of the runs", metavar="DIR")
    jobs: Count = flag(os.cpu_count() or 1, "seeds at a time")


def main() -> None:
    """Run the demo and print its table."""
    parser = Parser(prog=called("python -m w2s_plugins.demo"), description=__doc__)
    parser.add_flags(flags_of(DemoSettings))
    settings = DemoSettings(**parser.take(sys.argv[1:]))
    started = time.monotonic()
    # The seeds side by side, each in a process of its own, which a thread of this one waits for.
    output = Path(settings.output) / time.strftime("%Y%m%d-%H%M%S")
    with ThreadPoolExecutor(settings.jobs) as pool:
        seeds = [pool.submit(run_seed, seed, output) for seed in range(settings.seeds)]
        show_progress(seeds, output, settings.jobs)
    rows = [seed.result() for seed in seeds]
    # Their table, with the means below.
    table = [[f"seed {seed}", *row] for seed, row in enumerate(rows)]
    means = [statistics.mean(column) for column in zip(*rows)]
    table.append(["mean", *means])
    print(f"\n{format_table(table, ['', *COLUMNS])}")
    print(
        "\nTop-1 in percent on 600 test images. The student sees the teacher's labels alone, direct only the 80 true "
        f"labels\nthat the teacher has learned from, both sees all of these.\n{advice(dict(zip(COLUMNS, means)))}\n"
        f"{time.monotonic() - started:.0f} s. Runs, exports: {output}"
    )


def advice(means: dict[str, float]) -> str:
    """Return what the means, by column, say about the labels: are they to be trained on alone, or beside the others?"""
    if means["student"] >= max(means["direct"], means["both"]):
        return "The teacher's labels alone were the best that you could have trained on here."
    if means["both"] > means["direct"]:
        return (
            "So with true labels train on both. The teacher's labels alone are for you if you have no true ones, or can't "
            "check\nthose that you have."
        )
    return "So with true labels train on these alone here."


def run_seed(seed: int, output: Path) -> list[float]:
    """Train the models of a seed in processes of their own; return the row of the table."""
    name, both = f"seed{seed}", f"seed{seed}-both"
    folder = output / name
    # teacher, ceiling, student and direct
    train(["--config", RECIPE, "--controls", "direct"], seed, output, name)
    # the 80 labels and those of teacher and direct, in one student
    teachers = f"{folder / 'weak'},{folder / 'direct'}"
    flags = ["--config", "digits", "digits-cnn5", "--train-slice", "0:80"]
    flags += ["--unlabeled", "w2s/digits:train", "--teacher", teachers, "--stages", FEW_TRUE]
    train(flags, seed, output, both)
    return row_of(folder)


def show_progress(seeds: Sequence["Future[list[float]]"], output: Path, jobs: int) -> None:
    """Print a line whenever another model is trained, until all seeds have ended."""
    started, shown, running = time.monotonic(), -1, True
    while running:
        running = bool(wait(seeds, timeout=0 if shown < 0 else 1).not_done)
        trained = [
            len(
                [
                    *output.glob(f"seed{seed}/*/result.json"),
                    *output.glob(f"seed{seed}-both/both/result.json"),
                ]
            )
            for seed in range(len(seeds))
        ]
        if sum(trained) > shown:
            shown = sum(trained)
            left = tqdm.format_interval(time_left(trained, time.monotonic() - started, jobs))
            print(f"{shown} of {len(seeds) * len(SECONDS)} models trained, {left} left", flush=True)


def time_left(trained: Sequence[int], elapsed: float, jobs: int) -> float:
    """Return the seconds that are left, by the number of models of each seed that are trained."""
    seconds = [*SECONDS.values()]
    work = len(trained) * sum(seconds)
    if not any(trained):
        return work / min(jobs, len(trained), os.cpu_count() or 1)
    # of the model that is being trained, half is done on average
    done = sum(sum(seconds[:count]) + sum(seconds[count : count + 1]) / 2 for count in trained)
    return elapsed * (work - done) / done


def row_of(folder: Path) -> list[float]:
    """Return the row of a seed, in the order of `COLUMNS`, from its folder and that of ``both`` beside it."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    last = json.loads(Path(f"{folder}-both", "both", "result.json").read_text(encoding="utf-8"))
    figures = {
        "teacher": result["weak"]["value"],
        "direct": result["controls"]["direct"]["value"],
        "both": last["metrics"]["top1"],
        "PGR": result["pgr"]["value"],
        **{name: result[name]["value"] for name in ("student", "ceiling", "agreement")},
    }
    return [figures[column] for column in COLUMNS]


def train(flags: list[str], seed: int, output: Path, name: str) -> None:
    """Run train_w2s.py, of which the output is shown only if it fails; raise UserError then."""
    flags = [*flags, "--seed", str(seed), "--output", str(output), "--experiment", name]
    # Each command is shown, so that it can be given by hand.
    print(f"{typed('train')} {shlex.join(flags)}", flush=True)
    # seeds run side by side, a core each: with all threads in each of them they would wait for each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(TOP / "train_w2s.py"), *flags],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(
            f"train_w2s.py ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1]}"
        )


def console() -> None:
    """The command of that name, ``w2s-demo``, and ``python -m``."""
    run_main(main, "demo")


if __name__ == "__main__":
    console()
