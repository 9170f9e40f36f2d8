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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cli.declare import Parser
from .errors import UserError, called, run_main, typed
from .files import TOP
from .monitor import format_table

RECIPE, FEW_TRUE = "digits-cnn2-cnn5", "digits-plus-few-true"
COLUMNS = ["teacher", "student", "direct", "both", "ceiling", "agreement", "PGR"]


def main() -> None:
    """Run the demo and print its table."""
    parser = Parser(prog=called("python -m w2s_plugins.demo"), description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="number of seeds (default: 3)"
    )
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="folder of the runs")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="seeds at a time"
    )
    args = parser.parse_args()
    started = time.monotonic()
    # The seeds side by side, each in a process of its own, which a thread of this one waits for.
    output = Path(args.output) / time.strftime("%Y%m%d-%H%M%S")
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda seed: run_seed(seed, output), range(args.seeds)))
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
