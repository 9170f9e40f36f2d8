"""Which private names of other packages are used, and whether they are still there."""

import ast
import importlib
from pathlib import Path

import pytest

import w2s_plugins

PACKAGE = Path(w2s_plugins.__file__).parent
HOME = PACKAGE / "private_names.py"


def private_imports(path: Path) -> set[tuple[str, str]]:
    """Return (module, name) of what a file imports from other packages that is private there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    ]
    names = {(node.module, alias.name) for node in imports for alias in node.names}
    return {
        (module, name)
        for module, name in names
        if any(part.startswith("_") for part in (*module.split("."), name))
        and module != "__future__"
    }


def test_there_are_some():
    assert ("timm.data.dataset_factory", "_search_split") in private_imports(HOME)


@pytest.mark.parametrize(("module", "name"), sorted(private_imports(HOME)))
def test_it_is_still_there(module, name):
    assert hasattr(importlib.import_module(module), name), f"{module} has no {name} any more"


def test_they_have_one_home():
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if private_imports(path)
    }
    assert files == {HOME.name}
