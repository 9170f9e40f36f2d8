"""Figures of weak-to-strong generalisation, and which epoch is selected by them."""

import math
import re

import pytest

from tests.parts import default_settings
from w2s_plugins.metrics.pgr import gain_by_epoch, no_gap_hint, performance_gap_recovered
from w2s_plugins.run.position import Position
from w2s_plugins.run.record import best_of, closing_table, with_warnings
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.training.evaluation import selection_metric
from w2s_plugins.training.record import list_warnings, ranked_by


def test_published_figures():
    """The vision experiment of arXiv 2312.09390: weak 56.6; ResNet50 61.9 of 64.5, ViT-B/8 66.6 of 74.0."""
    assert performance_gap_recovered(56.6, 61.9, 64.5) == pytest.approx(0.671, abs=5e-4)
    assert performance_gap_recovered(56.6, 66.6, 74.0) == pytest.approx(0.575, abs=5e-4)


@pytest.mark.parametrize(
    ("student", "share"), [(60.0, 0.0), (90.0, 1.0), (75.0, 0.5), (45.0, -0.5), (105.0, 1.5)]
)
def test_pgr_is_the_share_of_the_gap(student, share):
    assert performance_gap_recovered(60.0, student, 90.0) == pytest.approx(share)


def test_gain_by_epoch():
    """Figures of each evaluation beside a teacher, and nothing else of it."""
    figures = dict(top1=40.0, agreement=80.0, copied=10.0)
    found = gain_by_epoch(
        [dict(epoch=0, select=figures), dict(epoch=2, val=dict(figures, loss=1.0))]
    )
    assert found == dict(by_epoch=[dict(epoch=2, **figures)])
    assert gain_by_epoch([dict(epoch=0, val=dict(top1=40))]) is None


@pytest.mark.parametrize("ceiling", [80.0, 79.0])
def test_no_gap_to_recover(ceiling):
    assert performance_gap_recovered(80.0, 85.0, ceiling) is None
    assert no_gap_hint(80.0, 80.1) is None and no_gap_hint(None, 80.0) is None
    assert f"the ceiling ({ceiling:.2f}) is not above the weak teacher (80.00)" in no_gap_hint(
        80.0, ceiling
    )


# ---------------------------------------------------------------- selection


def settings(**flags: object) -> TrainSettings:
    return default_settings(**{"teacher": "weak", "select": "best", **flags})


VAL, SELECT = (
    {"top1": 80.0, "loss": 0.7, "agreement": 60.0},
    {"top1": 70.0, "loss": 0.9, "agreement": 50.0},
)


@pytest.mark.parametrize(
    "metric, by_teacher, figures, expected",
    [
        ("top1", False, {"val": VAL}, 80.0),
        ("loss", False, {"val": VAL}, 0.7),
        ("agreement", False, {"val": VAL}, 60.0),
        ("top1", False, {"val": VAL, "select": SELECT}, 70.0),
        ("few-shot", False, {"val": VAL, "few_shot": {"5x1": 40.0, "5x5": 60.0}}, 40.0),
        ("top1", True, {"val": VAL}, 80.0),
        ("top1", True, {"val": VAL, "select": SELECT}, 50.0),
        ("agreement", True, {"select": SELECT}, 50.0),
        ("loss", True, {"select": SELECT}, -50.0),  # of a loss less is better
        ("top1", False, {}, -0.5),
        ("loss", False, {}, 0.5),
        ("top1", False, {"val": {"top1": math.nan}}, -math.inf),
        ("loss", False, {"val": {"loss": math.nan}}, math.inf),
    ],
)
def test_what_ranks_an_epoch(metric, by_teacher, figures, expected):
    assert selection_metric(metric, by_teacher, figures, {"loss": 0.5}) == expected


def test_without_a_figure_the_last_epoch_is_best():
    """True labels that say only yes rank nothing: of equal epochs the first one would be taken."""
    ranks = [
        selection_metric("map", False, {"val": {"loss": 0.1}}, {}, epoch) for epoch in (0, 1, 2)
    ]
    assert ranks == sorted({*ranks})


@pytest.mark.parametrize(
    "kwargs, by_teacher",
    [
        ({}, False),
        ({"task_loss_weight": 0.0}, True),
        ({"task_loss_weight": 0.0, "teacher": None}, False),
        ({"task_loss_weight": 0.5, "unlabeled": "photos"}, True),
    ],
)
def test_without_ground_truth_a_held_out_part_is_scored_by_the_teacher(kwargs, by_teacher):
    assert settings(**kwargs).is_scored_by_teacher == by_teacher


