"""The report of a study: its figures, its words, and its page in a real browser."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from selenium.webdriver.common.by import By

from tests.e2e.conftest import environment, run_many
from tests.e2e.test_untrusted import holders
from tests.hub_server import HubServer, hub_env, hub_server  # noqa: F401  (a fixture)
from tests.parts import write_folder
from tests.processes import python
from w2s_plugins.errors import UserError
from w2s_plugins.study import figures
from w2s_plugins.study.collect import collect
from w2s_plugins.study.gallery import open_gallery
from w2s_plugins.study.layout import PlannedRun, save_plan
from w2s_plugins.study.report import summary, write_report
from w2s_plugins.study.table import make_table

from .browser import browser, open_page  # noqa: F401  (a fixture)
from .conftest import Cli
from .runs import write_run

TRAINING = ["--dataset", "w2s/digits", "--img-size", "8", "--batch-size", "16", "--warmup-epochs", "0", "--lr", "0.05",
            "--val-slice", "0:300", "--workers", "0", "--hflip", "0", "--scale", "0.8", "1", "--color-jitter", "0",
            "--output", "."]
TOKEN = "hf_" + "T0psecret" * 4
HOSTILE = {"weak": "<img src=x onerror=window.hacked=1>", "strong": "{{ 7*7 }} | $x$",
           "protocol": f"`b` **c** ]( \"q\" {TOKEN}", "loss": "<script>window.hacked=1</script>"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs on digits: a teacher, a ceiling, AdaptConf and KD."""
    root = tmp_path_factory.mktemp("trained")
    student = [*TRAINING, "--train-slice", "60:220", "--model", "w2s_cnn2", "--epochs", "4"]
    distilled = [*student, "--teacher", "w2s_cnn2", "--teacher-checkpoint", "weak", "--task-loss-weight", "0"]
    commands = [
        [*TRAINING, "--train-slice", "0:60", "--model", "w2s_cnn2", "--epochs", "15", "--val-interval", "15",
         "--experiment", "weak"],
        [*student, "--experiment", "ceiling", "--epochs", "20", "--val-interval", "20"],
        [*distilled, "--loss", "adaptconf", "--experiment", "adaptconf"],
        [*distilled, "--loss", "kd", "--experiment", "kd"],
    ]
    for done in run_many(commands, environment(PYTHONPATH=str(Path(__file__).parents[2])), root):
        done.ok()
    return root


@pytest.fixture(scope="session")
def trained_report(trained: Path) -> Path:
    write_report(trained, trained / "report")
    return trained / "report"


