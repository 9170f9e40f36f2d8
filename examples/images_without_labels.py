"""Images without labels, and three ways to get an opinion on them.

From two tar files of CLASS/IMAGE this makes the situation: a few labelled images, and a folder of photographs whose
labels nobody gives. For each seed it trains three small networks on the labelled images, and on the photographs the
same strong student

    a  with the first network as its teacher,
    b  with a table of that network's answers: to the last bit the student of a,
    c  with the labels of all three, each of which has seen a part of the photographs, combined by Dawid-Skene
       (photographs that none has seen are left out),
    ceiling  with the true labels,

every step by a command that is printed. The student is a linear layer on the features of a frozen network.

    python examples/images_without_labels.py train.tar validation.tar --seeds 3
"""

import argparse
import csv
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from w2s_plugins.metrics.pgr import performance_gap_recovered  # noqa: E402
from w2s_plugins.monitor import format_table  # noqa: E402

COMMON = "--sched cosine --warmup-epochs 0 --batch-size 32 --val-interval 100 --log-interval 10000"
WEAK = f"{COMMON} --model w2s_cnn5 --img-size 32 --epochs 15 --opt sgd --lr 0.05 --hflip 0 --smoothing 0"
STRONG = f"{COMMON} --linear-probe --no-aug --epochs 30 --opt adamw --lr 0.003 --weight-decay 0.05"
COLUMNS = ["teacher", "a", "b", "c", "ceiling", "PGR of a", "PGR of c"]


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "train", type=Path, help="tar file of CLASS/IMAGE: labelled images and photographs"
    )
    parser.add_argument("validation", type=Path, help="tar file of CLASS/IMAGE, to measure on")
    parser.add_argument(
        "--labelled", type=float, default=0.4, help="share of each class that has labels"
    )
    parser.add_argument("--photos", type=int, help="use so many photographs at most")
    parser.add_argument(
        "--student",
        default="--model tf_efficientnet_lite0.in1k --pretrained --img-size 128",
        help="flags that name the strong model",
    )
    parser.add_argument("--loss", default="adaptconf")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("output/images_without_labels"))
    args = parser.parse_args()
    rows = {
        f"seed {seed}": run_seed(args, seed, args.output / f"seed{seed}")
        for seed in range(args.seeds)
    }
    rows["mean"] = [statistics.mean(column) for column in zip(*rows.values())]
    table = [
        [name, *row, *(performance_gap_recovered(row[0], row[i], row[4]) for i in (1, 3))]
        for name, row in rows.items()
    ]
    print(f"\n{format_table(table, ['', *COLUMNS])}")


def run_seed(args: argparse.Namespace, seed: int, folder: Path) -> list[float]:
    """Run everything for one seed; return top-1 in percent of the teacher, a, b, c and the ceiling."""
    split(args.train, folder, args.labelled, args.photos, seed)
    photos, root, validation = folder / "photos", args.validation.parent, args.validation.name
    here = f"--data-dir {root} --val-split {validation} --output {folder}"

    def weak(number: int) -> dict:
        return train(
            f"{WEAK} {here} --train-split {os.path.relpath(folder / 'labelled', root)} "
            f"--seed {100 * seed + number} --experiment weak{number}"
        )

    def student(name: str, teacher: str) -> dict:
        return train(
            f"{args.student} {STRONG} {here} --unlabeled {photos} --class-names {folder / 'names.txt'} "
            f"--target-cache {args.output / 'targets'} --loss {args.loss} --seed {seed} --experiment {name} "
            f"--teacher {teacher}"
        )

    teachers = [weak(number) for number in range(3)]
    a = student("a", f"{folder / 'weak0'} --teacher-targets cached --teacher-cache-dtype float32")
    answers = folder / "answers.npz"
    run(f"-m w2s_plugins.labels export {a['teacher']['cache'][0]['path']} --output {answers}")
    b = student("b", f"labels:{answers}")
    if a["export"]["model.safetensors"] != b["export"]["model.safetensors"]:
        raise SystemExit("a and b are not the same student")
    c = student("c", f"labels:{ask_annotators(folder, seed)}?combine=dawid-skene&missing=skip")
    ceiling = student("ceiling", f"labels:{folder / 'truth.csv'}")
    return [run["metrics"]["top1"] for run in (teachers[0], a, b, c, ceiling)]


def split(archive: Path, folder: Path, share: float, most: int | None, seed: int) -> None:
    """Write ``labelled/CLASS/IMAGE``, ``photos/NUMBER.SUFFIX``, of the latter ``truth.csv``, and ``names.txt``."""
    rng, by_class = random.Random(seed), defaultdict(list)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                by_class[Path(member.name).parts[-2]].append(member)
        photos = []
        for name, members in sorted(by_class.items()):
            rng.shuffle(members)
            count = max(1, round(share * len(members)))
            for member in members[:count]:
                write(
                    folder / "labelled" / name / Path(member.name).name,
                    tar.extractfile(member).read(),
                )
            photos += [(name, member) for member in members[count:]]
        rng.shuffle(photos)
        truth = []
        for number, (name, member) in enumerate(photos[:most]):
            file = f"{number:06d}{Path(member.name).suffix}"
            write(folder / "photos" / file, tar.extractfile(member).read())
            truth.append([file, name])
    write_csv(folder / "truth.csv", ["filename", "label"], truth)
    (folder / "names.txt").write_text(
        "".join(f"{name}\n" for name in sorted(by_class)), encoding="utf-8"
    )


def ask_annotators(folder: Path, seed: int) -> Path:
    """Write what three networks say, each of about 60 % of the photographs, into one table; return its path."""
    rng, rows = random.Random(seed), []
    for number in range(3):
        answers = folder / f"weak{number}.csv"
        run(
            f"-m w2s_plugins.predictions {folder / f'weak{number}'} {folder / 'photos'} --output {answers}"
        )
        with answers.open(newline="", encoding="utf-8") as lines:
            rows += [
                [row["filename"], row["label"], f"weak{number}"]
                for row in csv.DictReader(lines)
                if rng.random() < 0.6
            ]
    write_csv(folder / "crowd.csv", ["filename", "label", "annotator"], rows)
    return folder / "crowd.csv"


def train(flags: str) -> dict:
    """Run train_w2s.py and return its record."""
    words = shlex.split(flags)
    run(f"{ROOT / 'train_w2s.py'} {flags}")
    place = [Path(words[words.index(flag) + 1]) for flag in ("--output", "--experiment")]
    return json.loads((place[0] / place[1] / "result.json").read_text(encoding="utf-8"))


def run(command: str) -> None:
    """Run a command of Python, which is printed; its own output goes to the end of the run's log."""
    print(f"python {command}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
