"""Several classes an image: mAP takes the place of the accuracy in protocols, stages, studies and records."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from tests.parts import default_settings, refusal
from validate import results_table, student_figures, teacher_figures
from w2s_plugins.hub.model_card import model_card
from w2s_plugins.metrics.pgr import gain_by_epoch
from w2s_plugins.metrics.several import average_precision
from w2s_plugins.run.position import Position
from w2s_plugins.run.record import closing_table, write_predictions
from w2s_plugins.study.chain import gain_over
from w2s_plugins.study.collect import collect
from w2s_plugins.study.drawings import draw_all
from w2s_plugins.study.layout import StudyRun, save_plan
from w2s_plugins.study.loss_table import make_table
from w2s_plugins.study.planning import LocalRun
from w2s_plugins.study.report import write_report
from w2s_plugins.study.scores import (
    draws_of,
    figures_of,
    hits_of,
    read_answers,
    read_predictions,
    remarks_on,
    table_of_runs,
)
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.training.evaluation import Evaluation
from w2s_plugins.training.record import list_warnings

SAMPLES, CLASSES = 300, 6
SKILLS = dict(weak=0.8, student=1.3, ceiling=2.5, direct=1.1)


def truth() -> np.ndarray:
    """True labels (N, C), a tenth of them unknown."""
    rng = np.random.default_rng(0)
    labels = (rng.random((SAMPLES, CLASSES)) < 0.3).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return labels


def logits_of(skill: float, seed: int = 0) -> np.ndarray:
    """Logits (N, C) of a model; all have half of their noise in common, as hard images make it."""
    shared, alone = (np.random.default_rng(s).normal(size=(SAMPLES, CLASSES)) for s in (7, seed))
    positive = np.nan_to_num(truth(), nan=0.5) - 0.3
    return (skill * positive + 0.7 * shared + 0.7 * alone).astype(np.float32)


def write_answers(file: Path, student: np.ndarray, teacher: np.ndarray | None = None) -> Path:
    """Write what a run does."""
    of = {"student": torch.from_numpy(student)}
    if teacher is not None:
        of["teacher"] = torch.from_numpy(teacher)
    decisions = {name: SEVERAL_CLASSES.decide(rows) for name, rows in of.items()}
    labels = {"target": torch.from_numpy(truth()), **decisions}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(file, *SEVERAL_CLASSES.predictions(labels, of))
    return file


@pytest.fixture
def answers(tmp_path: Path) -> pandas.DataFrame:
    """Of a protocol with one control."""
    models = {name: logits_of(skill, i) for i, (name, skill) in enumerate(SKILLS.items())}
    files = {"student": write_answers(tmp_path / "s.csv", models["student"], models["weak"])}
    for name in ("ceiling", "direct"):
        files[name] = write_answers(tmp_path / f"{name}.csv", models[name])
    return read_answers(files)


# ---------------------------------------------------------------- predictions


def test_predictions_come_back(tmp_path: Path) -> None:
    """Logits to the last bit, whatever is unknown or not said."""
    teacher = logits_of(1.0, 3) / 3
    teacher[:9, 2] = np.nan
    table = read_predictions(write_answers(tmp_path / "p.csv", logits_of(1.0, 4), teacher))
    assert np.array_equal(table["student_logit"], logits_of(1.0, 4))
    assert np.array_equal(table["teacher_logit"], teacher, equal_nan=True)
    assert table["teacher"].iloc[:9, 2].eq(-1).all() and set(table["student"].stack()) == {0, 1}
    assert np.array_equal(table["target"] == -1, np.isnan(truth()))
    assert (tmp_path / "p.csv").read_text().splitlines()[0].startswith("target.0,target.1,")


def test_predictions_without_logits(tmp_path: Path) -> None:
    labels = {"target": torch.from_numpy(truth()), "student": torch.zeros(SAMPLES, CLASSES)}
    names, rows = SEVERAL_CLASSES.predictions(labels)
    assert rows.dtype == torch.int32
    write_predictions(tmp_path / "p.csv", names, rows)
    message = refusal(read_answers, {"student": tmp_path / "p.csv"})
    assert "no logits of the student" in message and "student_logit.0" in message


# ---------------------------------------------------------------- a protocol


def test_figures_of_a_protocol(answers: pandas.DataFrame) -> None:
    """Values, differences and PGR are those of mAP; intervals are those of images drawn by hand with another seed."""
    hits = hits_of(answers)
    found = figures_of(hits, draws_of(hits, answers))
    models = {name: logits_of(skill, i) for i, (name, skill) in enumerate(SKILLS.items())}

    def measured(rows: np.ndarray) -> dict[str, float]:
        labels = truth()[rows]
        values = {
            name: 100 * average_precision(logits[rows], labels).mean()
            for name, logits in models.items()
        }
        gap = values["ceiling"] - values["weak"]
        return values | {
            "above direct": values["student"] - values["direct"],
            "pgr": (values["student"] - values["weak"]) / gap,
        }

    for name, value in measured(np.arange(SAMPLES)).items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-4), name
    decided = [
        SEVERAL_CLASSES.decide(torch.from_numpy(models[name])) for name in ("student", "weak")
    ]
    agreement = 100 * SEVERAL_CLASSES.agreement(*decided).mean()
    assert found["agreement"]["value"] == pytest.approx(float(agreement), abs=1e-4)

    rng = np.random.default_rng(5)
    drawn = pandas.DataFrame(measured(rng.integers(0, SAMPLES, SAMPLES)) for _ in range(500))
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    for name in drawn:
        width = high[name] - low[name]
        assert found[name]["low"] == pytest.approx(low[name], abs=0.15 * width), name
        assert found[name]["high"] == pytest.approx(high[name], abs=0.15 * width), name


def test_words_of_a_protocol(answers: pandas.DataFrame) -> None:
    hits = hits_of(answers)
    figures = figures_of(hits, draws_of(hits, answers))
    above = figures.pop("above direct")
    controls = {"direct": dict(figures.pop("direct"), student_above=above)}
    text = table_of_runs(dict(figures, controls=controls, headline="map"))
    assert text.splitlines()[0].split() == ["mAP", "(95", "%", "interval)"]
    told = remarks_on({"student": figures["student"]}, measure="mAP")
    assert "for which the mAP of the weak teacher" in told["pgr"]


def test_one_stage_above_another(tmp_path: Path) -> None:
    about = {"selected": {"rule": "last"}, "data": {"splits": {"val": {"fingerprint": "f"}}}}
    stages = []
    for name, skill in dict(first=0.8, second=1.6).items():
        folder = tmp_path / name
        write_answers(folder / "predictions_last.csv", logits_of(skill, len(stages)))
        stages.append(LocalRun(name, "", folder=folder, record=about))
    gain = gain_over(stages[1], stages[0])
    assert gain is not None
    values = [
        100 * average_precision(logits_of(s, i), truth()).mean() for i, s in enumerate((0.8, 1.6))
    ]
    assert gain["value"] == pytest.approx(values[1] - values[0], abs=1e-4)
    assert 0 < gain["low"] < gain["value"] < gain["high"]


# ---------------------------------------------------------------- a study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two losses of three seeds, one far above the other, with their ceilings."""
    root, plan = tmp_path / "study", []
    for seed in range(3):
        ceiling = f"ceiling{seed}"
        plan.append(StudyRun(ceiling, "ceiling", None, "s", None, None, seed, []))
        teacher = logits_of(0.8, 10 + seed)
        made = {ceiling: ("", logits_of(2.5, 20 + seed), None)}
        for number, (loss, skill) in enumerate(dict(bce=1.0, asl=1.8).items()):
            name = f"{loss}{seed}"
            plan.append(StudyRun(name, "student", "w", "s", loss, "", seed, [], needs=[ceiling]))
            made[name] = (loss, logits_of(skill, 100 * number + seed), teacher)
        for name, (loss, student, weak) in made.items():
            folder = root / "runs" / name
            write_answers(folder / "predictions_last.csv", student, weak)
            gain = [dict(epoch=e, map=50.0 + e, agreement=80.0, copied=9.0) for e in range(3)]
            record = dict(
                seed=seed,
                loss=dict(name=loss, kwargs={}),
                selected=dict(rule="last"),
                gain=dict(by_epoch=gain),
                data={},
                model={},
            )
            (folder / "result.json").write_text(json.dumps(record))
            (folder / "args.yaml").write_text(f"seed: {seed}\n")
    save_plan(root, plan)
    return root


