"""Flags that are given together: any two or three of them train two steps, or end in one line with exit code 2.

    python -m benchmarks.attacks --count 1000

Flags and their values are drawn from what is declared of them. The commands of those that fail are printed.
"""

import argparse
import math
import os
import random
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import train_w2s
from tests import forks
from w2s_plugins.cli import train_parser
from w2s_plugins.losses import list_losses
from w2s_plugins.settings.field import Flag, option

SECONDS = 90.0  # that one may take
BASE = shlex.split(
    "--dataset w2s/digits --img-size 8 --train-slice 0:32 --batch-size 16 --epochs 1 --warmup-epochs 0 "
    "--model w2s_cnn2 --workers 0 --log-interval 1 --output runs"
)
BASES = (
    BASE,
    [*BASE, "--teacher", "weak"],
    [*BASE, "--teacher", "weak", "--model", "test_vit", "--img-size", "32"],
)
# they reach out, compile for minutes, or end before anything is trained
LEFT_OUT = {
    "push_to_hub",
    "log_wandb",
    "torchcompile",
    "torchcompile_mode",
    "list_losses",
    "debug",
    "plugins",
    "data",
    "data_dir",
    "dataset_download",
    "device",
}
NUMBERS = {int: (0, 1, 2, 3, 5, 16, -1), float: (0.0, 0.1, 0.5, 0.9, 1.0, 2.0, -1.0)}
TEXTS = {  # of flags whose form no declaration tells
    "teacher": ("weak", "weak,weak", "w2s_cnn2", "labels:weak"),
    "teacher_checkpoint": ("weak", "weak/last.pth.tar"),
    "teacher_targets": ("online", "cached", "cached-views:1"),
    "initial_checkpoint": ("weak", "weak/last.pth.tar"),
    "finetune": ("weak", "weak/last.pth.tar"),
    "pretrained_path": ("weak/export/model.safetensors",),
    "ceiling_checkpoint": ("weak",),
    "resume": ("auto", "weak"),
    "train_slice": ("0:32", "0.5:0.52", "32:64,80:96", "0:3"),
    "val_slice": ("0:32", "0.9:"),
    "epoch_slice": ("0:48", "0:0.1"),
    "model": ("w2s_cnn2", "resnet8", "test_vit", "test_resnet"),
    "kd_model_name": ("test_resnet",),
    "tune": ("all", "head", "last:1", "lora", "bias", "norm", "last:0.5"),
    "few_shot_eval": ("2x1", "2x1,3x2"),
    "episodic": ("2x1",),
    "clean_select": ("knn:3", "entropy:0.5"),
    "label_noise": ("symmetric:0.2", "asymmetric:0.2", "pairflip:0.1"),
    "unlabeled": ("weak",),
    "opt": ("sgd", "adamw", "lamb", "lookahead_adam", "adafactor", "muon", "lion", "momentum"),
    "gp": ("avg", "max", "fast"),
    "aa": ("rand-m9-mstd0.5", "augmix-m3-w3", "original", "trivial", "3a"),
    "task_loss": ("ce", "bce", "asl", "poly", "jsd"),
    "stages": ("w2s_cnn2,w2s_cnn2",),
    "protocol": ("w2s",),
    "distiller": ("kd", "dkd"),
    "experiment": ("a", "a b", "ä"),
}
KEYWORDS = (
    "",
    "drop_rate=0.1",
    "global_pool=max",
    "x=1",
    "temperature=2.0",
    "nesterov=True",
    "pretrained=True",
)


