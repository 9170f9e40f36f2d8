"""Mean, spread and interval of each cell of a study, and which losses differ by more than noise.

A cell is weak model x strong model x protocol x loss on a data set. Losses are compared inside a group (weak x strong x
protocol on a data set) on accuracy, on the seeds that both have and on the same test samples. The table that people
read has eight columns at most; table.csv and table.json have all figures.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas

from ..cli.groups import CONTROLS
from ..errors import UserError, nearest
from ..files import to_csv as rows_to_csv
from ..files import to_json, write_text
from ..hub.markdown import code, markdown_table
from ..metrics.pgr import above_ceiling_hint
from ..metrics.resampling import CONFIDENCE, resampled_means
from .collect import EPOCHS, PARTS, Collected, StudentRun
from .statistics import RESAMPLES, bounds, compare, holm, mcnemar, t_interval

LEVEL = 0.05
FIGURES = ("weak", "student", "ceiling", "agreement", "pgr", *CONTROLS, "above_direct", "misfit", "gain", *EPOCHS)
MARKS = {"better": "▲ better", "worse": "▼ worse"}  # other verdicts are shown as they are
VERDICTS = ("better", "tie", "worse")
RULE = (
    f"Accuracy and agreement in percent: mean ± half of the {100 * CONFIDENCE:.0f} % t-interval over seeds (sd in "
    "brackets), on one test set. PGR is computed seed by seed, then averaged. † One seed: the interval is that of the "
    "test samples alone and says nothing of other seeds. Differences are in accuracy, on the same seeds and test "
    f"samples; their interval covers both (paired bootstrap over samples, Student's t over seeds). p is corrected by "
    "Holm's rule for the comparisons of its table. A loss is called better or worse only where that p is below "
    f"{LEVEL:.2f} and there are two seeds or more; everything else is a tie, whatever the means. All other figures are "
    "in table.csv.")


# ---------------------------------------------------------------- figures


def make_table(found: Collected, reference: str | None = None) -> dict:
    """Return cells, comparisons and what was left out, as they stand in table.json.

    Args:
        found: the students.
        reference: loss that the others are compared with, ``best``, or None for kd where there is one.

    Raises:
        UserError: no such loss.
    """
    losses = {student.loss for student in found.students}
    names = losses | {student.record["loss"]["name"] for student in found.students}
    if reference not in (None, "best", *names):
        raise UserError(f"--reference {reference}: no run of it in {found.folder}{nearest(reference, names)}; there "
                        f"are {', '.join(sorted(losses))}")
    # losses are compared within a group; groups that differ in nothing but the data set make a mean over sets
    groups, families = [], {}
    for runs in found.groups():
        groups.append(make_group(runs, reference))
        if "set" in runs[0].group:
            labels = {part: label for part, label in runs[0].group.items() if part != "set"}
            families.setdefault(tuple(labels.items()), []).append((groups[-1], runs))
    means = [mean_over_sets(dict(labels), members) for labels, members in families.items() if len(members) > 1]
    return dict(schema=1, confidence=CONFIDENCE, resamples=RESAMPLES, groups=groups, left_out=found.left_out,
                over_sets=means)


def mean_over_sets(labels: dict[str, str], members: list[tuple[dict, list[StudentRun]]]) -> dict:
    """Return of each loss, best first, its PGR seed by seed as the mean over data sets, and its verdicts counted.

    A data set on which a seed has no PGR is left out of the mean of every loss.

    Args:
        labels: of what is the same on all of them.
        members: the group on each data set and its students.
    """
    rows = [dict(set=group["set"], loss=run.loss, seed=run.seed, pgr=run.figures["pgr"])
            for group, runs in members for run in runs]
    table = pandas.DataFrame(rows).pivot(index=["loss", "seed"], columns="set", values="pgr").astype(float)
    without = {row["set"] for row in rows if row["pgr"] is None}
    gaps = table.drop(columns=list(without))
    note = None
    if without:
        note = (f"In the mean are {len(gaps.columns)} of {len(members)} data sets: on others some ceiling is not above "
                "its teacher.")
    cells = []
    all_cells = [cell for group, _ in members for cell in group["cells"]]
    for loss in dict.fromkeys(cell["loss"] for cell in all_cells):
        # of the data sets that have the loss, the seeds that all of them have
        own = gaps.loc[loss].dropna(axis="columns", how="all").dropna()
        values = own.mean(axis="columns").tolist() if len(own.columns) else []
        verdicts = Counter(cell["verdict"] for cell in all_cells if cell["loss"] == loss and cell["verdict"])
        cells.append(dict(
            loss=loss, sets=len(own.columns), seeds=own.index.tolist() if values else [],
            pgr={**t_interval(values), "values": values} if values else None, verdicts=dict(verdicts)))
    cells.sort(key=lambda cell: -cell["pgr"]["mean"] if cell["pgr"] else float("inf"))
    references = {group["reference"] for group, _ in members}
    return dict(labels, sets=[group["set"] for group, _ in members], note=note, warnings=[], cells=cells,
                reference=references.pop() if len(references) == 1 else "best")


def make_group(runs: list[StudentRun], reference: str | None) -> dict:
    """Return the cells of one group, best first, and its comparisons."""
    by_loss: dict[str, list[StudentRun]] = {}
    for student in runs:
        by_loss.setdefault(student.loss, []).append(student)
    cells = [make_cell(loss, members) for loss, members in by_loss.items()]
    cells.sort(key=lambda cell: -cell["student"]["mean"])
    chosen = choose_reference(cells, reference)
    group = dict(runs[0].group, samples=len(runs[0].target), reference=(chosen or cells[0])["loss"], note=None,
                 cells=cells, test=runs[0].test)
    if not all(np.array_equal(runs[0].target, other.target) for other in runs):
        group["note"] = "The runs were evaluated on different test samples, so losses are not compared."
    elif len(cells) > 1:
        compare_losses(by_loss, group, all_pairs=chosen is None)
    group["warnings"] = warnings_of(cells)
    return group


def warnings_of(cells: list[dict]) -> list[str]:
    """Return what the cells of a group cannot tell, and where weak-to-strong was not worth doing."""
    told = []
    if max(len(cell["seeds"]) for cell in cells) == 2:
        told.append("Two seeds seldom decide: the interval of their mean is 12.7 standard errors to either side, so "
                    "that a verdict rests on how well two numbers happen to agree.")
    # ceilings that are none
    with_ceiling = [cell for cell in cells if cell["ceiling"]]
    low = [cell for cell in with_ceiling if cell["weak"]["mean"] >= cell["ceiling"]["mean"]]
    if low:
        told.append(f"The ceiling is not above the teacher ({low[0]['ceiling']['mean']:.2f} and "
                    f"{low[0]['weak']['mean']:.2f}): this student is no stronger one, and there is no PGR.")
    for name in ("student", *CONTROLS):
        hints = [above_ceiling_hint(name, cell[name]["mean"], cell["ceiling"]["mean"])
                 for cell in with_ceiling if cell[name]]
        told += [hint for hint in hints if hint][:1]
    # was the teacher needed at all?
    compared = [cell for cell in cells if cell["direct"]]
    worse = [cell for cell in compared if is_below(cell["above_direct"])]
    open_question = [cell for cell in compared if cell not in worse and not is_above(cell["above_direct"])]
    for such, text, why in ((worse, "Weak-to-strong was not worth doing", "is below 0"),
                            (open_question, "It is not shown that weak-to-strong was worth doing", "has 0 in it")):
        if such:
            told.append(f"{text} with {len(such)} of {len(compared)} losses: trained directly on the teacher's own "
                        f"labels, the student's model has {such[0]['direct']['mean']:.2f}, and the interval of the "
                        f"difference {why}.")
    return told


def is_below(difference: dict) -> bool:
    """Return whether a difference is below 0 by its interval."""
    return difference["high"] is not None and difference["high"] < 0


def is_above(difference: dict) -> bool:
    """Return whether a difference is above 0 by its interval."""
    return difference["low"] is not None and difference["low"] > 0


def choose_reference(cells: list[dict], wanted: str | None) -> dict | None:
    """Return the cell to compare with: that with the label, else the first with the name; None for the best."""
    if wanted == "best":
        return None
    wanted = wanted or "kd"
    fitting = [cell for cell in cells if wanted in (cell["loss"], cell["name"])]
    return min(fitting, key=lambda cell: cell["loss"] != wanted, default=None)


def make_cell(loss: str, runs: list[StudentRun]) -> dict:
    """Return the figures of one cell."""
    about = runs[0].record["loss"]
    record = dict(loss=loss, name=about["name"], kwargs=about["kwargs"] or {}, seeds=[r.seed for r in runs],
                  verdict=None)
    for name in FIGURES:
        values = [r.figures[name] for r in runs if r.figures.get(name) is not None]
        record[name] = {**t_interval(values), "values": values, "over": "seeds"} if values else None
    if len(runs) == 1:
        for name, (low, high) in sample_intervals(runs[0]).items():
            record[name].update(low=low, high=high, over="test samples")
    elif record["above_direct"]:
        record["above_direct"].update(over_seeds_and_samples(
            [run.hits["above_direct"] for run in runs if "above_direct" in run.hits]))
    return record


def over_seeds_and_samples(rows: list[np.ndarray]) -> dict[str, object]:
    """Return ``low``, ``high`` and ``over`` of a mean difference (S, N); nothing of one seed, or of other samples."""
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return {}
    differences = 100 * np.stack(rows)
    found = compare(differences, resampled_means(differences.mean(axis=0)[None], RESAMPLES)[0])
    return dict(low=found["low"], high=found["high"], over="seeds and test samples")


def sample_intervals(student: StudentRun) -> dict[str, tuple[float | None, float | None]]:
    """Return the bootstrap intervals over test samples of one run's figures; a ceiling without predictions has none."""
    names = list(student.hits)
    draws = dict(zip(names, 100 * resampled_means(np.stack(list(student.hits.values())), RESAMPLES)))
    if student.figures["pgr"] is not None:
        ceiling = draws.get("ceiling", student.figures["ceiling"])
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.where(ceiling > draws["weak"], ceiling - draws["weak"], np.nan)
            draws["pgr"] = (draws["student"] - draws["weak"]) / gap
    return {name: bounds(values) for name, values in draws.items()}


