"""``study report``: the results of a study on one page, as HTML that needs nothing else, and as Markdown.

The page is read from disk: style, script and figures are in it, and its content security policy forbids any other
source. Names of classes, runs and losses may hold anything; the template escapes them.
"""

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_text
from ..hub.errors import check_login
from ..hub.markdown import code, fenced
from ..hub.push import push_folder
from ..tokens import scrub
from .collect import PARTS, collect
from .figures import Drawn, draw_all, save
from .layout import SPEC
from .table import (
    MARKS,
    VERDICTS,
    WRITERS,
    heading_of,
    make_folder,
    make_table,
    rule_of,
    tables_of,
    title_of,
    to_markdown,
    write_table,
)

PAGE, MARKDOWN, FIGURES = "index.html", "README.md", "figures"
FILES = (PAGE, MARKDOWN, *(f"table.{kind}" for kind in WRITERS),
         *(f"{FIGURES}/*.{kind}" for kind in ("svg", "png", "pdf")))  # all of it
MOST_NAMES = 6  # in a sentence
TEMPLATES = Path(__file__).parent / "templates"


class Name(str):
    """A label in a sentence, shown as code."""


Sentences = list[str]


def run_report(
        folder: Path,
        reference: str | None,
        title: str | None,
        output: Path | None,
        push_to_hub: str | None,
        hub_private: bool | None,
        hub_revision: str | None,
) -> None:
    """Write the report of a folder of runs and, where asked, publish it.

    Raises:
        UserError: no token, before anything is written; or as `write_report` and `push_folder`.
    """
    if push_to_hub:
        check_login(push_to_hub)
    output = output or folder / "report"
    print(f"* {write_report(folder, output, reference, title)}")
    if push_to_hub:
        url = push_folder(output, push_to_hub, "report", FILES, private=hub_private, revision=hub_revision,
                          commit_message="Upload the report of a study")
        print(f"published at {url}")


def write_report(study: Path, folder: Path, reference: str | None = None, title: str | None = None) -> Path:
    """Write the report of a folder of runs; return its page.

    Args:
        study: folder of the runs.
        folder: where the report goes; files of an earlier one are replaced.
        reference: loss that the others are compared with.
        title: heading.

    Raises:
        UserError: no finished student, no such loss, or the folder cannot be written to.
    """
    found = collect(study)
    table = make_table(found, reference)
    drawn, notes = draw_all(found, table)
    table["left_out"] = [*table["left_out"], *notes]
    title = scrub(title or study.resolve().name)
    specification = scrub((study / SPEC).read_text(encoding="utf-8")) if (study / SPEC).is_file() else ""
    make_folder(folder / FIGURES)
    for file in (folder / FIGURES).iterdir():
        file.unlink()
    for item in drawn:
        save(item, folder / FIGURES)
    write_table(table, folder)
    write_text(folder / MARKDOWN, to_page_in_markdown(table, drawn, title, specification))
    write_text(folder / PAGE, to_html(table, drawn, title, specification, folder))
    return folder / PAGE


# ---------------------------------------------------------------- words


def summary(table: dict) -> list[Sentences]:
    """Say in plain words what the statistics allow to say, a paragraph for each group."""
    groups = table["groups"]
    students = sum(len(cell["seeds"]) for group in groups if not group["test"] for cell in group["cells"])
    losses = {cell["loss"] for group in groups for cell in group["cells"]}
    sets = {group["set"] for group in groups if "set" in group}
    pairs = len({tuple(group[part] for part in PARTS[1:-1]) for group in groups})
    first = [f"{count(students, 'finished student')}, {count(len(losses), 'loss', 'losses')}, "
             f"{count(pairs, 'pair of weak and strong model', 'pairs of weak and strong models or protocols')}"
             + (f" on {count(len(sets), 'data set')}" if sets else "") + "."]
    if table["left_out"]:
        first.append(f" {count(len(table['left_out']), 'note')} at the end on what is missing.")
    means = map(mean_summary, table.get("over_sets", ()))
    return [first, *overall(groups), *means, *(group_summary(group) for group in groups)]


def overall(groups: list[dict]) -> list[Sentences]:
    """Say in how many groups each loss is better, not distinguishable and worse, where groups have one reference."""
    references = {group["reference"] for group in groups}
    tallies: dict[str, list[int]] = {}
    for cell in (cell for group in groups for cell in group["cells"]):
        if cell["verdict"] in VERDICTS:
            tallies.setdefault(cell["loss"], [0, 0, 0])[VERDICTS.index(cell["verdict"])] += 1
    if len(groups) < 2 or len(references) > 1 or not tallies:
        return []
    parts: Sentences = ["In how many groups each loss is better / a tie / worse against ", Name(references.pop())]
    ordered = sorted(tallies.items(), key=lambda item: (item[1][2] - item[1][0], item[0]))
    for number, (loss, tally) in enumerate(ordered):
        parts += [", " if number else ": ", Name(loss), f" {tally[0]} / {tally[1]} / {tally[2]}"]
    return [[*parts, ". Each group is tested on its own: among many, a few differ by chance."]]


