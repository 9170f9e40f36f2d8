"""Does ``--decoder fast`` change what students learn? The runs of docs/evidence/decoder.md.

    python docs/evidence/studies/decoder.py DATA lite0.safetensors output/decoder decoder.csv --seeds 0 1 2

`DATA` is what sets.py makes of two sets with large originals, clothes and large groceries. For each seed a small network
learns from labels, and a student from what it says of other images, by the recipe; and the student from the labels alone.
All of this is done with each decoder. A row has the accuracy of a student as it was trained, and on which share of the test
images it says what its twin says that was trained with Pillow. The rows of "asked by fast" are of the students that were
trained with Pillow, evaluated with the other decoder. What is finished stays.
"""

import subprocess
import sys
from pathlib import Path

import pandas
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import PREDICT, add_rows, parser_of_study  # noqa: E402
from nine_sets import STUDENTS, folder_name, train_students  # noqa: E402
from sets import AFTERWARDS, LARGE, divide_by_thing  # noqa: E402

SETS = {**AFTERWARDS, **LARGE}
TRAINED = "teacher", "last third", "direct"
DECODERS = "pil", "fast"
COLUMNS = ["set", "seed", "student", "decoder", "top1", "agreement", "seconds", "cpu", "commit"]


def predictions(file: Path) -> pandas.DataFrame:
    """Return the classes and what a student says, columns target and student."""
    return pandas.read_csv(file)[["target", "student"]]


def ask(folder: Path, student: str, decoder: str) -> pandas.DataFrame:
    """Return what a student that was trained with Pillow says if it is asked with a decoder; as `predictions`."""
    place = folder / "pil" / folder_name(student)
    file = place / f"by_{decoder}.csv"
    if not file.exists():
        command = [*PREDICT, place, folder / "pil" / "test.tar", "--output", file]
        subprocess.run([*map(str, command), "--decoder", decoder, "--workers", "0"], check=True)
    table = pandas.read_csv(file, dtype=str)
    target = [Path(name).parent.name for name in table["filename"]]
    return pandas.DataFrame(dict(target=target, student=table["label"]))


def main() -> None:
    """Train, and write the rows of what is finished."""
    parser = parser_of_study(__doc__, SETS, list(SETS))
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--students", nargs="+", choices=TRAINED, default=TRAINED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    students = {student: STUDENTS[student] for student in args.students}
    rows = []
    for seed in args.seeds:
        for name in args.sets:
            data, labelled, photos, more = SETS[name]
            folder = args.output.resolve() / data / f"seed{seed}"
            for decoder in DECODERS:
                place = folder / decoder
                divide_by_thing(args.data / data, labelled, photos, seed, place)
                flags = f"{more} --decoder {decoder}"
                train_students(place, students, args.weights.resolve(), seed, flags)
            for student in students:
                files = {decoder: folder / decoder / folder_name(student) for decoder in DECODERS}
                said = {
                    decoder: predictions(file / "predictions_last.csv")
                    for decoder, file in files.items()
                }
                twins = dict.fromkeys(said, said["pil"])
                said["asked by fast"] = ask(folder, student, "fast")
                twins["asked by fast"] = ask(folder, student, "pil")
                for decoder, one in said.items():
                    seconds = files.get(decoder, Path()) / "seconds.json"
                    row = dict(
                        set=name,
                        seed=seed,
                        student=student,
                        decoder=decoder,
                        top1=f"{100 * (one['target'] == one['student']).mean():.2f}",
                        agreement=f"{100 * (one['student'] == twins[decoder]['student']).mean():.2f}",
                        seconds=f"{float(seconds.read_text()):.0f}" if seconds.exists() else "",
                        cpu=args.cpu,
                        commit=args.commit,
                    )
                    rows.append(row)
    add_rows(args.rows, rows, COLUMNS, by=("set", "seed", "student", "decoder"))


if __name__ == "__main__":
    main()
