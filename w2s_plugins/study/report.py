"""``study report``: the results of a study on one page, as HTML that needs nothing else, and as Markdown.

The page is read from disk: style and figures are in it, and its content security policy forbids scripts and any other
source. Names of classes, runs and losses may hold anything; the templates escape them.
"""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import scrub, write_errors
from ..files import WRITTEN, check_replaceable, note_written, write_text
from ..hub.markdown import code, fenced, markdown_table
from .collect import collect
from .drawings import draw_all, save
from .layout import SPEC
from .loss_table import TABLE, VERDICTS, make_table, rule_of, write_table

PAGES = {"index.html": "report.html.j2", "README.md": "report.md.j2"}
FIGURES = "figures"


def run_report(folder: Path, reference: str | None, title: str | None, output: Path | None) -> None:
    """Write the report of a study, and print its tables."""
    named = output
    output = output or folder / "report"
    # of a folder that was named nothing else is overwritten, nor deleted
    if named is not None:
        for file in files_of(named):
            check_replaceable(file, "--output")
    write_report(folder, output, reference, title)
    if named is not None:
        for file in files_of(named):
            note_written(file)
    # whoever sits at a terminal need not open the page
    print((output / "README.md").read_text(encoding="utf-8").partition("## Results\n\n")[2])
    print(f"* {output / 'index.html'}")


def files_of(folder: Path) -> list[Path]:
    """Return the files of the report in a folder, those that are there."""
    pages = (folder / name for name in (*PAGES, TABLE))
    files = (*pages, *(folder / FIGURES).glob("*"))
    return sorted(file for file in files if file.is_file() and file.name != WRITTEN)


def write_report(
    study: Path, folder: Path, reference: str | None = None, title: str | None = None
) -> None:
    """Write the report of a study.

    Args:
        study: its folder.
        folder: where the report goes; files of an earlier one are replaced.
        reference: loss that the others are compared with.
        title: heading.

    Raises:
        UserError: no finished student, no such loss, or the folder cannot be written to.
    """
    # everything is computed before anything is written
    collected = collect(study)
    groups = make_table(collected.runs, reference)
    figures = draw_all(groups)
    specification = (study / SPEC).read_text(encoding="utf-8") if (study / SPEC).is_file() else ""
    with write_errors(folder, "choose another --output"):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        # figures of an earlier report would stand beside those of this one
        for file in (folder / FIGURES).iterdir():
            file.unlink()
        for figure in figures:
            save(figure, folder / FIGURES)
        write_table(groups, folder)
        for page, template in PAGES.items():
            write_text(
                folder / page,
                environment(page.endswith(".html"))
                .get_template(template)
                .render(
                    title=scrub(title or study.resolve().name),
                    groups=groups,
                    students=len(collected.runs),
                    rule=rule_of(groups),
                    figures=figures,
                    folder=folder / FIGURES,
                    verdicts=VERDICTS,
                    specification=scrub(specification),
                    left_out=collected.left_out,
                ),
            )


def environment(html: bool) -> Environment:
    """Return what renders a page: HTML, in which every name is escaped, or Markdown."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # names are escaped where they are written: as code, as text, or as cells of a table
    made.filters |= dict(
        code=code, fenced=fenced, escaped=escape_markdown, table=as_markdown, svg=as_data
    )
    return made


def as_markdown(table) -> str:
    """Return a table in Markdown, the names of losses as code."""
    return markdown_table(
        table, table.assign(loss=table["loss"].map(code)).itertuples(index=False, name=None)
    )


def as_data(file: Path) -> str:
    """Return an SVG file as the address of an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def escape_markdown(text: str) -> str:
    """Return a text on one line in which no character is markup of Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