def test_losses_are_compared_in_map(study: Path) -> None:
    (group,) = make_table(collect(study).runs, "bce")
    best, other = group.rows
    maps = {
        loss: [
            100 * average_precision(logits_of(skill, 100 * i + seed), truth()).mean()
            for seed in range(3)
        ]
        for i, (loss, skill) in enumerate(dict(bce=1.0, asl=1.8).items())
    }
    assert (best.loss, best.verdict, other.verdict) == ("asl", "better", "reference")
    assert best.figures["student"]["value"] == pytest.approx(np.mean(maps["asl"]), abs=1e-4)
    assert best.versus is not None
    difference = np.mean(maps["asl"]) - np.mean(maps["bce"])
    assert best.versus["value"] == pytest.approx(difference, abs=1e-4)
    assert best.versus["low"] < difference < best.versus["high"]
    assert [*group.for_people()][:5] == ["loss", "seeds", "mAP", "agreement", "PGR"]
    curves = [one for one in draw_all([group]) if one.name.startswith("curves")]
    assert curves[0].figure.axes[0].get_ylabel() == "mAP (%)"


def test_the_report_speaks_of_map(study: Path) -> None:
    write_report(study, study / "report")
    text = (study / "report/README.md").read_text()
    assert "asl has the highest mean mAP" in text and "accuracy" not in text.lower()
    assert "mAP and agreement in percent" in text and "computed anew in each resample" in text


