"""``labels review``: the labels that are most likely wrong are shown on a page, and a person's answers repair them."""

import csv
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.study.browser import browser, open_page  # noqa: F401  (a fixture)

from .conftest import Run
from .test_audit import (
    ODD,
    Labels,
    labels_of_student,
    page_of,
    press,
    reopened,
)

ODD = [*ODD[:2], "خطأ", *ODD[3:]]  # one is read from right to left


@pytest.fixture
def labels(here: Run, made_once: Callable) -> Labels:
    return labels_of_student(here, made_once, "review", "reviewed", ODD)


def weak_labels() -> dict[str, str]:
    """The labels that the run has learned from."""
    lines = Path("weak.csv").read_text(encoding="utf-8")
    return {row["filename"]: row["label"] for row in csv.DictReader(lines.splitlines())}


def test_by_keys_in_a_browser(labels, here, browser, tmp_path):  # noqa: F811
    """All of it: the label, what is likelier, right, another class, undo, close, go on, download, read, train."""
    done = labels("--images 14").ok()
    assert "because it has learned this label" in done.out
    assert "0 of 90 images have an answer; 14 labels are drawn, the most doubted first" in done.out
    page, content = Path("run/review/index.html"), page_of("run", "review")
    current = weak_labels()
    assert [ODD[label] for label in content["labels"]] == [current[key] for key in content["keys"]]
    # no class is left out
    assert {*content["labels"]} == {*range(10)}
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path / "d")}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    open_page(browser, page)
    for number, key in enumerate(content["keys"]):
        name, label = labels.truth[key], current[key]
        assert browser.find_element(By.ID, "label").text == f"Space{label}"
        proposed = [ODD[place] for place in content["candidates"][number]]
        assert 0 < len(proposed) <= 3 and label not in proposed
        first = browser.find_element(By.CSS_SELECTOR, "#classes button").text
        assert first.startswith(f"1{proposed[0]}") and first.endswith("%")
        if number == 3:
            press(browser, "?")
        elif name == label:
            press(browser, "?", Keys.BACKSPACE, " ")
        elif name in proposed:
            press(browser, str(1 + proposed.index(name)))
        else:
            press(browser, "/", name.replace("é", "e"), Keys.ENTER)
        answered = f"{number + 1} of 14 answered"
        if number == 5:
            WebDriverWait(browser, 30).until(
                lambda _, text=answered: reopened(browser, page) == text
            )
        assert browser.find_element(By.ID, "count").text == answered
    assert browser.find_element(By.ID, "done").is_displayed()
    assert not browser.find_element(By.ID, "right").is_displayed()
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    WebDriverWait(browser, 30).until(lambda _: list(Path("d").glob("*.csv")))
    (file,) = Path("d").glob("*.csv")
    done = labels("--answers", file).ok()
    assert "answers about 14 images, 1 of them '?' (cannot tell)" in done.out
    command = done.out.splitlines()[-1]
    assert "--teacher labels:weak.csv" in command and command.endswith("--experiment run-answered")
    here(*shlex.split(command)[2:], "--epochs 1 --workers 0 --output .").ok()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n0.png,naive\n", "row 1: 'naive' is no class"),
        ("filename,label\n0.png,?\n", "says of no image what is on it"),
        ("filename,label,audit\n0.png,six,r0123456789abcde\n", "is of another draw than run's"),
        ("filename,label,audit\n0.png,six,n0123456789abcde\n", "has answers to `next`"),
    ],
)
def test_answers_that_cannot_be_read(labels: Labels, text: str, message: str) -> None:
    Path("answers.csv").write_text(text)
    assert message in labels("--answers answers.csv").error


def test_two_people_who_differ_and_an_image_that_is_gone(labels: Labels) -> None:
    Path("answers.csv").write_text(
        "filename,label,annotator\n0.png,six,a\n0.png,nine,b\n1.png,six,a\n1.png,six,b\n"
    )
    done = labels("--answers answers.csv").ok()
    assert "people differ about 1 of these" in done.err
    Path("photos/0.png").unlink()
    assert "RUN run" in labels("--images 5").error


def test_what_a_sheet_says_beside_the_label(labels: Labels) -> None:
    """A spreadsheet has the label and what is likelier; it is read as it is, once it has answers."""
    labels("--images 12").ok()
    (sheet,) = Path("run/review").glob("answers-*-12.csv")
    with sheet.open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    current = weak_labels()
    assert all(
        row["current"] == current[row["filename"]] and "%" in row["likelier"] for row in rows
    )
    for row in rows[:7]:
        row["label"] = labels.truth[row["filename"]]
    with Path("mine.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "answers about 7 images" in labels("--answers mine.csv").ok().out
