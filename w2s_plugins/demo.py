"""The main job on scikit-learn's digits: weak teacher, strong student on its labels, ceiling, over several seeds.

Each seed is a plain run of train_w2s.py, printed before it starts. Ends with a table.
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

RECIPE = "digits-cnn2-cnn5"


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
    table.append(["mean", *(statistics.mean(column) for column in zip(*rows))])
    print(f"\n{format_table(table, ['', 'teacher', 'student', 'ceiling', 'agreement', 'PGR'])}")
    print(
        f"\nTop-1 in percent on 600 test images; {time.monotonic() - started:.0f} s. "
        f"Runs, exports: {output}"
    )


def run_seed(seed: int, output: Path) -> list[float]:
    """Train teacher, ceiling and student in a process of their own; return the row of the table."""
    name = f"seed{seed}"
    flags = ["--config", RECIPE, "--seed", str(seed), "--output", str(output)]
    flags += ["--experiment", name]
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
    result = json.loads((output / name / "result.json").read_text(encoding="utf-8"))
    return [
        result[figure]["value"] for figure in ("weak", "student", "ceiling", "agreement", "pgr")
    ]


def console() -> None:
    """The command of that name, ``w2s-demo``, and ``python -m``."""
    run_main(main, "demo")


if __name__ == "__main__":
    console()