# ---------------------------------------------------------------- a run


FIGURES = dict(map=61.0, micro_f1=50.0, macro_f1=40.0, sample_f1=45.0)


def test_closing_table() -> None:
    models = [{"name": "labels:a.csv", "wrong": 0.25}]
    record = {
        "teacher": {"models": models, **FIGURES, "map": 55.0},
        "selected": {"rule": "last"},
        "pgr": 0.5,
        "ceiling_acc": 67.0,
        "last": {"epoch": 9, **FIGURES, "agreement": 90.0},
        "best": {"epoch": 4, **FIGURES, "agreement": 91.0},
        "metrics": FIGURES,
    }
    head, _, teacher, labels, *_, ceiling = closing_table(record).splitlines()
    words = "mAP micro F1 macro F1 sample F1 labels right agreement PGR"
    assert head.split() == words.split()
    assert teacher.split()[:3] == ["teacher", "55.00", "50.00"]
    assert labels.split()[-3:] == ["75.00", "-", "-"] and ceiling.split()[:2] == [
        "ceiling",
        "67.00",
    ]


def test_remarks_and_gain() -> None:
    settings = default_settings(teacher="weak", select="last")
    (warning,) = list_warnings(settings, {"val": FIGURES}, Position(), {"map": 65.0})
    assert warning == "the student is below its teacher: mAP 61.00, teacher 65.00"
    figures = dict(FIGURES, agreement=80.0, copied=10.0)
    assert gain_by_epoch([dict(epoch=1, val=figures)]) == dict(
        by_epoch=[dict(epoch=1, map=61.0, agreement=80.0, copied=10.0)]
    )


def test_card() -> None:
    record = dict(
        metrics=dict(FIGURES, agreement=80.0),
        teacher=dict(name="t", models=[dict(name="t")], **{**FIGURES, "map": 55.0}),
        ceiling_acc=67.0,
        pgr=0.5,
    )
    text = model_card(record)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "mAP (%) | micro F1 (%)" in rows[0] and "top-1" not in text
    assert "| 61.00 | 50.00 |" in rows[2] and "| 55.00 |" in rows[3] and "| 67.00 |" in rows[4]
    assert "type: mean_average_precision" in text and "name: mAP (%)" in text


def test_validate() -> None:
    none = torch.empty(0)
    student = Evaluation(dict(FIGURES, loss=0.5, agreement=80.0, copied=9.0), none, none)
    teacher = Evaluation(dict(FIGURES, loss=0.6, map=55.0), none, none)
    figures = student_figures(student)
    assert figures == dict(FIGURES, loss=0.5)
    beside = teacher_figures(student, teacher, 67.0)
    assert beside["teacher_map"] == 55.0 and beside["ceiling_map"] == 67.0 and beside["pgr"] == 0.5
    assert "teacher_micro_f1" in beside and "teacher_loss" not in beside
    table = results_table([dict(model="m", images=6, **figures, **beside)])
    assert "m (n = 6)" in table and "n =" not in results_table(
        [dict(model="m", images=600, **figures)]
    )
    assert "mAP" in table and "teacher mAP" in table and "top-1" not in table
