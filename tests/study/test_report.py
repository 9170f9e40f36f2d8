"""The report of a study: its figures, its words, and its page in a real browser."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import yaml
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from selenium.webdriver.common.by import By

from tests.e2e.conftest import TINY, environment, run_many
from tests.e2e.test_untrusted import holders
from tests.parts import write_folder
from w2s_plugins.errors import UserError
from w2s_plugins.study import drawings
from w2s_plugins.study.collect import collect
from w2s_plugins.study.layout import StudyRun, save_plan
from w2s_plugins.study.loss_table import Group, make_table
from w2s_plugins.study.report import run_report, write_report

from .browser import browser, open_page  # noqa: F401  (a fixture)
from .runs import write_run

TRAINING = [*TINY, "--val-slice 0:300 --hflip 0 --scale 0.8 1 --color-jitter 0 --output runs"]
TOKEN = "hf_" + "T0psecret" * 4
HOSTILE = {
    "weak": "<img src=x onerror=window.hacked=1>",
    "strong": "{{ 7*7 }} | $x$",
    "protocol": f'`b` **c** ]( "q" {TOKEN}',
    "loss": "<script>window.hacked=1</script>",
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs on digits: a teacher, a ceiling, AdaptConf and KD."""
    root = tmp_path_factory.mktemp("trained")
    student = [*TRAINING, "--train-slice 60:220 --model w2s_cnn2 --epochs 4"]
    distilled = [*student, "--teacher w2s_cnn2 --teacher-checkpoint runs/weak --task-loss-weight 0"]
    commands = [
        [
            *TRAINING,
            "--train-slice 0:60 --model w2s_cnn2 --epochs 15 --val-interval 15",
            "--experiment weak",
        ],
        [*student, "--experiment ceiling --epochs 20 --val-interval 20"],
        [*distilled, "--loss adaptconf --experiment adaptconf"],
        [*distilled, "--loss kd --experiment kd"],
    ]
    for done in run_many(commands, environment(PYTHONPATH=str(Path(__file__).parents[2])), root):
        done.ok()
    save_plan(
        root,
        [
            StudyRun("ceiling", "ceiling", None, "cnn2", None, None, 0, []),
            *(
                StudyRun(loss, "student", "cnn2", "cnn2", loss, "", 0, [], needs=["ceiling"])
                for loss in ("adaptconf", "kd")
            ),
        ],
    )
    return root


@pytest.fixture(scope="session")
def trained_report(trained: Path) -> Path:
    write_report(trained, trained / "report")
    return trained / "report"


