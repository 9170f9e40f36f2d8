"""What a protocol ends with: the figures of its models, each with its interval over test samples, as record and table.

*Misfit* is how far the student is from its teacher: the mean KL divergence of its probabilities from the teacher's, in
nats. Where a student lies as near to its teacher as its kind can, it gains at least that much cross-entropy on the
truth (Quantifying the Gain in Weak-to-Strong Generalization, 2024, arXiv 2405.15116, for squared errors; for
divergences like this one by the same theorem of Pythagoras). So gain = misfit is the line that a gain is held against.
"""

import csv
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line
from ..metrics.pgr import RESAMPLES, above_ceiling_hint, no_gap_hint, performance_gap_recovered, worth_between
from ..metrics.resampling import CONFIDENCE
from ..monitor import format_table
from ..run.record import PREDICTIONS, predictions_on

TRAINED = ("weak", "ceiling", "student")  # the other stages are controls
NOT_WORTH = "weak-to-strong was not worth doing here"


def make_record(flags: Mapping[str, object], done: Mapping[str, dict], folders: Mapping[str, Path]) -> dict:
    """Collect the figures of the models and their intervals over test samples.

    Args:
        flags: of the student.
        done: records by stage.
        folders: run folders by stage.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    student = done["student"]
    controls = {name: record["data"]["train_samples"] for name, record in done.items() if name not in TRAINED}
    figures = figures_on(
        {name: folders[name] / PREDICTIONS[record["selected"]["rule"]] for name, record in done.items()}, controls)
    failed = {test for record in done.values() for test in record.get("failed_test_sets", ())}
    shifted = {test: figures_on({name: folders[name] / predictions_on(test) for name in done}, controls)
               for test in student.get("test_sets", {}) if test not in failed}
    compared = {name: dict(figures.pop(name), student_above=figures.pop(f"above {name}"),
                           labels=labels) for name, labels in controls.items()}
    home = folders["student"].parent
    return dict(
        schema=1,
        protocol="w2s",
        **figures,
        **gain_of(student),
        **compare(compared, figures, done),
        test_sets=shifted,
        splits=dict(test=student["data"]["splits"]["val"], held_out=student["data"]["splits"]["select"],
                    **{name: record["data"]["splits"]["train"] for name, record in done.items()}),
        selected={name: record["selected"] for name, record in done.items()},
        label_noise={name: noise_of(record) for name, record in done.items()},
        loss=student["loss"],
        models=dict(weak=flags["teacher"], strong=flags["model"]),
        seed=flags["seed"],
        bootstrap=dict(resamples=RESAMPLES, confidence=CONFIDENCE, method="percentile, paired over test samples"),
        runs={name: path.name if path.parent == home else str(path) for name, path in folders.items()},
    )


def figures_on(files: Mapping[str, Path], controls: Mapping[str, int]) -> dict[str, dict | None]:
    """Return the figures of all models on one test set; those of a control also as ``above NAME``, the difference, and
    what the student is worth in labels, where there is a direct one.

    Args:
        files: predictions by stage; the teacher's are the student's to tell.
        controls: stages beside teacher, ceiling and student, with the number of their training samples.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    said = {name: read_predictions(file) for name, file in files.items() if name != "weak"}
    target = said["student"]["target"]
    if odd := [name for name, columns in said.items() if not np.array_equal(columns["target"], target)]:
        raise UserError(f"--protocol w2s: student and {odd[0]} were evaluated on different test samples")
    hits = {name: columns["student"] == target for name, columns in said.items()}
    more = {name: hits[name] for name in controls}
    more |= {f"above {name}": 1.0 * hits["student"] - hits[name] for name in controls}
    teacher = said["student"]["teacher"]
    figures: dict[str, dict | None] = intervals(
        teacher == target, hits["student"], hits["ceiling"], said["student"]["student"] == teacher, more)
    curve = [(labels, hits[name]) for name, labels in controls.items() if name.startswith("direct")]
    figures["worth_in_labels"] = worth_between(curve, hits["student"]) if curve else None
    return figures