def test_the_best_epoch_is_one_that_was_saved():
    evaluations = [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
    assert best_of(evaluations, 1) is evaluations[1]
    assert best_of(evaluations, None) is evaluations[-1]


def test_selection_on_the_reported_split_is_said():
    def warnings(of_run: TrainSettings) -> list[str]:
        return list_warnings(of_run, {"val": VAL}, Position(), {})

    assert (
        ranked_by(settings(select="last"), {"val": VAL}) == "validation"
        and warnings(settings(select="last")) == []
    )
    (warning,) = warnings(settings())
    assert "'validation'" in warning and "--select-split" in warning
    assert (
        ranked_by(settings(select_split=0.1), {"val": VAL}) == "held-out part of the training split"
    )
    assert warnings(settings(select_split=0.1)) == []
    assert ranked_by(settings(), {}) == "training loss"


def test_runs_that_cannot_tell_anything_say_so():
    def warnings(weak=VAL["top1"], ceiling=None):
        return list_warnings(
            settings(select="last", ceiling_acc=ceiling), {"val": VAL}, Position(), {"top1": weak}
        )

    assert warnings() == [] == warnings(VAL["top1"] - 1, ceiling=VAL["top1"])
    (warning,) = warnings(VAL["top1"] + 1)
    assert "the student is below its teacher" in warning
    (no_gap, above) = warnings(ceiling=VAL["top1"] - 1)
    assert "there is no gap to recover" in no_gap and "is above the ceiling" in above


def test_closing_table():
    record = {
        "teacher": {"top1": 56.6, "top5": 80.0},
        "selected": {"rule": "best"},
        "pgr": 0.671,
        "ceiling_acc": 64.5,
        "last": {"epoch": 9, "top1": 60.0, "top5": 82.0, "agreement": 70.0},
        "best": {"epoch": 4, "top1": 61.9, "top5": 83.0, "agreement": 71.0},
    }
    table = closing_table(record).splitlines()
    assert [line.split() for line in table[2:]] == [
        ["teacher", "56.60", "80.00", "-", "-"],
        ["student,", "last", "epoch", "(10)", "60.00", "82.00", "70.00", "-"],
        ["student,", "best", "epoch", "(5)", "*", "61.90", "83.00", "71.00", "0.67"],
        ["ceiling", "64.50", "-", "-", "-"],
    ]
    assert len(closing_table({**record, "teacher": None, "ceiling_acc": None}).splitlines()) == 4

    # on few images their number stands beside the figures, on others not
    for splits, few in (
        ({"val": 6, "select": 50}, " (n = 6)"),
        ({"val": None, "select": 99}, " (n = 99)"),
        ({"val": 100, "select": 50}, ""),
        ({"val": 0}, ""),  # a stream
    ):
        about = {
            name: size if size is None else {"num_samples": size} for name, size in splits.items()
        }
        rows = closing_table({**record, "data": {"splits": about}}).splitlines()[2:]
        heads = [
            f"teacher{few}",
            f"student, last epoch (10){few}",
            f"student, best epoch (5){few} *",
        ]
        assert [re.split("  +", row)[0] for row in rows[:3]] == heads

    # of several classes an image, of which only the agreement is known
    unmeasured = {name: {"epoch": 1, "agreement": 98.0} for name in ("last", "best")}
    several = {"model": {"problem_type": SEVERAL_CLASSES.problem_type}, **unmeasured}
    heads = closing_table({**record, "teacher": None, "ceiling_acc": None, **several})
    assert "mAP" in heads and "top-1" not in heads


def test_closing_table_of_labels():
    """Labels have no row of the validation images; how many are right is known where there is ground truth."""
    metrics, held = {"top1": 61.9}, {"top1": 63.0, "agreement": 71.0}
    models = [
        {"name": "labels:a.csv", "wrong": 0.25},
        {"name": "labels:b.csv", "wrong": None},
        {"name": "resnet18"},
    ]
    record = {
        "teacher": {"models": models},
        "selected": {"rule": "last"},
        "pgr": None,
        "ceiling_acc": None,
        "last": {"epoch": 9, **metrics},
        "best": {"epoch": 9, **metrics},
        "metrics": metrics,
        "held_out": {"teacher": {"top1": 74.0}, "student": held},
    }
    first, *on_part = [
        line.split("  ")[0] + line[-30:] for line in closing_table(record).splitlines()[2:5]
    ]
    assert first.split() == ["labels:a.csv,", "on", "training", "images", "75.00", "-", "-", "-"]
    assert [row.split()[0] for row in on_part] == ["labels,", "student,"]
    assert [row.split()[-4:] for row in on_part] == [
        ["74.00", "-", "-", "-"],
        ["63.00", "-", "71.00", "-"],
    ]
    splits = {"val": {"num_samples": 500}, "select": {"num_samples": 20}}
    models[0]["samples"] = 40
    few = closing_table({**record, "data": {"splits": splits}}).splitlines()[2:]
    assert [re.findall(r"n = (\d+)", row) for row in few] == [["40"], ["20"], ["20"], [], []]
    # of the same figures there is one row
    same = closing_table({**record, "held_out": {"teacher": None, "student": metrics}})
    assert "held-out" not in same and "b.csv" not in same


def test_warnings_stand_below_the_figures():
    assert with_warnings("a\nb", ["c"]) == ["a", "b", "WARNING: c"] and with_warnings("", []) == []
    assert list_warnings(settings(select="last"), {"val": VAL}, Position(), {}, skipped=3) == [
        "3 step(s) were skipped, because a loss or gradient was not finite"
    ]