def compare_losses(cells: dict[str, list[StudentRun]], group: dict, all_pairs: bool) -> None:
    """Compare with the reference, and put the outcome into the cells: ``versus`` and ``verdict``.

    Args:
        cells: runs by loss, all on the same test samples.
        group: its record.
        all_pairs: correct for all pairs, as is due where the results have chosen the reference.
    """
    runs = [run for members in cells.values() for run in members]
    # the same resamples of the test samples for all runs
    rows = np.stack([run.hits["student"] for run in runs])
    draws = dict(zip(map(id, runs), 100 * resampled_means(rows, RESAMPLES)))
    # each loss against the reference; where the results chose that one, all pairs count in the correction
    reference, others = group["reference"], [loss for loss in cells if loss != group["reference"]]
    pairs = [(loss, reference) for loss in others]
    extra = list(itertools.combinations(others, 2)) if all_pairs else []
    outcomes = {pair: compare_pair(*(cells[loss] for loss in pair), draws) for pair in (*pairs, *extra)}
    # Holm's rule over all that were tested
    tested = {pair: outcome for pair, outcome in outcomes.items() if outcome and outcome["p"] is not None}
    for outcome, adjusted in zip(tested.values(), holm([outcome["p"] for outcome in tested.values()])):
        outcome["p_holm"] = adjusted
    group["comparisons"] = len(tested)
    for cell in group["cells"]:
        outcome = outcomes.get((cell["loss"], reference))
        cell["versus"], cell["verdict"] = outcome, verdict(outcome)
        if cell["loss"] == reference:
            cell["verdict"] = "reference"


