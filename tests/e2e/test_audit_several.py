"""``labels audit`` of several runs and tables: one page and one set of answers say which is right most often."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.study.browser import browser, open_page  # noqa: F401  (a fixture)
from w2s_plugins.audit.estimate import Answers, Estimate
from w2s_plugins.audit.page import Sheet, write_page
from w2s_plugins.audit.report import (
    by_class,
    class_shares,
    confusion_of,
    verdict_on_one,
    verdict_on_several,
)
from w2s_plugins.labels.table_writer import write_label_table

from .conftest import BRIEF, Done, Run
from .test_audit import page_of, press, reopened, said, write_photos
from .test_audit_content import NAMES, answers_about, audit, fill

TABLE = "--unlabeled photos --class-names names.json --loss kd --model w2s_cnn2 --output ."
RUNS = {
    "run": "--teacher labels:weak.csv --seed 1",
    "other": "--teacher labels:weak.csv --seed 2 --lr 0.6",
    "third": "--teacher labels:better.csv --seed 3",
}


@pytest.fixture
def runs(here: Run, made_once: Callable) -> dict[str, str]:
    """Three students, two of them of the same labels, and a table that is mostly right; the true classes by name."""

    def make() -> dict[str, str]:
        truth = write_photos(NAMES)
        better = [label if i % 5 else "7" for i, label in enumerate(truth.values())]
        write_label_table(Path("better.csv"), [{"filename": [*truth], "label": better}])
        for name, flags in RUNS.items():
            here(TABLE, *BRIEF, flags, "--experiment", name).ok()
        return truth

    return made_once("three students", make)


def of(here: Run, words: str, *more: object) -> Done:
    """Run ``labels audit`` with some words."""
    return audit(here, *words.split(), *more)


def table_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def rows_of(out: str) -> dict[str, list[str]]:
    """The cells of the printed table by the name of the row."""
    _, table = re.split("\n-[- ]*\n", out, maxsplit=1)
    rows = [re.split("  +", line.strip()) for line in table.split("\n")]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_answers_about_all_images_say_which_is_best(here: Run, runs: dict[str, str]) -> None:
    """The accuracies are then the true ones, for runs, labels and tables, on one page."""
    done = of(here, "run other third better.csv --images 90").ok()
    # what third has learned from is better.csv
    assert "labels, run, other, third, better.csv: all agree on" in done.out
    page = page_of("run")
    assert len(page["keys"]) == 90 and all(2 <= len(one) <= 10 for one in page["candidates"])
    write_label_table(Path("all.csv"), [answers_about(runs, [*runs])])
    done = of(here, "run other third better.csv --answers all.csv").ok()
    found, numbers = (
        rows_of(done.out),
        {"better.csv": 0, "labels": 1, "run": 2, "other": 3, "third": 5},
    )
    for name, number in numbers.items():
        opinion = said("run", number)
        right = 100 * np.mean([NAMES[opinion[key]] == label for key, label in runs.items()])
        assert found[name][0] == f"{right:.1f}"
    accuracies = [float(row[0]) for row in found.values()]
    assert accuracies == sorted(accuracies, reverse=True) and max(accuracies) == 82.2
    assert "Best: better.csv, right more often than any other" in done.out
    pairs = table_of("run/audit/differences.csv")
    assert len(pairs) == 10 and all(
        pair["low"] == pair["high"] == pair["difference"] for pair in pairs
    )


def test_a_table_that_is_among_the_labels_has_a_row_of_its_own(here: Run, runs: dict) -> None:
    done = of(here, "run labels:better.csv third --images 20").ok()
    assert "labels, run, better.csv, third: all agree on" in done.out
    # and where the labels of the first run are in a table, those of others are called after them
    done = of(here, "third better.csv run --images 20").ok()
    assert "third, better.csv, labels of run, run: all agree on" in done.out


def test_a_run_may_be_called_labels(here: Run, runs: dict[str, str]) -> None:
    Path("other").rename("labels")
    done = of(here, "run labels --images 20").ok()
    assert "labels, run, ./labels: all agree on 18.9 %" in done.out


def test_answers_stay_when_a_run_is_added(here: Run, runs: dict[str, str]) -> None:
    of(here, "run --images 30").ok()
    first = page_of("run")
    old = fill(runs, "run", "old.csv", range(20))
    # the answers to the first page say something of the other run before any more images are drawn
    done = of(here, "run other --answers", old).ok()
    assert "about 20 of the 30" in done.out and "other" in rows_of(done.out)

    # they come first on the new page, are there already, and count with the new ones
    done = of(here, "run other --images 50").ok()
    page = page_of("run")
    assert page["keys"][:20] == first["keys"][:20] and len({*page["keys"]}) == 50
    assert page["given"] == [[key, runs[key]] for key in first["keys"][:20]]
    assert "the answers so far: answers about 20 of the 50" in done.out
    (sheet,) = Path("run/audit").glob("answers-*-50.csv")
    assert [row["label"] for row in table_of(str(sheet))] == [
        runs[key] if number < 20 else "" for number, key in enumerate(page["keys"])
    ]
    write_label_table(Path("new.csv"), [answers_about(runs, page["keys"])])
    done = of(here, "run other --answers new.csv").ok()
    assert "about 50 of the 50" in done.out
    # and for one of them alone
    done = of(here, "run --images 50").ok()
    assert "all of these have an answer already; --images 90 draws 40 more" in done.out
    assert "the answers so far: answers about 50 of the 50" in done.out
    # the same answers again, of the first page: they are those of that page, and no others are lost
    kept = Path("run/audit/answers.csv").read_bytes()
    done = of(here, "run --answers", old).ok()
    assert "about 20 of the 30" in done.out and "there are fewer now; they are kept as" in done.err
    assert Path("run/audit/earlier-1-answers.csv").read_bytes() == kept
    # and those that are replaced for the second time are kept beside them
    of(here, "run other --answers new.csv").ok()
    second = Path("run/audit/answers.csv").read_bytes()
    assert "kept as run/audit/earlier-2" in of(here, "run --answers", old).ok().err
    assert Path("run/audit/earlier-1-answers.csv").read_bytes() == kept
    assert Path("run/audit/earlier-2-answers.csv").read_bytes() == second


def test_kept_answers_that_were_damaged_are_said_to_be(here: Run, runs: dict[str, str]) -> None:
    of(here, "run --images 30").ok()
    of(here, "run --answers", fill(runs, "run", "old.csv")).ok()
    Path("run/audit/answers.csv").write_text("filename,label\nnone.png,1\n")
    assert "run/audit/answers.csv: is about other data" in of(here, "run").error


def test_answers_of_a_draw_that_is_gone_are_set_aside(here: Run, runs: dict[str, str]) -> None:
    """Images are drawn anew where others were added, and the next audit is not refused because of old answers."""
    of(here, "run third --images 30").ok()
    old = fill(runs, "run", "old.csv")
    of(here, "run third --answers", old).ok()
    content = Path("run/audit/answers.csv").read_bytes()
    Path("run/audit/plan.json").unlink()
    # they count again where the same images are drawn
    of(here, "run third --images 30").ok()
    assert "the answers so far: answers about 30" in of(here, "run third --images 30").ok().out
    Path("run/audit/plan.json").unlink()
    done = of(here, "run --images 40").ok()
    assert (
        "do not count, because they are of another draw; they are kept as run/audit/earlier-1"
        in done.err
    )
    assert Path("run/audit/earlier-1-answers.csv").read_bytes() == content
    assert "40 are drawn" in of(here, "run --images 40").ok().out


def test_one_audit_at_a_time(here: Run, runs: dict[str, str]) -> None:
    Path("run/audit").mkdir()
    with FileLock("run/audit/.lock"):
        error = of(here, "run other").error
        assert error.startswith("run/audit: another command is at work in it; wait for its end")
        # which asks the same student
        of(here, "other run --images 20").ok()
    of(here, "run other --images 20").ok()
    assert not Path("other/audit/student").exists()


def test_a_class_called_class(here: Run, runs: dict[str, str]) -> None:
    names = {key: "class" if label == "0" else label for key, label in runs.items()}
    write_label_table(Path("odd.csv"), [answers_about(names, [*names])])
    of(here, "odd.csv --data-dir photos --images 90").ok()
    of(here, "odd.csv --data-dir photos --answers odd.csv").ok()
    rows = table_of("odd.csv.audit/confusion.csv")
    assert [row["true class"] for row in rows] == [*rows[0]][1:] and len(rows[0]) == 11


def test_labels_alone_and_tables_alone(here: Run, runs: dict[str, str]) -> None:
    error = of(here, "labels:weak.csv").error
    assert error == "labels:weak.csv: a table says of no image where it is; expected --data-dir DIR"
    done = of(here, "labels:weak.csv --data-dir photos --images 90").ok()
    assert "labels:weak.csv: 90 images; 90 are drawn" in done.out
    write_label_table(Path("all.csv"), [answers_about(runs, [*runs])])
    command = "--data-dir photos --answers all.csv"
    done = audit(here, "labels:weak.csv", command).ok()
    assert rows_of(done.out)["weak.csv"] == ["66.7", "66.7 to 66.7"]
    assert "no random sample" not in done.out and Path("weak.csv.audit/checked/train").is_dir()
    # a table of probabilities beside one of classes
    shares = np.eye(10)[[int(label) for label in runs.values()]] * 0.7 + 0.03
    write_label_table(
        Path("shares.csv"), [{"filename": [*runs], **dict(zip(NAMES, shares.astype("float32").T))}]
    )
    of(here, "weak.csv shares.csv --data-dir photos --images 20").ok()
    done = of(here, f"weak.csv shares.csv {command}").ok()
    assert rows_of(done.out)["shares.csv"][0] == "100.0"


def test_a_table_may_have_the_signs_of_settings_in_its_name(here: Run, runs: dict) -> None:
    for name in ("we#ak.csv", "we?ak.csv"):
        Path("better.csv").rename(name)
        of(here, f"labels:{name} --data-dir photos --images 9").ok()
        assert Path(f"{name}.audit/index.html").is_file()
        Path(name).rename("better.csv")
    of(here, "labels:better.csv#label --data-dir photos --images 9").ok()
    assert Path("better.csv.audit/index.html").is_file()


def test_images_of_which_not_all_say_something_are_left_out(here: Run, runs: dict) -> None:
    some = [*runs][10:60]
    write_label_table(Path("some.csv"), [answers_about(runs, some)])
    done = of(here, "run labels:some.csv --images 90").ok()
    assert "40 of 90 images are left out" in done.err and "50 images; 50 are drawn" in done.out
    assert {*page_of("run")["keys"]} == {*some}


def test_answers_about_some_images_do_not_keep_the_others_from_being_drawn(
    here: Run, runs: dict
) -> None:
    write_label_table(Path("some.csv"), [answers_about(runs, [*runs][10:60])])
    of(here, "run some.csv --images 90").ok()
    write_label_table(Path("new.csv"), [answers_about(runs, page_of("run")["keys"])])
    of(here, "run some.csv --answers new.csv").ok()
    done = of(here, "run third --images 90").ok()
    assert "90 images; 90 are drawn" in done.out
    assert "40 images could not be drawn so far" in done.err
    write_label_table(Path("all.csv"), [answers_about(runs, [*runs])])
    done = of(here, "run third --answers all.csv").ok()
    assert "could not be drawn" not in done.err
    assert rows_of(done.out)["labels"][:2] == ["66.7", "66.7 to 66.7"]


def test_answers_count_of_the_images_that_all_say_something_of(here: Run, runs: dict) -> None:
    """Answers about others are kept, and say nothing of these."""
    of(here, "run --images 90").ok()
    own = said("run", 1)
    mostly = {key: NAMES[(own[key] + (number % 4 == 0)) % 10] for number, key in enumerate(runs)}
    write_label_table(Path("mostly.csv"), [answers_about(mostly, [*runs])])
    write_label_table(Path("some.csv"), [answers_about(runs, [*runs][10:60])])
    of(here, "run --answers mostly.csv").ok()
    of(here, "run some.csv --images 90").ok()
    done = of(here, "run some.csv --answers mostly.csv").ok()
    assert "Best: run" in done.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("run", "RUN run: is named twice; expected different runs or tables"),
        ("./run/", "RUN ./run/: is named twice; expected different runs or tables"),
        ("better.csv labels:better.csv", "RUN labels:better.csv: is named twice; expected"),
        ("x " * 30, "RUN: 31 runs and tables; expected at most 30"),
        ("nowhere", "expected the folder of a run that has ended, or a table of labels"),
        ("labels:gone.csv", "gone.csv"),
        ("labels:names.json", "names.json"),
        ("labels:far.csv", "far.csv: is about other data"),
        ("labels:odd.csv", "'owl' is no class"),
    ],
)
def test_what_cannot_be_compared(here: Run, runs: dict, more: str, message: str) -> None:
    Path("far.csv").write_text("filename,label\nx.png,1\n")
    Path("odd.csv").write_text("filename,label\n3.png,owl\n4.png,owl\n")
    assert message in of(here, f"run {more}").error
    assert not Path("run/audit").exists()


def test_runs_of_other_images_or_classes(here: Run, runs: dict[str, str]) -> None:
    Path("names.json").write_text(json.dumps([*NAMES, "ten"]))
    here(TABLE, *BRIEF, RUNS["run"], "--experiment wider").ok()
    assert of(here, "run wider").error == "RUN wider: has other classes than run"
    Path("names.json").write_text(json.dumps(NAMES))
    Path("photos").rename("before")
    Path("photos").mkdir()
    for number in range(90):
        Image.new("L", (8, 8), number).save(f"photos/{number}.png")
    here(TABLE, *BRIEF, RUNS["run"], "--experiment grey").ok()
    error = of(here, "grey run --data-dir before").error
    assert "changed since" in error
    Path("photos").rename("grey_photos")
    Path("before").rename("photos")
    assert "the images of --unlabeled changed since" in of(here, "run grey").error


# ---------------------------------------------------------------- the page


SCRIPTS = ["кошка", "кот", "собака", "猫", "犬", "鳥", "قطة", "كلب", "café", "Ärger"]


def made_page(path: Path, classes: list[str], said_by: int) -> list[str]:
    """A page about images of which so many opinions say other classes."""
    keys = [f"{number}.png" for number in range(6)]
    candidates = [
        sorted((number + k) % len(classes) for k in range(said_by)) for number in range(6)
    ]
    sheet = Sheet(
        # a place in the browser of its own
        id=f"a{len(classes)}-{said_by}",
        earlier=["a" + "1" * 15],
        title="t",
        by="filename",
        images=keys,
        classes=classes,
        candidates=candidates,
        table={},
    )
    write_page(path, [Image.new("L", (40, 30), 40 * number) for number in range(6)], sheet, "c")
    return keys


def given_on(browser) -> list:  # noqa: F811
    return browser.execute_script("return given")


@pytest.mark.parametrize("said_by", [2, 8])
def test_classes_of_three_scripts_by_keys(browser, tmp_path: Path, said_by: int) -> None:  # noqa: F811
    keys = made_page(tmp_path / "index.html", SCRIPTS, said_by)
    open_page(browser, tmp_path / "index.html")
    wanted = ["кот", "猫", "قطة", "café", "Ärger"]
    for name in wanted:
        press(browser, name.replace("é", "e").replace("Ä", "a"), Keys.ENTER)
    # the candidates of the last one come first, and 9 and 0 are keys as well
    buttons = [
        one.text.split("\n")[-1]
        for one in browser.find_elements(By.CSS_SELECTOR, "#classes button")
    ]
    assert len(buttons) == 10
    press(browser, str(said_by))
    assert given_on(browser)[:5] == [[key, name] for key, name in zip(keys, wanted)]
    assert given_on(browser)[5][1] == SCRIPTS[sorted((5 + k) % 10 for k in range(said_by))[-1]]
    assert browser.get_log("browser") == []


def test_two_hundred_classes_by_keys(browser, tmp_path: Path) -> None:  # noqa: F811
    classes = [f"class {number}" for number in range(200)]
    made_page(tmp_path / "index.html", classes, 8)
    open_page(browser, tmp_path / "index.html")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#classes button")) == 200
    assert len(browser.find_elements(By.CSS_SELECTOR, "#classes kbd")) == 10
    press(browser, "/", "class 17", Keys.ENTER)
    press(browser, "/", "199", Keys.ENTER)
    assert [label for _, label in given_on(browser)] == ["class 17", "class 199"]


def test_answers_in_the_browser_stay_when_a_run_is_added(browser, here, runs, tmp_path) -> None:  # noqa: F811
    """Those to the page before are there on the new one for the images that are on both."""
    of(here, "run --images 12").ok()
    page, first = Path("run/audit/index.html"), page_of("run")
    open_page(browser, page)
    for key in first["keys"]:
        press(browser, "/", runs[key], Keys.ENTER)
    assert browser.find_element(By.ID, "count").text == "12 of 12 answered"
    WebDriverWait(browser, 30).until(lambda _: reopened(browser, page) == "12 of 12 answered")
    of(here, "run other --images 40").ok()
    second = page_of("run")
    both = [key for key in first["keys"] if key in second["keys"]]
    assert second["earlier"] == [first["id"]] and len(both) > 4
    WebDriverWait(browser, 30).until(
        lambda _: reopened(browser, page) == f"{len(both)} of 40 answered"
    )


# ---------------------------------------------------------------- what else the answers tell


def test_what_is_said_of_classes(here: Run, runs: dict[str, str]) -> None:
    of(here, "run --images 90").ok()
    write_label_table(Path("all.csv"), [answers_about(runs, [*runs])])
    out = of(here, "run --answers all.csv").ok().out
    counts = {name: [*runs.values()].count(name) for name in NAMES}
    rows = {row["class"]: row for row in table_of("run/audit/classes.csv")}
    labels = said("run", 0)
    for name, count in counts.items():
        right = sum(NAMES[labels[key]] == name == label for key, label in runs.items())
        assert int(rows[name]["answers"]) == count
        assert float(rows[name]["accuracy"]) == pytest.approx(right / count, abs=1e-4)
        assert float(rows[name]["low"]) <= right / count <= float(rows[name]["high"])
    assert sum(float(row["share"]) for row in rows.values()) == pytest.approx(1, abs=0.001)
    matrix = np.array(
        [[float(row[name]) for name in NAMES] for row in table_of("run/audit/confusion.csv")]
    )
    assert matrix.sum() == 90 and matrix.sum(axis=1).tolist() == [*counts.values()]
    (line,) = re.findall(r"shares of the classes in percent: (.*)", out)
    assert re.fullmatch(r"--loss balanced_elr --loss-kwargs shares=\[([0-9.]+,?){10}\]", line)


def test_a_student_of_grey_images_beside_one_of_colours(here: Run, runs: dict[str, str]) -> None:
    here(TABLE, *BRIEF, RUNS["run"], "--in-chans 1 --experiment grey").ok()
    of(here, "grey --images 90").ok()
    own = said("grey", 1)
    mostly = {key: NAMES[(own[key] + (number % 4 == 0)) % 10] for number, key in enumerate(runs)}
    write_label_table(Path("mostly.csv"), [answers_about(mostly, [*runs])])
    of(here, "run grey --images 90").ok()
    done = of(here, "run grey --answers mostly.csv").ok()
    right = [NAMES[own[key]] == name for key, name in mostly.items()]
    assert rows_of(done.out)["grey"][0] == f"{100 * np.mean(right):.1f}"


def test_shares_are_nearer_to_the_truth_than_what_is_said_or_answered() -> None:
    """On average over 200 made sets of 10 classes, a hundred answers each; with all answers they are exact."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(200):
        truth = rng.choice(10, 2000, p=rng.dirichlet(np.ones(10)))
        says = np.where(
            rng.random(2000) < 0.6, truth, rng.choice(10, 2000, p=rng.dirichlet(np.ones(10)))
        )
        rows = rng.choice(2000, 100, replace=False)
        answers = Answers(*[np.empty(0)] * 6)._replace(truth=truth[rows], others=np.full(100, 19.0))
        confusion = confusion_of(says[rows], answers, 10)
        true, said_of_all = (np.bincount(one, minlength=10) / 2000 for one in (truth, says))
        alone = np.bincount(truth[rows], minlength=10) / 100
        found = class_shares(says, confusion, 100)
        errors.append([np.abs(one - true).sum() for one in (found, said_of_all, alone)])
    mean = np.mean(errors, axis=0)
    assert mean[0] < 0.95 * min(mean[1:])
    whole = np.zeros((10, 10))
    np.add.at(whole, (truth, says), 1)
    assert class_shares(says, whole, 1e9) == pytest.approx(true, abs=1e-3)


