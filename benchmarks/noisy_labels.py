"""Label noise: hard labels, KD and AdaptConf, on all samples and on those that kNN selects; on digits, or other data.

Everything is a plain run of train_w2s.py in this process. A teacher is trained on the noisy labels; the students see
the same labels, and the teacher where there is a distillation loss. Prints top-1 in percent on the test images, whose
labels are clean. Flags that are not listed here go to train_w2s.py.

    python -m benchmarks.noisy_labels --noise symmetric:0.2 --seeds 0 1 2
    python -m benchmarks.noisy_labels --config hparams/fashion/base.yaml hparams/noisy/fashion.yaml --data-dir DATA
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
from w2s_plugins.errors import run_main
from w2s_plugins.monitor import format_table

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [str(ROOT / "hparams" / name) for name in ("digits/base.yaml", "noisy/digits.yaml")]
METHODS = {
    "hard labels": ["--teacher", "", "--loss", "ce"],
    "kd": ["--loss", "kd", "--loss-kwargs", "temperature=1"],
    "adaptconf": ["--loss", "adaptconf"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--noise", nargs="+", default=["symmetric:0.2", "symmetric:0.4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="recipe of the students (default: digits)")
    parser.add_argument("--select", default="knn:10", help="rule of the selection; empty: only students of all samples")
    parser.add_argument("--output", type=Path, help="keep the runs in this folder; those that it has are not repeated")
    args, args.flags = parser.parse_known_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for noise in args.noise:
            folder = (args.output or Path(temporary)) / noise.replace(":", "-")
            rows = [run_seed(args, noise, seed, folder) for seed in args.seeds]
            names = list(rows[0])
            table = [[f"seed {seed}", *row.values()] for seed, row in zip(args.seeds, rows)]
            table.append(["mean", *(statistics.mean(row[name] for row in rows) for name in names)])
            print(f"{noise}\n{format_table(table, ['', *names])}\n", flush=True)


def run_seed(args: argparse.Namespace, noise: str, seed: int, folder: Path) -> dict[str, float]:
    """Train the teacher and all students of one seed, which is also that of the noise; return a row of the table."""
    def train(name: str, *flags: str) -> dict:
        return run(folder, f"{seed}-{name}", "--config", *args.config, "--label-noise", noise,
                   "--noise-seed", str(seed), "--seed", str(seed), *args.flags, *flags)
    weak = train("weak", *METHODS["hard labels"], "--model", "w2s_cnn2", "--model-kwargs", "--clean-select", "")
    row = {"noise %": 100 * weak["data"]["label_noise"]["rate"], "teacher": weak["metrics"]["top1"]}
    teacher = ["--teacher-checkpoint", str(folder / f"{seed}-weak")]
    for name, flags in METHODS.items():
        row[name] = train(name.replace(" ", "-"), *(teacher if name != "hard labels" else ()), *flags,
                          "--clean-select", "")["metrics"]["top1"]
    if not args.select:
        return row
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
    """Run train_w2s.py in this process, unless the folder has that run, and return its result.json."""
    result = folder / name / "result.json"
    if not result.is_file():
        argv, sys.argv = sys.argv, ["train_w2s.py", *flags, "--output", str(folder), "--experiment", name, "--resume",
                                    "auto", "--target-cache", str(folder / "targets")]
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train_w2s.main()
        finally:
            sys.argv, root.handlers[:] = argv, handlers
            root.setLevel(level)
    return json.loads(result.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main, "noisy_labels")
