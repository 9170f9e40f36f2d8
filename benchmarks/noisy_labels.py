"""Label noise on scikit-learn's digits: hard labels, KD and AdaptConf, on all samples and on those that kNN selects.

Everything is a plain run of train_w2s.py in this process. A teacher is trained on the noisy labels; the students see
the same labels, and the teacher where there is a distillation loss. Prints top-1 in percent on the 600 test images,
whose labels are clean.

    python -m benchmarks.noisy_labels --noise symmetric:0.2 --seeds 0 1 2
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import train_w2s
from w2s_plugins.monitor import format_table

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [str(ROOT / "hparams" / name) for name in ("digits/base.yaml", "noisy/digits.yaml")]
METHODS = {
    "hard labels": ["--teacher", "", "--loss", "ce"],
    "kd": ["--loss", "kd", "--loss-kwargs", "temperature=1"],
    "adaptconf": ["--loss", "adaptconf"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", nargs="+", default=["symmetric:0.2", "symmetric:0.4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--select", default="knn:10", help="rule of the selection")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-slice", default="0:1197", help="part of the 1,197 training images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for noise in args.noise:
        with tempfile.TemporaryDirectory() as folder:
            rows = [run_seed(args, noise, seed, Path(folder)) for seed in args.seeds]
        names = list(rows[0])
        table = [[f"seed {seed}", *row.values()] for seed, row in zip(args.seeds, rows)]
        table.append(["mean", *(statistics.mean(row[name] for row in rows) for name in names)])
        print(f"{noise}\n{format_table(table, ['', *names])}\n", flush=True)


def run_seed(args: argparse.Namespace, noise: str, seed: int, folder: Path) -> dict[str, float]:
    """Train the teacher and all students of one seed, which is also that of the noise; return a row of the table."""
    def train(name: str, *flags: str) -> dict:
        return run(folder, f"{seed}-{name}", "--label-noise", noise, "--noise-seed", str(seed), "--seed", str(seed),
                   "--epochs", str(args.epochs), "--val-interval", str(args.epochs), "--train-slice", args.train_slice,
                   *flags)
    weak = train("weak", *METHODS["hard labels"], "--model", "w2s_cnn2", "--clean-select", "")
    row = {"noise %": 100 * weak["data"]["label_noise"]["rate"], "teacher": weak["metrics"]["top1"]}
    teacher = ["--teacher-checkpoint", str(folder / f"{seed}-weak")]
    for name, flags in METHODS.items():
        row[name] = train(name, *(teacher if name != "hard labels" else ()), *flags, "--clean-select", "")[
            "metrics"]["top1"]
    selected = folder / f"{seed}-adaptconf+" / "selected.txt"
    record = train("adaptconf+", *teacher, "--clean-select", args.select)
    row["precision"], row["recall"] = (100 * record["data"]["clean_select"][k] for k in ("precision", "recall"))
    row["hard labels, selected"] = train(
        "hard+", *METHODS["hard labels"], "--clean-select", f"file:{selected}")["metrics"]["top1"]
    row["kd, selected"] = train(
        "kd+", *teacher, *METHODS["kd"], "--clean-select", f"file:{selected}")["metrics"]["top1"]
    row["adaptconf, selected"] = record["metrics"]["top1"]
    return row


def run(folder: Path, name: str, *flags: str) -> dict:
    """Run train_w2s.py in this process and return its result.json."""
    argv, sys.argv = sys.argv, ["train_w2s.py", "--config", *CONFIGS, "--output", str(folder), "--experiment", name,
                                "--target-cache", str(folder / "targets"), *flags]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_w2s.main()
    finally:
        sys.argv, root.handlers[:] = argv, handlers
        root.setLevel(level)
    return json.loads((folder / name / "result.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
