"""``labels audit`` of several classes an image: a person is asked whether an image has a class."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.study.browser import browser, open_page  # noqa: F401  (a fixture)
from w2s_plugins.audit import estimate as module
from w2s_plugins.audit.draw import Decisions, Step, chances, drawing_order, group_images
from w2s_plugins.audit.estimate import Estimate, count_yes, estimate
from w2s_plugins.labels.table_writer import write_label_table

from .conftest import Done, Run
from .test_audit import page_of, press
from .test_audit_several import rows_of, table_of
from .test_several_labels import (  # noqa: F401  (a fixture)
    NAMES,
    STUDENT,
    TRUTH,
    WEAK,
    pairs,
)

Audit = Callable[..., Done]


@pytest.fixture
def audit(pairs: Run, made_once: Callable) -> Audit:  # noqa: F811
    """Runs ``labels audit``; there are two students of the weak labels of 64 pairs of digits."""

    def make() -> None:
        for name, more in (
            ("run", "--seed 1 --multilabel-threshold 0.3"),
            ("other", "--seed 2 --multilabel-threshold 0.3"),
        ):
            pairs(
                *STUDENT, WEAK, "--loss bce --epochs 8 --output .", more, "--experiment", name
            ).ok()

    made_once("two students of pairs", make)

    def run(words: str, *more: object) -> Done:
        return pairs("audit", *words.split(), *more, script="w2s_plugins.labels.__main__")

    return run


def truth_of(table: str = "train.csv") -> dict[str, set[str]]:
    return {row["filename"]: {*row["labels"].split(",")} for row in table_of(table)}


def answer(name: str, count: int | None = None, run: str = "run", unsure: int = -1) -> Path:
    """Answer the first questions of a page by the truth, as the page writes it."""
    page, truth = page_of(run), truth_of()
    rows = [
        (image, label, "?" if number == unsure else "yes" if label in truth[image] else "no")
        for number, (image, label) in enumerate(page["questions"][:count])
    ]
    columns = dict(zip(("filename", "class", "answer"), map(list, zip(*rows))))
    write_label_table(Path(name), [{**columns, "audit": [page["id"]] * len(rows)}])
    return Path(name)


def said(run: str, number: int) -> np.ndarray:
    """What an opinion says of each image and class."""
    rows = load_file(Path(run, "audit/opinions.safetensors"))[f"{number} says"]
    return rows.reshape(-1, len(NAMES))


def matrix() -> np.ndarray:
    """The truth of each image and class."""
    return np.array([[name in has for name in NAMES] for has in truth_of().values()]).astype(int)


def shares(out: str, name: str) -> list[float]:
    """Accuracy, precision and recall of somebody, as they are printed."""
    first, second = re.findall(rf"^{re.escape(name)} +([0-9].*)$", out, re.MULTILINE)
    return [float(first.split()[0]), float(second.split()[0]), float(second.split()[4])]


def test_all_answers_say_what_is_so(audit: Audit) -> None:
    """Of accuracy, precision and recall of labels and students, and of each class."""
    done = audit("run other --images 2000").ok()
    says = [said("run", number) for number in range(3)]
    known = (says[0] >= 0).ravel()
    # of some the weak labels say nothing
    assert f"{(~known).sum()} of 640 questions are left out" in done.err
    assert f"of {known.sum()} questions; {known.sum()} are drawn" in done.out
    done = audit("run other --answers", answer("all.csv")).ok()
    truth = matrix().ravel()[known]
    for name, own in zip(("labels", "run", "other"), says):
        yes = own.ravel()[known] == 1
        expected = [(yes == truth).mean(), truth[yes].mean(), yes[truth == 1].mean()]
        assert shares(done.out, name) == pytest.approx(100 * np.array(expected), abs=0.051)
    assert "Best: labels" in done.out and rows_of(done.out)["labels"][1].count("to") == 1
    right = {row["class"]: float(row["accuracy"]) for row in table_of("run/audit/classes.csv")}
    own, there = says[0], matrix()
    for place, name in enumerate(NAMES):
        asked = own[:, place] >= 0
        assert right[name] == pytest.approx((own == there)[asked, place].mean(), abs=1e-4)
    # nothing is open, so that intervals have no width
    assert all(row["low"] == row["high"] for row in table_of("run/audit/differences.csv"))
    # and the checked table has the truth
    checked = table_of("run/audit/checked.csv")
    assert len(checked) == 64
    for row, has in zip(checked, says[0]):
        for place, name in enumerate(NAMES):
            cell = "" if has[place] < 0 else str(int(name in truth_of()[row["filename"]]))
            assert row[f"probabilities.{name}"] == cell


def test_a_draw_and_its_answers(audit: Audit) -> None:
    """Most questions are where some differ; of the others half are those that all say yes to; answers are kept."""
    done = audit("run --images 80").ok()
    assert "the student agrees with its labels on" in done.out and "80 are drawn" in done.out
    page = page_of("run")
    assert page["classes"] == ["no", "yes"] and len({*map(tuple, page["questions"])}) == 80
    pair = np.stack([said("run", 0).ravel(), said("run", 1).ravel()], axis=1)[page["keys"]]
    differ = pair[:, 0] != pair[:, 1]
    assert 58 <= differ.sum() <= 62 and 8 <= (~differ & (pair[:, 0] == 1)).sum() <= 12
    (sheet,) = Path("run/audit").glob("answers-*-80.csv")
    assert [*table_of(str(sheet))[0]] == ["filename", "class", "answer", "audit"]

    done = audit("run --answers", answer("some.csv", 60, unsure=3)).ok()
    assert "answers about 60 of the 80 drawn questions, 1 of them '?' (cannot tell)" in done.out
    assert re.search("^difference ", done.out, re.MULTILINE) and "answers of yes say so" in done.out
    assert (
        "--train-labels run/audit/checked.csv?missing=skip" in done.out
        and not Path("run/audit/checked").exists()
    )
    # for more questions, and another student, answers count again
    done = audit("run other --images 100").ok()
    page = page_of("run")
    assert "the answers so far: answers about 60 of the 100 drawn questions" in done.out
    assert len(page["given"]) == 60 and page["given"][3][1] == "?"
    done = audit("run other weak.csv --answers", answer("more.csv")).ok()
    assert "about 100 of the 100" in done.out
    # the table is what both have learned from, and has its own name
    assert "labels" not in rows_of(done.out) and len(rows_of(done.out)) > 2


def test_several_people(audit: Audit) -> None:
    """The most count, and of a tie nobody can tell."""
    audit("run --images 30").ok()
    first = table_of(str(answer("one.csv")))
    other = [row | {"answer": {"yes": "no", "no": "yes"}[row["answer"]]} for row in first[:2]]
    rows = [*first, *other, first[1]]
    write_label_table(Path("two.csv"), [{name: [row[name] for row in rows] for name in rows[0]}])
    assert "drawn questions, 1 of them '?'" in audit("run --answers two.csv").ok().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,class,answer\n{0},{1},maybe\n", "row 1: 'maybe' is no answer; expected yes, no"),
        ("filename,class,answer\n{0},d11,yes\n", "row 1: 'd11' is no class (nearest: d1"),
        ("filename,class,answer\n{0},{1},\n", "answers no question; expected yes, no or ?"),
        ("filename,class,answer\n{0},{1},?\n", "says of no question what is on it"),
        ("filename,class,answer\nx.png,{1},yes\n", "is about other data"),
        ("filename,class,answer,audit\n{0},{1},yes,a0123456789abcde\n", "is of another draw"),
        (
            "filename,class,answer\n{2},{3},yes\n",
            "has no answer about {0} and '{1}', question 1 of",
        ),
        ("filename,label\n{0},{1}\n", "has no column class; of several classes an image expected "),
        ("filename,labels\n{0},{1}\n", "expected filename, class, answer"),
    ],
)
def test_answers_that_cannot_be_read(audit: Audit, text: str, message: str) -> None:
    audit("run --images 20").ok()
    first, second = page_of("run")["questions"][:2]
    Path("bad.csv").write_text(text.format(*first, *second))
    assert message.format(*first) in audit("run --answers bad.csv").error


def test_what_is_refused(audit: Audit, pairs: Run) -> None:  # noqa: F811
    error = pairs("review", "run", script="w2s_plugins.labels.__main__").error
    assert "which are not reviewed; expected" in error
    error = pairs("next", "run", script="w2s_plugins.labels.__main__").error
    assert error.startswith("RUN run: labels of several classes an image")
    assert error.endswith("labels audit run")
    assert "no images were drawn for this student" in audit("run --answers none.csv").error
    audit("run --images 20").ok()
    assert "none.csv: no such file" in audit("run --answers none.csv").error
    # changed images, and labels
    table = Path("weak.csv").read_text()
    Path("weak.csv").write_text(table.replace("0.80", "0.10", 40))
    assert "changed since" in audit("run --images 20").error


def test_a_student_of_true_labels(audit: Audit, pairs: Run) -> None:  # noqa: F811
    """They are right, wherever they are known."""
    pairs(*STUDENT, TRUTH, "--output . --experiment truly").ok()
    audit("truly --images 640").ok()
    done = audit("truly --answers", answer("all.csv", run="truly")).ok()
    assert shares(done.out, "labels") == [100, 100, 100]


def test_a_run_that_has_learned_the_answers_is_not_asked_about_these(
    audit: Audit,
    pairs: Run,  # noqa: F811
) -> None:
    """The table of answers trains as true labels beside the weak ones."""
    audit("run --images 30").ok()
    audit("run --answers", answer("said.csv")).ok()
    images = {image for image, _ in page_of("run")["questions"]}
    checked = "--train-split train --train-labels run/audit/checked.csv?missing=skip --task-loss-weight 0.5"
    pairs(*STUDENT, WEAK, checked, "--loss bce --output . --experiment next").ok()
    done = audit("next --images 2000").ok()
    assert not images & {image for image, _ in page_of("next")["questions"]}
    assert "or one has learned your answers about them" in done.err


def test_stages_end_with_a_page(pairs: Run) -> None:  # noqa: F811
    """As those that try several students do."""
    Path("stages.yaml").write_text("- {name: one}\n- {name: two, lr: 0.03}\n- audit: [one, two]\n")
    done = pairs(*STUDENT, WEAK, "--loss bce --stages stages.yaml --output . --experiment c").ok()
    assert "WARNING: no images are drawn" not in done.err
    assert re.search("^labels, one, two: all agree on .* questions; 64 are drawn$", done.out, re.M)
    words = ["audit", "c/one", "c/two", "--answers"]
    file = answer("said.csv", run="c/one")
    done = pairs(*words, file, script="w2s_plugins.labels.__main__").ok()
    assert {*rows_of(done.out)} >= {"labels", "one", "two"}


def test_tables_alone(audit: Audit) -> None:
    words = "train.csv weak.csv --data-dir train --task multilabel"
    done = audit(f"{words} --images 30").ok()
    assert "train.csv, weak.csv: all agree on" in done.out and "--task multilabel" in done.out
    Path("run/audit").mkdir()
    Path("train.csv.audit/index.html").rename("run/audit/index.html")
    done = audit(f"{words} --answers", answer("said.csv")).ok()
    assert rows_of(done.out)["train.csv"][0] == "100.0"
    assert "--task classification" not in audit("run --task multilabel --images 9").ok().out


def test_by_keys_in_a_browser(audit: Audit, browser, tmp_path: Path) -> None:  # noqa: F811
    audit("run --images 5").ok()
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "d")}
    )
    open_page(browser, Path("run/audit/index.html"))
    truth, given = truth_of(), []
    for number, (image, name) in enumerate(page_of("run")["questions"]):
        asked = browser.find_element(By.ID, "question").text
        assert asked == f"Does this image show “{name}”?"
        given.append("?" if number == 2 else "yes" if name in truth[image] else "no")
        press(browser, "n", Keys.BACKSPACE, given[-1][0])
    assert browser.find_element(By.ID, "done").is_displayed()
    assert browser.get_log("browser") == []
    browser.find_element(By.ID, "save").click()
    WebDriverWait(browser, 30).until(lambda _: [*Path("d").glob("*.csv")])
    (file,) = Path("d").glob("*.csv")
    assert [row["answer"] for row in table_of(str(file))] == given
    assert "about 5 of the 5 drawn questions, 1 of them" in audit("run --answers", file).ok().out


# ---------------------------------------------------------------- the estimate


def made(count: int, seed: int) -> tuple[np.ndarray, Decisions]:
    """Truth of questions, of which a tenth is yes, and what labels and a student say of them."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.1).astype(int)
    hard = rng.random(count)
    labels = np.where(rng.random(count) < 0.08, 1 - truth, truth)
    student = np.where(rng.random(count) < 0.12 * hard, 1 - truth, truth)
    student = np.where(rng.random(count) < 0.5, labels, student)
    sure = np.stack([np.full(count, np.nan), 1 - 0.5 * hard], axis=1)
    return truth, Decisions(np.stack([labels, student], axis=1), sure)


