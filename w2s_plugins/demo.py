"""The main job on scikit-learn's digits: weak teacher, strong student on its labels, ceiling, over several seeds.

Every step is a plain run of train_w2s.py, printed before it starts. Ends with a table, and demo.svg beside the runs.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import EXIT_USER_ERROR, UserError, called, run_main
from .files import TOP
from .metrics.pgr import no_gap_hint, performance_gap_recovered
from .monitor import format_table


def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(prog=called("python -m w2s_plugins.demo"), description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: 3)")
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="seeds at a time")
    args = parser.parse_args()
    started = time.monotonic()
    output = Path(args.output) / time.strftime("%Y%m%d-%H%M%S")
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda seed: run_seed(seed, output / f"seed{seed}"), range(args.seeds)))
    table = [[f"seed {seed}", *row] for seed, row in enumerate(rows)]
    table.append(["mean", *(statistics.mean(column) for column in zip(*rows))])
    print(f"\n{format_table(table, ['', 'teacher', 'student', 'ceiling', 'agreement', 'PGR'])}")
    draw(rows, output)
    print(f"\nTop-1 in percent on 600 test images; {time.monotonic() - started:.0f} s. "
          f"Runs, exports, demo.svg: {output}")


def draw(rows: list[list[float]], folder: Path) -> None:
    """Write the table's rows as demo.svg, .png and .pdf: means with their numbers, seeds as dots, the gap recovered."""
    from .study.figures import COLOURS, WIDTH, Drawn, new_figure, save, style  # imports torch, which no run waits for

    *accuracies, _, pgrs = zip(*rows)
    pgr, means = statistics.mean(pgrs), [statistics.mean(values) for values in accuracies]
    names = "weak teacher", "strong student, on its labels", "ceiling: student, true labels"
    with style():
        figure, (axes,) = new_figure(1.2)
        figure.set_figwidth(1.5 * WIDTH)
        axes.vlines([means[0], means[2]], -0.5, 2.5, color="#999999", linestyle=":")
        for place, (mean, values, colour) in enumerate(zip(means, accuracies, COLOURS)):
            axes.plot([means[0], mean], [place, place], color=colour, alpha=0.4, linewidth=6, solid_capstyle="butt")
            axes.plot(values, [place] * len(values), "o", color=colour)
            axes.plot(mean, place, "|", color="black", markersize=9, markeredgewidth=1.5)
        axes.annotate(f"{pgr:.2f} of the gap (PGR)", (max(means[1], *accuracies[1]), 1), (6, 0), va="center",
                      textcoords="offset points", fontsize=8)
        axes.set_yticks(range(3), [f"{name}  {mean:.1f}" for name, mean in zip(names, means)])
        axes.set(xlabel="top-1 in percent; dots: seeds, bars: means", ylim=(2.5, -0.5))
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(axis="y", length=0)
    save(Drawn("demo", figure, "demo", ""), folder)


def run_seed(seed: int, folder: Path) -> list[float]:
    """Train teacher, student and ceiling; return the row of the table."""
    def step(name: str, *flags: str) -> dict:
        return train(["--config", "w2s:digits/base", f"w2s:digits/{name}", *flags, "--seed", str(seed),
                      "--output", str(folder), "--experiment", name], folder / name)
    weak = step("weak")["metrics"]["top1"]
    ceiling = step("ceiling")["metrics"]["top1"]
    if hint := no_gap_hint(weak, ceiling):
        raise UserError(hint)
    student = step(
        "student", "--teacher-checkpoint", str(folder / "weak"), "--ceiling-acc", f"{ceiling:.4f}")["metrics"]
    pgr = performance_gap_recovered(weak, student["top1"], ceiling)
    return [weak, student["top1"], ceiling, student["agreement"], pgr]


def train(flags: list[str], folder: Path) -> dict:
    """Run train_w2s.py in a process of its own and return what its result.json says."""
    command = "w2s-train" if called("") else "python train_w2s.py"
    print(f"{command} {shlex.join(flags)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # seeds run side by side, a core each
    done = subprocess.run(
        [sys.executable, str(TOP / "train_w2s.py"), *flags], env=environment, capture_output=True, text=True)
    if done.returncode == EXIT_USER_ERROR:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise UserError(f"train_w2s.py ended with code {done.returncode}: {done.stderr}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main, "demo")
