"""The figures and the splits of the weak-to-strong protocol."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from w2s_plugins.errors import UserError
from w2s_plugins.run.record import write_predictions
from w2s_plugins.study.controls import split_slice
from w2s_plugins.study.outcome import NOT_WORTH, closing_table, compare, intervals, read_predictions


@pytest.mark.parametrize(("text", "amount", "expected"), [
    (None, 0.3, ("0.0:0.3", "0.3:1.0")),
    (None, 80, ("0:80", "80:")),
    ("0.2:0.6", 0.5, ("0.2:0.4", "0.4:0.6")),
    ("100:200", 0.25, ("100:125", "125:200")),
    ("100:", 20, ("100:120", "120:")),
    (":200", 20, ("0:20", "20:200")),
])
def test_split_slice(text: str | None, amount: float, expected: tuple[str, str]) -> None:
    assert split_slice(text, amount) == expected


@pytest.mark.parametrize(("text", "amount", "message"), [
    ("0.2:0.6", 80, "use one kind"),
    ("100:", 0.5, "the slice has no end"),
    ("100:150", 50, "nothing is left"),
    (None, 0, "nothing is left"),
])
def test_split_slice_refused(text: str | None, amount: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_slice(text, amount)


def models(count: int = 1000) -> list[np.ndarray]:
    """Hits of a teacher of 60 %, a student of 70 % that shares its errors, a ceiling of 90 %, and an agreement."""
    draw = np.random.default_rng(1).random(count)
    return [draw < 0.6, draw < 0.7, draw < 0.9, np.random.default_rng(2).random(count) < 0.8]


def test_intervals_agree_with_resampling_by_hand() -> None:
    """2,000 resamples of NumPy's own, drawn with another seed: bounds differ by the error of the bootstrap only."""
    rows = np.stack(models()).astype(float)
    found = intervals(*rows)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(2000):
        weak, student, ceiling, agreement = 100 * rows[:, rng.integers(0, rows.shape[1], rows.shape[1])].mean(axis=1)
        drawn.append([weak, student, ceiling, agreement, (student - weak) / (ceiling - weak)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    for index, (name, figure) in enumerate(found.items()):
        tolerance = 0.02 if name == "pgr" else 0.4
        assert figure["low"] == pytest.approx(low[index], abs=tolerance), name
        assert figure["high"] == pytest.approx(high[index], abs=tolerance), name
        assert figure["low"] < figure["value"] < figure["high"]
    assert found["weak"]["value"] == pytest.approx(100 * rows[0].mean())
    assert found["pgr"]["value"] == pytest.approx((rows[1].mean() - rows[0].mean()) / (rows[2].mean() - rows[0].mean()))


def test_samples_are_drawn_in_pairs() -> None:
    """The errors of teacher and student overlap, so the PGR is known better than from independent draws."""
    weak, student, ceiling, agreement = models()
    paired = intervals(weak, student, ceiling, agreement)["pgr"]
    other = intervals(weak, np.random.default_rng(7).permutation(student), ceiling, agreement)["pgr"]
    assert paired["high"] - paired["low"] < 0.8 * (other["high"] - other["low"])


def test_a_ceiling_below_the_teacher_leaves_no_pgr() -> None:
    weak, student, ceiling, agreement = models()
    found = intervals(ceiling, student, weak, agreement)
    assert found["pgr"]["value"] is None and found["student"] == intervals(weak, student, ceiling, agreement)["student"]


def test_a_gap_too_small_for_an_interval() -> None:
    """The reason is with the figure, and the user sees none of SciPy's warnings."""
    hits = np.arange(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervals(hits < 60, hits < 61, hits < 62, hits < 90)
    assert (found["pgr"]["value"], found["pgr"]["low"], found["pgr"]["high"]) == (pytest.approx(0.5), None, None)
    reason, rest = found["pgr"]["no_interval"], dict(controls={}, test_sets={}, misfit=None, gain=None)
    share = int(reason.split()[1]) / 2000
    assert share == pytest.approx((1 - 0.02) ** 100, abs=0.03)  # neither of the two samples in between is drawn
    assert f"PGR: no interval, {reason}" in closing_table(found | rest).splitlines()
    others = intervals(*models())
    assert "no_interval" not in others["pgr"] and "no interval" not in closing_table(others | rest)


@pytest.mark.parametrize(("low", "high", "said"), [
    (-5.0, -1.0, f"{NOT_WORTH}: "), (-4.0, 2.0, "it is not shown"), (-1.0, 3.0, "it is not shown"), (0.5, 3.0, None)])
def test_not_worth_doing_is_said_beyond_chance_alone(low: float, high: float, said: str | None) -> None:
    direct = dict(value=70.0, labels=80, student_above=dict(value=(low + high) / 2, low=low, high=high))
    found = compare(dict(direct=direct), dict(student=dict(value=70.0), ceiling=dict(value=90.0), pgr={}),
                    dict(student=dict(data=dict(train_samples=100))))
    assert [warning.startswith(said or "-") for warning in found["warnings"]] == [True] * bool(said)


def test_predictions_come_back(tmp_path: Path) -> None:
    rows = torch.tensor([[1, 2, 3], [4, 5, 6]])
    write_predictions(tmp_path / "p.csv", ["target", "student", "teacher"], rows)
    found = read_predictions(tmp_path / "p.csv")
    assert {k: v.tolist() for k, v in found.items()} == {"target": [1, 4], "student": [2, 5], "teacher": [3, 6]}
    with (tmp_path / "p.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["target", "student", "teacher"]
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "q.csv")
