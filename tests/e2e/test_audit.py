"""``labels audit``: images of a run are drawn, a person answers by keys in a real browser, and the answers are read."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from scipy.stats import norm
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.parts import small_model, write_digits
from tests.study.browser import browser, open_page  # noqa: F401  (a fixture)
from w2s_plugins.audit import estimate as module
from w2s_plugins.audit.draw import (
    STRATA,
    Decisions,
    Opinions,
    Step,
    chances,
    drawing_order,
    find_strata,
    group_images,
    lots_of,
    shares_of_parts,
)
from w2s_plugins.audit.estimate import Estimate, estimate, simultaneous
from w2s_plugins.audit.page import Sheet, write_page
from w2s_plugins.data.keys import sample_keys
from w2s_plugins.labels.table_writer import write_label_table
from w2s_plugins.training.learned import open_learned

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


def labels_of_student(
    here: Run, made_once: Callable, command: str, made: str = "audited", names: list[str] = ODD
) -> Labels:
    """Return what runs a command of ``labels`` on a student of 90 digits, a third of whose labels are wrong; it is trained
    once for all tests that call it by the same name.
    """

    def train() -> dict[str, str]:
        truth = write_photos(names)
        save_file(small_model(0).state_dict(), "start.safetensors")
        here(*STUDENT, "--pretrained-path start.safetensors --crop-pct 1.0").ok()
        return truth

    def ask(*flags: object, run: object = "run", command: str = command) -> Done:
        return here(command, run, *flags, script="w2s_plugins.labels.__main__")

    ask.truth = made_once(made, train)
    return ask


@pytest.fixture
def labels(here: Run, made_once: Callable) -> Labels:
    return labels_of_student(here, made_once, "audit")


@pytest.fixture
def sheet(labels: Labels, made_once: Callable) -> Path:
    """The table for the answers about all images."""

    def draw() -> Path:
        labels("--images 500").ok()
        assert len(page_of("run")["keys"]) == 90
        (sheet,) = Path("run/audit").glob("answers-*-90.csv")
        return sheet

    return made_once("drawn", draw)


def page_of(run: str, folder: str = "audit") -> dict:
    """What the page of an audit is about: the drawn images in their order, and so on."""
    text = Path(run, folder, "index.html").read_text(encoding="utf-8")
    (content,) = re.findall('<script type="application/json" id="audit">(.*?)</script>', text, re.S)
    return json.loads(content)


def said(run: str, number: int) -> dict[str, int]:
    """What an opinion of an audit says of each image; the first one are the labels of the run."""
    samples = open_learned(Path(run), None).data.samples
    keys = [key for key in sample_keys(samples).values if "\udcff" not in key]
    opinions = load_file(Path(run, "audit/opinions.safetensors"))
    return dict(zip(keys, opinions[f"{number} says"].tolist()))


def press(browser, *keys: str) -> None:  # noqa: F811
    ActionChains(browser).send_keys(*keys).perform()


def reopened(browser, page: Path) -> str:  # noqa: F811
    """Open a page again, and return how many answers it knows of."""
    open_page(browser, page)
    return browser.find_element(By.ID, "count").text


def test_by_keys_in_a_browser(labels, here, browser, tmp_path):  # noqa: F811
    """All of it: draw, answer, undo, close, go on, download, read; names of classes are text and nothing else."""
    labels("--images 12").ok()
    page, audit = Path("run/audit/index.html"), page_of("run")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "d")}
    )
    open_page(browser, page)
    for number, key in enumerate(audit["keys"]):
        shown = [
            button.get_property("lastChild")["textContent"]
            for button in browser.find_elements(By.CSS_SELECTOR, "#classes button")
        ]
        # two candidates, in an order that does not say whose they are; an image that is seen
        pair = [ODD[place] for place in audit["candidates"][number]]
        assert len(pair) == 2 and shown[:2] == pair == sorted(pair) and sorted(shown) == sorted(ODD)
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
    said = [labels.truth[key] for key in audit["keys"]]
    done = labels("--answers", file).ok()
    assert "answers about 12 of the 12 drawn images, 1 of them '?' (cannot tell)" in done.out
    assert "\ndifference " in done.out and "no random sample" in done.out
    assert "--teacher labels:weak.csv --model w2s_cnn2" in done.out.splitlines()[-1]
    checked = {
        (path.parent.name, int(path.stem)) for path in Path("run/audit/checked").rglob("*.jpeg")
    }
    assert checked == {(name, i) for i, name in enumerate(said, 1) if i != 4 and "/" not in name}
    # with more images earlier answers stay in the browser
    labels("--images 20").ok()
    assert page_of("run")["keys"][:12] == audit["keys"]
    WebDriverWait(browser, 30).until(lambda _: reopened(browser, page) == "12 of 20 answered")


def test_the_command_that_it_prints(labels, here):
    """It begins as the student did, works with few checked images, and although most classes have none of these."""
    labels("--images 12").ok()
    write_label_table(
        Path("answers.csv"),
        [
            {
                "filename": (keys := page_of("run")["keys"]),
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
    "made_of": [None, [], [[], []], [["x"]] * 2],
    "draws": [None, [], [[]], [[[[0, 1], 0]]], [[[[0, 9], 5]]], [[[["0"], 5]]], [[[[0, 1], 91]]]],
    "sha256": [None, "0" * 64],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in DAMAGES for value in DAMAGES[field]]
)
def test_a_plan_that_was_damaged_or_comes_from_others_is_none(
    labels: Labels, sheet: Path, field: str, value: object
) -> None:
    path = Path("run/audit/plan.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert "no images were drawn" in labels("--answers none.csv").error


@pytest.mark.parametrize("draws", [["of", "texts"], {"a": 1}, [[1]], [[[[0, 1], 5, 6]]]])
def test_draws_of_another_form_are_none(
    labels: Labels, sheet: Path, draws: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where whoever has written them has written their hash, too."""
    path = Path("run/audit/plan.json")
    content = json.loads(path.read_text()) | {"draws": draws}
    path.write_text(json.dumps(content))
    monkeypatch.setattr("w2s_plugins.audit.plan._checksum", lambda *_: content["sha256"])
    assert "no images were drawn" in labels("--answers none.csv").error


