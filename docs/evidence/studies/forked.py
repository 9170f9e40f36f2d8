"""What the scripts of the evidence share: runs of train_w2s.py, forked after the imports, a regression, and a figure.

A run that is finished stays.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import train_w2s
from benchmarks.recipe import right
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.study.statistics import t_interval

COMMON = (
    "--sched cosine --sched-on-updates --warmup-epochs 0 --val-interval 1000 --workers 0 --log-interval 1000 "
    "--smoothing 0 --validation-batch-size 250"
)
PREDICT = sys.executable, "-m", "w2s_plugins.predictions"
PROBE = "--linear-probe --opt adamw --lr 0.003 --epochs 20 --loss"
ADAPTCONF = "--loss adaptconf --teacher-targets cached --no-aug --channels-last"


def train(place: Path, flags: str, prepare: Callable[[], None] | None = None) -> None:
    """Run train_w2s.py in a folder, if that is not done, and note the seconds of the processor in seconds.json.

    What is to be prepared is called before it, in the process of the run alone.
    """
    if (place / "seconds.json").exists():
        return
    words = shlex.split(f"{flags} --output {place.parent} --experiment {place.name} --resume auto")
    print(time.strftime("%H:%M:%S"), "train_w2s.py", shlex.join(words), flush=True)
    before = os.times()
    child = os.fork()
    if child == 0:
        log = os.open(place.parent / f"{place.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["train_w2s.py", *words]
        if prepare:
            prepare()
        train_w2s.run_main(lambda: train_w2s.main(parse(train_parser())), "train_w2s.py")
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"failed, see {place}.log")
    after = os.times()
    seconds = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    (place / "seconds.json").write_text(json.dumps(seconds))


def predict(run: Path, photos: Path, classes: list[str]) -> dict[str, list[float]]:
    """Return the probabilities (C,) of each image, by its name."""
    table = run / "photos.csv"
    if not table.exists():
        subprocess.run([*PREDICT, run, photos, "--all", "--output", table], check=True)
    with table.open(newline="") as file:
        return {
            row["filename"]: [float(row[c] or 0) for c in classes] for row in csv.DictReader(file)
        }


def regress(
    place: Path,
    before: float,
    seen: np.ndarray,
    labels: Sequence[int],
    folds: object,
    test: np.ndarray,
    target: Sequence[int],
) -> None:
    """Fit scikit-learn's logistic regression to features, and write what it says and its seconds as runs do.

    Args:
        place: the folder.
        before: seconds of the processor at the beginning.
        seen: (N, F) features.
        labels: (N,) classes.
        folds: by which the strength of the penalty is chosen, as scikit-learn's ``cv``.
        test: (M, F) features of the test images.
        target: (M,) their true classes.
    """
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1e-4, 1e-3, 1e-2, 1e-1], cv=folds, max_iter=200, scoring="accuracy"
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare classes, and penalties too weak to converge
        model.fit(seen, labels)
    says = model.predict(test)
    pandas.DataFrame(dict(target=target, student=says)).to_csv(
        place / "predictions_last.csv", index=False
    )
    (place / "seconds.json").write_text(json.dumps(time.process_time() - before))


def parser_of_study(
    description: str | None, sets: Iterable[str], default: Sequence[str]
) -> argparse.ArgumentParser:
    """Return a parser of what all studies ask for: which sets and seeds, and two columns of the rows."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(sets), default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cpu", default="", help="a column of the rows")
    parser.add_argument("--commit", default="", help="another")
    return parser


def row_of(
    args: argparse.Namespace,
    name: str,
    seed: int,
    student: str,
    flags: str,
    place: Path,
    figures: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return what the rows of all studies say of a run that is finished, in a folder: its ``figures``, or its top-1."""
    if figures is None:
        figures = dict(top1=f"{right(place).mean():.2f}")
    return dict(
        set=name,
        seed=seed,
        student=student,
        flags=" ".join(flags.replace("--finetune {weights} ", "").split()),
        **figures,
        seconds=f"{float((place / 'seconds.json').read_text()):.0f}",
        cpu=args.cpu,
        commit=args.commit,
    )


def add_rows(
    file: Path,
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    by: Sequence[str] = ("set", "seed", "student"),
) -> None:
    """Add the rows that a CSV file has not yet, by some columns; those that it has stay as they are."""
    new = pandas.DataFrame(rows, columns=columns).astype(str)
    if file.exists():
        old = pandas.read_csv(file, dtype=str, keep_default_na=False)
        new = pandas.concat([old, new]).drop_duplicates([*by]).fillna("")
    # seeds as numbers, all else in the order in which it came first
    for column in {*by} - {"seed"}:
        new[column] = pandas.Categorical(new[column], list(dict.fromkeys(new[column])))
    new["seed"] = new["seed"].astype(int)
    new.sort_values([*by]).to_csv(file, index=False, lineterminator="\n")


def half_of(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean over seeds, by Student's t; 0 of a single seed."""
    found = t_interval(values)
    return 0.0 if found["high"] is None else found["high"] - found["value"]


def draw_dots(
    values: Mapping[str, Mapping[str, Sequence[float]]], markers: Mapping[str, str], file: Path
) -> None:
    """Draw means over seeds with their 95 % intervals, one row for each kind of labels or set of images.

    Args:
        values: by student and by row, a number of each seed.
        markers: of the students, as matplotlib's ``fmt``.
        file: an SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "the same file again"
    from matplotlib import pyplot

    rows = list(reversed(next(iter(values.values()))))
    figure, axes = pyplot.subplots(figsize=(6.6, 0.6 * len(rows)), layout="constrained")
    for number, (name, marker) in enumerate(markers.items()):
        shown = [row for row in rows if values[name][row]]
        axes.errorbar(
            [statistics.mean(values[name][row]) for row in shown],
            [rows.index(row) + 0.12 * ((len(markers) - 1) / 2 - number) for row in shown],
            xerr=[half_of(values[name][row]) for row in shown],
            fmt=marker,
            label=name,
            markersize=5,
            linewidth=1,
        )
    axes.set(
        yticks=range(len(rows)), yticklabels=rows, ylim=(-0.6, len(rows) - 0.4), xlabel="right, %"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, metadata={"Date": None})
