"""``--train-labels`` and ``--val-labels``: true labels in tables, of images that lie in one folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.parts import write_digits
from w2s_plugins.study.controls import labelled_part

from .conftest import BRIEF, Run, assert_goes_on, read_result

MODEL = [*BRIEF, "--model w2s_cnn2 --lr 0.1"]
FOLDERS = ["--data-dir folders"]
TRAIN, TEST = "train.csv?missing=skip", "test.csv?missing=skip"
TABLES = ["--data-dir all --train-labels", TRAIN, "--val-labels", TEST]


@pytest.fixture
def digits(here: Run, tmp_path: Path) -> Run:
    """120 images to train on and 40 to measure on, in class folders, and all of them in one folder with two tables.
    Names are such that both have the same order.
    """
    write_digits(
        160,
        lambda number, label: (
            tmp_path / "folders" / ("train" if number < 120 else "validation") / f"d{label}"
        ),
    )
    Path("all").mkdir()
    for split, table in (("train", "train.csv"), ("validation", "test.csv")):
        rows = ["filename,label"]
        for file in sorted(Path("folders", split).rglob("*.png")):
            name = f"{file.parent.name}-{file.name}"
            shutil.copy(file, Path("all", name))
            rows.append(f"{name},{file.parent.name}")
        Path(table).write_text("\n".join(rows))
    return here


def edit(table: str, old: str, new: str) -> None:
    """Replace the first of some texts."""
    content = Path(table).read_text()
    assert old in content
    Path(table).write_text(content.replace(old, new, 1))


def exported(name: str) -> bytes:
    return Path("output/train", name, "export/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags, student",
    [
        (
            [
                "--select best --select-split 0.2 --train-slice 0:0.8 --val-slice 0:30 --long-tail always"
            ],
            "",
        ),
        (["--label-noise symmetric:0.3 --clean-select knn:3 --clean-select-model WEAK"], ""),
        (["--linear-probe --teacher WEAK"], ""),
        (["--class-names d9,d8,d7,d6,d5,d4,d3,d2,d1,d0,dx"], ""),
        (["--class-list list.txt"], ""),
        (["--protocol w2s --teacher w2s_cnn2 --weak-fraction 40 --controls direct"], "student"),
        (["--folds 2"], "fold2"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_table_is_as_good_as_class_folders(
    digits: Run, weak: Path, flags: list[str], student: str
) -> None:
    """To the last bit: samples and classes have the same order."""
    flags = [flag.replace("WEAK", str(weak)) for flag in flags]
    Path("list.txt").write_text("d7\nd1\nd4\n")
    for name, data in (("folders", FOLDERS), ("tables", TABLES)):
        # parts of the training split are measured on, which has its table
        data = data[:2] if "--folds 2" in flags else data
        digits(*MODEL, *flags, *data, "--experiment", name).ok()
    assert exported(f"folders/{student}") == exported(f"tables/{student}")
    by_folder, by_table = (
        read_result(Path("output/train", n, student)) for n in ("folders", "tables")
    )
    assert by_folder["metrics"] == by_table["metrics"]
    assert by_folder["model"]["class_names"] == by_table["model"]["class_names"]


def test_validation(digits: Run) -> None:
    """It takes over the table of the run; labels are matched by the names of the model's classes."""
    digits(*MODEL, *TABLES, "--experiment run").ok()

    def top1(*flags: object) -> float:
        return digits("--workers 0", *flags, script="validate").figures["top1"]

    expected = read_result("output/train/run")["metrics"]["top1"]
    model = "--model local-dir:output/train/run/export"
    assert top1("--checkpoint output/train/run") == pytest.approx(expected, abs=1e-4)
    assert top1(model, *FOLDERS) == pytest.approx(expected, abs=1e-4)
    # the run's own split may be named; other data have other labels, such as those of their folders
    assert top1("--checkpoint output/train/run --split validation") == pytest.approx(
        expected, abs=1e-4
    )
    assert top1("--checkpoint output/train/run", *FOLDERS) == pytest.approx(expected, abs=1e-4)
    # capitals are forgiven, and a split may lack classes
    Path("test.csv").write_text(Path("test.csv").read_text().replace(",d", ",D"))
    assert top1(model, "--data-dir all --split all --val-labels", TEST) == pytest.approx(
        expected, abs=1e-4
    )
    kept = [line for line in Path("test.csv").read_text().splitlines() if not line.endswith("D3")]
    Path("few.csv").write_text("\n".join(kept))
    done = digits(
        model, "--workers 0 --data-dir all --val-labels few.csv?missing=skip", script="validate"
    )
    assert "has 9 of the 10 classes; it lacks d3" in done.ok().err
    # another split has another table, or none
    other = ["--workers 0 --checkpoint output/train/run --split train", *FOLDERS]
    assert digits(*other, script="validate").figures["fingerprint"]
    edit("test.csv", ",D3", ",cow")
    done = digits(
        "--workers 0 --checkpoint output/train/run --val-labels test.csv", script="validate"
    )
    assert (
        done.error.startswith("--val-labels test.csv: row ") and "'cow' is no class" in done.error
    )