@pytest.mark.parametrize("field", ["says", "other", "confidence"])
@pytest.mark.parametrize(
    "change", [lambda a: a[:-1], lambda a: a.astype("int64"), lambda a: a - 20]
)
def test_opinions_that_were_damaged_are_none(
    labels: Labels, sheet: Path, field: str, change: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where whoever has changed them has written their hash, too."""
    path = Path("run/audit/opinions.safetensors")
    arrays = load_file(path)
    save_arrays({**arrays, f"1 {field}": change(arrays[f"1 {field}"])}, path)
    assert "no images were drawn" in labels("--answers none.csv").error
    if field != "confidence" or change(np.zeros(2, "float32")).dtype != "float32":
        monkeypatch.setattr("w2s_plugins.audit.plan._checksum", lambda *_: content["sha256"])
        content = json.loads(Path("run/audit/plan.json").read_text())
        assert "no images were drawn" in labels("--answers none.csv").error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n{0},naive\n", "row 1: 'naive' is no class"),
        ("filename,label\nx.png,six\n", "about other"),
        ("filename,label\n{0},?\n", "says of no image"),
        ("filename,label,audit\n{0},six,n0123456789abcde\n", "no random sample"),
        ("filename\n", "no labels"),
        ("", ""),
    ],
)
def test_answers_that_cannot_be_read(labels: Labels, sheet: Path, text: str, message: str) -> None:
    sheet.write_text(text.format(page_of("run")["keys"][0]))
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
    assert "can be called </script>" in done.err
    assert "what a person has said" not in done.err
    # answers that are there go on counting, and fewer images cannot be drawn
    done = labels("--images 9").ok()
    assert "90 are drawn" in done.out and "the answers so far: answers about 90" in done.out
    # the labels themselves are no person's answers
    done = labels("--answers weak.csv").ok()
    assert "what labels says: is weak.csv what a person has said?" in done.err
    write_label_table(sheet, [{"filename": page_of("run")["keys"][:1], "label": ["six"]}])
    assert "--stages" not in labels("--answers", sheet).ok().out  # nothing for validation


def test_answers_about_other_images_do_not_count(labels: Labels) -> None:
    labels("--images 9").ok()
    write_label_table(
        Path("all.csv"), [{"filename": [*labels.truth], "label": [*labels.truth.values()]}]
    )
    assert "81 answers are about images that are not drawn" in labels("--answers all.csv").ok().err


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
    given = {name: said(name, 0) for name in ("true", "noisy", "online", "two")}
    assert (
        all(int(Path(key).parent.name) == label for key, label in given["true"].items())
        and len(given["two"]) == 60
    )
    assert 20 < sum(given["noisy"][key] != label for key, label in given["true"].items()) < 40
    assert given["online"] == given["two"] != given["true"]


# ---------------------------------------------------------------- the draw and the estimate


def test_where_most_differ_most_are_drawn_there() -> None:
    assert shares_of_parts([0.6, 0.4], 0.75) == [0.25, 0.75]
    assert shares_of_parts([0.0625, 0.9375], 0.75) == [0.0625, 0.9375]
    # of the questions where all agree, half are those to which all say yes
    assert shares_of_parts([0.875, 0.0, 0.125], 0.75) == [0.25, 0.0, 0.75]
    assert shares_of_parts([0.5, 0.25, 0.25], 0.75) == [0.125, 0.125, 0.75]


def test_agreement_of_tags_is_about_those_that_somebody_sets() -> None:
    says, sure = np.zeros((100, 2), np.int64), np.full((100, 2), np.nan)
    says[:4] = 1
    says[0, 1] = 0
    assert Decisions(says, sure).agreement == 0.75 and Opinions(says, sure).agreement == 0.99


def made(count: int, seed: int, differ: float = 0.4) -> tuple[np.ndarray, ...]:
    """Truth, labels, student and confidence of images in 5 classes; the surer the student, the more often right."""
    rng = np.random.default_rng(seed)
    truth, confidence = rng.integers(0, 5, count), rng.random(count)
    labels = np.where(rng.random(count) < 0.6, truth, rng.integers(0, 5, count))
    own = np.where(rng.random(count) < confidence, truth, rng.integers(0, 5, count))
    return truth, labels, np.where(rng.random(count) < differ, own, labels), confidence


def opinions_of(*says: np.ndarray, confidence: np.ndarray | None = None) -> Opinions:
    """Opinions of which the last one says how sure it is."""
    sure = np.full((len(says[0]), len(says)), np.nan)
    if confidence is not None:
        sure[:, -1] = confidence
    return Opinions(np.stack(says, axis=1), sure)


def audit_of(
    opinions: Opinions, truth: np.ndarray, steps: list[Step], seed: int, of: list[int] | None = None
) -> Estimate:
    """What is estimated for some of the opinions, all by default, from the answers about the images of some steps."""
    lots = np.random.default_rng(seed).random(len(truth))
    rows = drawing_order(opinions, lots, steps)[: steps[-1].drawn]
    chance = chances(opinions, lots, steps, rows)
    chosen = opinions if of is None else opinions.of(of)
    groups = group_images(chosen, [opinions.of(step.columns) for step in steps])
    return estimate(chosen, rows, truth[rows], chance, groups, seed)


def test_the_draw():
    _, labels, student, confidence = made(3000, 0)
    opinions = opinions_of(labels, student, confidence=confidence)
    strata, steps = find_strata(opinions), [Step([0, 1], 300)]
    lots = np.random.default_rng(0).random((600, 3000))
    drawn = np.stack([drawing_order(opinions, one, steps) for one in lots])
    assert (np.sort(drawn[0]) == np.arange(3000)).all()
    assert ((labels == student) == (strata < 3)).all()
    assert 70 <= (strata[drawn[0, :100]] >= 3).sum() <= 80
    assert confidence[strata == 0].max() <= confidence[strata == 1].min()
    # in a stratum each image is as likely to be drawn, and on average as likely as is said
    often, sizes = np.bincount(drawn[:, :300].ravel(), minlength=3000) / 600, np.bincount(strata)
    for stratum in range(STRATA):
        own = often[strata == stratum]
        expected = (strata[drawn[0, :300]] == stratum).mean() * 300 / sizes[stratum]
        assert own.mean() == pytest.approx(expected, rel=0.01)
        assert own.std() < 1.3 * (expected / 600) ** 0.5


def test_lots_are_numbers_of_the_keys():
    lots = lots_of([f"{number}.png" for number in range(4000)])
    assert lots_of(["7.png", "\udcff"])[0] == lots[7] and len({*lots}) == 4000
    assert np.abs(np.quantile(lots, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.02
    assert lots.min() >= 0 and lots.max() < 1


def test_chances_are_those_of_the_images_of_several_steps():
    """Shares by inverse probability are right on average, whatever was drawn first, and for whom."""
    truth, labels, student, confidence = made(1000, 0)
    third = np.where(np.random.default_rng(9).random(1000) < 0.3, truth, labels)
    opinions = opinions_of(labels, student, third, confidence=confidence)
    steps = [Step([0, 1], 60), Step([0, 1, 2], 100), Step([1, 2], 160)]
    sums = []
    for seed in range(400):
        lots = np.random.default_rng(seed).random(1000)
        rows = drawing_order(opinions, lots, steps)[:160]
        chance = chances(opinions, lots, steps, rows)
        assert len({*rows}) == 160 and chance.min() > 0 and chance.max() <= 1
        right = opinions.says[rows] == truth[rows, None]
        sums.append([(1 / chance).sum(), *(1 / chance @ right)])
    total, *sums = np.mean(sums, axis=0)
    # a step draws so many images, whichever were drawn before, so that chances are exact to about one of a stratum
    assert total == pytest.approx(1000, rel=0.07)
    assert sums / total == pytest.approx((opinions.says == truth[:, None]).mean(axis=0), abs=0.01)


def test_an_estimate_by_hand():
    """Strata of other sizes and answers; an unanswered stratum counts as the others of its half."""
    sizes, answered = [10, 20, 30, 40, 50, 0], [4, 4, 0, 4, 4, 0]
    strata = np.repeat(np.arange(6), sizes)
    says = np.stack([np.zeros(150, int), (strata >= 3).astype(int)], axis=1)
    # of each stratum the first ones have an answer: 0 where both or the label alone, 1 where the student, 2 neither
    truths = [[0, 0, 2, 2], [0, 0, 0, 2], [], [0, 1, 1, 2], [0, 0, 1, 1], []]
    starts = np.cumsum([0, *sizes])
    rows = np.concatenate([starts[i] + np.arange(count) for i, count in enumerate(answered)])
    truth, chance = np.concatenate(truths).astype(int), np.repeat([0.4, 0.2, 0.1, 0.08], 4)
    opinions = Opinions(says, np.zeros((150, 2)))
    groups = opinions.differ.astype(int)
    found = with_strata(strata, opinions, rows.astype(int), truth, chance, groups)
    both = 2 + 3 + (6 * 0.5 + 16 * 0.75) / 22 * (6 + 16 + 30)
    label, student = 40 / 4 + 50 / 2, 40 / 2 + 50 / 2
    assert found.accuracy == pytest.approx(np.array([both + label, both + student]) / 150)
    assert found.difference[1, 0] == pytest.approx((student - label) / 150)
    assert (found.low < found.accuracy).all() and (found.accuracy < found.high).all()
    assert found.lowest[1, 0] < found.difference[1, 0] < found.highest[1, 0]
    assert found.lowest[0, 1] == -found.highest[1, 0] and found.is_best.sum() == pytest.approx(1)


def with_strata(strata: np.ndarray, *arguments: Any) -> Estimate:
    """`estimate` with other strata than those that confidence would make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_strata", lambda _: strata)
        return estimate(*arguments)


def test_nothing_is_open_where_all_have_an_answer_or_all_agree():
    truth, labels, student, confidence = made(200, 1)
    opinions = opinions_of(labels, student, confidence=confidence)
    known = audit_of(opinions, truth, [Step([0, 1], 200)], 0)
    assert known.low.tolist() == known.high.tolist() == known.accuracy.tolist()
    assert known.accuracy == pytest.approx([(labels == truth).mean(), (student == truth).mean()])
    assert known.lowest[1, 0] == known.highest[1, 0] == known.difference[1, 0]
    same = audit_of(opinions_of(labels, labels), truth, [Step([0, 1], 20)], 0)
    assert same.lowest.tolist() == same.highest.tolist() == [[0, 0], [0, 0]]
    assert same.is_best.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("count", "differ", "asked"), [(2000, 0.4, 100), (2000, 0.95, 60), (400, 0.15, 100)]
)
def test_intervals_hold_what_they_promise(monkeypatch, count, differ, asked):
    """Of 300 audits each, within three standard errors (1.3 %) of 95 %; all where all that differ are asked about."""
    monkeypatch.setattr(module, "DRAWS", 1500)
    truth, labels, student, confidence = made(count, 3, differ)
    opinions = opinions_of(labels, student, confidence=confidence)
    true, held = (opinions.says == truth[:, None]).mean(axis=0), np.zeros(3)
    for seed in range(300):
        found = audit_of(opinions, truth, [Step([0, 1], asked)], seed)
        held[:2] += (found.low <= true + 1e-12) & (true <= found.high + 1e-12)
        difference = true[1] - true[0]
        held[2] += found.lowest[1, 0] - 1e-12 <= difference <= found.highest[1, 0] + 1e-12
    assert (held >= 274).all() and (held[:2] <= 296).all(), held


