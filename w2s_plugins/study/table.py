"""Mean, spread and interval of each cell of a study, and which losses differ by more than noise.

A cell is weak model x strong model x protocol x loss on a data set. Losses are compared inside a group (weak x strong x
protocol on a data set) on accuracy, on the seeds that both have and on the same test samples. The table that people
read has eight columns at most; table.csv and table.json have all figures.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..cli.groups import CONTROLS
from ..errors import UserError, nearest
from ..files import to_csv as rows_to_csv
from ..files import to_json, write_text
from ..hub.markdown import code, markdown_table
from ..metrics.resampling import CONFIDENCE, resampled_means
from .collect import EPOCHS, PARTS, Collected, Group, StudentRun
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
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
            ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
            "±": r"$\pm$", "†": r"\textdagger{}", "→": r"$\to$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}
Row = dict[str, str]  # head to text


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
    # losses are compared within a group
    by_group = found.groups()
    groups = [make_group(labels, runs, reference) for labels, runs in by_group.items()]
    # groups that differ in nothing but the data set make a mean over sets
    families: dict[Group, list[tuple[dict, list[StudentRun]]]] = {}
    for (labels, runs), group in zip(by_group.items(), groups):
        if "set" in group:
            families.setdefault(labels[1:], []).append((group, runs))
    means = [mean_over_sets(labels, members) for labels, members in families.items() if len(members) > 1]
    return dict(schema=1, confidence=CONFIDENCE, resamples=RESAMPLES, groups=groups, left_out=found.left_out,
                over_sets=means)


def mean_over_sets(labels: Group, members: list[tuple[dict, list[StudentRun]]]) -> dict:
    """Return of each loss, best first, its PGR seed by seed as the mean over data sets, and its verdicts counted.

    A data set on which a seed has no PGR is left out of the mean of every loss.

    Args:
        labels: of what is the same on all of them.
        members: the group on each data set and its students.
    """
    counted = [runs for _, runs in members if all(run.figures["pgr"] is not None for run in runs)]
    note = None if len(counted) == len(members) else (
        f"In the mean are {len(counted)} of {len(members)} data sets: on others some ceiling is not above its teacher.")
    cells = []
    for loss in dict.fromkeys(cell["loss"] for group, _ in members for cell in group["cells"]):
        own = [cell for group, _ in members for cell in group["cells"] if cell["loss"] == loss]
        gaps = [{run.seed: run.figures["pgr"] for run in runs if run.loss == loss} for runs in counted]
        gaps = [by_seed for by_seed in gaps if by_seed]
        seeds = sorted(set.intersection(*map(set, gaps))) if gaps else []
        values = [float(np.mean([by_seed[seed] for by_seed in gaps])) for seed in seeds]
        cells.append(dict(
            loss=loss, sets=len(gaps), seeds=seeds, pgr={**t_interval(values), "values": values} if values else None,
            verdicts=dict(Counter(cell["verdict"] for cell in own if cell["verdict"]))))
    cells.sort(key=lambda cell: -cell["pgr"]["mean"] if cell["pgr"] else float("inf"))
    names, references = [group["set"] for group, _ in members], {group["reference"] for group, _ in members}
    return dict(labels, sets=names, reference=references.pop() if len(references) == 1 else "best", note=note,
                warnings=[], cells=cells)


def make_group(labels: Group, runs: list[StudentRun], reference: str | None) -> dict:
    """Return the cells of one group, best first, and its comparisons."""
    cells: dict[str, list[StudentRun]] = {}
    for student in runs:
        cells.setdefault(student.loss, []).append(student)
    comparable = all(np.array_equal(runs[0].target, other.target) for other in runs)
    records = sorted((make_cell(loss, members) for loss, members in cells.items()),
                     key=lambda cell: -cell["student"]["mean"])
    chosen = choose_reference(records, reference)
    against = (chosen or records[0])["loss"]
    group = dict(labels, samples=len(runs[0].target), reference=against, note=None, cells=records,
                 test=runs[0].test)
    if not comparable:
        group["note"] = "The runs were evaluated on different test samples, so losses are not compared."
    elif len(records) > 1:
        compare_losses(cells, group, all_pairs=chosen is None)
    group["warnings"] = warnings_of(records)
    return group


def warnings_of(cells: list[dict]) -> list[str]:
    """Return what the cells of a group cannot tell, and where weak-to-strong was not worth doing."""
    found, seeds = [], max(len(cell["seeds"]) for cell in cells)
    if seeds == 2:
        found.append("Two seeds seldom decide: the interval of their mean is 12.7 standard errors to either side, so "
                     "that a verdict rests on how well two numbers happen to agree.")
    if low := [cell for cell in cells if cell["ceiling"] and cell["weak"]["mean"] >= cell["ceiling"]["mean"]]:
        found.append(f"The ceiling is not above the teacher ({low[0]['ceiling']['mean']:.2f} and "
                     f"{low[0]['weak']['mean']:.2f}): this student is no stronger one, and there is no PGR.")
    compared = [cell for cell in cells if cell["direct"]]
    for text, below in (("Weak-to-strong was not worth doing", True),
                        ("It is not shown that weak-to-strong was worth doing", False)):
        if such := [cell for cell in compared if is_below(cell["above_direct"]) is below]:
            found.append(f"{text} with {len(such)} of {len(compared)} losses: trained directly on the teacher's own "
                         f"labels, the student's model has {such[0]['direct']['mean']:.2f}, and the interval of the "
                         f"difference {'is below 0' if below else 'has 0 in it'}.")
    return found


def is_below(difference: dict) -> bool | None:
    """Return whether a difference is below 0 by its interval: False where that is not said, None where it is above."""
    if difference["low"] is None:
        return False
    return None if difference["low"] > 0 else difference["high"] < 0


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


# ---------------------------------------------------------------- files


def rows_of(group: dict) -> Iterable[Row]:
    """Yield a row for each cell of a group."""
    compared = any(cell.get("versus") for cell in group["cells"])
    for cell in group["cells"]:
        seeds = len(cell["seeds"])
        row: Row = {"loss": cell["loss"], "seeds": str(seeds)}
        for name, head in (("student", "accuracy"), ("agreement", "agreement"), ("pgr", "PGR")):
            row[head] = figure_text(cell[name], seeds)
        if compared:
            versus = cell.get("versus") or {}
            row["difference"] = interval_text(versus)
            row["p (Holm)"] = p_text(versus.get("p_holm"))
            row["verdict"] = MARKS.get(cell["verdict"], cell["verdict"] or "")
        yield row


def rows_of_mean(mean: dict) -> Iterable[Row]:
    """Yield a row for each loss of a mean over data sets."""
    for cell in mean["cells"]:
        row: Row = {"loss": cell["loss"], "sets": str(cell["sets"]),
                    "PGR": figure_text(cell["pgr"], len(cell["seeds"]))}
        yield row | {f"{found} on": str(cell["verdicts"].get(found, 0)) for found in VERDICTS}


def tables_of(table: dict) -> Iterable[tuple[dict, str, list[Row]]]:
    """Yield what each table is of, what stands above it, and its rows: means over data sets, then groups."""
    for mean in table["over_sets"]:
        yield mean, f"PGR, mean over {', '.join(mean['sets'])}", list(rows_of_mean(mean))
    for group in table["groups"]:
        yield group, heading_of(group), list(rows_of(group))


def figure_text(figure: dict | None, seeds: int) -> str:
    """Return such as ``85.50 ± 1.20 (0.97)``; with one seed ``85.50 [83.10, 87.90]†``."""
    if figure is None:
        return "-"
    missing = f" ({figure['n']} of {seeds} seeds)" if figure["n"] < seeds else ""
    if figure["sd"] is not None:
        return f"{figure['mean']:.2f} ± {figure['high'] - figure['mean']:.2f} ({figure['sd']:.2f}){missing}"
    if figure["low"] is None:
        return f"{figure['mean']:.2f}{missing}"
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]†{missing}"


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
    return f"{on}{group['weak']} → {group['strong']}" + (f", {group['protocol']}" if group["protocol"] else "")


def heading_of(group: dict) -> str:
    """Say what the teacher and the ceiling reach, and what the differences are taken from."""
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
        parts.append(f"### {code(title_of(group))}\n\n{heading}; differences from {code(group['reference'])}.\n\n"
                     + markdown_table(rows[0], lines))
        parts += [*filter(None, [group["note"]]), *group["warnings"]]
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


def to_latex(table: dict) -> str:
    """Return the tables of all groups in LaTeX, and the rule for reading them as a comment."""
    parts = [f"% \\usepackage{{booktabs,amssymb}}\n% {RULE}"]
    for group, heading, rows in tables_of(table):
        caption = f"{title_of(group)}: {heading}; differences from {group['reference']}."
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        parts.append(latex_table(caption, lines))
    return "\n\n".join(parts)


def latex_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table with the rules of booktabs, of which the first row is the head; texts may hold anything."""
    head, *others = (" & ".join(map(escaped, cells)) + r" \\" for cells in rows)
    return "\n".join([
        r"\begin{table}", r"\centering\small", rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule", *others, r"\bottomrule",
        r"\end{tabular}", r"\end{table}"])


def escaped(text: str) -> str:
    """Return a text on one line in which no character is a command of LaTeX."""
    return re.sub(r"[\\~^<>|&%$#_{}±†→▲▼]", lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def write_table(table: dict, folder: Path) -> None:
    """Write table.csv, table.json and table.tex; the Markdown is the page's."""
    write_text(folder / "table.csv", to_csv(table))
    write_text(folder / "table.json", to_json(table, indent=2) + "\n")
    write_text(folder / "table.tex", to_latex(table) + "\n")