def test_a_table_in_place_of_the_data_of_a_run(digits: Run) -> None:
    """Of folders with a map, as a person's answers have, or of a dataset: nobody typed their flags."""
    Path("map.txt").write_text("".join(f"d{number}\n" for number in range(10)[::-1]))
    digits(*MODEL, *FOLDERS, "--class-map map.txt --experiment run").ok()
    of_run = ["--workers 0 --checkpoint output/train/run"]
    by_table = [*of_run, "--data-dir all --split all --val-labels", TEST]
    expected = digits(*of_run, script="validate").figures
    assert digits(*by_table, script="validate").figures["top1"] == expected["top1"]
    typed = digits(*by_table, "--class-map map.txt", script="validate")
    assert "--class-map is about class folders" in typed.error
    names = ",".join(f"d{number}" for number in range(10))
    digits(*MODEL, "--dataset w2s/digits --class-names", names, "--experiment set").ok()
    table = ["--workers 0 --checkpoint output/train/set --data-dir all --split all --val-labels"]
    assert digits(*table, TEST, script="validate").figures["dataset"] == "all"


def test_weak_labels_that_are_measured_on_a_table(digits: Run) -> None:
    """True labels of training images have no effect then."""
    weak = f"--unlabeled all --teacher labels:{TRAIN}"
    done = digits(*MODEL, weak, *TABLES, "--experiment weak").ok()
    assert "--unlabeled without --task-loss-weight: no effect of --train-labels" in done.err
    assert "are trained on" not in done.err
    record = read_result("output/train/weak")
    assert (record["data"]["train_samples"], record["data"]["val_samples"]) == (120, 40)
    digits(*MODEL, "--unlabeled all --teacher", f"labels:{TRAIN}", *FOLDERS, "--experiment f").ok()
    assert read_result("output/train/f")["metrics"] == record["metrics"]


def test_a_run_goes_on_if_the_table_says_the_same(digits: Run, ranks: Run, tmp_path: Path) -> None:
    """On two ranks as well; of a table that was moved the content counts."""
    assert_goes_on(digits, *MODEL, *TABLES)
    two = [*MODEL, *TABLES, "--batch-size 8 --experiment two"]
    ranks(*two, "--stop-epoch 1", processes=2, cwd=tmp_path).ok()
    Path("moved").mkdir()
    Path("train.csv").rename("moved/train.csv")
    moved = [*two, "--resume auto --train-labels", f"moved/{TRAIN}"]
    edit("moved/train.csv", ",d3\nd4", ",d4\nd4")  # the last of this class
    refused = ranks(*moved, processes=2, cwd=tmp_path)
    assert refused.codes == (2, 2) and "'train' changed" in refused.err
    edit("moved/train.csv", ",d4\nd4", ",d3\nd4")
    ranks(*moved, processes=2, cwd=tmp_path).ok()


