"""validate.py: what it prints is what training logged, from every place that a model can come from."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.hub_server import HubServer, hub_env
from tests.parts import small_model, write_digits, write_folder

from .conftest import BRIEF, TINY, Run, read_result, run_script, taught

DIGITS = ["--dataset w2s/digits --workers 0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ranks: Run) -> Path:
    """A weak teacher, a student on its cached labels, and a ceiling."""
    folder = tmp_path_factory.mktemp("runs")

    def train(*flags: object) -> None:
        ranks(*TINY, "--val-slice", "", "--output", folder, *flags, processes=1, cwd=folder).ok()

    train("--model w2s_cnn2 --experiment weak")
    train("--model w2s_cnn5 --epochs 6 --experiment ceiling")
    train(
        "--model w2s_cnn5",
        *taught(folder / "weak"),
        "--task-loss-weight 0 --model-ema --model-ema-decay 0.5 --experiment student",
    )
    return folder


def predictions(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "predictions_last.csv").open()))


def logged(folder: Path) -> dict:
    return read_result(folder)["metrics"]


@pytest.fixture
def validate(runs: Path, ranks: Run) -> Callable[..., dict | list]:
    """Runs ``validate.py`` beside the runs and returns its results."""
    return lambda *flags, processes=1: (
        ranks(*flags, script="validate", processes=processes, cwd=runs).figures
    )


def test_run_folder_alone_gives_the_figure_that_training_logged(runs: Path) -> None:
    done = run_script(runs / "student", script="validate.py", cwd=runs)  # as behind --checkpoint
    assert "top-1" in done.out  # the table for people: one model is called by its name
    assert any(line.split()[:1] == ["w2s_cnn5"] for line in done.out.splitlines()), done.out
    result = done.figures
    expected = logged(runs / "student")
    assert result["top1"] == round(expected["top1"], 4) and result["top5"] == round(
        expected["top5"], 4
    )
    assert result["loss"] == pytest.approx(expected["loss"], abs=1e-6)


def test_checkpoint_export_and_two_processes_give_the_same_figure(runs: Path, validate) -> None:
    expected = round(logged(runs / "student")["top1"], 4)
    checkpoint = validate(
        "--model",
        "w2s_cnn5",
        "--checkpoint",
        runs / "student" / "last.pth.tar",
        *DIGITS,
        processes=2,
    )
    export = validate("--model", f"local-dir:{runs / 'student' / 'export'}", *DIGITS)
    assert checkpoint["top1"] == export["top1"] == expected


def test_teacher_agreement_and_recovered_gap(runs: Path, validate) -> None:
    result = validate(
        "--checkpoint",
        runs / "student",
        *taught(runs / "weak"),
        "--ceiling-acc",
        logged(runs / "ceiling")["top1"],
    )
    weak, student = logged(runs / "weak")["top1"], logged(runs / "student")
    ceiling = logged(runs / "ceiling")["top1"]
    assert result["teacher_top1"] == round(weak, 4)
    assert result["agreement"] == round(student["agreement"], 4)
    assert result["ceiling_top1"] == round(ceiling, 4)
    assert result["pgr"] == pytest.approx((student["top1"] - weak) / (ceiling - weak), abs=1e-4)


def test_results_files_bulk_and_averages(runs: Path, validate) -> None:
    folder = runs / "=1+bulk"  # in a spreadsheet, a formula
    folder.mkdir()
    for number, name in enumerate(("weak", "weak", "student")):
        shutil.copy(runs / name / "last.pth.tar", folder / f"c{number}.pth.tar")
    results = validate(
        "--model",
        "w2s_cnn2",
        "--img-size",
        "8",
        "--checkpoint",
        folder.name,
        *DIGITS,
        "--metrics-avg",
        "macro",
        "--results-file",
        runs / "r.csv",
    )
    assert len(results) == 2  # the student's does not fit and is left out
    rows = list(csv.DictReader((runs / "r.csv").open()))
    assert [float(r["top1"]) for r in rows] == [r["top1"] for r in results]
    assert all(r["checkpoint"].startswith("'=1+bulk/") for r in rows)
    # by hand, of what the run has predicted: of all answers of a class, and of all its images, those that are right
    told = [(row["target"], row["student"]) for row in predictions(runs / "weak")]
    right = Counter(true for true, said in told if true == said)
    of_class, answers = (Counter(column) for column in zip(*told))
    for name, counts in (("precision", answers), ("recall", of_class)):
        shares = [right[label] / counts[label] if counts[label] else 0 for label in of_class]
        expected = 100 * sum(shares) / len(shares)
        assert results[0][f"macro_{name}"] == pytest.approx(expected, abs=1e-3)
    assert results[0]["macro_precision"] != results[0]["macro_recall"]
    for model in ("student", "weak"):  # what an earlier evaluation wrote is replaced
        validate(
            "--checkpoint",
            runs / model,
            "--results-file",
            runs / "r.json",
            "--results-format",
            "json",
        )
    assert json.loads((runs / "r.json").read_text())["top1"] == round(
        logged(runs / "weak")["top1"], 4
    )


def test_what_the_model_of_a_run_was_made_with(here: Run) -> None:
    """Is known by its folder, and by a checkpoint in it; what differs from training stands in the result."""
    made = "--model test_vit --img-size 16 --model-kwargs depth=1 --epochs 1 --experiment run"
    here(*TINY, made).ok()
    run = Path("output/train/run")
    for name in (run, run / "last.pth.tar"):
        figures = here("--checkpoint", name, "--workers 0", script="validate").figures
        assert figures["top1"] == round(logged(run)["top1"], 4)
        assert "test_pool" not in figures["evaluation"]
    pooled = here("--checkpoint", run, "--workers 0 --test-pool", script="validate").figures
    assert pooled["evaluation"]["test_pool"] is True


def test_hub_id_at_a_revision(runs: Path, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add_model("me/student", runs / "weak" / "export")
    hub_server.add_model("me/student", runs / "student" / "export", branch="other")
    result = run_script(
        "--model hf-hub:me/student@other",
        *DIGITS,
        script="validate.py",
        cwd=tmp_path,
        env=hub_env(hub_server, tmp_path),
    ).figures
    weak, student = (round(logged(runs / name)["top1"], 4) for name in ("weak", "student"))
    assert result["top1"] == student != weak


# how good the model finds each of an image's ReaL labels: 0 is its best class; of one image nobody knows what it shows
RANKS = [[0], [9, 0], [3], [4], [5], [], [9], [1], [6], [8]]


@pytest.mark.parametrize(
    ("in_folders_of_classes", "processes"), [(True, 1), (True, 2), (False, 1), (False, 2)]
)
def test_real_labels(
    ranks: Run, tmp_path: Path, in_folders_of_classes: bool, processes: int
) -> None:
    """Labels that people have given anew, several an image or none, as timm's evaluation reads them."""
    data = tmp_path / "imagenet"
    write_digits(
        10, lambda number, label: data / "val" / (str(9 - number) if in_folders_of_classes else "")
    )
    model = small_model(0, "w2s_cnn2").eval()
    torch.save(model.state_dict(), tmp_path / "weak.pth")
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({"img_size": 8}, model=model)
    )
    real: list[list[int]] = []
    for number, places in enumerate(RANKS):
        (file,) = data.rglob(f"{number}.png")
        with torch.no_grad():
            best = model(transform(Image.open(file).convert("RGB"))[None])[0].argsort(
                descending=True
            )
        real.append([int(best[place]) for place in places])
        file.rename(
            file.with_name(f"ILSVRC2012_val_{number + 1:08}.JPEG")
        )  # its content says what it is
    (tmp_path / "real.json").write_text(json.dumps(real))
    figures = ranks(
        "--data-dir",
        data,
        "--model w2s_cnn2",
        "--checkpoint",
        tmp_path / "weak.pth",
        "--img-size 8 --batch-size 4 --workers 0",
        "--real-labels",
        tmp_path / "real.json",
        script="validate",
        processes=processes,
        cwd=tmp_path,
    ).figures
    assert (figures["top1"], figures["top5"]) == (
        22.2222,
        55.5556,
    )  # 2 and 5 of the 9 that have a label


