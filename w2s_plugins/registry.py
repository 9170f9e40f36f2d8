"""What is installed: the versions that are needed, names mapped to what plugins and this project offer."""

import importlib
import importlib.metadata
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from packaging.version import Version

from .errors import UserError, logger, near_path, nearest, one_line

T = TypeVar("T")

# the oldest versions that this project runs with, as in requirements.txt
OLDEST = {
    "timm": "1.0.31",
    "torch": "2.9",
    "torchvision": "0.24",
    "huggingface-hub": "1.4",
    "safetensors": "0.5",
}
# those of --plugins, by the name of the module or the stem of the file
PLUGINS: dict[str, ModuleType] = {}


class Registry(Generic[T]):
    """Names mapped to items of one kind.

    Args:
        kind: What the items are, for error messages (``"loss"``).
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add ``item`` under ``name``; a name can be taken once."""
        if self._items.get(name, item) is not item:
            raise UserError(f"{self.kind} '{name}' is registered twice")
        self._items[name] = item
        return item

    def get(self, name: str) -> T:
        """Return the item called ``name``. Raises `UserError` with the nearest names when there is none."""
        if name not in self._items:
            raise UserError(
                f"unknown {self.kind} '{name}'{nearest(name, self._items)}; known: {', '.join(self.names())}"
            )
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items


def check_versions() -> None:
    """Raise a `UserError` for packages that are absent or too old, before an import of them fails in its own words."""
    # All of them at once, as one command for pip.
    needed = []
    for name, oldest in OLDEST.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "0"
        if Version(installed) < Version(oldest):
            needed.append(f"'{name}>={oldest}'")
    if needed:
        raise UserError(f"too old or absent: pip install {' '.join(needed)}")


def load_plugins(plugins: Iterable[str]) -> None:
    """Import plugins given as module names or as paths of Python files. This runs their code."""
    for plugin in plugins:
        # Whatever an import may raise is told with the name of the plugin.
        try:
            if plugin.endswith(".py") and not Path(plugin).is_file():
                raise UserError(f"--plugins {plugin}: no such file{near_path(Path(plugin))}")
            logger.info(f"--plugins {plugin}: is imported, which runs its code")
            if plugin.endswith(".py"):
                PLUGINS[Path(plugin).stem] = _import_file(Path(plugin))
            else:
                PLUGINS[plugin] = importlib.import_module(plugin)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--plugins {plugin}: cannot be imported: {one_line(error)}") from error


def offer(function: Callable) -> str:
    """Offer a function, or another callable, as a plugin would; return the name of a teacher that it is then.

    Several of one name, such as lambdas, are ``f``, ``f-2`` and so on.
    """
    # as if a plugin had it, under the first name that is free
    module = PLUGINS.setdefault("python", ModuleType("python"))
    called = getattr(function, "__name__", type(function).__name__)
    names = itertools.chain([called], (f"{called}-{number}" for number in itertools.count(2)))
    name = next(name for name in names if getattr(module, name, function) is function)
    setattr(module, name, function)
    return f"python:{name}"


def _import_file(path: Path) -> ModuleType:
    # Under a name of its own, so that two files of one name are two modules; once, although the runs of a protocol
    # follow each other in one process.
    name = f"w2s_plugin_{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
