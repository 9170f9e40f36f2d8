"""``--teacher labels:PATH``: labels from files in place of a model."""

import csv
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.e2e.conftest import BRIEF, Run, assert_goes_on, differences, read_events, read_result
from tests.parts import write_folder

PLAIN = [*BRIEF, "--img-size 16 --model w2s_cnn2 --output out"]
TAUGHT = [*PLAIN, "--task-loss-weight 0 --loss kd --target-cache cache"]
FLAGS = ["--data-dir data", *TAUGHT]


@pytest.fixture
def rows(tmp_path: Path) -> list[tuple[str, str]]:
    """Images of three classes, and a label of each training image, 4 in 5 of them right."""
    write_folder(tmp_path / "data", {"train": 60, "validation": 30}, size=(16, 16))
    rng = random.Random(0)
    files = sorted(
        p.relative_to(tmp_path / "data/train").as_posix()
        for p in tmp_path.glob("data/train/*/*.jpg")
    )
    return [
        (file, f"class{rng.randrange(3)}" if rng.random() < 0.2 else file.split("/")[0])
        for file in files
    ]


def write(path: Path, rows: list, header: tuple[str, ...] = ("filename", "label")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def weights(name: str) -> dict:
    return load_file(f"out/{name}/export/model.safetensors")


def test_the_order_of_rows_and_how_they_are_written_change_nothing(here: Run, rows: list) -> None:
    """A CSV, the same rows in another order, as numbers, as probabilities of 1, and of two who say the same of paths of
    another machine.
    """
    write(Path("a.csv"), rows)
    write(
        Path("b.csv"),
        [(file, label[-1]) for file, label in random.Random(1).sample(rows, len(rows))],
    )
    write(
        Path("c.csv"),
        [(f, *(float(label == f"class{c}") for c in (2, 0, 1))) for f, label in rows],
        ("filename", "class2", "class0", "class1"),
    )
    wide = [
        (f"D:\\data\\train\\{file.removesuffix('.jpg')}".replace("/", "\\"), label, label)
        for file, label in rows
    ]
    write(Path("d.csv"), wide, ("photo", "anna", "bob"))
    for name in ("a", "b", "c", "d"):
        columns = "#anna,bob?combine=mean" if name == "d" else ""
        here(*FLAGS, "--teacher", f"labels:{name}.csv{columns}", "--experiment", name).ok()
    assert all(differences(weights("a"), weights(name)) == [] for name in "bcd")


@pytest.mark.parametrize(
    "flags",
    [
        "--amp --model-ema --mixup 0.3 --cutmix 1 --no-prefetcher",
        "--loss elr --select-split 0.3 --select best",
        "--loss kd --select-split 12 --select best --tta 2 -vb 4",
        "--task-loss-weight 1 --teacher labels:a.csv?combine=dawid-skene,labels:crowd.csv",
    ],
)
def test_an_interrupted_run_goes_on_exactly(here: Run, rows: list, flags: str) -> None:
    write(Path("a.csv"), rows)
    rng = random.Random(2)
    write(
        Path("crowd.csv"),
        [
            (f, label if rng.random() < q else f"class{rng.randrange(3)}", who)
            for f, label in rows
            for who, q in (("x", 0.9), ("y", 0.6), ("z", 0.4))
            if rng.random() < 0.9
        ],
        ("filename", "label", "annotator"),
    )
    whole = assert_goes_on(here, *FLAGS, "--teacher labels:a.csv", *flags.split())
    if "--select" in flags:
        assert all(e["metric"] == e["select"]["agreement"] for e in read_events(whole, "eval"))


def test_changed_labels_are_refused_by_a_resumed_run(here: Run, rows: list) -> None:
    write(Path("a.csv"), rows)
    flags = [*FLAGS, "--teacher labels:a.csv --experiment run"]
    assert here(*flags, "--stop-epoch 1").code == 0
    write(Path("a.csv"), [(file, "class0") for file, _ in rows])
    done = here(*flags, "--resume auto")
    assert (
        done.code == 2
        and "the labels of --teacher labels:a.csv changed since it was written" in done.error
    )
    write(Path("a.csv"), rows)
    here(*flags, "--resume auto").ok()


def test_changed_samples_are_refused_by_a_resumed_run(here: Run, rows: list) -> None:
    flags = ["--data-dir data", *PLAIN, "--experiment run"]
    assert here(*flags, "--train-slice 0:40 --stop-epoch 1").code == 0
    Path("data").rename("moved")
    again = [*flags, "--data-dir moved --resume auto", "--train-slice"]
    file = Path("moved/train", rows[0][0])
    file.rename(Path("moved/train", "class1", file.name))
    said = "'train' changed since it was written: put it back"
    assert said in here(*again, "0:40").error
    Path("moved/train", "class1", file.name).rename(file)
    here(*again, "0:40").ok()


@pytest.mark.parametrize("images", ["--data-dir data", "--unlabeled data/train"])
def test_labels_stay_with_their_images_where_some_are_left_out(
    here: Run, rows: list, images: str
) -> None:
    """A selection of images, and a file that says nothing of the others, are one training set."""
    write(Path("a.csv"), rows)
    write(Path("half.csv"), rows[::2])
    Path("half.txt").write_text("".join(f"{i}\n" for i in range(0, len(rows), 2)))
    flags = [images, *TAUGHT, "--teacher"]
    selection = "--clean-select file:half.txt --experiment selected"
    here(*flags, "labels:a.csv,labels:a.csv", selection).ok()
    name = f"labels:{Path('half.csv').absolute()}?missing=skip,labels:half.csv"
    done = here(*flags, name, "--experiment half").ok()
    assert differences(weights("selected"), weights("half")) == []
    # what was warned of is in the record, too, without the folders of this machine, and is not said twice
    (said,) = (text for text in read_result("out/half")["warnings"] if "have no label" in text)
    assert said.startswith("--teacher labels:half.csv?missing=skip,labels:half.csv: ")
    assert done.err.count("training samples have no label") == 1


def test_two_ranks_and_a_model_beside_labels_of_a_part(
    ranks: Run, here: Run, rows: list, tmp_path: Path
) -> None:
    """The model answers for the samples that the files of a crowd say nothing of."""
    assert (
        here(*FLAGS, "--teacher", "", "--loss ce --task-loss-weight 1 --experiment weak").code == 0
    )
    write(Path("part.csv"), rows[:20])
    write(Path("other.csv"), [(file, "class0") for file, _ in rows[10:25]])
    flags = [
        *FLAGS,
        "--teacher labels:part.csv?combine=majority,w2s_cnn2,labels:other.csv",
        "--teacher-checkpoint out/weak",
    ]
    assert here(*flags, "--experiment one").code == 0
    about = read_result("out/one")["teacher"]
    assert [one["name"] for one in about["models"]] == ["labels:part.csv, other.csv", "w2s_cnn2"]
    assert about["models"][0]["samples"] == 25 and len(about["cache"]) == 1, (
        "what a model says is stored, a table not"
    )
    done = ranks(*flags, "--batch-size 8 --experiment two", processes=2, cwd=tmp_path)
    assert done.codes == (0, 0), done.err
    assert differences(weights("one").keys(), weights("two").keys()) == []
    pairs = zip(weights("one").values(), weights("two").values())
    assert (
        max((a - b).abs().max() for a, b in pairs if a.is_floating_point()) < 1e-5
    )  # sums have another order


@pytest.mark.parametrize("first", [25, 2])
def test_files_of_parts_are_scored_together(
    here: Run, rows: list, made_once: Callable, first: int
) -> None:
    """The held-out part may have labels of another file than the first, or none of that."""
    write(Path("all.csv"), rows)
    write(Path("a.csv"), rows[:first])
    write(Path("b.csv"), rows[first:])
    flags = [*FLAGS, "--select-split 0.2 --select best"]
    made_once("whole", lambda: here(*flags, "--teacher labels:all.csv --experiment whole").ok())
    here(*flags, "--teacher labels:a.csv,labels:b.csv --experiment parts").ok()
    whole, parts = (
        [event["select"]["agreement"] for event in read_events(f"out/{name}", "eval")]
        for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole)


def test_record(here: Run, rows: list) -> None:
    """Who said what, without where it lies here, and how much of it is wrong."""
    Path("here").mkdir()
    write(Path("here/a.csv"), rows)
    write(
        Path("here/b.csv"),
        [(*row, who) for who in "xyz" for row in rows],
        ("filename", "label", "annotator"),
    )
    place = Path("here").absolute()
    done = here(
        *FLAGS, "--teacher", f"labels:{place}/a.csv,labels:{place}/b.csv", "--experiment run"
    ).ok()
    teacher = read_result("out/run")["teacher"]
    one, several = teacher["models"]
    wrong = sum(file.split("/")[0] != label for file, label in rows) / 60
    assert (one["name"], one["kind"], one["samples"], one["source"]["rows"]) == (
        "labels:a.csv",
        "hard",
        60,
        60,
    )
    assert (several["source"]["rows"], several["source"]["annotators"]) == (180, 3)
    assert one["wrong"] == several["wrong"] == pytest.approx(wrong) and 0 < wrong < 0.3
    assert f"labels:a.csv: {100 * wrong:.2f} % of 60 labels are not the ground truth" in done.err
    assert re.search(
        rf"^labels:a.csv, on training images \(n = 60\) +{100 * (1 - wrong):.2f} ",
        done.out,
        re.MULTILINE,
    )
    assert teacher["name"] == "labels:a.csv,labels:b.csv"
    card = Path("out/run/export/README.md").read_text().partition("## Reproduction")[0]
    assert str(place) not in card and "labels each training image" not in card
    assert (
        f"| `labels:b.csv` | `probabilities` | 60 | 3 | `majority` | `{several['source']['sha256']}` |"
        in card
    )


def test_labels_of_a_held_out_part(here: Run, rows: list) -> None:
    """How many of them are right stands beside the student's figures there; no sample counts twice."""
    write(Path("a.csv"), rows)
    held_out = ["--select best --select-split 20"]
    done = here(*FLAGS, "--teacher labels:a.csv", *held_out, "--experiment run").ok()
    record = read_result("out/run")
    held, (source,) = record["held_out"], record["teacher"]["models"]
    wrong = 40 * source["wrong"] + 20 * (1 - held["teacher"]["top1"] / 100)
    assert wrong == pytest.approx(sum(file.split("/")[0] != label for file, label in rows))
    (labels,), (student,) = (
        [
            line.split()[8:]
            for line in done.out.splitlines()
            if line.startswith(f"{who}, on the held-out part (n = 20)")
        ]
        for who in ("labels", "student")
    )
    assert labels[0] == f"{held['teacher']['top1']:.2f}"
    assert (
        f"{held['student']['top1']:.2f}" in student
        and f"{held['student']['agreement']:.2f}" in student
    )


def test_several_files_are_one_crowd(here: Run, rows: list) -> None:
    """The same weights as of one table of them all; who is how reliable is in log and record."""
    rng, people = random.Random(2), {}
    for name, right in (("a.csv", 0.9), ("b.csv", 0.6), ("c.csv", 0.4)):
        people[name] = [
            (f, f.split("/")[0] if rng.random() < right else f"class{rng.randrange(3)}")
            for f, _ in rows
        ]
        write(Path(name), people[name])
    write(
        Path("all.csv"),
        [(*row, name) for name, own in people.items() for row in own],
        ("filename", "label", "annotator"),
    )
    here(*FLAGS, "--teacher labels:all.csv?combine=dawid-skene --experiment one").ok()
    names = "labels:a.csv,labels:b.csv?combine=dawid-skene,labels:c.csv"
    done = here(*FLAGS, "--teacher", names, "--experiment several").ok()
    assert differences(weights("one"), weights("several")) == []
    (one,), (several,) = (
        read_result(f"out/{name}")["teacher"]["models"] for name in ("one", "several")
    )
    assert (
        several["name"] == "labels:a.csv, b.csv, c.csv" and several["wrong"] == one["wrong"] < 0.3
    )
    about = several["source"]["reliability"]
    assert about == one["source"]["reliability"] and [one["annotator"] for one in about] == [
        *people
    ]
    assert f"a.csv {about[0]['images']:7} {about[0]['majority']:9.4f}" in done.err


def test_files_that_are_not_combined(here: Run, rows: list) -> None:
    """That the mean of two decides nothing is said, and so is that nothing is there to be combined."""
    write(Path("a.csv"), rows)
    write(
        Path("b.csv"),
        [*rows[:-1], (rows[-1][0], "class0" if rows[-1][1] != "class0" else "class1")],
    )
    done = here(*FLAGS, "--teacher labels:a.csv,labels:b.csv --experiment mean").ok()
    assert (
        "1 samples get the mean of files that differ; ?combine=majority would take these as one crowd"
        in done.err
    )
    done = here(*FLAGS, "--teacher labels:a.csv?combine=majority --experiment one").ok()
    assert "nothing is combined: no sample has more than one answer" in done.err


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (
            lambda rows: [("", ""), (rows[0][0], "clas0"), *rows[1:]],
            ["--teacher labels:a.csv?missing=skip"],
            None,
        ),
        (
            lambda rows: rows[:1],
            ["--teacher labels:a.csv?missing=skip --select best --select-split 0.1"],
            "of 6 held-out samples have no label, such as class",
        ),
        (
            lambda rows: rows[:-1],
            ["--teacher labels:a.csv,w2s_cnn2 --teacher-assign student"],
            "needs an answer of every teacher to each sample, but --teacher labels:a.csv has none of 1 of 60",
        ),
    ],
)
def test_bad_labels_end_in_one_line(
    here: Run, rows: list, change: Callable, flags: list, message: str | None
) -> None:
    write(Path("a.csv"), change(rows))
    done = here(*FLAGS, "--teacher labels:a.csv --experiment run", *flags)
    if message is None:
        assert done.code == 0 and "they are left out" in done.err
    else:
        assert done.code == 2 and message in done.error, done.err


