"""What a protocol ends with: the figures of its models, each with its interval over test samples, as record and table.

*Misfit* is how far the student is from its teacher: the mean KL divergence of its probabilities from the teacher's, in
nats. Where a student lies as near to its teacher as its kind can, it gains at least that much cross-entropy on the
truth (Quantifying the Gain in Weak-to-Strong Generalization, 2024, arXiv 2405.15116, for squared errors; for
divergences like this one by the same theorem of Pythagoras). So gain = misfit is the line that a gain is held against.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line
from ..metrics.pgr import RESAMPLES, above_ceiling_hint, no_gap_hint, performance_gap_recovered
from ..metrics.resampling import CONFIDENCE
from ..monitor import format_table
from ..run.record import PREDICTIONS, predictions_on

TRAINED = ("weak", "ceiling", "student")  # the other runs are controls
NOT_WORTH = "weak-to-strong was not worth doing here"


def make_record(flags: Mapping[str, object], done: Mapping[str, dict], folders: Mapping[str, Path]) -> dict:
    """Collect the figures of the models and their intervals over test samples.

    Args:
        flags: of the student.
        done: records by run.
        folders: run folders by run.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    student = done["student"]
    controls = [name for name in done if name not in TRAINED]
    figures = figures_on(
        {name: folders[name] / PREDICTIONS[record["selected"]["rule"]] for name, record in done.items()})
    # on other test sets, but for those that some run could not be measured on
    failed = {test for record in done.values() for test in record.get("failed_test_sets", ())}
    other_sets = {test: figures_on({name: folders[name] / predictions_on(test) for name in done})
                  for test in student.get("test_sets", {}) if test not in failed}
    # a control with the difference of the student from it
    compared = {}
    for name in controls:
        compared[name] = dict(figures.pop(name), student_above=figures.pop(f"above {name}"),
                              labels=done[name]["data"]["train_samples"])
    home = folders["student"].parent
    return dict(
        schema=1,
        protocol="w2s",
        **figures,
        **gain_of(student),
        **compare(compared, figures, done),
        test_sets=other_sets,
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


def figures_on(files: Mapping[str, Path]) -> dict[str, dict]:
    """Return the figures of all models on one test set; those of a control also as ``above NAME``, the difference.

    Args:
        files: predictions by run; the teacher's are in those of the student.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    predicted = {name: read_predictions(file) for name, file in files.items() if name != "weak"}
    target, answers, teacher = (predicted["student"][column] for column in ("target", "student", "teacher"))
    hits = {}
    for name, columns in predicted.items():
        if not np.array_equal(columns["target"], target):
            raise UserError(f"--protocol w2s: student and {name} were evaluated on different test samples")
        hits[name] = columns["student"] == target
    controls = {name: row for name, row in hits.items() if name not in TRAINED}
    above = {f"above {name}": hits["student"].astype(float) - row for name, row in controls.items()}
    return intervals(
        teacher == target, hits["student"], hits["ceiling"], answers == teacher, {**controls, **above})


def gain_of(student: dict) -> dict[str, object]:
    """Return misfit and gain of a run in nats, and its gain by epoch, as far as its record has them."""
    metrics, teacher_loss = student.get("metrics", {}), (student.get("teacher") or {}).get("loss")
    misfit = None
    if teacher_loss is not None and "misfit" in metrics:
        misfit = dict(kl=metrics["misfit"], gain=teacher_loss - metrics["loss"])
    return dict(misfit=misfit, gain=student.get("gain"))


def compare(
        controls: dict[str, dict], figures: Mapping[str, dict], done: Mapping[str, dict]) -> dict[str, object]:
    """Return controls, and what a reader has to be told.

    Args:
        controls: figures of each, with ``student_above``, the difference of the student from it, and its ``labels``.
        figures: of teacher, student and ceiling.
        done: records by run.
    """
    told = [f"{name}: {text}" for name, record in done.items() for text in record.get("warnings", [])]
    # the student's own run may have said it already
    hints = above_ceiling(dict(figures, controls=controls))
    told += [hint for hint in hints if hint not in " ".join(told)]
    if "no_interval" in figures["pgr"]:
        told.append(f"the ceiling is hardly above the teacher: {figures['pgr']['no_interval']}")
    # was the teacher needed at all?
    direct = controls.get("direct")
    if direct:
        images, above = done["student"]["data"]["train_samples"], direct["student_above"]
        about = (f"the strong student trained directly on the teacher's {direct['labels']} labels has "
                 f"{direct['value']:.2f}, on what the teacher says of {images} images "
                 f"{figures['student']['value']:.2f}")
        if above["high"] < 0:
            told.append(f"{NOT_WORTH}: {about}")
        elif above["low"] <= 0:
            told.append(f"it is not shown that weak-to-strong was worth doing here: {about}; the interval of the "
                        f"difference, {_interval(above)}, has 0 in it")
    return dict(controls=controls, warnings=told)


def above_ceiling(record: Mapping) -> list[str]:
    """Return what is to be said of the student and of controls that are above their ceiling."""
    models = {"the student": record["student"], **record["controls"]}
    hints = [above_ceiling_hint(name, figure["value"], record["ceiling"]["value"]) for name, figure in models.items()]
    return [hint for hint in hints if hint]


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
    figures: dict[str, dict] = {}
    for name, *three in zip(names, [*values, pgr], bounds.low, bounds.high):
        # NaN is a PGR without a gap, or its bound where a resample has none
        known = [None if number is None or np.isnan(number) else float(number) for number in three]
        figures[name] = dict(zip(("value", "low", "high"), known))
    without = int(np.isnan(found.bootstrap_distribution[-1]).sum())
    if pgr is not None and without:
        figures["pgr"]["no_interval"] = (
            f"in {without} of {RESAMPLES} resamples of the test samples the ceiling is not above the teacher")
    return figures


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Read what `report.write_predictions` wrote: column name to (N,) classes."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the predictions that an evaluation on images with ground "
                        "truth writes")
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().strip().split(",")
            table = np.loadtxt(file, dtype=np.int64, delimiter=",", ndmin=2).reshape(-1, len(header))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not the predictions that a run writes: {one_line(error)}") from error
    return dict(zip(header, table.T))


def closing_table(record: dict) -> str:
    """Return the table that the protocol ends with, and what is to be said of it in words."""
    controls = record["controls"]
    named = {"weak teacher": record["weak"], "strong student": record["student"], "ceiling": record["ceiling"]}
    for name, figure in controls.items():
        named[f"{name}, {figure['labels']} labels" if name == "direct" else name] = figure
    named.update(agreement=record["agreement"], PGR=record["pgr"])
    rows = []
    for name, figure in named.items():
        row = [name, figure["value"], _interval(figure)]
        if controls:
            above = figure.get("student_above")
            row += [f"{above['value']:+.2f}", _interval(above, "+.2f")] if above else [None, None]
        rows.append(row)
    heads = ["", "value", "95 % interval", "student above it", "95 % interval"]
    lines = [format_table(rows, heads[:len(rows[0])])]
    # other test sets: a row for each, a column for each model
    if record["test_sets"]:
        names = ["weak", "student", "ceiling", *controls, "pgr"]
        rows = [[test, *(_with_interval(found[name]) for name in names)] for test, found in record["test_sets"].items()]
        lines += ["", format_table(rows, ["test set", *names[:-1], "PGR"]), ""]
    return "\n".join([*lines, *remarks(record)])


def _with_interval(figure: dict) -> str:
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.2f} ({_interval(figure)})"


def _interval(figure: dict, form: str = ".2f") -> str:
    if figure["low"] is None or figure["high"] is None:
        return "-"
    return f"{figure['low']:{form}} to {figure['high']:{form}}"


def remarks(record: dict) -> list[str]:
    """Return the lines below the table."""
    lines = [f"WARNING: {hint}" for hint in above_ceiling(record)]
    no_gap = no_gap_hint(record["weak"]["value"], record["ceiling"]["value"])
    if no_gap:
        lines.append(no_gap)
    if "no_interval" in record["pgr"]:
        lines.append(f"PGR: no interval, {record['pgr']['no_interval']}")
    misfit, gain = record["misfit"], record["gain"]
    if misfit:
        lines.append(f"misfit {misfit['kl']:.3f} nats, gain {misfit['gain']:+.3f} nats of cross-entropy (the "
                     "student nearest to its teacher in its class, by this divergence, would gain at least the misfit)")
    if gain and len(gain["by_epoch"]) > 1:
        line = "the student never passes its teacher by more than chance"
        if gain["passes_teacher"] is not None:
            line = f"the student passes its teacher in epoch {gain['passes_teacher'] + 1}"
        if gain["copies_again"] is not None:
            line += f", and copies more of its mistakes again after epoch {gain['copies_again'] + 1}"
        lines.append(line)
    return lines