def asked_of(
    opinions: Decisions, truth: np.ndarray, steps: list[Step], seed: int
) -> tuple[Estimate, np.ndarray, np.ndarray]:
    lots = np.random.default_rng(seed).random(len(truth))
    rows = drawing_order(opinions, lots, steps)[: steps[-1].drawn]
    chance = chances(opinions, lots, steps, rows)
    groups = group_images(opinions, [opinions.of(step.columns) for step in steps])
    evidence = opinions, rows, truth[rows], chance, groups
    return estimate(*evidence, seed), *count_yes(*evidence, seed)


@pytest.mark.parametrize("steps", [[Step([0, 1], 150)], [Step([0], 60), Step([0, 1], 200)]])
def test_intervals_hold_what_they_promise(
    monkeypatch: pytest.MonkeyPatch, steps: list[Step]
) -> None:
    """Of 300 audits each, at least in 91.3 %: within three standard errors (1.3 %) of 95 %."""
    monkeypatch.setattr(module, "DRAWS", 1500)
    truth, opinions = made(3000, 0)
    yes = opinions.says == 1
    true = (opinions.says == truth[:, None]).mean(axis=0)
    precision = [truth[own].mean() for own in yes.T]
    recall = yes[truth == 1].mean(axis=0)
    held = np.zeros(7)
    for seed in range(300):
        result, precisions, recalls = asked_of(opinions, truth, steps, seed)
        held[:2] += (result.low <= true) & (true <= result.high)
        difference = true[1] - true[0]
        held[2] += result.lowest[1, 0] <= difference <= result.highest[1, 0]
        held[3:5] += (precisions[:, 1] <= precision) & (precision <= precisions[:, 2])
        held[5:] += (recalls[:, 1] <= recall) & (recall <= recalls[:, 2])
    assert (held >= 274).all(), held


def test_nothing_is_open_where_all_have_an_answer() -> None:
    truth, opinions = made(400, 1)
    result, precision, recall = asked_of(opinions, truth, [Step([0, 1], 400)], 0)
    yes = opinions.says == 1
    assert result.low.tolist() == result.high.tolist()
    assert pytest.approx(np.tile([truth[own].mean() for own in yes.T], (3, 1))) == precision.T
    assert pytest.approx(np.tile(yes[truth == 1].mean(axis=0), (3, 1))) == recall.T
    # who never says yes has no precision
    never = Decisions(np.zeros((9, 1), dtype=int), np.full((9, 1), np.nan))
    _, precision, recall = asked_of(never, np.zeros(9, dtype=int), [Step([0], 9)], 0)
    assert np.isnan(precision).all() and np.isnan(recall).all()