def test_a_teacher_has_one_accuracy(runs: Path, validate, ranks: Run, tmp_path: Path) -> None:
    """By itself, beside a student and in training, alone and in a mean, on one process and two: its own transform."""

    def train(*flags: object, processes: int = 1) -> None:
        ranks(
            *TINY,
            "--val-slice",
            "",
            *flags,
            "--output",
            tmp_path,
            processes=processes,
            cwd=tmp_path,
        ).ok()

    train(
        "--model w2s_cnn2 --img-size 12 --crop-pct 0.7 --mean 0.2 0.2 0.2",
        "--std 0.3 0.4 0.3 --interpolation bilinear --epochs 5 --experiment odd",
    )
    odd = str(tmp_path / "odd")
    alone = validate("--checkpoint", odd)["top1"]
    assert alone > 15
    teacher = [*taught(odd)]
    both = ["--teacher", f"{runs / 'weak'},{odd}"]
    assert validate("--checkpoint", runs / "student", *teacher)["teacher_top1"] == alone
    train("--model w2s_cnn5", *teacher, "--epochs 1 --experiment one")
    train("--model w2s_cnn5", *both, "--batch-size 8 --epochs 1 --experiment two", processes=2)
    one, two = (read_result(tmp_path / name)["teacher"] for name in ("one", "two"))
    assert round(one["top1"], 4) == alone
    mixed = [
        validate("--checkpoint", runs / "student", *both, processes=n)["teacher_top1"]
        for n in (1, 2)
    ]
    assert mixed == [round(two["top1"], 4)] * 2 and mixed[0] not in (
        alone,
        logged(runs / "weak")["top1"],
    )