def test_accuracy_by_class_is_that_of_scipy_and_weights() -> None:
    truth, says = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    answers = Answers(*[np.empty(0)] * 6)._replace(truth=truth, others=np.array([1.0, 1, 3, 0]))
    first, second, none = by_class(says, answers, 3)
    assert first[0] == pytest.approx(0.5) and first[3] == 3 and second[0] == 1 and second[3] == 1
    assert first[1] < 0.5 < first[2] and none == pytest.approx((0.5, 0.0015, 0.9985, 0), abs=1e-3)


def test_labels_of_a_posterior_are_not_those_of_a_mean(here: Run, runs: dict[str, str]) -> None:
    """Of the same teachers, which say something else together."""
    for name, assign in (("mean", "mean"), ("weighed", "posterior:20")):
        flags = f"--teacher labels:weak.csv,labels:better.csv --teacher-assign {assign}"
        here(TABLE, *BRIEF, flags, "--experiment", name).ok()
    done = of(here, "mean weighed --images 20").ok()
    assert "labels, mean, labels of weighed, weighed: all agree on" in done.out


@pytest.mark.parametrize(
    "by, verdict", [(0.0, "Level: where"), (0.0002, "Level: they"), (0.02, "Better: ")]
)
def test_a_difference_that_is_shown_as_nothing_is_level(by: float, verdict: str) -> None:
    """A student that has learned its labels by heart is above them for sure, by next to nothing."""
    ends = np.array([[0, -by], [by, 0]])
    both = np.array([1 - by, 1])
    result = Estimate(both, both, both, ends, ends, ends, both, np.ones((2, 2)))
    said = 100, 100, 1000, "image"
    assert verdict_on_one(result, Path("export"), *said, 0.97).startswith(verdict)
    # what a student knows by heart says nothing about new images
    of_learned = verdict_on_one(result, Path("export"), *said, 0.997)
    assert "repeats its labels on 99.7 % of the images" in of_learned or verdict == "Better: "
    assert "Use" not in of_learned or verdict == "Better: "
    of_two = verdict_on_several(["labels", "student"], result, 100, 100, 1000)
    assert of_two.startswith("Best: " if verdict == "Better: " else "Level: ")
