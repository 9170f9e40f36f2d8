"""The documents: their commands are accepted, their links lead somewhere, and the site is built from them."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from w2s_plugins.cli.parser import (
    parse,
    predict_parser,
    read_command,
    train_parser,
    validate_parser,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]  # what a user reads
EVIDENCE = sorted(ROOT.glob("docs/evidence/*.md"))  # the tables behind it
PAGES = sorted({*ROOT.glob("*.md"), *GUIDE, *EVIDENCE, *ROOT.glob("benchmarks/*.md")})
# both as installed (w2s-train) and in a checkout (python train_w2s.py), and on several GPUs
PROGRAM = re.compile(
    r"(?:(?:python|torchrun --nproc_per_node 8(?: --no-python)?) )?"
    r"(train_w2s\.py|validate\.py|w2s-\w+|-m w2s_plugins\.\w+)(?:\s|$)"
)
INSTALLED = re.compile(r"(?:torchrun --nproc_per_node 8 --no-python )?w2s-\w+(?:\s|$)")
CARD = """\
python train_w2s.py --teacher resnet18 --model vit_base_patch16_224 --loss adaptconf --data-dir /data/imagenet
python validate.py --model hf-hub:me/my-student --data-dir /data/imagenet
"""
NAMES = {"train_w2s.py": "train", "validate.py": "validate", "predictions": "predict"}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page, lines of a command joined."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    found = [token.content for token in tokens if (token.type, token.info) == ("fence", language)]
    return [re.sub(r" *\\\n\s*", " ", block) for block in found]


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Page, program and words of each command of the project that stands in a block of a page."""
    for page in PAGES:
        for line in "".join(blocks(page, "")).splitlines():
            if program := PROGRAM.match(line):
                words = shlex.split(line[program.end() :], comments=True)
                name = (
                    program[1].rpartition(".")[2]
                    if program[1].startswith("-m")
                    else program[1].removeprefix("w2s-")
                )
                yield (
                    page.name,
                    NAMES.get(name, name),
                    [word for word in words if word not in ("...", "FLAGS")],
                )


COMMANDS = list(commands())


def test_commands_are_found() -> None:
    programs = {program for _, program, _ in COMMANDS}
    assert len(COMMANDS) > 80 and programs >= {
        "train",
        "validate",
        "predict",
        "study",
        "hub",
        "labels",
    }


@pytest.mark.parametrize(
    "page, program, words", COMMANDS, ids=[f"{page}-{i}" for i, (page, *_) in enumerate(COMMANDS)]
)
def test_every_command_is_accepted(
    page: str, program: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, *words])
    {
        "train": lambda: train_parser().take(words),
        "validate": lambda: validate_parser().take(words),
        "predict": lambda: predict_parser().take(words),
    }.get(program, lambda: read_command(program))()


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_a_page_writes_the_commands_that_are_installed(page: Path) -> None:
    """A checkout is not what everybody has; the first page says how to type them there."""
    text = "".join(blocks(page, ""))
    if page.name == "README.md":
        assert CARD in text, "the task's commands, verbatim"
        text = text.replace(CARD, "")
    of_checkout = [
        line for line in text.splitlines() if PROGRAM.match(line) and not INSTALLED.match(line)
    ]
    assert not of_checkout
    in_prose = re.findall(
        r"`(?:python -m w2s_plugins\.\w+|python \w+\.py|(?:train_w2s|validate)\.py) [^`]*`",
        page.read_text(encoding="utf-8"),
    )
    if page.name not in ("architecture.md", "start.md"):
        assert not in_prose, "in a table or a sentence"


def test_blocks_of_python_are_in_pages_whose_tests_run_them() -> None:
    """tests/test_api.py, losses/test_docs.py."""
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page, "python")}
    assert pages <= {"README.md", "docs/losses.md", "docs/publish.md"}


def test_the_readme_is_short_and_begins_with_a_figure() -> None:
    lines = README.splitlines()
    assert len(lines) <= 128 and any("](docs/demo.svg)" in line for line in lines[:15])


def test_the_guide_is_read_to_its_end() -> None:
    assert len(GUIDE) <= 15
    assert sum(page.read_text(encoding="utf-8").count("\n") for page in GUIDE) <= 2100