@pytest.fixture(scope="session")
def made_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a planned study of generated runs: four groups, and labels with markup in them."""
    root = tmp_path_factory.mktemp("made")
    plan = []
    losses = {"kd": ("kd", {}), HOSTILE["loss"]: ("gce", {}),
              **{f"augconf-{a}": ("augconf", {"alpha": a}) for a in (0.1, 0.5, 0.9)}}
    for number in range(4):
        for seed in range(2):
            for label, (name, kwargs) in losses.items():
                run = f"{number}-{seed}-{len(plan)}"
                folder = write_run(root / "made", name, seed, 0.5 + 0.1 * len(label) % 0.3, kwargs=kwargs)
                (root / "runs").mkdir(exist_ok=True)
                folder.rename(root / "runs" / run)
                folder.parent.rename(root / f"ceiling{len(plan)}")
                plan.append(PlannedRun(run, "student", HOSTILE["weak"] + str(number), HOSTILE["strong"], label,
                                       HOSTILE["protocol"], seed, [], []))
    save_plan(root, plan)
    (root / "study.yaml").write_text(yaml.safe_dump({"note": HOSTILE["loss"], "token": "hf_" + "a" * 30}))
    write_report(root, root / "report", title=f"{HOSTILE['weak']} {TOKEN}")
    return root / "report"


def names_in(report: Path) -> set[str]:
    return {path.stem for path in (report / "figures").glob("*.svg")}


def test_every_figure_is_drawn_where_its_data_are(trained_report: Path, made_report: Path) -> None:
    assert names_in(trained_report) == {
        f"{name}-1" for name in ("gallery", "pgr", "agreement", "curves", "mistakes")}
    assert names_in(made_report) == {f"{name}-{i}" for name in ("agreement", "mistakes") for i in range(1, 5)}
    for report in (trained_report, made_report):
        for kind in ("png", "pdf"):
            assert {path.stem for path in (report / "figures").glob(f"*.{kind}")} == names_in(report)
        for path in (report / "figures").glob("*.png"):
            image = Image.open(path)
            assert abs(image.width / 220 - 3.3) < 0.6, f"{path}: about a column of 3.3 inches"
            assert len(image.convert("RGB").getcolors(1 << 20)) > 8, f"{path}: something is drawn"


def test_same_runs_same_bytes(trained: Path, trained_report: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_report(trained, again)
    for name in ("index.html", "README.md", "table.json",
                 *(f"figures/{n}.{kind}" for n in names_in(trained_report) for kind in ("svg", "pdf"))):
        assert (again / name).read_bytes() == (trained_report / name).read_bytes(), name


def test_figures_say_what_the_data_say(trained: Path) -> None:
    found = collect(trained)
    table = make_table(found)
    by_loss = {student.loss: [student] for student in found.students}
    student = by_loss["adaptconf"][0]
    wrong = ~student.hits["weak"]
    corrected = 100 * student.hits["student"][wrong].mean()
    assert f"adaptconf corrects {corrected:.0f}," in figures.mistakes(by_loss).alt
    curves = figures.learning_curves(table["groups"][0], by_loss, figures.line_numbers(table))
    last = json.loads((student.folder / "result.json").read_text())["metrics"]["top1"]
    assert f"{last:.1f} after 4" in curves.alt
    line = next(line for line in curves.figure.axes[0].lines if line.get_label() == "adaptconf")
    gain = dict(student.record["gain"], by_epoch=student.record["gain"]["by_epoch"][:1])
    once = {loss: [replace(student, record={**student.record, "gain": gain})] for loss in by_loss}
    assert figures.learning_curves(table["groups"][0], once, dict.fromkeys(by_loss, 0)) is None, "a dot is no curve"
    assert line.get_xdata()[-1] == 4 and line.get_ydata()[-1] == pytest.approx(last)
    bars = figures.pgr_bars(table["groups"][0])
    cells = {cell["loss"]: cell["pgr"]["mean"] for cell in table["groups"][0]["cells"]}
    assert sorted(patch.get_width() for patch in bars.figure.axes[0].patches) == pytest.approx(sorted(cells.values()))


def test_classes_have_the_names_of_the_run(tmp_path: Path) -> None:
    """A run that labels have given another order of the classes than that of its test images' folders."""
    photos = write_folder(tmp_path / "photos", {"validation": 9}, classes=3)
    write_run(tmp_path / "runs", "kd", 0, 0.6, ceiling=None, data_dir=str(photos), dataset="", val_split="validation")
    target, notes = np.repeat([2, 1, 0], 3), []
    (student,) = collect(tmp_path / "runs").students
    student = replace(student, record={**student.record, "model": {"class_names": ["class2", "class1", "class0"]}},
                      target=target, teacher=np.full(9, 2), student=target)
    opened = open_gallery(student, notes)
    assert opened.dataset is not None and not notes
    assert "class1 taken for class0" in figures.pictures(student, opened).alt
    changed = open_gallery(replace(student, target=target[::-1]), notes)
    assert changed.dataset is None and "the test images have changed since" in notes[0]
    assert figures.pictures(student, changed) is None


@pytest.mark.parametrize("name", ["kd", "adaptconf-temperature=4.0, and a long name of a setting"])
def test_no_text_goes_on_beyond_its_figure(tmp_path: Path, name: str) -> None:
    """Names of classes and losses as long as they come leave little room beside them."""
    write_run(tmp_path, "kd", 0, 0.6)
    by_loss = {name: collect(tmp_path).students}
    with figures.style():
        for item in [figures.mistakes(by_loss)]:
            canvas = FigureCanvasAgg(item.figure)
            canvas.draw()
            axes, bounds = item.figure.axes[0], item.figure.bbox
            for text in (axes.xaxis.label, *axes.get_yticklabels(), *item.figure.legends[0].get_texts()):
                box = text.get_window_extent(canvas.get_renderer())
                assert bounds.x0 <= box.x0 < box.x1 <= bounds.x1, (item.name, text.get_text())
                assert bounds.y0 <= box.y0 < box.y1 <= bounds.y1, (item.name, text.get_text())


def test_runs_of_other_data_are_in_no_table(tmp_path: Path) -> None:
    """Images were deleted between the runs of a study: which, and between which runs."""
    plan = []
    for number, name in enumerate(("kd", "adaptconf")):
        folder = write_run(tmp_path / "made", name, 0, 0.6, ceiling=None)
        shutil.copytree(folder, tmp_path / "runs" / name)
        plan.append(PlannedRun(name, "student", "w", "s", name, "", 0, []))
        file = tmp_path / "runs" / name / "result.json"
        record = json.loads(file.read_text())
        record["data"]["sources"] = [dict(role="train", name="'train'", place="a", samples=490 - 166 * number,
                                          fingerprint=f"f{number}")]
        file.write_text(json.dumps(record))
    save_plan(tmp_path, plan)
    with pytest.raises(UserError, match="kd and adaptconf cannot be compared: 'train' changed between them: 490 "
                                        "samples, fingerprint f0 for kd, 324 samples, fingerprint f1 for adaptconf"):
        collect(tmp_path)