def test_a_batch_of_a_recipe_fits_few_samples(here: Run, rows: list) -> None:
    """Nobody typed its size; the learning rate, which follows from it, is that of the batch that there is."""
    Path("recipe.yaml").write_text("batch_size: 64\nlr_base: 0.64\nlr_base_size: 64\n")
    flags = ["--data-dir data --config recipe.yaml --model w2s_cnn2 --img-size 8 --workers 0"]
    flags.append("--train-slice 0:30 --val-slice 0:30 --epochs 2 --warmup-epochs 0")
    whole = assert_goes_on(here, *flags)
    written = yaml.safe_load((whole / "args.yaml").read_text())
    assert (written["batch_size"], written["lr"]) == (30, pytest.approx(0.3))
    done = here(*flags, "--batch-size 64")
    assert done.error == (
        "--batch-size 64 is more than 30 training samples on 1 process(es) have; expected 30 at most, or leave the "
        "flag out"
    )
    here(*flags, "--linear-probe --experiment probe").ok()


def test_what_a_crowd_says_is_told_once_in_a_command(here: Run, rows: list) -> None:
    """However many runs read it; the next command tells it again."""
    people = [(*row, who) for row in rows for who in ("anna", "bob")]
    write(Path("crowd.csv"), people, ("filename", "label", "annotator"))
    Path("stages.yaml").write_text("- name: one\n- name: two\n  teacher: given,stage:one\n")
    flags = [*FLAGS, "--teacher labels:crowd.csv --val-split '' --stages stages.yaml"]
    for name in ("first", "second"):
        done = here(*flags, "--experiment", name).ok()
        assert done.err.count("--stages: ") == 2
        for text in ("2 annotators, 2.00 answers a sample", " anna ", "samples in 3 classes: "):
            assert done.err.count(text) == 1
