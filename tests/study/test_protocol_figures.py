"""The figures and the splits of the weak-to-strong protocol."""

import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml

from tests.parts import lines, refusal
from w2s_plugins.run.record import write_predictions
from w2s_plugins.study.controls import split_slice
from w2s_plugins.study.scores import (
    figures_of,
    gather_warnings,
    hits_of,
    labels_of_direct,
    read_answers,
    read_predictions,
    remarks_on,
    table_of_runs,
)
from w2s_plugins.study.statistics import RESAMPLES


@pytest.mark.parametrize(
    ("text", "amount", "expected"),
    [
        (None, 0.3, ("0.0:0.3", "0.3:1.0")),
        (None, 80, ("0:80", "80:")),
        ("0.2:0.6", 0.5, ("0.2:0.4", "0.4:0.6")),
        ("100:200", 0.25, ("100:125", "125:200")),
        ("100:", 20, ("100:120", "120:")),
        (":200", 20, ("0:20", "20:200")),
    ],
)
def test_split_slice(text: str | None, amount: float, expected: tuple[str, str]) -> None:
    assert split_slice(text, amount) == expected


def models(count: int = 1000) -> pandas.DataFrame:
    """Hits of a teacher of 60 %, a student of 70 % that shares its errors, a ceiling of 90 %, and an agreement."""
    draw = np.random.default_rng(1).random(count)
    return pandas.DataFrame(
        dict(
            weak=draw < 0.6,
            student=draw < 0.7,
            ceiling=draw < 0.9,
            agreement=np.random.default_rng(2).random(count) < 0.8,
        )
    )


def test_hits() -> None:
    target, weak, student, direct = np.array(
        [[0, 1, 2, 0], [0, 1, 0, 1], [0, 1, 2, 1], [1, 1, 2, 0]]
    )
    hits = hits_of(pandas.DataFrame(dict(target=target, weak=weak, student=student, direct=direct)))
    assert hits.astype(int).to_dict("list") == dict(
        weak=[1, 1, 0, 0],
        student=[1, 1, 1, 0],
        direct=[0, 1, 1, 1],
        agreement=[1, 1, 0, 1],
        **{"above direct": [1, 0, 0, -1]},
    )