def test_words(trained: Path, tmp_path: Path) -> None:
    text = "".join(summary(make_table(collect(trained)))[1])
    assert "With one seed nothing can be said of losses" in text and "beyond noise" not in text
    for seed in range(4):
        for loss, accuracy in {"kd": 0.6, "adaptconf": 0.78, "hard": 0.605, "gce": 0.45}.items():
            write_run(tmp_path, loss, seed, accuracy)
    text = "".join(summary(make_table(collect(tmp_path)))[1])
    assert re.search(r"Better beyond noise than kd: adaptconf \(\+\d+\.\d\d\)\.", text)
    assert "Not distinguishable from kd: hard" in text and "Worse beyond noise than kd: gce (-" in text
    assert re.search(r"Not above the teacher on average: gce \(-\d", text), "the difference from the teacher"
    text = "".join(summary(make_table(collect(tmp_path), "adaptconf"))[1])
    assert "No loss is better than adaptconf beyond noise." in text and "Better" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(browser, trained_report: Path, made_report: Path, scheme: str) -> None:  # noqa: F811
    for report in (trained_report, made_report):
        open_page(browser, report / "index.html", scheme)
        images = browser.find_elements(By.CSS_SELECTOR, "figure img")
        assert len(images) == len(names_in(report))
        for image in images:
            width, height = (browser.execute_script(f"return arguments[0].{p}", image)
                             for p in ("naturalWidth", "naturalHeight"))
            assert width > 0 and height > 0 and image.is_displayed() and image.size["width"] > 100
            assert len(image.get_attribute("alt")) > 40
        paper, ink = (browser.find_element(By.TAG_NAME, "body").value_of_css_property(p)
                      for p in ("background-color", "color"))
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
        assert (brightness[0] > 700 and brightness[1] < 200) if scheme == "light" else (
            brightness[0] < 120 and brightness[1] > 600)
        assert browser.execute_script("return window.hacked") is None
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert all(name.startswith("data:") for name in loaded)
        assert browser.get_log("browser") == []


def test_markup_in_names_is_harmless(made_report: Path) -> None:
    page = (made_report / "index.html").read_text()
    assert "<img src=x" not in page and "<script" not in page and "{{ 7*7 }}" in page
    for number, name in enumerate(("index.html", "README.md")):
        text = (made_report / name).read_text()
        assert "hf_***" in text and "hf_aaa" not in text
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text) if number else []
        inner = [child for token in tokens for child in token.children or ()]
        raw = {t.content for t in (*tokens, *inner) if t.type in ("html_block", "html_inline")}
        assert raw <= {"<code>", "</code>"}
        if number:
            assert sum(child.type == "image" for child in inner) == len(names_in(made_report))


def test_no_token_is_in_a_report(made_report: Path) -> None:
    """Not in figures and tables either, wherever it was: title, labels, specification."""
    assert (made_report.parent / "plan.json").read_text().count(TOKEN) > 1
    assert len(list(made_report.rglob("*"))) > 10 and not holders(made_report, TOKEN)
    assert "hf_***" in (made_report / "table.json").read_text()


def test_command_line_and_hub(trained: Path, hub_server: HubServer, tmp_path: Path, cli: Cli) -> None:  # noqa: F811
    hub_server.add_user("me", token=TOKEN)
    hub_server.add_model("me/models", trained / "kd/export")
    hub_server.fault("POST /api/models/me/models/commit/", status=503, times=1,  # its words are told
                     headers={"X-Error-Message": f"busy with {TOKEN}"})
    (tmp_path / "out/figures").mkdir(parents=True)
    (tmp_path / "out/figures/old.png").write_bytes(b"")
    (tmp_path / "out/notes.txt").write_text("my own")
    (tmp_path / "out/keys.csv").symlink_to("/etc/hostname")
    command = ["-m", "w2s_plugins.study", "report", trained, "--output", tmp_path / "out",
               "--push-to-hub", "me/models", "--title", "T"]
    env, top = hub_env(hub_server, tmp_path, TOKEN), Path(__file__).parents[2]
    busy = python(*command, env=env, cwd=top)
    assert busy.returncode == 2 and "busy with ***" in busy.stderr and TOKEN not in busy.stdout + busy.stderr
    done = python(*command, env=env, cwd=top)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"* {tmp_path / 'out/index.html'}", f"published at {hub_server.url}/me/models/tree/main/report"]
    assert TOKEN not in done.stdout + done.stderr and not holders(tmp_path / "out", TOKEN)
    repo = hub_server.repos["me/models"]
    assert TOKEN not in "".join(repo.messages.values())
    files = repo.commits[repo.branches["main"]]
    assert not any(name.endswith(("notes.txt", "keys.csv")) for name in files)
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name not in ("notes.txt", "keys.csv")):
        assert files[f"report/{path.relative_to(tmp_path / 'out').as_posix()}"].data == path.read_bytes()
    assert "model.safetensors" in files and files["README.md"].data == (trained / "kd/export/README.md").read_bytes()
    assert "report/figures/old.png" not in files
    assert cli("report", trained, "--push-to-hub", "a b")[2].startswith("study: error: not a Hub id")
    assert "nearest: kd" in cli("report", trained, "--reference", "kdd")[2]
