"""Mean, spread and interval of each loss of a study, and which losses differ by more than noise.

Losses are compared inside a group (weak x strong x protocol on a data set) on accuracy, on the seeds that both have and
on the same test samples. What people read has the columns of `LossRow.for_people`, eight at most in one table; table.csv has
whatever `StudentRun.figures` has.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from ..errors import UserError, nearest
from ..files import to_csv, write_text
from ..metrics.resampling import CONFIDENCE
from .collect import PARTS, StudentRun
from .scores import (
    NAMES,
    WORDS,
    figure_text,
    figures_of,
    gather_warnings,
    headline_of_answers,
    is_of_several,
    remarks_on,
)
from .statistics import compare_all, holm, t_interval

LEVEL = 0.05
TABLE = "table.csv"
VERDICTS = ("better", "tie", "worse")
_RULE = (
    f"%s and agreement in percent: mean ± half of the {100 * CONFIDENCE:.0f} %% t-interval over seeds (sd in "
    "brackets), on one test set. PGR is computed seed by seed, then averaged. In square brackets, with one seed: the "
    "interval over test samples alone, which says nothing of other seeds. Differences are in %s, on the same "
    "seeds and test samples; their interval covers both (paired bootstrap over samples, Student's t over seeds). p is "
    "corrected by Holm's rule for the comparisons of its table. A loss is called better or worse only where that p is "
    f"below {LEVEL:.2f} and there are two seeds or more; everything else is a tie, whatever the means. All other "
    "figures are in table.csv."
)
_RULE_OF_MAP = (
    " mAP is computed anew in each resample of the test samples; what each sample contributes to it, to first order, "
    "tells the noise of samples from that of seeds."
)


# its ``value``, with ``low`` and ``high`` of its interval and what else is known of it, see `statistics`
Figure = dict[str, Any]


@dataclass
class LossRow:
    """What there is to say of one loss in its group.

    Args:
        loss: its label.
        name: its name in ``--loss``.
        seeds: how many there are.
        figures: over seeds, by the names of `StudentRun.figures`; of one seed, over test samples.
        versus: the difference from the reference; None for itself, and without seeds in common.
        verdict: what may be said of that; None if the group is not compared.
    """

    loss: str
    name: str
    seeds: int
    figures: dict[str, Figure]
    versus: Figure | None = None
    verdict: str | None = None

    def for_people(self, measure: str = "accuracy") -> dict[str, str]:
        """Return heads of the table that people read, and what stands below them; ``measure`` is what is compared."""
        p = None if self.versus is None else self.versus.get("p_holm")
        p_text = "" if p is None else f"{p:.3f}"
        return {
            "loss": self.loss,
            "seeds": str(self.seeds),
            measure: figure_text(self.figures.get("student")),
            "agreement": figure_text(self.figures.get("agreement")),
            "PGR": figure_text(self.figures.get("pgr")),
            "difference": figure_text(self.versus, "+.2f"),
            "p (Holm)": "< 0.001" if p_text == "0.000" else p_text,
            "verdict": self.verdict or "",
        }

    def for_file(self) -> dict[str, object]:
        """Return all that is known, by the beginnings of the columns of table.csv."""
        known: dict[str, object] = dict(loss=self.loss, name=self.name, seeds=self.seeds)
        known |= self.figures
        if self.verdict is None:
            return known
        known |= {"versus": self.versus, "verdict": self.verdict}
        known.setdefault(
            "above direct", None
        )  # a column of its own, without the control direct too
        return known


@dataclass
class Group:
    """The losses that are compared with one another.

    Args:
        labels: data set, weak model, strong model and protocol, by the names of `PARTS`.
        about: what stands above its table.
        rows: of each loss, best first.
        reference: loss that the others are compared with.
        notes: what a reader has to be told.
        runs: of each loss, best first, by seed.
        measure: what is compared, accuracy or mAP.
    """

    labels: dict[str, str]
    about: str
    rows: list[LossRow]
    reference: str
    notes: list[str] = field(default_factory=list)
    runs: dict[str, list[StudentRun]] = field(default_factory=dict)
    measure: str = "accuracy"

    @property
    def title(self) -> str:
        """Such as ``cifar10: w2s_cnn2 → w2s_cnn5, epochs=12``."""
        label = self.labels
        start = f"{label['set']}: " if label["set"] else ""
        end = f", {label['protocol']}" if label["protocol"] else ""
        return f"{start}{label['weak']} → {label['strong']}{end}"

    def for_people(self) -> pandas.DataFrame:
        """Return the table that people read: columns that say nothing in any row are left out."""
        table = pandas.DataFrame([row.for_people(self.measure) for row in self.rows])
        return table.loc[:, table.any()]


# ---------------------------------------------------------------- groups


def make_table(runs: pandas.DataFrame, reference: str | None = None) -> list[Group]:
    """Return all groups.

    Args:
        runs: see `Collected`.
        reference: loss that the others are compared with, ``best``, or None for kd where there is one.

    Raises:
        UserError: no such loss.
    """
    names = {*runs["loss"], *runs["name"]}
    if reference not in (None, "best", *names):
        raise UserError(f"--reference {reference}: no run of it{nearest(reference, names)}")
    groups = []
    for _, alike in runs.groupby(PARTS, sort=False):
        labels = alike[PARTS].iloc[0].to_dict()
        groups.append(make_group(labels, alike, reference))
    return groups


def make_group(labels: dict[str, str], table: pandas.DataFrame, reference: str | None) -> Group:
    """Return the rows of one group and its comparisons."""
    rows_by_loss = table.groupby("loss", sort=False)
    by_loss = {str(loss): rows["run"].tolist() for loss, rows in rows_by_loss}
    rows = [make_row(loss, students) for loss, students in by_loss.items()]
    rows.sort(key=lambda row: -row.figures["student"]["value"])
    runs = {row.loss: by_loss[row.loss] for row in rows}
    # the loss of that label, or one of that name
    wanted = reference or "kd"
    fitting = [row for row in rows if wanted in (row.loss, row.name)]
    chosen = min(fitting, key=lambda row: row.loss != wanted, default=rows[0])
    # what the teacher and the ceiling reach
    answers = table["run"].iloc[0].answers
    target, measure = answers["target"], WORDS[headline_of_answers(answers)]
    largest = max(rows, key=lambda row: row.seeds)
    reached = [name for name in ("weak", "ceiling", "direct") if name in largest.figures]
    about = [f"{NAMES.get(name, name)} {largest.figures[name]['value']:.2f}" for name in reached]
    about += [f"seeds: {largest.seeds}", f"test samples: {len(target):,}"]
    group = Group(labels, ", ".join(about), rows, chosen.loss, runs=runs, measure=measure)
    if all(target.equals(run.answers["target"]) for run in table["run"]):
        compare_losses(group, all_pairs=not fitting)
    else:
        group.notes.append(
            "The runs were evaluated on different test samples, so losses are not compared."
        )
    # what holds for several losses is said of the best of them
    remarks: dict[str, str] = {}
    for row in rows[::-1]:
        for about, text in remarks_on(row.figures, measure=measure, images=len(target)).items():
            remarks[about] = f"{row.loss}: {text}"
    group.notes += remarks.values()
    # what the students of all seeds warn of themselves, but for what is said above
    noted = " ".join(group.notes)
    warnings = gather_warnings(
        {loss: {"warnings": shared_warnings(students)} for loss, students in group.runs.items()}
    )
    group.notes += [text for text in warnings if text.partition(": ")[2] not in noted]
    return group


def shared_warnings(students: list[StudentRun]) -> list[str]:
    """Return the warnings that the records of all these students have, such as of their labels or learning rate."""
    # what one seed alone warns of, such as a spike of its loss, is in its own folder
    first, *others = (student.record.get("warnings", []) for student in students)
    return [text for text in first if all(text in other for other in others)]


def make_row(loss: str, runs: list[StudentRun]) -> LossRow:
    """Return the figures of one loss, over seeds; of one seed, over test samples."""
    # `figures_of` has intervals over samples, which stand in for those over seeds where there is one
    figures: dict[str, Figure] = {}
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        # a ceiling or a PGR may be known of some seeds only
        known = [run.figures.get(name) for run in runs]
        values = [value for value in known if value is not None and pandas.notna(value)]
        if values:
            figures[name] = t_interval(values)
    if len(runs) == 1:
        for name, figure in figures_of(runs[0].hits, runs[0].draws).items():
            if name in figures:
                figures[name] |= figure
    return LossRow(loss, runs[0].record["loss"]["name"], len(runs), figures)


# ---------------------------------------------------------------- comparisons


def compare_losses(group: Group, all_pairs: bool) -> None:
    """Compare with the reference, and put the outcome into its rows.

    Args:
        group: its runs are all on the same test samples.
        all_pairs: correct for all pairs, as is due where the results have chosen the reference.
    """
    # (seed, test sample) of each loss: 100 where its student is right, and how much more often than the control direct
    hits, above = (
        pandas.DataFrame(
            {
                (loss, run.record["seed"]): 100.0 * run.hits[name]
                for loss, runs in group.runs.items()
                for run in runs
                if name in run.hits
            }
        ).T
        for name in ("student", "above direct")
    )
    # each against the reference on the seeds that both have, and against its control
    others = [loss for loss in group.runs if loss != group.reference]
    pairs = [(loss, group.reference) for loss in others]
    if all_pairs:
        pairs += itertools.combinations(others, 2)
    differences = {
        (loss, other): (hits.loc[loss] - hits.loc[other]).dropna() for loss, other in pairs
    }
    differences |= {(loss, None): rows for loss, rows in above.groupby(level=0)}
    outcomes = compare_all(differences, _draws_of_map(group, differences))
    # Holm's rule over all that were tested
    tested = [
        outcomes[pair] for pair in pairs if pair in outcomes and outcomes[pair]["p"] is not None
    ]
    for outcome, adjusted in zip(tested, holm([outcome["p"] for outcome in tested])):
        outcome["p_holm"] = adjusted
    # what each row says of it
    for row in group.rows:
        row.versus = outcomes.get((row.loss, group.reference))
        row.verdict = "reference" if row.loss == group.reference else verdict(row.versus)
        if (row.loss, None) in outcomes:
            row.figures["above direct"] = outcomes[row.loss, None]


def _draws_of_map(
    group: Group, differences: Mapping[tuple, pandas.DataFrame]
) -> dict[tuple, np.ndarray] | None:
    """Return for each comparison the mean over its seeds of the differences in mAP, in resamples; None of accuracy."""
    runs = {
        (loss, run.record["seed"]): run for loss, students in group.runs.items() for run in students
    }
    if not all(is_of_several(run.answers) for run in runs.values()):
        return None
    draws = {}
    for (loss, other), rows in differences.items():
        # a loss is compared with another one on the seeds that both have, or with its control
        if other is None:
            drawn = [runs[key].draws["above direct"] for key in rows.index]
        else:
            drawn = [
                runs[loss, seed].draws["student"] - runs[other, seed].draws["student"]
                for seed in rows.index
            ]
        if drawn:
            draws[loss, other] = np.mean(drawn, axis=0)
    return draws


def rule_of(groups: Sequence[Group]) -> str:
    """Return what the figures of a report are, and when a loss is called better."""
    measures = [*dict.fromkeys(group.measure for group in groups)]
    words = " or ".join(measures)
    rule = _RULE % (words.replace("accuracy", "Accuracy", 1), words)
    return rule + _RULE_OF_MAP if "mAP" in measures else rule


def verdict(outcome: dict | None) -> str:
    """Return ``better`` or ``worse`` where the corrected p is below the level, else ``tie``; never from one seed."""
    if outcome is None:
        return ""
    if outcome["seeds"] < 2:
        return "one seed"
    if outcome.get("p_holm", 1.0) >= LEVEL or outcome["value"] == 0:
        return "tie"
    return "better" if outcome["value"] > 0 else "worse"


# ---------------------------------------------------------------- files


def write_table(groups: list[Group], folder: Path) -> None:
    """Write table.csv, a line for each loss with all its figures."""
    labels, rows = [], []
    for group in groups:
        rows += [row.for_file() for row in group.rows]
        labels += [{**group.labels, "reference": group.reference}] * len(group.rows)
    # figures become columns such as student_low
    table = pandas.concat(
        [pandas.DataFrame(labels), pandas.json_normalize(rows, sep="_")], axis="columns"
    )
    table = table.astype(object).where(table.notna(), None)
    write_text(folder / TABLE, to_csv(table.to_dict("records")))