def gain_of(student: dict) -> dict[str, object]:
    """Return misfit and gain of a run in nats, and its gain by epoch, as far as its record has them."""
    metrics, loss = student.get("metrics", {}), (student["teacher"] or {}).get("loss")
    known = loss is not None and "misfit" in metrics
    return dict(misfit=dict(kl=metrics["misfit"], gain=loss - metrics["loss"]) if known else None,
                gain=student.get("gain"))


def compare(
        controls: dict[str, dict], figures: Mapping[str, dict], done: Mapping[str, dict]) -> dict[str, object]:
    """Return controls, and what a reader has to be told.

    Args:
        controls: figures of each, with ``student_above``, the difference of the student from it, and its ``labels``.
        figures: of teacher, student and ceiling.
        done: records by stage.
    """
    student = figures["student"]["value"]
    found: dict[str, object] = dict(
        controls=controls,
        warnings=[f"{name}: {text}" for name, record in done.items() for text in record.get("warnings", [])])
    hints = above_ceiling(dict(figures, controls=controls))
    told = " ".join(found["warnings"])  # by the student's own run
    found["warnings"] += [hint for hint in hints if hint not in told]
    if reason := figures["pgr"].get("no_interval"):
        found["warnings"].append(f"the ceiling is hardly above the teacher: {reason}")
    if direct := controls.get("direct"):
        above, images = direct["student_above"], done["student"]["data"]["train_samples"]
        told = (f"the strong student trained directly on the teacher's {direct['labels']} labels has "
                f"{direct['value']:.2f}, on what the teacher says of {images} images {student:.2f}")
        if above["high"] < 0:
            found["warnings"].append(f"{NOT_WORTH}: {told}")
        elif above["low"] <= 0:
            found["warnings"].append(f"it is not shown that weak-to-strong was worth doing here: {told}; the interval "
                                     f"of the difference, {above['low']:.2f} to {above['high']:.2f}, has 0 in it")
    return found


def above_ceiling(record: Mapping) -> list[str]:
    """Return what is to be said of the student and of controls that are above their ceiling."""
    models = {"the student": record["student"], **(record.get("controls") or {})}
    hints = (above_ceiling_hint(name, figure["value"], record["ceiling"]["value"]) for name, figure in models.items())
    return [*filter(None, hints)]


def noise_of(record: dict) -> dict | None:
    """Return kind and rate of the label noise that a run was trained on."""
    noise = record["data"]["label_noise"]
    return noise and {k: v for k, v in noise.items() if k != "confusion"}


