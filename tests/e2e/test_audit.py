"""``labels audit``: images of a run are drawn, a person answers by keys in a real browser, and the answers are read."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.parts import small_model, write_digits
from tests.study.browser import browser, open_page  # noqa: F401  (a fixture)
from w2s_plugins.audit import estimate as module
from w2s_plugins.audit.draw import STRATA, drawing_order, find_strata
from w2s_plugins.audit.estimate import count_outcomes, estimate
from w2s_plugins.audit.page import write_page
from w2s_plugins.labels.table_writer import write_label_table

from .conftest import BRIEF, Done, Run, taught

ODD = [
    '"quoted", with a comma',
    "</script><img src=x onerror=window.hacked=1>",
    "café",
    "=1+1",
    "naïve;",
    "9",
    "six",
    "seven",
    "eight",
    "nine",
]


STUDENT = [
    "--unlabeled photos --teacher labels:weak.csv --class-names names.json --loss kd",
    *BRIEF,
]
STUDENT += ["--model w2s_cnn2 --output . --experiment run"]
Labels = Callable[..., Done]


def write_photos(names: list[str]) -> dict[str, str]:
    """Write 90 digits without labels, and a table in which a third of them has a wrong one; return the true ones."""
    truth: dict[str, int] = {}

    def place(number: int, label: int) -> Path:
        truth[f"{number}.png"] = label
        return Path("photos")

    write_digits(90, place)
    said = [names[(label + (i % 3 == 0)) % 10] for i, label in enumerate(truth.values())]
    write_label_table(Path("weak.csv"), [{"filename": [*truth], "label": said}])
    Path("names.json").write_text(json.dumps(names))
    return {key: names[label] for key, label in truth.items()}


@pytest.fixture
def labels(here: Run, made_once: Callable) -> Labels:
    """Runs ``labels audit`` on a student of 90 digits, a third of whose labels are wrong."""

    def train() -> dict[str, str]:
        truth = write_photos(ODD)
        save_file(small_model(0).state_dict(), "start.safetensors")
        here(*STUDENT, "--pretrained-path start.safetensors --crop-pct 1.0").ok()
        return truth

    def audit(*flags: object, run: object = "run") -> Done:
        return here("audit", run, *flags, script="w2s_plugins.labels.__main__")

    audit.truth = made_once("audited", train)
    return audit


@pytest.fixture
def sheet(labels: Labels, made_once: Callable) -> Path:
    """The table for the answers about all images."""

    def draw() -> Path:
        labels("--images 500").ok()
        assert plan_of("run")["drawn"] == 90
        (sheet,) = Path("run/audit").glob("answers-*-90.csv")
        return sheet

    return made_once("drawn", draw)


def plan_of(run: str) -> dict:
    return json.loads(Path(run, "audit/plan.json").read_text())


def press(browser, *keys: str) -> None:  # noqa: F811
    ActionChains(browser).send_keys(*keys).perform()


def reopened(browser, page: Path) -> str:  # noqa: F811
    """Open a page again, and return how many answers it knows of."""
    open_page(browser, page)
    return browser.find_element(By.ID, "count").text


def test_by_keys_in_a_browser(labels, here, browser, tmp_path):  # noqa: F811
    """All of it: draw, answer, undo, close, go on, download, read; names of classes are text and nothing else."""
    labels("--images 12").ok()
    page, plan = Path("run/audit/index.html"), plan_of("run")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "d")}
    )
    open_page(browser, page)
    for number, key in enumerate(plan["keys"][:12]):
        shown = [
            button.get_property("lastChild")["textContent"]
            for button in browser.find_elements(By.CSS_SELECTOR, "#classes button")
        ]
        # two candidates, in an order that does not say whose they are; an image that is seen
        pair = sorted({ODD[plan["student"][number]], ODD[plan["other"][number]]})
        assert shown[:2] == pair and sorted(shown) == sorted(ODD)
        assert browser.execute_script("return document.getElementById('image').naturalWidth") == 8
        name = labels.truth[key]
        if number == 3:
            press(browser, "?")
        elif number % 2:
            press(
                browser, "1", Keys.BACKSPACE, str((shown.index(name) + 1) % 10)
            )  # a slip, taken back
        else:
            press(
                browser,
                "/",
                "zz",
                Keys.BACKSPACE,
                Keys.BACKSPACE,
                "/" if name == "9" else "",
                name.replace("é", "e"),
                Keys.ENTER,
            )
        answered = f"{number + 1} of 12 answered"
        if number == 5:
            # what a page has stored reaches the next page when the browser has the time
            WebDriverWait(browser, 30).until(
                lambda _, text=answered: reopened(browser, page) == text
            )
        assert browser.find_element(By.ID, "count").text == answered
    assert browser.find_element(By.ID, "done").is_displayed()
    assert (
        browser.execute_script("return window.hacked") is None and browser.get_log("browser") == []
    )
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    WebDriverWait(browser, 30).until(lambda _: list(Path("d").glob("*.csv")))
    (file,) = Path("d").glob("*.csv")

    # what was typed is what is read, and what is checked
    said = [labels.truth[key] for key in plan["keys"][:12]]
    done = labels("--answers", file).ok()
    assert "answers about 12 of the 12 drawn images, of which 1 are '?', cannot tell" in done.out
    assert "Worse: the labels are right more often" in done.out and "no random sample" in done.out
    assert "--teacher labels:weak.csv --model w2s_cnn2" in done.out.splitlines()[-1]
    checked = {
        (path.parent.name, int(path.stem)) for path in Path("run/audit/checked").rglob("*.jpeg")
    }
    assert checked == {(name, i) for i, name in enumerate(said, 1) if i != 4 and "/" not in name}
    # with more images earlier answers stay in the browser
    labels("--images 20").ok()
    assert plan_of("run")["keys"] == plan["keys"]
    WebDriverWait(browser, 30).until(lambda _: reopened(browser, page) == "12 of 20 answered")


def test_the_command_that_it_prints(labels, here):
    """It begins as the student did, works with few checked images, and although most classes have none of these."""
    labels("--images 12").ok()
    write_label_table(
        Path("answers.csv"),
        [
            {
                "filename": (keys := plan_of("run")["keys"][:12]),
                "label": [labels.truth[key] for key in keys],
            }
        ],
    )
    command = labels("--answers answers.csv").ok().out.splitlines()[-1]
    assert (
        "--teacher labels:weak.csv --model w2s_cnn2 --pretrained-path start.safetensors --img-size 8 --crop-pct 1.0"
        in command
    )
    here(*shlex.split(command)[2:], "--epochs 1 --workers 0").ok()


DAMAGES = {
    "by": [None, [], "id"],
    "classes": [None, {}, ["six"], [3] * 10],
    "keys": [3, [], [None] * 90],
    "labels": [None, "x", [1], [-1] * 90, [10] * 90, [1e9] * 90, [[1]] * 90],
    "strata": [[6] * 90],
    "drawn": ["9", 1.0, -5, 91, None],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in DAMAGES for value in DAMAGES[field]]
)
def test_a_plan_that_was_damaged_or_comes_from_others_is_none(
    labels: Labels, sheet: Path, field: str, value: object
) -> None:
    Path("run/audit/plan.json").write_text(json.dumps(plan_of("run") | {field: value}))
    assert "no images were drawn" in labels("--answers none.csv").error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n{0},naive\n", "row 1: 'naive' is no class"),
        ("filename,label\nx.png,six\n", "about other"),
        ("filename,label\n{0},?\n", "says of no image"),
        ("filename\n", "no labels"),
        ("", ""),
    ],
)
def test_answers_that_cannot_be_read(labels: Labels, sheet: Path, text: str, message: str) -> None:
    sheet.write_text(text.format(plan_of("run")["keys"][0]))
    assert message in labels("--answers", sheet).error


def test_what_an_audit_needs(labels: Labels) -> None:
    assert "no images were drawn for this student" in labels("--answers none.csv").error
    assert "expected the folder of a run that has ended" in labels(run="nowhere").error
    flags = Path("run/args.yaml").read_text()
    Path("run/args.yaml").write_text("{}")
    assert "does not say what it learned from" in labels("--images 90").error
    Path("run/args.yaml").write_text(flags)
    labels("--images 90").ok()
    assert "none.csv: no such file" in labels("--answers none.csv").error
    Path("run/export/model.safetensors").unlink()
    assert "has ended" in labels().error


def test_answers_about_all_images_leave_nothing_open(labels: Labels, sheet: Path) -> None:
    write_label_table(sheet, [{"filename": [*labels.truth], "label": [*labels.truth.values()]}])
    done = labels("--answers", sheet).ok()
    assert re.search("labels +66.7 +66.7 to 66.7\n", done.out) and "Worse: the labels" in done.out
    # answers that do not count, and images that no folder can be for
    labels("--images 9").ok()
    done = labels("--answers", sheet).ok()
    assert "81 answers are about images that are not drawn" in done.err
    assert "can be called </script>" in done.err
    write_label_table(sheet, [{"filename": plan_of("run")["keys"][:1], "label": ["six"]}])
    assert "--stages" not in labels("--answers", sheet).ok().out  # nothing for validation


def test_moved_images_and_a_moved_run(labels: Labels, sheet: Path) -> None:
    """What is printed can be typed."""
    write_label_table(sheet, [{"filename": [*labels.truth], "label": [*labels.truth.values()]}])
    Path("photos").rename("moved")
    assert "its flags say --unlabeled photos: no such folder" in labels("--answers", sheet).error
    error = labels("--data-dir mvoed").error
    assert error == "--data-dir mvoed: no such folder or tar file (nearest: moved)"
    assert labels("--answers", sheet, "--data-dir moved").code == 0
    Path("run").rename("my run")
    done = labels("--data-dir moved", run="my run").ok()
    assert "audit 'my run' --data-dir moved --answers FILE" in done.out
    done = labels("--answers", Path("my run/audit", sheet.name), "--data-dir moved", run="my run")
    assert "--experiment 'my run-checked'" in done.ok().out


def test_what_a_run_has_learned_from(here, weak, tmp_path):
    """Labels of a folder, changed ones, those of models, and of a table beside a model."""
    write_digits(
        80,
        lambda number, label: Path("data/train" if number < 60 else "data/validation", str(label)),
    )
    flags = ["--data-dir data", *BRIEF, "--model w2s_cnn2 --output ."]
    models, weights = taught(weak, weak), [*taught(weak), "--loss kd"]
    Path("data/train/0/\udcff.png").write_bytes(
        next(Path("data/train/0").iterdir()).read_bytes()
    )  # in no table
    for name, more in {
        "true": [],
        "noisy": ["--label-noise symmetric:0.5"],
        "online": weights,
        "two": [*models, "--loss kd --teacher-targets cached"],
    }.items():
        here(*flags, *more, "--experiment", name).ok()
        here("audit", name, "--images 20", script="w2s_plugins.labels.__main__").ok()
    plans = {name: plan_of(name) for name in ("true", "noisy", "online", "two")}
    said = {name: dict(zip(plan["keys"], plan["labels"])) for name, plan in plans.items()}
    assert (
        all(int(Path(key).parent.name) == label for key, label in said["true"].items())
        and len(said["two"]) == 60
    )
    assert 20 < sum(said["noisy"][key] != label for key, label in said["true"].items()) < 40
    assert said["online"] == said["two"] != said["true"]


# ---------------------------------------------------------------- the draw and the estimate


def made(count: int, seed: int, differ: float = 0.4) -> tuple[np.ndarray, ...]:
    """Truth, labels, student and confidence of images in 5 classes; the surer the student, the more often right."""
    rng = np.random.default_rng(seed)
    truth, confidence = rng.integers(0, 5, count), rng.random(count)
    labels = np.where(rng.random(count) < 0.6, truth, rng.integers(0, 5, count))
    own = np.where(rng.random(count) < confidence, truth, rng.integers(0, 5, count))
    return truth, labels, np.where(rng.random(count) < differ, own, labels), confidence


def test_the_draw():
    _, labels, student, confidence = made(3000, 0)
    strata = find_strata(labels, student, confidence)
    drawn = np.stack([drawing_order(strata, labels, student, seed) for seed in range(600)])
    assert (np.sort(drawn[0]) == np.arange(3000)).all()
    assert ((labels == student) == (strata < 3)).all() and 70 <= (
        strata[drawn[0, :100]] >= 3
    ).sum() <= 80
    assert confidence[strata == 0].max() <= confidence[strata == 1].min()
    # in a stratum each image is as likely to be drawn, and classes have their share of the images
    often, sizes = np.bincount(drawn[:, :300].ravel(), minlength=3000) / 600, np.bincount(strata)
    for stratum in range(STRATA):
        own = often[strata == stratum]
        expected = (strata[drawn[0, :300]] == stratum).mean() * 300 / sizes[stratum]
        assert (
            own.mean() == pytest.approx(expected, rel=0.01)
            and own.std() < 1.3 * (expected / 600) ** 0.5
        )
        first = labels[[i for i in drawn[1, :300] if strata[i] == stratum]]
        share = np.bincount(labels[strata == stratum], minlength=5) * len(first) / sizes[stratum]
        assert np.abs(np.bincount(first, minlength=5) - share).max() <= 2.5


def test_an_estimate_by_hand():
    """Six strata of other sizes and answers; an unanswered stratum counts as the others of its half."""
    sizes = np.array([10, 20, 30, 40, 50, 0])
    counts = np.array([[2, 0, 0, 2], [3, 0, 0, 1], [0] * 4, [0, 1, 2, 1], [0, 2, 2, 0], [0] * 4])
    both = (10 * 0.5 + 20 * 0.75) / 30 * 60
    label, student = 40 / 4 + 50 / 2, 40 / 2 + 50 / 2
    found = estimate(sizes, counts)
    assert found.value == pytest.approx(
        np.array([both + label, both + student, student - label]) / 150
    )
    assert (found.low < found.value).all() and (found.value < found.high).all()
    # nothing is open where all have an answer, or where all agree
    known = estimate(counts.sum(axis=1), counts)
    assert known.low.tolist() == known.high.tolist() == known.value.tolist()
    assert (
        estimate(np.array([5, 5, 5, 0, 0, 0]), counts * [[1], [1], [1], [0], [0], [0]])[0:3][2][2]
        == 0
    )


@pytest.mark.parametrize(
    ("count", "differ", "asked"), [(2000, 0.4, 100), (2000, 0.95, 60), (400, 0.15, 100)]
)
def test_intervals_hold_what_they_promise(monkeypatch, count, differ, asked):
    """Of 300 audits each, within three standard errors (1.3 %) of 95 %; all where all that differ are asked about."""
    monkeypatch.setattr(module, "DRAWS", 1500)
    truth, labels, student, confidence = made(count, 3, differ)
    strata = find_strata(labels, student, confidence)
    true = np.array([(labels == truth).mean(), (student == truth).mean(), 0])
    true[2], held = true[1] - true[0], np.zeros(3)
    for seed in range(300):
        rows = drawing_order(strata, labels, student, seed)[:asked]
        outcomes = count_outcomes(strata[rows], labels[rows], student[rows], truth[rows])
        found = estimate(np.bincount(strata, minlength=STRATA), outcomes, seed)
        held += (found.low <= true + 1e-12) & (true <= found.high + 1e-12)
    assert (held >= 274).all() and (held[:2] <= 296).all(), held


@pytest.mark.parametrize(
    ("labels", "student"),
    [([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [1, 2, 0]), ([0], [0]), ([0] * 9, [0] * 9)],
    ids=["no disagreement", "nothing else", "one image", "one class"],
)
def test_odd_sets(labels, student):
    labels, student = np.array(labels), np.array(student)
    strata = find_strata(labels, student, np.zeros(len(labels)))
    assert sorted(drawing_order(strata, labels, student)) == [*range(len(labels))]
    sizes = np.bincount(strata, minlength=STRATA)
    found = estimate(sizes, count_outcomes(strata, labels, student, labels))
    share = (labels == student).mean()
    assert found.value.tolist() == [1, share, share - 1]


def test_a_page_loads_nothing(tmp_path):
    write_page(
        tmp_path / "p.html",
        [Image.new("L", (700, 20))],
        dict(keys=["a"], candidates=[[0]], classes=["x"]),
        title="<b>",
        command="c",
    )
    text = (tmp_path / "p.html").read_text()
    assert "&lt;b&gt;" in text and "http" not in text.replace("http-equiv", "")
