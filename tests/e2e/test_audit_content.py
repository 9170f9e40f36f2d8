"""``labels audit`` is about what a student has learned from, and answers are about the draw that they were made for."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.parts import small_model, write_digits
from w2s_plugins.audit import estimate as module
from w2s_plugins.audit.answers import find_gap
from w2s_plugins.audit.draw import Step, chances, drawing_order
from w2s_plugins.audit.estimate import estimate
from w2s_plugins.audit.tables import run_of_sheet
from w2s_plugins.labels.table_writer import write_label_table

from .conftest import BRIEF, Done, Run
from .test_audit import opinions_of, page_of, write_photos

NAMES = [*map(str, range(10))]
SMALL = ["--model w2s_cnn2", *BRIEF, "--output ."]
TABLE = ["--unlabeled photos --teacher labels:weak.csv --class-names names.json --loss kd"]


def audit(here: Run, run: object = "run", *flags: object) -> Done:
    return here("audit", run, *flags, script="w2s_plugins.labels.__main__")


@pytest.fixture
def photos(here: Run) -> dict[str, str]:
    """90 images without labels, and a table in which a third of them has a wrong one; the true classes by name."""
    return write_photos(NAMES)


def train(here: Run, name: str = "run", *flags: object) -> None:
    here(*TABLE, *SMALL, "--experiment", name, *flags).ok()


@pytest.fixture
def two(here: Run, made_once: Callable) -> dict[str, str]:
    """Two students of one table, both of which have been audited, and the true classes of the images by name."""

    def make() -> dict[str, str]:
        truth = write_photos(NAMES)
        for name, seed in (("run", 1), ("other", 2)):
            train(here, name, "--seed", seed, "--lr", 0.3 * seed)
            audit(here, name, "--images 30").ok()
        return truth

    return made_once("two audited", make)


def answers_about(truth: dict[str, str], keys: list[str]) -> dict[str, list[str]]:
    return {"filename": keys, "label": [truth[key] for key in keys]}


def fill(
    truth: dict[str, str], run: str, name: str, rows: range = range(30), **columns: object
) -> Path:
    """Answer in some rows of the table of a run, and write it with other columns."""
    (sheet,) = Path(run, "audit").glob("answers-*-30.csv")
    with sheet.open(newline="") as file:
        answered = [
            row | dict(label=truth[row["filename"]] if number in rows else "") | columns
            for number, row in enumerate(csv.DictReader(file))
        ]
    write_label_table(Path(name), [{key: [row[key] for row in answered] for key in answered[0]}])
    return Path(name)


def change_labels() -> None:
    Path("weak.csv").write_text(
        re.sub(",[0-9]$", ",7", Path("weak.csv").read_text(), flags=re.MULTILINE)
    )


def change_an_image() -> None:
    Image.new("L", (200, 150)).save("photos/3.png")


def move_an_image() -> None:
    """Into the folder of another class, which is its label."""
    (first, *_), other = sorted(Path("data/train/0").iterdir()), Path("data/train/1")
    first.rename(other / first.name)


def change_noise() -> None:
    text = Path("noise.csv").read_text()
    Path("noise.csv").write_text(text.replace(",3\n", ",4\n"))


def change_the_teacher() -> None:
    torch.save(small_model(5).state_dict(), "teacher.pth")


def select_others() -> None:
    about, *rows = Path("run/selected.txt").read_text().splitlines()
    Path("run/selected.txt").write_text("\n".join([about, *rows[1:]]))


def select_none() -> None:
    Path("run/selected.txt").unlink()


FOLDER = ["--data-dir data", "--val-split", ""]
TEACHER = ["--teacher w2s_cnn2 --teacher-checkpoint teacher.pth --loss kd --no-teacher-eval"]
CHANGES = {  # flags of the run, what changes after it, what is said of that
    "labels": (TABLE, change_labels, "the labels of --teacher labels:weak.csv changed since"),
    "an image": (TABLE, change_an_image, "the images of --unlabeled changed since"),
    "the folder of an image": (FOLDER, move_an_image, "'train' changed since"),
    "noise": (
        [*FOLDER, "--label-noise labels:noise.csv"],
        change_noise,
        "the labels of --label-noise labels:noise.csv changed since",
    ),
    "a teacher": (
        [*FOLDER, *TEACHER],
        change_the_teacher,
        "the weights of --teacher w2s_cnn2 changed since",
    ),
    "a selection": (
        [*FOLDER, *TEACHER, "--clean-select entropy:0.5"],
        select_others,
        "the selection of --clean-select changed since",
    ),
    "no selection": (
        [*FOLDER, *TEACHER, "--clean-select entropy:0.5"],
        select_none,
        "--clean-select file:run/selected.txt",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_since_the_training_is_not_what_was_learned_from(
    here: Run, photos: dict[str, str], weak: Path, kind: str
) -> None:
    """Neither before images were drawn nor after that; with everything as it was, and if moved, all is well."""
    flags, change, expected = CHANGES[kind]
    write_digits(60, lambda number, label: Path("data/train", str(label)))
    files = [
        str(path.relative_to("data/train")) for path in sorted(Path("data/train").rglob("*.png"))
    ]
    write_label_table(
        Path("noise.csv"), [{"filename": files, "label": [i % 10 for i in range(len(files))]}]
    )
    shutil.copy(weak / "last.pth.tar", "teacher.pth")
    here(*flags, *SMALL, "--experiment run").ok()

    # other labels, or other images, before anybody was asked about them
    shutil.copytree(".", "as_it_was")
    change()
    done = audit(here)
    assert expected in done.error and not Path("run/audit").exists()

    # as they were, or somewhere else; then the plan of the images before is no plan of those after the change
    for place in [*Path("as_it_was").iterdir()]:
        if place.is_dir():
            shutil.rmtree(place.name)
        place.rename(place.name)
    moved = "photos" if flags is TABLE else "data"
    Path(moved).rename("moved")
    audit(here, "run", "--data-dir moved --images 10").ok()
    (sheet,), plan = Path("run/audit").glob("answers-*-10.csv"), plan_of("run")
    Path("moved").rename(moved)
    if kind == "a teacher":  # what it has said is known, and stands in the plan
        return
    change()
    assert expected in audit(here).error
    assert expected in audit(here, "run", "--answers", sheet).error
    assert plan_of("run") == plan


def plan_of(run: str) -> dict:
    return json.loads(Path(run, "audit/plan.json").read_text())


OTHER_PLANS: dict[str, Callable[[dict, dict], dict]] = {
    "fewer images": lambda plan, other: dict(draws=[[[[0, 1], 3]]]),
    "other opinions": lambda plan, other: dict(draws=[[[[0], 30]]]),
    "made of nothing": lambda plan, other: dict(made_of=[]),
    "made of others": lambda plan, other: dict(made_of=other["made_of"]),
    "another student's": lambda plan, other: other,
}


@pytest.mark.parametrize("kind", OTHER_PLANS)
def test_a_plan_is_of_one_student_and_as_it_was_drawn(
    here: Run, two: dict[str, str], kind: str
) -> None:
    """Any other is not believed: images are drawn anew."""
    plan, answers = plan_of("run"), fill(two, "run", "answers.csv")
    changed = OTHER_PLANS[kind](plan, plan_of("other"))
    Path("run/audit/plan.json").write_text(json.dumps(plan | changed))
    error = audit(here, "run", "--answers", answers).error
    assert "no images were drawn for this student" in error
    assert "images are drawn anew" in audit(here, "run", "--images 30").ok().err
    assert plan_of("run") == plan


def test_what_another_student_says_is_not_taken_for_this_ones(
    here: Run, two: dict[str, str]
) -> None:
    """A whole plan of another run is one of the same images, but this student is asked all the same."""
    for file in ("plan.json", "opinions.safetensors"):
        shutil.copy(Path("other/audit", file), Path("run/audit", file))
    draws, opinions = plan_of("other")["draws"], len(plan_of("other")["made_of"])
    audit(here, "run", "--images 30").ok()
    plan = plan_of("run")
    assert plan["draws"] == [*draws, [[[0, opinions], 30]]]
    assert plan["made_of"][opinions][0]["fingerprint"] != plan["made_of"][1][0]["fingerprint"]


@pytest.mark.parametrize("held_out", ["", "--select-split 0.4 --select best"])
def test_what_a_student_knows_by_heart(here: Run, photos: dict[str, str], held_out: str) -> None:
    """Nobody is told to take either; images are drawn that it has not learned, if the run has held out some."""
    write_label_table(Path("weak.csv"), [answers_about(photos, [*photos])])
    for name in ("run", "other"):
        fit = "--no-aug --opt adamw --lr 0.01 --epochs 30 --val-interval 30"
        train(here, name, "--seed", len(name), held_out, fit)
    for runs in ("run", "run other"):
        done = audit(here, *runs.split(), "--images 90").ok()
        page = page_of("run", "audit-held-out" if held_out else "audit")
        count = 36 if held_out else 90
        assert len(page["keys"]) == count
        assert ("the images that were held out are drawn" in done.out) == bool(held_out)
        write_label_table(Path("all.csv"), [answers_about(photos, page["keys"])])
        # those are the images that the answers are about, next time as well
        for more in ("--answers all.csv", "--images 90"):
            done = audit(here, *runs.split(), more).ok()
            assert f"answers about {count} of the {count} drawn images" in done.out
            assert "Use whichever" not in done.out
            new = "says nothing about new images, where it may be worse"
            assert (new in done.out) == (not held_out)
    assert Path("run/audit/plan.json").is_file()
    if held_out:
        # the next round is about what the run was trained on, of which nothing was answered
        done = here("next", "run", "--images", 5, script="w2s_plugins.labels.__main__").ok()
        assert "0 of 54 images have an answer" in done.out
        # in the order of the data
        says = load_file("run/audit-held-out/opinions.safetensors")["0 says"]
        in_order = [key for key in sorted(photos) if key in page["keys"]]
        assert [NAMES[label] for label in says] == [photos[key] for key in in_order]


def test_answers_of_another_draw_are_refused(here: Run, two: dict[str, str]) -> None:
    mine, others = fill(two, "run", "mine.csv"), fill(two, "other", "others.csv")
    assert "about 30 of the 30 drawn images" in audit(here, "run", "--answers", mine).ok().out
    error = audit(here, "run", "--answers", others).error
    assert error.startswith("others.csv: is of another draw than run's: of RUN other; expected")
    assert error.endswith("answers to run/audit/index.html")
    # nor do those of several draws count together
    header, *rows = mine.read_text().splitlines()
    Path("mixed.csv").write_text("\n".join([header, *rows, *others.read_text().splitlines()[1:]]))
    error = audit(here, "run", "--answers mixed.csv").error
    assert error.startswith("mixed.csv: ") and ("2 draws" in error or "another draw" in error)


@pytest.mark.parametrize(
    ("sheet", "run"),
    [
        ("chain/two/audit", "chain/one/audit"),
        ("other/one/audit-held-out", "chain/one/audit"),
        ("other/audit", "chain/one/audit"),
        ("other/one/next", "run/next"),
    ],
)
def test_whose_a_sheet_is(tmp_path: Path, sheet: str, run: str) -> None:
    """That of a run or of a stage is known to another run or stage beside it."""
    for folder in (sheet, run):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "chain").mkdir(exist_ok=True)
    (tmp_path / "chain/result.json").touch()
    (tmp_path / sheet / "answers-a123456-30.csv").touch()
    found = run_of_sheet("a123456789abcdef", tmp_path / run).removeprefix("of RUN ")
    assert found and Path(found).resolve() == (tmp_path / sheet).parent


@pytest.mark.parametrize(
    ("column", "spell"), [("Audit", str), ("audit", " {} ".format), ("AUDIT", str.upper)]
)
def test_another_draw_is_known_however_a_spreadsheet_writes_it(
    here: Run, two: dict[str, str], column: str, spell: Callable[[str], str]
) -> None:
    (sheet,) = Path("other/audit").glob("answers-*-30.csv")
    cell = spell(sheet.read_text().split()[-1].rpartition(",")[2])
    answers = answers_about(two, page_of("run")["keys"])
    write_label_table(Path("spelt.csv"), [answers | {column: [cell] * 30}])
    assert "is of another draw" in audit(here, "run", "--answers spelt.csv").error


def test_answers_that_do_not_sample_the_strata_of_this_draw(here: Run, two: dict[str, str]) -> None:
    """Of a table that does not say whose it is: others have gaps; a person may skip none, but end anywhere."""
    plan, drawn_of_other = page_of("run")["keys"], page_of("other")["keys"]
    gap = next(row for row, key in enumerate(plan) if key not in drawn_of_other)
    error = audit(here, "run", "--answers", fill(two, "other", "without.csv", audit="")).error
    assert f"has no answer about {plan[gap]}, image {gap + 1} of the draw" in error
    write_label_table(Path("skips.csv"), [answers_about(two, [*plan[:4], *plan[5:30]])])
    error = audit(here, "run", "--answers skips.csv").error
    assert f"no answer about {plan[4]}, image 5 of the draw" in error
    assert "first 30, '?' if nobody can tell" in error
    some = fill(two, "run", "some.csv", range(20))
    assert "about 20 of the 30" in audit(here, "run", "--answers", some).ok().out
    write_label_table(Path("all.csv"), [answers_about(two, [*two]) | {"audit": ["by Anna"] * 90}])
    done = audit(here, "run", "--answers all.csv").ok()
    assert "about 30 of the 30" in done.out
    assert "60 answers are about images that are not drawn" in done.err


def test_a_name_is_that_of_one_image_of_all(here: Run, photos: dict[str, str]) -> None:
    """Also if one of the two that have it is not drawn."""
    Path("photos/a").mkdir()
    for number in range(90):
        Path("photos", f"{number}.png").rename(f"photos/a/{number}.png")
    shutil.copytree("photos/a", "photos/b")
    labels = [str(number % 10) for number in range(90)]
    write_label_table(
        Path("weak.csv"),
        [
            {"filename": [f"{folder}/{number}.png" for number in range(90)], "label": labels}
            for folder in "ab"
        ],
    )
    train(here)
    audit(here, "run", "--images 20").ok()
    drawn = page_of("run")["keys"]
    names = [Path(key).name for key in drawn]
    assert len({*names}) > 10  # and others of these names are not drawn
    alone = next(row for row, name in enumerate(names) if names.count(name) == 1)
    answers = [key if row != alone else names[alone] for row, key in enumerate(drawn)]
    write_label_table(Path("answers.csv"), [{"filename": answers, "label": ["3"] * 20}])
    error = audit(here, "run", "--answers answers.csv").error
    assert f"names '{names[alone]}', but several files have that name" in error


def level_pair(count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Truth, labels and two students in 5 classes. The first corrects a quarter of the images; the second is level with
    the labels: it corrects half of these, and spoils as many others.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, count)
    labels = np.where(rng.random(count) < 0.6, truth, (truth + 1) % 5)
    wrong, right = (
        rng.permutation(rows.nonzero()[0]) for rows in (labels != truth, labels == truth)
    )
    first, second, few = labels.copy(), labels.copy(), count // 8
    first[wrong[: 2 * few]] = truth[wrong[: 2 * few]]
    second[wrong[:few]], second[right[:few]] = truth[wrong[:few]], (truth[right[:few]] + 2) % 5
    return truth, labels, first, second, rng.random(count), rng.random(count)


@pytest.mark.parametrize("count, asked", [(300, 100), (2000, 1950)])
def test_answers_to_another_draw_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, count: int, asked: int
) -> None:
    """Of 200 pairs of students. Those that have no gap here hold the truth as often as answers to this draw do."""
    monkeypatch.setattr(module, "DRAWS", 1000)
    accepted: list[bool] = []
    refused: list[bool] = []
    for seed in range(200):
        truth, labels, first, second, _, other = level_pair(count, seed)
        opinions = opinions_of(labels, first, second, confidence=other)
        lots, own = np.random.default_rng(seed).random((2, count))
        of_first = drawing_order(opinions.of([0, 1]), lots, [Step([0, 1], asked)])
        # lots of their own, as of somebody who has drawn in another way
        pair, steps = opinions.of([0, 2]), [Step([0, 1], 100)]
        rows = drawing_order(pair, own, steps)[:100]
        known = np.isin(rows, of_first[:asked])
        chance = chances(pair, own, steps, rows)[known]
        groups = pair.differ.astype(int)
        result = estimate(pair, rows[known], truth[rows[known]], chance, groups, seed)
        reached, last = find_gap(known.nonzero()[0])
        (accepted if reached == last else refused).append(
            bool(result.lowest[1, 0] <= 0 <= result.highest[1, 0])
        )
    if count == 300:  # it would be called better nearly always
        assert not accepted and np.mean(refused) < 0.3
    else:
        assert len(accepted) > 20 and np.mean(accepted) > 0.9