def mean_summary(mean: dict) -> Sentences:
    """Say which loss recovers most over data sets, and on how many of them it is better or worse."""
    best = mean["cells"][0]
    parts: Sentences = [Name(title_of(mean)), f", mean over {len(mean['sets'])} data sets: "]
    if not best["pgr"]:
        return [*parts, "no PGR."]
    parts += [Name(best["loss"]), f" has the highest mean PGR, {best['pgr']['mean']:.2f}"]
    if best["loss"] != mean["reference"]:
        better, tie, worse = (best["verdicts"].get(verdict, 0) for verdict in VERDICTS)
        parts += ["; against ", Name(mean["reference"]), f" it is better / a tie / worse on {better} / {tie} / {worse}"]
    return [*parts, f". {mean['note']}" if mean["note"] else "."]


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def group_summary(group: dict) -> Sentences:
    """Say what holds in one group: who reached what, who differs from the reference, who falls below the teacher."""
    cells, best = group["cells"], group["cells"][0]
    parts: Sentences = [Name(title_of(group)), f": {heading_of(group)}. ", Name(best["loss"]),
                        f" has the highest mean accuracy, {best['student']['mean']:.2f} %"]
    parts.append(f" (PGR {best['pgr']['mean']:.2f})." if best["pgr"] else ".")
    parts += [f" {warning}" for warning in group["warnings"]]
    by_verdict: dict[str | None, list[dict]] = {}
    for cell in cells:
        by_verdict.setdefault(cell["verdict"], []).append(cell)
    if group["note"]:
        parts.append(f" {group['note']}")
    elif "one seed" in by_verdict:
        parts.append(" With one seed nothing can be said of losses, only of single models.")
    for verdict, text in (("better", "Better than {} beyond noise: "), ("worse", "Worse beyond noise: "),
                          ("tie", "Not distinguishable from {}: ")):
        if verdict in by_verdict:
            before, *after = text.split("{}")
            parts += [f" {before}", *([Name(group["reference"]), after[0]] if after else [])]
            parts += joined(by_verdict[verdict]) + ["."]
    if "better" not in by_verdict and ("tie" in by_verdict or "worse" in by_verdict):
        parts += [" No loss is better than ", Name(group["reference"]), " beyond noise."]
    below = [cell for cell in cells if cell["student"]["mean"] <= cell["weak"]["mean"]]
    if below:
        parts += [" Not above the teacher on average: ", *joined(below, of_teacher=True), "."]
    return parts


def joined(cells: list[dict], of_teacher: bool = False) -> Sentences:
    """Return the names of at most `MOST_NAMES` losses with commas between them, and their differences where known.

    Args:
        cells: of the losses.
        of_teacher: the differences are those from the teacher, else from the reference.
    """
    parts: Sentences = []
    for cell in cells[:MOST_NAMES]:
        parts += [", "] * bool(parts) + [Name(cell["loss"])]
        if of_teacher:
            parts.append(f" ({cell['student']['mean'] - cell['weak']['mean']:+.2f})")
        elif cell.get("versus"):
            parts.append(f" ({cell['versus']['difference']:+.2f})")
    if len(cells) > MOST_NAMES:
        parts.append(f" and {len(cells) - MOST_NAMES} more")
    return parts


# ---------------------------------------------------------------- pages


def to_html(table: dict, drawn: list[Drawn], title: str, specification: str, folder: Path) -> str:
    """Return the page; the figures are read from the folder."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)
    environment.tests["name"] = lambda value: isinstance(value, Name)
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    groups = []
    for group, heading, rows in tables_of(table):
        groups.append(dict(title=title_of(group), heading=heading, reference=group["reference"],
                           note=group["note"], heads=list(rows[0]), rows=[list(row.values()) for row in rows]))
    figures = [
        dict(name=item.name, title=item.title, alt=item.alt,
             data=base64.b64encode((folder / FIGURES / f"{item.name}.svg").read_bytes()).decode())
        for item in drawn
    ]
    marks = {text: verdict for verdict, text in MARKS.items()}
    return environment.get_template("report.html.j2").render(
        title=title, summary=summary(table), groups=groups, rule=rule_of(table), marks=marks, figures=figures,
        left_out=table["left_out"], specification=specification, script=Markup(script),
        script_hash=f"sha256-{digest}")


def to_page_in_markdown(table: dict, drawn: list[Drawn], title: str, specification: str) -> str:
    """Return the same in Markdown; the figures lie beside it."""
    parts = [f"# {code(title)}", "## Summary"]
    parts += ["".join(code(p) if isinstance(p, Name) else p for p in sentences) for sentences in summary(table)]
    parts += ["## Results", to_markdown(table), "## Figures"]
    parts += [f"![{plain(item.alt)}]({FIGURES}/{item.name}.png)\n\n{plain(item.title)}" for item in drawn]
    if specification:
        parts += ["## Specification", fenced(specification, "yaml")]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return a text on one line in which no character is markup of Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$])", r"\\\1", " ".join(text.split()))