def prose(page: Path) -> str:
    """The text of a page without its code and tables."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    texts, in_table = [], False
    for token in tokens:
        in_table = (in_table and token.type != "table_close") or token.type == "table_open"
        if token.type == "inline" and not in_table:
            texts += [
                "".join(
                    {"text": part.content, "softbreak": " "}.get(part.type, "")
                    for part in token.children
                )
            ]
    return "\n".join(texts)


@pytest.mark.parametrize(
    "words, fewest, most",
    [(r"where", 0, 2), (r"(that|those) of", 0, 0.5), (r"if", 2, 20), (r"you(r|rs)?", 8, 40)],
)
def test_the_guide_speaks_to_its_reader(words: str, fewest: float, most: float) -> None:
    """Of 1,000 words of all pages; torchtune and lightly-train have 1.3 "where", 2.7 "if" and 8 to 17 "you"."""
    text = "\n".join(map(prose, GUIDE))
    found = (
        1000
        * len(re.findall(rf"\b{words}\b", text, re.IGNORECASE))
        / len(re.findall(r"[\w'-]+", text))
    )
    assert fewest <= found <= most


def test_the_figure_is_that_of_the_table() -> None:
    """matplotlib writes each text of an SVG file as a comment beside its outlines."""
    (mean,) = re.findall(r"^mean +(.*)$", README, re.MULTILINE)
    *accuracies, _, pgr = mean.split()
    assert len(accuracies) == 5, "teacher, student, direct, both, ceiling"
    figure = ROOT / "docs/demo.svg"
    said = " ".join(re.findall("<!-- (.*?) -->", figure.read_text(encoding="utf-8")))
    assert (
        all(f"  {float(value):.1f}" in said for value in accuracies) and f"{pgr} of the gap" in said
    )
    assert figure.stat().st_size < 60_000


def anchor(heading: str) -> str:
    """The name by which a heading is linked."""
    return (
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        .strip()
        .replace(" ", "-")
    )


def test_links_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, place = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            headings = (
                re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                if place and target.exists()
                else []
            )
            if not target.exists() or (place and place not in map(anchor, headings)):
                lost.append(f"{page.name}: {link}")
    assert not lost


def test_tables_are_made_of_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script finds no table that differs; it names a page with another number, and writes the old one again."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds to it
    script = ROOT / "docs/evidence/studies/tables.py"
    spec = importlib.util.spec_from_file_location("tables", script)
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert (tables.main(["--check"]), capsys.readouterr().out) == (0, "")

    for page in EVIDENCE:
        shutil.copy(page, tmp_path)
    page = tmp_path / "noisy.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("| 98.61 |", "| 99.61 |"), encoding="utf-8")
    assert tables.main(["--check", "--pages", str(tmp_path)]) == 1
    assert "noisy.md: a table differs" in capsys.readouterr().out
    assert tables.main(["--pages", str(tmp_path)]) == 0
    assert page.read_text(encoding="utf-8") == right

    page.write_text(right.replace("table: noisy-digits-20", "table: of-nothing"), encoding="utf-8")
    assert tables.main(["--check", "--pages", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "noisy.md: nothing makes the table of-nothing" in said
    assert "noisy-digits-20: this table stands in no page" in said


def test_the_manifest_for_kubernetes() -> None:
    job = yaml.safe_load((ROOT / "examples/pytorchjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch", "the operator looks for it"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }
    assert container["command"] == ["torchrun", "--no-python", "w2s-train"]
    flags, _ = parse(train_parser(), container["args"])
    assert (flags.resume, flags.teacher, flags.loss) == ("auto", "resnet18", "adaptconf")


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """Without a warning; links and anchors between its pages are checked."""
    pytest.importorskip("mkdocs", reason="the site is not built: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    reference = (tmp_path / "reference/index.html").read_text(encoding="utf-8")
    assert all(
        f'id="w2s_plugins.{name}"' in reference
        for name in (
            "api.train",
            "api.load_student",
            "training.task.WeakToStrongTask",
            "losses.create_loss",
            "errors.UserError",
        )
    )
    assert "make demo" in (tmp_path / "index.html").read_text(encoding="utf-8"), (
        "the home is README.md"
    )