def intervals(
        weak: np.ndarray,
        student: np.ndarray,
        ceiling: np.ndarray,
        agrees: np.ndarray,
        more: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict]:
    """Return accuracies in percent and the PGR, each with its percentile bootstrap interval over test samples.

    Args:
        weak: (N,) whether the teacher is right.
        student: (N,) whether the student is.
        ceiling: (N,) whether the ceiling is.
        agrees: (N,) whether student and teacher say the same.
        more: (N,) of anything else whose mean, times 100, is asked for.

    Returns:
        ``value``, ``low`` and ``high`` of each; the PGR has no bounds, but ``no_interval``, the reason, where ceiling
        and teacher are too close for one, and no value where the ceiling is not above.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap  # takes most of a second, in every run

    more = more or {}
    rows = np.stack([weak, student, ceiling, agrees, *more.values()]).astype(np.float64)
    values = 100 * rows.mean(axis=1)
    pgr = performance_gap_recovered(*values[:3])

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        means = np.stack([100 * s.mean(axis=axis) for s in samples])
        gap = means[2] - means[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(gap > 0, (means[1] - means[0]) / gap, np.nan)
        return np.concatenate([means, ratio[None]])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # the reason is given below
        found = bootstrap(
            tuple(rows), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=64,
            confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0))
    names, bounds = ("weak", "student", "ceiling", "agreement", *more, "pgr"), found.confidence_interval
    figures: dict[str, dict] = {
        name: dict(value=_finite(value), low=_finite(low), high=_finite(high))
        for name, value, low, high in zip(names, [*values, pgr], bounds.low, bounds.high)
    }
    if pgr is not None and (without := int(np.isnan(found.bootstrap_distribution[-1]).sum())):
        figures["pgr"]["no_interval"] = (
            f"in {without} of {RESAMPLES} resamples of the test samples the ceiling is not above the teacher")
    return figures


def _finite(value: float | None) -> float | None:
    """None where there is no gap, or none in a resample, so that the bound is not known."""
    return None if value is None or not math.isfinite(value) else float(value)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Read what `report.write_predictions` wrote: column name to (N,) classes."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the predictions that an evaluation on images with ground "
                        "truth writes; what a student says of images without is a table, of `python -m "
                        "w2s_plugins.predictions RUN IMAGES`")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        table = np.array(rows, dtype=np.int64).reshape(len(rows), len(header))
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{path}: not the predictions that a run writes: {one_line(error)}") from error
    return dict(zip(header, table.T))


def closing_table(record: dict) -> str:
    """Return the table that the protocol ends with, and what is to be said of it in words."""
    controls = record.get("controls") or {}
    named = [("weak teacher", record["weak"]), ("strong student", record["student"]), ("ceiling", record["ceiling"]),
             *((f"{name}, {figure['labels']} labels" if name.startswith("direct") else name, figure)
               for name, figure in controls.items()),
             ("agreement", record["agreement"]), ("PGR", record["pgr"])]
    heads, rows = ["", "value", "95 % interval"], [[name, f["value"], _interval(f)] for name, f in named]
    if controls:
        heads += ["student above it", "95 % interval"]
        rows = [[*row, *(above_text(f["student_above"]) if "student_above" in f else (None, None))]
                for row, (_, f) in zip(rows, named)]
    tables = [format_table(rows, heads)]
    if sets := record.get("test_sets"):
        names = ["weak", "student", "ceiling", *controls, "pgr"]
        tables += ["", format_table(
            [[test, *(_with_interval(found[name]) for name in names)] for test, found in sets.items()],
            ["test set", *("PGR" if name == "pgr" else name for name in names)]), ""]
    return "\n".join([*tables, *remarks(record)])


def _with_interval(figure: dict) -> str:
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.2f} ({_interval(figure)})"


def _interval(figure: dict, form: str = ".2f") -> str:
    low, high = figure["low"], figure["high"]
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def above_text(figure: dict) -> tuple[str, str]:
    return f"{figure['value']:+.2f}", _interval(figure, "+.2f")


def remarks(record: dict) -> list[str]:
    """Return the lines below the table."""
    lines = [f"WARNING: {hint}" for hint in above_ceiling(record)]
    if hint := no_gap_hint(record["weak"]["value"], record["ceiling"]["value"]):
        lines.append(hint)
    if reason := record["pgr"].get("no_interval"):
        lines.append(f"PGR: no interval, {reason}")
    if misfit := record.get("misfit"):
        lines.append(f"misfit {misfit['kl']:.3f} nats, gain {misfit['gain']:+.3f} nats of cross-entropy (the "
                     "student nearest to its teacher in its class, by this divergence, would gain at least the misfit)")
    if (gain := record.get("gain")) and len(gain["by_epoch"]) > 1:
        passes, again = gain["passes_teacher"], gain["copies_again"]
        lines.append("the student " + ("never passes its teacher by more than chance" if passes is None else
                                       f"passes its teacher in epoch {passes + 1}")
                     + ("" if again is None else f", and copies more of its mistakes again after epoch {again + 1}"))
    if worth := record.get("worth_in_labels"):
        point, *ends = [worth_text(found) for found in (worth, worth["low"], worth["high"])]
        interval = "" if {*ends} == {point} else f" (95 % interval {' to '.join(ends)})"
        lines.append(f"the student is worth {point} labels{interval}")
    return lines


def worth_text(worth: dict) -> str:
    """Return such as ``340`` and ``more than 500``."""
    bound = {"more": "more than ", "less": "less than ", None: ""}[worth["bound"]]
    return f"{bound}{worth['labels']:,}"