def family(count: int, seed: int) -> tuple[np.ndarray, Opinions]:
    """Truth, and six students of the same labels, which share most of their mistakes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, count)
    labels = np.where(rng.random(count) < 0.55, truth, rng.integers(0, 5, count))
    says = [labels]
    for part in (0.1, 0.15, 0.2, 0.25, 0.3):
        own = np.where(rng.random(count) < 0.62, truth, rng.integers(0, 5, count))
        says.append(np.where(rng.random(count) < part, own, labels))
    return truth, opinions_of(*says, confidence=rng.random(count))


def narrowed(opinions: Opinions, truth: np.ndarray, seed: int) -> list[Step]:
    """The steps of who draws on for the two that are best by the answers so far."""
    first = Step([*range(6)], 50)
    is_best = audit_of(opinions, truth, [first], seed).is_best
    left = np.argsort(-is_best)[:2]
    return [first, Step(left.tolist(), 100)]


@pytest.mark.parametrize(
    "steps",
    [[Step([*range(6)], 100)], [Step([0, 1], 50), Step([*range(6)], 110)], narrowed],
    ids=["one draw", "runs are added", "some are out"],
)
def test_intervals_of_all_pairs_hold_together(monkeypatch, steps):
    """Of 300 audits, in about 95 % all fifteen intervals hold; those of the accuracies one by one; and the best one is
    among those that are not called worse.
    """
    monkeypatch.setattr(module, "DRAWS", 1500)
    truth, opinions = family(1500, 0)
    true, held, chosen, missed = (opinions.says == truth[:, None]).mean(axis=0), 0, 0, np.zeros(6)
    difference, errors = true[:, None] - true, []
    for seed in range(300):
        drawn = steps if isinstance(steps, list) else steps(opinions, truth, seed)
        found = audit_of(opinions, truth, drawn, seed)
        held += ((found.lowest <= difference + 1e-12) & (difference <= found.highest + 1e-12)).all()
        missed += (found.low > true + 1e-12) | (true > found.high + 1e-12)
        chosen += true[found.accuracy.argmax()] > true.max() - 0.03
        errors.append(found.accuracy - true)
    assert held >= 274 and (missed <= 26).all() and chosen > 240, (held, missed, chosen)
    assert (np.abs(np.mean(errors, axis=0)) < 0.012).all()


def test_simultaneous_intervals():
    drawn = np.random.default_rng(0).normal(size=(4000, 1))
    low, high = simultaneous(drawn)[:, 0]
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    # of many independent ones they are wider, and nearly those of the corrected level
    many = np.random.default_rng(1).normal(size=(20_000, 10))
    ends = simultaneous(many)
    inside = ((ends[0] <= many) & (many <= ends[1])).all(axis=1).mean()
    assert inside == pytest.approx(0.95, abs=0.005)
    assert ends[1].mean() == pytest.approx(norm.ppf(0.5 + 0.95**0.1 / 2), abs=0.1)


@pytest.mark.parametrize(
    ("labels", "student"),
    [([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [1, 2, 0]), ([0], [0]), ([0] * 9, [0] * 9)],
    ids=["no disagreement", "nothing else", "one image", "one class"],
)
def test_odd_sets(labels, student):
    truth = np.array(labels)
    opinions = opinions_of(truth, np.array(student))
    found = audit_of(opinions, truth, [Step([0, 1], len(labels))], 0)
    share = (truth == np.array(student)).mean()
    assert [*found.accuracy, found.difference[1, 0]] == pytest.approx([1, share, share - 1])
    # a person who can tell of one only
    groups = opinions.differ.astype(int)
    found = estimate(opinions, np.array([0]), truth[:1], np.ones(1), groups)
    assert np.isfinite(found.accuracy).all() and (found.low <= found.high).all()


def test_a_page_loads_nothing(tmp_path):
    sheet = Sheet(
        id="a",
        title="<b>",
        by="filename",
        images=["a"],
        classes=["x"],
        candidates=[[0]],
        table={},
    )
    write_page(tmp_path / "p.html", [Image.new("L", (700, 20))], sheet, "c")
    text = (tmp_path / "p.html").read_text()
    assert "&lt;b&gt;" in text and "http" not in text.replace("http-equiv", "")
