"""Imports point one way, flags are seen by builders only, and what the command line is made of needs no torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import LONGEST, pytest_collection_modifyitems
from tests.rooms import (
    GUIDES,
    HAD,
    Count,
    code_tokens,
    count_rooms,
    files_at_last_tag,
    files_here,
    table_of_rooms,
    too_large,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "w2s_plugins"


def imported_by(path: Path) -> set[str]:
    """The rooms of the package (losses, data, errors, ...) that a file imports, at its top or inside a function.

    Within the package imports are relative; nothing imports the scripts.
    """
    to_package = len(path.relative_to(PACKAGE).parts)  # dots that lead from the file to the package
    found, text = set(), path.read_text(encoding="utf-8")
    assert not re.search(
        r"^ *(from|import) (w2s_plugins|train_w2s|validate)\b", text, re.MULTILINE
    ), path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == to_package:
            found |= (
                {node.module.partition(".")[0]}
                if node.module
                else {alias.name for alias in node.names}
            )
    return {
        room for room in found if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
    }


@cache
def rooms() -> dict[str, set[str]]:
    """What each file or folder of the package imports of the others; its command, which nothing imports, aside."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__main__.py":
            continue
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        graph.setdefault(room, set()).update(imported_by(path))
    return {room: imports - {room} for room, imports in graph.items()}


# as in docs/architecture.md: a room imports only from rooms above it
ROOMS = (
    "version",
    "errors",
    "private_names",
    "registry",
    "files",
    "made_of",
    "no_label",
    "target_kind",
    "settings",
    "cli",
    "distributed",
    "losses",
    "data",
    "metrics",
    "hub",
    "labels",
    "models",
    "monitor",
    "teachers",
    "run",
    "resolve",
    "students",
    "training",
    "study",
    "predictions",
    "audit",
    "demo",
    "api",
    "__init__",
)


def test_imports_are_found():
    assert {"registry", "errors"} <= rooms()["losses"]
    assert {"losses", "teachers", "data", "run"} <= rooms()["training"]


def test_nothing_imports_a_command():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(from|import) [\w.]*__main__", text), path


def test_imports_point_one_way():
    assert set(ROOMS) == set(rooms())
    for place, room in enumerate(ROOMS):
        assert rooms()[room] <= set(ROOMS[:place]), room


@pytest.mark.parametrize(
    "code",
    [
        "import w2s_plugins.resolve.fill_in",
        "import w2s_plugins as w2s; w2s.train; w2s.predict; dir(w2s)",
    ],
)
def test_the_command_line_needs_no_torch(code):
    code = f"import sys; {code}; print({{'torch', 'timm'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_losses_and_teachers_do_not_know_each_other():
    assert not rooms()["losses"] & {"teachers", "data", "training"}
    assert not rooms()["teachers"] & {"losses", "training"}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    )


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    own = function.args
    return [
        a for a in (*own.posonlyargs, *own.args, *own.kwonlyargs) if a.arg not in ("self", "cls")
    ]


def test_only_the_parser_and_settings_see_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "settings", "resolve"):
            seen = [
                f.name
                for f in functions(path)
                for a in parameters(f)
                if a.annotation is not None and "Namespace" in ast.unparse(a.annotation)
            ]
            assert not seen, (path, seen)


def test_few_functions_take_a_bag_of_flags():
    bags = [
        name
        for path in (*PACKAGE.rglob("*.py"), ROOT / "train_w2s.py", ROOT / "validate.py")
        for name in re.findall(
            r"\bargs: (?:argparse\.)?Namespace\b", path.read_text(encoding="utf-8")
        )
    ]
    assert len(bags) <= 15


def test_functions_have_eight_parameters_at_most():
    """But for constructors and what users call from Python, which are called with keywords."""
    paths = {*PACKAGE.rglob("*.py"), ROOT / "train_w2s.py", ROOT / "validate.py"}
    for path in paths - {PACKAGE / "api.py"}:
        many = [f.name for f in functions(path) if len(parameters(f)) > 8 and f.name != "__init__"]
        assert not many, (path, many)


def test_the_longest_tests_come_first(pytestconfig):
    """The list names files that are there, and what runs them side by side leaves them in its order."""
    assert not [file for file in LONGEST if not (ROOT / file).is_file()]
    files = ["tests/b.py", "tests/c.py", "tests/b.py", LONGEST[1], LONGEST[0], "tests/a.py"]
    items = [SimpleNamespace(nodeid=f"{file}::test_{number}") for number, file in enumerate(files)]
    pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [
        f"{LONGEST[0]}::test_4",
        f"{LONGEST[1]}::test_3",
        "tests/b.py::test_0",
        "tests/b.py::test_2",
        "tests/a.py::test_5",
        "tests/c.py::test_1",
    ]
    assert not pytestconfig.getoption("loadscopereorder"), (
        "pytest-xdist would sort files by their number of tests"
    )


def test_every_python_counts_alike():
    source = 'x = f"{a + b} and {f\'{c!r:>{width}}\'}" + "d"  # comment\n'
    source += 'def f():\n    """Doc."""\n    return f"{x}"\n'
    assert len(code_tokens(source)) == len(
        ["x", "=", "f", "+", "d", "def", "f", "(", ")", ":", "return", "f"]
    )


def test_no_room_is_far_above_its_guide():
    """The table, with growth since the last tag: ``make rooms``."""
    counted = count_rooms(files_here())
    assert not {*counted} - {*GUIDES}, "give the new room a guide, in the commit that makes it"
    assert not too_large(counted)


def test_growth_is_counted_from_the_last_tag(tmp_path):
    """Without a tag, or without git, the table has no growth."""
    room = tmp_path / "w2s_plugins" / "data"
    room.mkdir(parents=True)
    (room / "one.py").write_text("x = 1\n")
    assert files_at_last_tag(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init"], ["add", "."], ["commit", "--message=one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert files_at_last_tag(tmp_path) is None
    subprocess.run([*git, "tag", "v1"], check=True)
    (room / "two.py").write_text("# why\ny = x\n")
    before, now = files_at_last_tag(tmp_path), files_here(tmp_path)
    assert before is not None and {*before} < {*now}
    table = table_of_rooms(count_rooms(now), count_rooms(before))
    assert ["data", "18,000", "6", "+3"] in [line.split() for line in table.splitlines()]


@pytest.mark.parametrize("room, number", [("losses", GUIDES["losses"]), ("labels", HAD["labels"])])
def test_a_room_may_be_a_fifth_above_its_number(room, number):
    assert not too_large({room: Count(tokens=number * 6 // 5)})
    assert too_large({room: Count(tokens=number * 6 // 5 + 1)})