def test_a_run_that_is_resumed_vouches_for_no_other_truth(digits: Run, at_step: Callable) -> None:
    """Finished or interrupted, by a table or by folders: it goes on with the labels that it was measured by, or not."""
    again = [*MODEL, *TABLES, "--experiment run --resume auto"]
    digits(*again).ok()
    record = read_result("output/train/run")
    header, *rows = Path("test.csv").read_text().splitlines()
    # rows in another order say the same
    Path("test.csv").write_text("\n".join([header, *reversed(rows)]))
    digits(*again).ok()
    assert read_result("output/train/run")["made_of"] == record["made_of"]
    edit("test.csv", ",d3", ",d4")
    assert digits(*again).error.endswith(
        "'validation' changed since it was written: put it back as it was, or start a new run"
    )
    assert read_result("output/train/run")["made_of"] == record["made_of"]

    stopped = [*MODEL, *FOLDERS, "--experiment stopped --recovery-interval 1 --resume auto"]
    at_step(10)  # of 14 in two epochs
    with pytest.raises(RuntimeError, match="power cut"):
        digits(*stopped)
    one, other, aside = (Path("folders/validation", name) for name in ("d1", "d2", "d"))
    for old, new in ((one, aside), (other, one), (aside, other)):
        old.rename(new)
    assert "'validation' changed since it was written" in digits(*stopped).error
    for old, new in ((one, aside), (other, one), (aside, other)):
        old.rename(new)
    digits(*stopped).ok()


def test_stages(digits: Run) -> None:
    """A stage with true labels alone, and one with those beside images without labels."""
    stages = [
        dict(name="direct", unlabeled=None, teacher=None),
        dict(name="student", teacher="given,stage:direct", task_loss_weight=0.5),
    ]
    Path("stages.yaml").write_text(yaml.safe_dump(stages))
    weak = ["--unlabeled all --stages stages.yaml --teacher", f"labels:{TRAIN}"]
    digits(*MODEL, *TABLES, *weak, "--experiment chain").ok()
    direct, student = (read_result(f"output/train/chain/{n}") for n in ("direct", "student"))
    labelled = student["data"]["splits"]["labelled"]
    assert direct["data"]["train_samples"] == 120 == labelled["num_samples"]
    digits(*MODEL, *FOLDERS, "--experiment direct").ok()
    assert exported("direct") == exported("chain/direct")


@pytest.mark.parametrize("table, part", [("a.csv", {"train_slice": "0:40"}), ("b.csv", {})])
def test_the_labelled_part_of_a_teacher_is_one_of_its_table(
    tmp_path: Path, table: str, part: dict
) -> None:
    (tmp_path / "args.yaml").write_text(
        "train_slice: 0:40\ntrain_split: train\ntrain_labels: a.csv\n"
    )
    known = labelled_part({"teacher_checkpoint": str(tmp_path), "train_labels": table})
    assert {name: known[name] for name in part} == part and bool(known) == bool(part)


def test_images_that_are_trained_and_measured_on(digits: Run) -> None:
    done = digits(
        *MODEL, "--data-dir all --train-labels", TRAIN, "--val-labels", TRAIN, "--epochs 1"
    )
    assert (
        "--train-labels and --val-labels: 120 of the 120 images of 'validation' are trained on"
        in done.ok().err
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--data-dir all --train-labels trian.csv",
            "--train-labels trian.csv: no such file (nearest: train.csv",
        ),
        (
            "--data-dir folders --train-labels t.csv",
            "--train-labels t.csv: no such file (nearest: folders/t.csv)",
        ),
        ("--data-dir all --train-labels train.csv", "40 of 160 'train' samples have no label"),
        (
            "--data-dir folders --train-labels test.csv",
            "is about other data: none of its 40 answers",
        ),
        (
            "--data-dir folders --val-labels cow.csv?missing=error",
            "'cow' is no class; expected the name of one",
        ),
        ("--dataset w2s/digits --val-labels test.csv", "--dataset w2s/digits brings its own"),
        (
            "--data-dir folders --val-split '' --val-labels test.csv",
            "there is no split that is evaluated",
        ),
        (
            "--data-dir folders --class-map t.txt --val-labels test.csv",
            "--class-map is about class folders",
        ),
        ("--data-dir all", "is in no folder of a class; expected train/CLASS/"),
    ],
)
def test_what_is_refused(digits: Run, flags: str, message: str) -> None:
    shutil.copy("train.csv", "folders/t.csv")
    Path("t.txt").write_text("".join(f"d{number}\n" for number in range(10)))
    names = [path.name for path in Path("folders/validation").rglob("*.png")]
    Path("cow.csv").write_text("\n".join(["image,label", *(f"{name},cow" for name in names)]))
    if flags == "--data-dir all":
        Path("all/train").mkdir()
        shutil.copy(next(Path("all").glob("*.png")), "all/train")
    assert message in digits(*MODEL, flags).error