MOVED = [*BRIEF, "--model w2s_cnn2 --batch-size 8 --epochs 1"]


@pytest.fixture
def moved(here: Run, made_once: Callable) -> str:
    """A run whose data lie elsewhere now."""

    def train() -> str:
        write_folder(Path("data"), {"train": 24, "validation": 12})
        here(*MOVED, "--data-dir data --experiment run").ok()
        Path("data").rename("moved")
        return "output/train/run"

    return made_once("moved data", train)


@pytest.mark.parametrize("words", ["--checkpoint RUN", "--model RUN", "RUN/last.pth.tar"])
def test_moved_data_are_named_by_the_run_that_names_them(here: Run, moved: str, words: str) -> None:
    """Where nobody typed the folder it is said whose flags have it."""
    done = here(words.replace("RUN", moved), "--workers 0", script="validate")
    said = f"--checkpoint {moved}: its flags say --data-dir data: no such folder"
    assert done.code == 2 and said in done.err


def test_a_folder_that_was_typed_is_named_as_it_was_typed(here: Run, moved: str) -> None:
    done = here("--checkpoint", moved, "--data-dir dat", script="validate")
    assert done.err.strip().endswith("error: --data-dir dat: no such folder")
    here("--checkpoint", moved, "--data-dir moved --workers 0", script="validate").ok()


def test_moved_data_of_a_teacher_are_known_by_their_content(here: Run, moved: str) -> None:
    protocol = "--data-dir moved --protocol w2s --weak-fraction 0 --experiment p"
    error = here(*MOVED, protocol, "--teacher", moved).error
    assert error.startswith(
        f"--teacher local-dir:{moved}/export: 24 of the 24 samples that it is trained on are among the student's 24"
    )
