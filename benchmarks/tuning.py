"""Which part of a pretrained student should weak labels train?

From two tar files of CLASS/IMAGE: a small network learns from a share of the labelled images, and the same pretrained
student is taught by it on others, whose labels nobody gives, once for each way of ``--tune``, and once with its head
first and everything after that (LP-FT). Each run holds out 15 % of its images, and the learning rate of each way is the
one whose student of seed 0 agrees most with the teacher on these: no true label is looked at. Time is that of the
processor, with the start of the process; memory is the most that it had; the checkpoint is the recovery checkpoint.

    python benchmarks/tuning.py train.tar validation.tar --photos 0.4:1 --student \\
        "--model tf_efficientnet_lite0 --finetune lite0.safetensors --img-size 96"
"""

import argparse
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from w2s_plugins.monitor import format_table  # noqa: E402

COMMON = "--sched cosine --sched-on-updates --warmup-epochs 0 --val-interval 1000 --workers 0 --no-aug"
WEAK = "--model w2s_cnn5 --img-size 32 --epochs 20 --batch-size 32 --opt sgd --lr 0.05 --smoothing 0"
STRONG = "--task-loss-weight 0 --opt adamw --weight-decay 0.05 --batch-size 64 --channels-last --smoothing 0 " \
    "--recovery-interval 20 --teacher-targets cached --teacher-cache-dtype float32 --select best --select-split 0.15"
WAYS = {  # a new head begins with zeros in all of them
    "head": ("--tune head", (3e-3, 1e-2)),
    "norm": ("--tune norm", (1e-3, 3e-3)),
    "last:1": ("--tune last:1", (6e-4, 2e-3)),
    "last:0.3": ("--tune last:0.3", (3e-4, 6e-4)),
    "lora": ("--tune lora", (5e-4, 2e-3)),
    "all": ("--tune all --head-init-scale 0", (2e-4, 6e-4)),
    "LP-FT": ("--finetune {head}/export/model.safetensors", (1e-4, 3e-4)),  # in place of the student's own
}
COLUMNS = ["", "rate", "trained weights", "top-1", "agreement", "CPU s", "memory MB", "checkpoint MB"]


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="tar file of CLASS/IMAGE: labelled images and photographs")
    parser.add_argument("validation", type=Path, help="tar file of CLASS/IMAGE, to measure on")
    parser.add_argument("--photos", default="0.4:1", help="the part without labels; the teacher has what is before it")
    parser.add_argument("--student", default="--model tf_efficientnet_lite0.in1k --pretrained --img-size 96",
                        help="flags that name the strong model")
    parser.add_argument("--flags", default="", help="more flags of every run, such as --hflip 0")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--loss", default="elr")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("output/tuning"))
    args = parser.parse_args()
    rates = {way: choose_rate(args, way) for way in args.ways}
    runs = {way: [student(args, way, rates[way], seed) for seed in range(args.seeds)] for way in args.ways}
    teachers = [weak(args, seed)["metrics"]["top1"] for seed in range(args.seeds)]
    print(f"\nteacher: {', '.join(f'{top1:.1f}' for top1 in teachers)}")
    print(format_table([make_row(way, rates[way], runs[way]) for way in args.ways], COLUMNS))


def make_row(way: str, rate: float, runs: list[dict]) -> list[object]:
    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"

    top1, agreement = ([run["metrics"][name] for run in runs] for name in ("top1", "agreement"))
    cost = [statistics.median(run["cost"][name] for run in runs) for name in ("cpu", "memory", "checkpoint")]
    return [way, f"{rate:g}", f"{runs[0]['cost']['trained']:,}", spread(top1), spread(agreement),
            *(f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in cost)]


def choose_rate(args: argparse.Namespace, way: str) -> float:
    """Return the rate whose student agrees most with the teacher on held-out images."""
    return max(WAYS[way][1], key=lambda rate: student(args, way, rate, 0)["held_out_agreement"])


def weak(args: argparse.Namespace, seed: int) -> dict:
    return train(args, f"{WEAK} --train-slice 0:{args.photos.split(':')[0]}", f"seed{seed}/weak", seed)


def student(args: argparse.Namespace, way: str, rate: float, seed: int) -> dict:
    """Train one student; that of LP-FT starts from the head's run of this seed, and has its time as well."""
    weak(args, seed)
    flags, first = WAYS[way][0], None
    if way == "LP-FT":
        first = student(args, "head", choose_rate(args, "head"), seed)
        flags = flags.format(head=first["folder"])
    record = train(
        args, f"{args.student} {STRONG} {flags} --epochs {args.epochs} --lr {rate} --train-slice {args.photos} "
        f"--loss {args.loss} --teacher {args.output}/seed{seed}/weak",
        f"seed{seed}/{way.replace(':', '')}-{rate:g}", seed)
    if first is not None:
        record["cost"]["cpu"] += first["cost"]["cpu"]
    return record


def train(args: argparse.Namespace, flags: str, name: str, seed: int) -> dict:
    """Run train_w2s.py, if that is not done, and return its record with what it cost."""
    folder = args.output / name
    cost = folder / "cost.json"
    if not cost.exists():
        command = (f"{ROOT / 'train_w2s.py'} {flags} {COMMON} {args.flags} --data-dir {args.train.parent} "
                   f"--train-split {args.train.name} --val-split {args.validation.name} "
                   f"--seed {seed} --slice-seed {seed} "
                   f"--target-cache {args.output}/targets --output {folder.parent} --experiment {folder.name}")
        print(f"python {command}", flush=True)
        cost.parent.mkdir(parents=True, exist_ok=True)
        cost.write_text(json.dumps(measure(shlex.split(command), folder)), encoding="utf-8")
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [event for event in events if event["event"] == "eval"][-1]
    return record | dict(cost=json.loads(cost.read_text(encoding="utf-8")), folder=str(folder),
                         held_out_agreement=last.get("select", {}).get("agreement"))


def measure(command: list[str], folder: Path) -> dict:
    """Run a training; return the processor's seconds, peak memory and largest recovery checkpoint in MB, and how many
    weights it trained.
    """
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output,
                                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    size = 0
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        size = max([size, *(file.stat().st_size for file in folder.glob("recovery*.tar") if file.exists())])
        time.sleep(0.1)
    text = log.read_text()
    if status:
        raise SystemExit(text.strip().splitlines()[-1])
    trained = re.search(r"([\d,]+) weights of [\d,]+ are trained", text)
    return dict(cpu=used.ru_utime + used.ru_stime, memory=used.ru_maxrss / 1e3, checkpoint=size / 1e6,
                trained=int(trained[1].replace(",", "")) if trained else count(folder / "export" / "model.safetensors"))


def count(weights: Path) -> int:
    """Return the number of weights in a file, without the statistics of batch norms."""
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()  # noqa: SIM118, it is no dictionary
                   if "running_" not in name and "num_batches" not in name)


if __name__ == "__main__":
    main()