@pytest.fixture(scope="session")
def made_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a planned study of generated runs: four groups, and labels with markup in them."""
    root = tmp_path_factory.mktemp("made")
    for number in range(4):
        for label, name in {"kd": "kd", HOSTILE["loss"]: "gce"}.items():
            labels = {**HOSTILE, "weak": HOSTILE["weak"] + str(number), "loss": label}
            write_run(root, name, number, 0.6, labels=labels)
    (root / "study.yaml").write_text(
        yaml.safe_dump({"note": HOSTILE["loss"], "token": "hf_" + "a" * 30})
    )
    write_report(root, root / "report", title=f"{HOSTILE['weak']} {TOKEN}")
    return root / "report"


def names_in(report: Path) -> set[str]:
    return {path.stem for path in (report / "figures").glob("*.svg")}


@pytest.mark.parametrize("kind", [{}, {"kind": "barh"}])
def test_axes_say_what_they_show(kind: dict) -> None:
    figure = Figure()
    drawings.draw_table(
        figure, pandas.DataFrame({"kd": [0.5, 0.7]}, index=[1, 2]), {"xlabel": "PGR", **kind}
    )
    assert figure.axes[0].get_xlabel() == "PGR"


def test_every_figure_is_drawn_where_its_data_are(trained_report: Path, made_report: Path) -> None:
    assert names_in(trained_report) == {f"{name}-1" for name in drawings.FIGURES}
    assert names_in(made_report) == {f"pgr-{number}" for number in (1, 2, 3, 4)}
    for name in names_in(trained_report):
        image = Image.open(trained_report / "figures" / f"{name}.png")
        assert abs(image.width / 220 - 3.3) < 0.6, f"{name}: about a column of 3.3 inches"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 8, f"{name}: something is drawn"


def test_same_runs_same_bytes(trained: Path, trained_report: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/old-1.png").write_bytes(b"")
    write_report(trained, tmp_path)
    for name in (
        "index.html",
        "README.md",
        "table.csv",
        *(f"figures/{n}.svg" for n in names_in(trained_report)),
    ):
        assert (tmp_path / name).read_bytes() == (trained_report / name).read_bytes(), name
    assert not (tmp_path / "figures/old-1.png").exists(), "of an earlier report"


def test_figures_say_what_the_data_say(trained: Path) -> None:
    (group,) = make_table(collect(trained).runs)
    (student,) = group.runs["adaptconf"]
    curves = drawings.curve_table(group)[0]
    last = student.record["metrics"]["top1"]
    assert list(curves.index) == [1, 2, 3, 4] and curves.loc[4, "adaptconf"] == pytest.approx(last)
    assert set(curves["ceiling"]) == {student.figures["ceiling"]}
    gain = dict(by_epoch=student.record["gain"]["by_epoch"][:1])
    once = replace(
        group,
        rows=[],
        runs={"adaptconf": [replace(student, record={**student.record, "gain": gain})]},
    )
    assert drawings.curve_table(once)[0].empty, "a dot is no curve"
    bars = drawings.pgr_table(group)[0]
    assert bars["value"].to_dict() == {row.loss: row.figures["pgr"]["value"] for row in group.rows}


def test_an_interval_ends_in_the_frame_or_is_marked() -> None:
    pgr = {"kd": (0.2, 0.1, 0.3), "hard": (0.4, -30.0, 30.8), "elr": (0.5, 0.2, 0.8)}
    rows = [
        SimpleNamespace(loss=loss, figures={"pgr": dict(value=value, low=low, high=high)})
        for loss, (value, low, high) in pgr.items()
    ]
    table, look = drawings.pgr_table(SimpleNamespace(rows=rows))  # pyright: ignore[reportArgumentType]
    figure = Figure()
    drawings.draw_table(figure, table, look)
    left, right = figure.axes[0].get_xlim()
    assert left < 0 and 0.8 < right < 2, "all of elr, and the bars of all can be seen"
    marks = {
        line.get_marker(): (np.asarray(line.get_xydata()))[0]
        for line in figure.axes[0].lines
        if line.get_marker() in "<>"
    }
    assert {m: list(at) for m, at in marks.items()} == {"<": [left, 1], ">": [right, 1]}


def test_classes_have_the_names_of_the_run(tmp_path: Path) -> None:
    """A run that labels have given another order of the classes than that of its test images' folders."""
    photos = write_folder(tmp_path / "photos", {"validation": 9}, classes=3)
    write_run(
        tmp_path / "runs",
        "kd",
        0,
        0.6,
        ceiling=None,
        data_dir=str(photos),
        dataset="",
        val_split="validation",
    )
    target, names = np.repeat([2, 1, 0], 3), ["class2", "class1", "class0"]
    (student,) = collect(tmp_path / "runs").runs["run"]
    student = replace(student, record={**student.record, "model": {"class_names": names}})
    answers = pandas.DataFrame(dict(target=target, weak=2, student=target))

    def pictures_of(target: np.ndarray) -> tuple[str, Group]:
        run = replace(student, answers=answers.assign(target=target))
        group = Group({}, "", [dict(loss="kd")], "kd", runs={"kd": [run]})
        return drawings.draw_pictures(Figure(), group), group

    said, group = pictures_of(target)
    assert "class1 taken for class0" in said and not group.notes
    said, group = pictures_of(target[::-1])
    assert (
        not said and "No pictures: the 9 test images are not the 9 that there were" in group.notes
    )