def compare_pair(a: list[StudentRun], b: list[StudentRun], draws: dict[int, np.ndarray]) -> dict | None:
    """Compare the losses of two cells on the seeds that both have; None where they share none.

    Args:
        a: runs of one loss.
        b: runs of the other.
        draws: (R,) accuracies of each run, by its id, for the same resamples of the test samples.
    """
    # seeds that both have
    theirs = {run.seed: run for run in b}
    pairs = [(run, theirs[run.seed]) for run in a if run.seed in theirs]
    if not pairs:
        return None
    # differences on the same seeds and samples, and their means for each resample
    differences = 100 * np.stack([x.hits["student"].astype(np.float64) - y.hits["student"] for x, y in pairs])
    drawn = np.mean([draws[id(x)] - draws[id(y)] for x, y in pairs], axis=0)
    tests = [dict(seed=x.seed, p=mcnemar(x.hits["student"], y.hits["student"])) for x, y in pairs]
    if len(pairs) > 1:
        return {**compare(differences, drawn), "mcnemar": tests}
    low, high = bounds(drawn)
    return dict(difference=float(differences.mean()), low=low, high=high, p=None, seeds=1, mcnemar=tests)


def verdict(outcome: dict | None) -> str | None:
    """Return ``better`` or ``worse`` where the corrected p is below the level, else ``tie``; never from one seed."""
    if outcome is None:
        return None
    if outcome["seeds"] < 2:
        return "one seed"
    if outcome.get("p_holm", 1.0) >= LEVEL or outcome["difference"] == 0:
        return "tie"
    return "better" if outcome["difference"] > 0 else "worse"


# ---------------------------------------------------------------- what is shown


def columns_of(cell: dict) -> dict[str, str]:
    """Return what the table says of a cell, by the heads of its columns."""
    seeds = len(cell["seeds"])
    if "sets" in cell:
        counts = {f"{verdict} on": str(cell["verdicts"].get(verdict, 0)) for verdict in VERDICTS}
        return {"loss": cell["loss"], "sets": str(cell["sets"]), "PGR": figure_text(cell["pgr"], seeds), **counts}
    versus = cell.get("versus") or {}
    return {
        "loss": cell["loss"],
        "seeds": str(seeds),
        "accuracy": figure_text(cell["student"], seeds),
        "agreement": figure_text(cell["agreement"], seeds),
        "PGR": figure_text(cell["pgr"], seeds),
        "difference": interval_text(versus),
        "p (Holm)": p_text(versus.get("p_holm")),
        "verdict": MARKS.get(cell["verdict"], cell["verdict"] or ""),
    }


