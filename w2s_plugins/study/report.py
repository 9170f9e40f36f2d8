"""``study report``: the results of a study on one page, as HTML that needs nothing else, and as Markdown.

The page is read from disk: style and figures are in it, and its content security policy forbids scripts and any other
source. Names of classes, runs and losses may hold anything; the template escapes them.
"""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import scrub, write_errors
from ..files import write_text
from ..hub.errors import check_login
from ..hub.markdown import code, fenced
from ..hub.push import push_folder
from .collect import collect
from .figures import Drawn, draw_all, save
from .layout import SPEC
from .table import MARKS, RULE, heading_of, make_table, tables_of, title_of, to_markdown, write_table

PAGE, MARKDOWN, FIGURES = "index.html", "README.md", "figures"
FILES = (PAGE, MARKDOWN, "table.csv", "table.json", f"{FIGURES}/*.svg", f"{FIGURES}/*.png",
         f"{FIGURES}/*.pdf")  # all of it
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
    """Write the report of a folder of runs, print its table and, where asked, publish it.

    Raises:
        UserError: no token, before anything is written; or as `write_report` and `push_folder`.
    """
    if push_to_hub:
        check_login(push_to_hub)
    output = output or folder / "report"
    table = write_report(folder, output, reference, title)
    print(f"{to_markdown(table)}\n\n* {output / PAGE}")
    if push_to_hub:
        url = push_folder(output, push_to_hub, "report", FILES, private=hub_private, revision=hub_revision,
                          commit_message="Upload the report of a study")
        print(f"published at {url}")


def write_report(study: Path, folder: Path, reference: str | None = None, title: str | None = None) -> dict:
    """Write the report of a folder of runs; return its table.

    Args:
        study: folder of the runs.
        folder: where the report goes; files of an earlier one are replaced.
        reference: loss that the others are compared with.
        title: heading.

    Raises:
        UserError: no finished student, no such loss, or the folder cannot be written to.
    """
    # everything is computed before anything is written
    found = collect(study)
    table = make_table(found, reference)
    drawn, notes = draw_all(found, table)
    table["left_out"] = [*table["left_out"], *notes]
    title = scrub(title or study.resolve().name)
    specification = scrub((study / SPEC).read_text(encoding="utf-8")) if (study / SPEC).is_file() else ""
    with write_errors(folder, "choose another --output"):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        # figures of an earlier report would stand beside those of this one
        for file in (folder / FIGURES).iterdir():
            file.unlink()
        for item in drawn:
            save(item, folder / FIGURES)
        write_table(table, folder)
        write_text(folder / MARKDOWN, to_page_in_markdown(table, drawn, title, specification))
        write_text(folder / PAGE, to_html(table, drawn, title, specification, folder))
    return table


# ---------------------------------------------------------------- words


def summary(table: dict) -> list[Sentences]:
    """Say in plain words what the statistics allow to say, a paragraph for each group."""
    students = sum(len(cell["seeds"]) for group in table["groups"] if not group["test"] for cell in group["cells"])
    losses = {cell["loss"] for group in table["groups"] for cell in group["cells"]}
    first = f"Finished students: {students:,}; losses: {len(losses)}; groups: {len(table['groups'])}."
    if table["left_out"]:
        first += f" What is missing stands at the end ({len(table['left_out'])})."
    return [[first], *map(group_summary, table["groups"])]


def group_summary(group: dict) -> Sentences:
    """Say what holds in one group: who reached what, who differs from the reference, who falls below the teacher."""
    cells, best = group["cells"], group["cells"][0]
    pgr = f" (PGR {best['pgr']['mean']:.2f})" if best["pgr"] else ""
    parts: Sentences = [Name(title_of(group)), f": {heading_of(group)}. ", Name(best["loss"]),
                        f" has the highest mean accuracy, {best['student']['mean']:.2f} %{pgr}."]
    parts += [f" {text}" for text in (*group["warnings"], group["note"]) if text]
    verdicts = {cell["verdict"] for cell in cells}
    if "one seed" in verdicts:
        parts.append(" With one seed nothing can be said of losses, only of single models.")
    for verdict, text in (("better", "Better beyond noise than "), ("tie", "Not distinguishable from "),
                          ("worse", "Worse beyond noise than ")):
        if verdict in verdicts:
            parts += [f" {text}", Name(group["reference"]), ": "]
            parts += listed([(cell["loss"], cell["versus"]["difference"]) for cell in cells
                             if cell["verdict"] == verdict])
    if "better" not in verdicts and verdicts & {"tie", "worse"}:
        parts += [" No loss is better than ", Name(group["reference"]), " beyond noise."]
    above = [(cell["loss"], cell["student"]["mean"] - cell["weak"]["mean"]) for cell in cells]
    if any(difference <= 0 for _, difference in above):
        parts += [" Not above the teacher on average: ", *listed([one for one in above if one[1] <= 0])]
    return parts


def listed(differences: list[tuple[str, float]]) -> Sentences:
    """Return the names of at most `MOST_NAMES` losses with commas between them, and their differences."""
    parts: Sentences = []
    for loss, difference in differences[:MOST_NAMES]:
        parts += [", "] * bool(parts) + [Name(loss), f" ({difference:+.2f})"]
    more = len(differences) - MOST_NAMES
    return [*parts, f" and {more} more." if more > 0 else "."]


# ---------------------------------------------------------------- pages


def to_html(table: dict, drawn: list[Drawn], title: str, specification: str, folder: Path) -> str:
    """Return the page; the figures are read from the folder."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)
    environment.tests["name"] = lambda value: isinstance(value, Name)
    groups = [dict(title=title_of(group), heading=heading, reference=group["reference"], note=group["note"],
                   heads=list(rows[0]), rows=[list(row.values()) for row in rows])
              for group, heading, rows in tables_of(table)]
    figures = [dict(name=item.name, title=item.title, alt=item.alt,
                    data=base64.b64encode((folder / FIGURES / f"{item.name}.svg").read_bytes()).decode())
               for item in drawn]
    return environment.get_template("report.html.j2").render(
        title=title, summary=summary(table), groups=groups, rule=RULE, figures=figures, specification=specification,
        marks={text: verdict for verdict, text in MARKS.items()}, left_out=table["left_out"])


def to_page_in_markdown(table: dict, drawn: list[Drawn], title: str, specification: str) -> str:
    """Return the same in Markdown; the figures lie beside it."""
    parts = [f"# {code(title)}", "## Summary"]
    parts += ["".join(code(p) if isinstance(p, Name) else p for p in sentences) for sentences in summary(table)]
    parts.append("## Figures")
    parts += [f"![{plain(item.alt)}]({FIGURES}/{item.name}.png)\n\n{plain(item.title)}" for item in drawn]
    parts += ["## Results", to_markdown(table)]
    if specification:
        parts += ["## Specification", fenced(specification, "yaml")]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return a text on one line in which no character is markup of Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$])", r"\\\1", " ".join(text.split()))