def values_of(flag: Flag, draw: random.Random) -> list[str]:
    """Return values of one flag as they are typed, most of them in its range."""
    if flag.is_switch:
        return []
    # as many values as the flag takes
    several = {"+": 2, "*": 1, "?": 1, None: 1}.get(flag.nargs, flag.nargs)
    if flag.name == "loss":
        return [draw.choice([*list_losses(), "ce", "bce"])]
    if flag.is_mapping:
        return [draw.choice(KEYWORDS)]
    if flag.name in TEXTS:
        return [draw.choice(TEXTS[flag.name]) for _ in range(several)]
    if flag.choices is not None:
        return [str(draw.choice([*flag.choices])) for _ in range(several)]
    # numbers, most of them in the declared range
    kind = flag.kind
    if kind not in NUMBERS:
        return [draw.choice(("x", "0", "0.5", "", "weak")) for _ in range(several)]
    low = -math.inf if flag.low is None else flag.low
    high = math.inf if flag.high is None else flag.high
    within = [number for number in NUMBERS[kind] if low <= number <= high]
    return [
        str(draw.choice(within if within and draw.random() < 0.95 else NUMBERS[kind]))
        for _ in range(several)
    ]


def draw_flags(seed: int) -> list[str]:
    """Return the flags of a run and two or three more with their values; with them comes what they need."""
    # two or three flags, often with one that they need
    draw, declared = random.Random(seed), train_parser().by_dest()
    known = sorted(declared.keys() - LEFT_OUT)
    chosen = draw.sample(known, draw.choice((2, 2, 3)))
    for name in chosen[:]:
        needs = [need for need in declared[name].needs if need in known]
        if needs and not set(needs) & {*chosen, "teacher"} and draw.random() < 0.9:
            chosen.append(draw.choice(needs))
    flags = []
    # a value that begins with a dash needs to be joined to its flag
    for name in chosen:
        values = values_of(declared[name], draw)
        flags += [f"{option(name)}={values[0]}"] if len(values) == 1 else [option(name), *values]
    return [*draw.choice(BASES), *flags]


def run(flags: Sequence[str], folder: Path) -> str | None:
    """Train with these flags in an own folder beside ``weak``; return what is wrong with how it ended, or None."""
    folder.mkdir(parents=True)
    # what some values name lies in the folder of the run
    (folder / "weak").symlink_to(folder.parent / "weak")

    def main() -> None:
        os.chdir(folder)
        torch.set_num_threads(1)
        train_w2s.main()

    pid = forks.start(main, ["train_w2s.py", *flags], folder / "log.txt", group=True)
    # a run that hangs is wrong, too
    deadline = time.monotonic() + SECONDS
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"has not ended after {SECONDS:g} s"
        time.sleep(0.01)
    text, code = (
        (folder / "log.txt").read_text(errors="replace"),
        os.waitstatus_to_exitcode(ended[1]),
    )
    # trained, or one line with exit code 2
    last = (text.splitlines() or [""])[-1]
    if "Traceback" in text or not (
        code == 0 or (code == 2 and last.startswith("train_w2s.py: error: "))
    ):
        where = [line.strip() for line in text.splitlines() if line.startswith("  File ")]
        return f"exit code {code}: {last} ({where[-1:]})"
    shutil.rmtree(folder)
    return None


def train_weak(folder: Path) -> None:
    """Train the teacher of all."""
    (folder / "weak").mkdir(parents=True)
    pid = forks.start(
        train_w2s.main,
        ["train_w2s.py", *BASE[:-2], "--output", folder, "--experiment", "weak"],
        folder / "weak.txt",
    )
    if forks.finish(pid):
        raise SystemExit((folder / "weak.txt").read_text())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="how many are drawn")
    parser.add_argument(
        "--first", type=int, default=0, help="seed of the first, for another process beside"
    )
    parser.add_argument("--quick", action="store_true", help="twelve only, to see that it works")
    args = parser.parse_args(argv)
    if args.quick:
        args.count = 12
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        train_weak(folder)
        failed = 0
        for seed in range(args.first, args.first + args.count):
            command = draw_flags(seed)
            if wrong := run(command, folder / str(seed)):
                print(f"{seed}: {shlex.join(command)}: {wrong}", flush=True)
                failed += 1
    print(f"{args.count} drawn, {failed} failed")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