def tables_of(table: dict) -> Iterator[tuple[dict, str, list[dict[str, str]]]]:
    """Yield what each table is of, what stands above it, and its rows: means over data sets, then groups. Columns that
    say nothing in any row are left out.
    """
    for group in (*table["over_sets"], *table["groups"]):
        frame = pandas.DataFrame([columns_of(cell) for cell in group["cells"]])
        kept = [head for head in frame if frame[head].any()]
        yield group, heading_of(group), frame[kept].to_dict("records")


def figure_text(figure: dict | None, seeds: int) -> str:
    """Return such as ``85.50 ± 1.20 (0.97)``; with one seed ``85.50 [83.10, 87.90]†``."""
    if figure is None:
        return "-"
    text = f"{figure['mean']:.2f}"
    if figure["sd"] is not None:
        text += f" ± {figure['high'] - figure['mean']:.2f} ({figure['sd']:.2f})"
    elif figure["low"] is not None:
        text += f" [{figure['low']:.2f}, {figure['high']:.2f}]†"
    if figure["n"] < seeds:
        text += f" ({figure['n']} of {seeds} seeds)"
    return text


def interval_text(versus: dict) -> str:
    """Return such as ``+1.20 [+0.30, +2.10]``."""
    if not versus:
        return ""
    ends = "" if versus["low"] is None else f" [{versus['low']:+.2f}, {versus['high']:+.2f}]"
    return f"{versus['difference']:+.2f}{ends}"


def p_text(p: float | None) -> str:
    """Return such as ``0.012``; nothing where there is no p."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def title_of(group: dict) -> str:
    """Return such as ``w2s_cnn2 → w2s_cnn5, epochs=12``, after the data set where there are several."""
    on = f"{group['set']}: " if "set" in group else ""
    protocol = f", {group['protocol']}" if group["protocol"] else ""
    return f"{on}{group['weak']} → {group['strong']}{protocol}"


def heading_of(group: dict) -> str:
    """Say what the teacher and the ceiling reach, and what the differences are taken from."""
    if "sets" in group:
        return f"PGR, mean over {', '.join(group['sets'])}"
    seeds = max(len(cell["seeds"]) for cell in group["cells"])
    parts = []
    for name, text in (("weak", "teacher"), ("ceiling", "ceiling"), ("direct", "direct")):
        figures = [cell[name] for cell in group["cells"] if cell[name] and len(cell["seeds"]) == seeds]
        if figures:
            parts.append(f"{text} {figures[0]['mean']:.2f}")
    return f"{', '.join(parts)} (mean of {seeds} seed{'s' * (seeds > 1)}), {group['samples']:,} test samples"


def to_markdown(table: dict) -> str:
    """Return the tables of all groups, the rule for reading them, and what was left out."""
    parts = []
    for group, heading, rows in tables_of(table):
        lines = [tuple({**row, "loss": code(row["loss"])}.values()) for row in rows]
        parts.append(f"### {code(title_of(group))}\n\n{heading}; differences from {code(group['reference'])}.")
        parts.append(markdown_table(rows[0], lines))
        parts += [text for text in (group["note"], *group["warnings"]) if text]
    parts.append(RULE)
    if table["left_out"]:
        parts.append("Left out:\n\n" + "\n".join(f"- {code(reason)}" for reason in table["left_out"]))
    return "\n\n".join(parts)


def to_csv(table: dict) -> str:
    """Return one line for each cell, with all its figures."""
    rows = []
    for group in table["groups"]:
        for cell in group["cells"]:
            row = {part: group[part] for part in PARTS[:-1] if part in group}
            row |= {"loss": cell["loss"], "seeds": len(cell["seeds"])}
            for name in FIGURES:
                figure = cell[name] or {}
                row |= {f"{name}_{key}": figure.get(key) for key in ("mean", "sd", "low", "high", "n", "over")}
            versus = cell.get("versus") or {}
            row |= {"reference": group["reference"], "verdict": cell["verdict"]}
            row |= {key: versus.get(key) for key in ("difference", "low", "high", "p", "p_holm")}
            row["mcnemar_below"] = sum(test["p"] < LEVEL for test in versus.get("mcnemar", ()))
            rows.append(row)
    return rows_to_csv(rows)


def write_table(table: dict, folder: Path) -> None:
    """Write table.csv and table.json; the Markdown is the page's."""
    write_text(folder / "table.csv", to_csv(table))
    write_text(folder / "table.json", to_json(table, indent=2) + "\n")