@pytest.mark.parametrize("file", ["README.md", "figures/mine.png"])
def test_files_of_somebody_else_are_left_alone(
    made_report: Path, tmp_path: Path, file: str
) -> None:
    """In a folder that was named, where an earlier report is replaced; nothing is written beside them."""
    run_report(made_report.parent, None, None, tmp_path / "new")
    run_report(made_report.parent, None, "another title", tmp_path / "new")
    assert "another title" in (tmp_path / "new/README.md").read_text()
    mine = tmp_path / "project" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"--output .*{file}: is there already"):
        run_report(made_report.parent, None, None, tmp_path / "project")
    assert [path for path in (tmp_path / "project").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["kd", "adaptconf-temperature=4.0, and a long name of a setting"])
def test_no_text_goes_on_beyond_its_figure(name: str) -> None:
    """Names of classes and losses as long as they come leave little room beside them."""
    table = pandas.DataFrame({name: [1.0], f"weak {name}": 2.0}, index=[name])
    with drawings.style():
        figure = Figure(figsize=(drawings.WIDTH, 2.3), layout="constrained")
        drawings.draw_table(figure, table, dict(kind="barh", xlabel="PGR"))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes, bounds = figure.axes[0], figure.bbox
        for text in (axes.xaxis.label, *axes.get_yticklabels(), *figure.legends[0].get_texts()):
            box = text.get_window_extent(canvas.get_renderer())
            assert bounds.x0 <= box.x0 < box.x1 <= bounds.x1, text.get_text()
            assert bounds.y0 <= box.y0 < box.y1 <= bounds.y1, text.get_text()


def test_words(tmp_path: Path) -> None:
    for seed in range(4):
        for loss, accuracy in {"kd": 0.6, "adaptconf": 0.78, "hard": 0.605, "gce": 0.45}.items():
            write_run(tmp_path / "runs", loss, seed, accuracy)
    write_report(tmp_path / "runs", tmp_path)
    for page in ("index.html", "README.md"):
        text = (tmp_path / page).read_text()
        assert "16 finished students." in text
        assert re.search(
            r"adaptconf has the highest mean accuracy, [\d.]+ %\. Better than kd beyond noise: adaptconf \(\+[\d.]+\)\."
            r" "
            r"Not different from kd beyond noise: hard \(.*?\)\. Worse than kd beyond noise: gce \(-",
            text,
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["trained_report", "made_report"])
def test_page_in_a_browser(
    browser,  # noqa: F811
    request: pytest.FixtureRequest,
    kind: str,
    scheme: str,
) -> None:
    report = request.getfixturevalue(kind)
    open_page(browser, report / "index.html", scheme)
    images = browser.find_elements(By.CSS_SELECTOR, "figure img")
    assert len(images) == len(names_in(report))
    for image in images:
        width, height = (
            browser.execute_script(f"return arguments[0].{p}", image)
            for p in ("naturalWidth", "naturalHeight")
        )
        assert width > 0 and height > 0 and image.is_displayed() and image.size["width"] > 100
        assert len(image.get_attribute("alt")) > 40
    paper, ink = (
        browser.find_element(By.TAG_NAME, "body").value_of_css_property(p)
        for p in ("background-color", "color")
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (
        (brightness[0] > 700 and brightness[1] < 200)
        if scheme == "light"
        else (brightness[0] < 120 and brightness[1] > 600)
    )
    assert browser.execute_script("return window.hacked") is None
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(name.startswith("data:") for name in loaded)
    assert browser.get_log("browser") == []


def test_markup_in_names_is_harmless_and_no_token_is_in_a_report(made_report: Path) -> None:
    assert (made_report.parent / "plan.json").read_text().count(TOKEN) > 1
    assert len(list(made_report.rglob("*"))) > 10 and not holders(made_report, TOKEN)
    page, markdown = ((made_report / name).read_text() for name in ("index.html", "README.md"))
    assert "<img src=x" not in page and "<script" not in page and "{{ 7*7 }}" in page
    assert "hf_***" in page and "hf_***" in markdown and "hf_aaa" not in page + markdown
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    inner = [child for token in tokens for child in token.children or ()]
    raw = {
        token.content for token in (*tokens, *inner) if token.type in ("html_block", "html_inline")
    }
    assert raw <= {"<code>", "</code>"}
    assert sum(child.type == "image" for child in inner) == len(names_in(made_report))