def test_intervals_agree_with_resampling_by_hand() -> None:
    """2,000 resamples of NumPy's own, drawn with another seed: bounds differ by the error of the bootstrap only."""
    found = figures_of(models())
    rows = models().to_numpy(float).T
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(2000):
        weak, student, ceiling, agreement = 100 * rows[
            :, rng.integers(0, rows.shape[1], rows.shape[1])
        ].mean(axis=1)
        drawn.append([weak, student, ceiling, agreement, (student - weak) / (ceiling - weak)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    for index, (name, figure) in enumerate(found.items()):
        tolerance = 0.02 if name == "pgr" else 0.4
        assert (figure["low"], figure["high"]) == pytest.approx(
            (low[index], high[index]), abs=tolerance
        ), name
        assert figure["low"] < figure["value"] < figure["high"]
    assert found["weak"]["value"] == pytest.approx(100 * rows[0].mean())
    assert found["pgr"]["value"] == pytest.approx(
        (rows[1].mean() - rows[0].mean()) / (rows[2].mean() - rows[0].mean())
    )


def test_a_gap_too_small_for_an_interval_or_none() -> None:
    """The reason is with the figure; without a gap there is no PGR. NumPy warns of neither."""
    hits = np.arange(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures_of(
            pandas.DataFrame(
                dict(weak=hits < 60, student=hits < 61, ceiling=hits < 62, agreement=hits < 90)
            )
        )
        without = figures_of(models().assign(weak=models()["ceiling"], ceiling=models()["weak"]))
    assert (found["pgr"]["value"], found["pgr"]["low"], found["pgr"]["high"]) == (
        pytest.approx(0.5),
        None,
        None,
    )
    reason = found["pgr"]["no_interval"]
    share = int(reason.split()[1]) / RESAMPLES
    assert share == pytest.approx(
        (1 - 0.02) ** 100, abs=0.03
    )  # neither of the two samples in between is drawn
    assert remarks_on(found) == {"interval": f"the PGR has no interval: {reason}"}
    assert without["pgr"]["value"] is None and "no_interval" not in without["pgr"]
    assert without["student"] == figures_of(models())["student"]


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return dict(value=value, low=low, high=high)


KNOWN = dict(weak=figure(60.0), student=figure(70.0), ceiling=figure(90.0), pgr=figure(1 / 3))


TOLD = """
{}  ->  nothing  ->  nothing
ceiling:  ->  pgr  ->  there is no PGR, for which the accuracy of the ceiling would be needed
weak:  ->  pgr  ->  the accuracy of the weak teacher would be needed
{ceiling: [60.0], student: [50.0], pgr: [null]}  ->  gap  ->  no gap to recover
student: [91.0]  ->  student above ceiling  ->  the student (91.00) is above the ceiling (90.00)
same-size: [91.0]  ->  same-size above ceiling  ->  the same-size (91.00) is above the ceiling (90.00)
{direct: [73.0], above direct: [-3.0, -5.0, -1.0]}  ->  direct  ->  weak-to-strong was not worth doing here:
{direct: [71.0], above direct: [-1.0, -4.0, 2.0]}  ->  direct  ->  it is not shown that weak-to-strong was worth doing
{direct: [69.0], above direct: [1.0, -1.0, 3.0]}  ->  direct  ->  it is not shown that weak-to-strong was worth doing
{direct: [69.0], above direct: [1.0, 0.5, 3.0]}  ->  nothing  ->  nothing
"""


@pytest.mark.parametrize(("changes", "about", "text"), lines(TOLD))
def test_what_a_reader_is_told(changes: str, about: str, text: str) -> None:
    """Also in the closing table, as a warning."""
    figures = {name: values and figure(*values) for name, values in yaml.safe_load(changes).items()}
    told = remarks_on({**KNOWN, **figures}) or {"nothing": "nothing"}
    assert list(told) == [about] and text in told[about]


@pytest.mark.parametrize(
    ("weak", "direct", "words"),
    [
        (("f", 30), ("f", 30), "the teacher's own 30 true labels"),
        (("g", 30), ("f", 40), "40 true labels"),
        ((None, 30), (None, 40), "40 true labels"),
        (None, ("f", 40), "40 true labels"),
        (("f", 40), None, "true labels"),
    ],
)
def test_labels_are_called_the_teachers_if_they_are(
    weak: tuple | None, direct: tuple | None, words: str
) -> None:
    splits = {
        name: dict(train=dict(zip(("fingerprint", "num_samples"), part)))
        for name, part in dict(weak=weak, direct=direct).items()
        if part
    }
    assert labels_of_direct(splits) == words
    figures = {**KNOWN, "direct": figure(73.0), "above direct": figure(-3.0, -5.0, -1.0)}
    told = remarks_on(figures, labels_of_direct(splits))["direct"]
    assert f"trained directly on {words} the strong student has 73.00" in told


def test_six_images_are_no_verdict() -> None:
    """Everybody is right on them: no interval of zero width, no advice, and the table says of how many."""
    hits = pandas.DataFrame(1.0, range(6), ["weak", "student", "ceiling", "direct", "agreement"])
    figures = figures_of(hits.assign(**{"above direct": 0.0}))
    for name, one in figures.items():
        assert one["low"] is None or one["high"] - one["low"] > 30, name
    told = remarks_on(figures, images=6)
    assert told["few"] == "no advice: it would rest on 6 images, and takes 30 at least"
    assert "direct" not in told and "direct" in remarks_on(figures, images=30)
    controls = dict(direct=dict(figures["direct"], student_above=figures["above direct"]))
    for images, few in ((6, " (n = 6)"), (100, "")):
        head = table_of_runs(dict(figures, controls=controls), images).splitlines()[0].strip()
        assert head == f"top-1 (95 % interval){few}"


def test_a_pgr_that_is_the_same_in_all_resamples() -> None:
    hits = pandas.DataFrame(dict(weak=np.zeros(40), student=np.ones(40), ceiling=np.ones(40)))
    pgr = figures_of(hits)["pgr"]
    assert (pgr["value"], pgr["low"]) == (1.0, None) and "the same in all" in pgr["no_interval"]


def test_closing_table() -> None:
    """A row for each figure."""
    figures = figures_of(models())
    direct = dict(figures["student"], labels=40, student_above=figure(1.0, -1.0, 3.0))
    record = dict(figures, controls=dict(direct=direct))
    head, _, weak, *_ = table_of_runs(record).splitlines()
    assert head.split() == ["top-1", "(95", "%", "interval)"]
    assert weak.split()[:3] == ["weak", "teacher", f"{figures['weak']['value']:.2f}"]
    text = table_of_runs(record)
    assert "\nabove direct" in text and "1.00 [-1.00, 3.00]" in text and "\nPGR " in text


def test_a_warning_of_several_runs_is_said_once() -> None:
    records = {
        "weak": {},
        "ceiling": {"warnings": ["too fast", "odd"]},
        "student": {"warnings": ["too fast"]},
    }
    assert gather_warnings(records) == ["ceiling, student: too fast", "ceiling: odd"]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """A folder with the predictions of two models on different test samples."""
    columns = ["target", "student", "teacher"]
    write_predictions(tmp_path / "p.csv", columns, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    write_predictions(tmp_path / "other.csv", columns[:2], torch.tensor([[1, 2], [3, 5]]))
    return tmp_path


def test_predictions_come_back(predictions: Path) -> None:
    table = read_predictions(predictions / "p.csv")
    assert table.to_dict("list") == dict(target=[1, 4], student=[2, 5], teacher=[3, 6])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(student="q.csv"), "No such file"),
        (dict(student="p.csv", ceiling="other.csv"), "are of different test samples"),
    ],
)
def test_predictions_that_cannot_be_compared(
    predictions: Path, files: dict[str, str], message: str
) -> None:
    paths = {name: predictions / file for name, file in files.items()}
    assert message in refusal(read_answers, paths)
