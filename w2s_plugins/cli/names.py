"""Names of models and optimizers, looked up where they stand in source files: importing them takes seconds."""

import functools
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError, near_path, nearest

PACKAGE = Path(__file__).parents[1]
# what may stand before the colon of a teacher's name, beside the kinds that are opened by functions of their own
OTHER_TEACHERS = ("hf-hub", "hf_hub", "local-dir", "labels")


class UnknownName(UserError):
    """A name that neither this package nor timm knows; a plugin may."""


@functools.cache
def refuse_unknown_model(flag: str, name: str) -> None:
    """Raise `UnknownName` for the plain name of a model which nothing among the sources of models is called."""
    if not re.fullmatch(r"\w+(\.\w+)?", name) or Path(name).exists():
        return  # of another kind
    sources, own = _model_sources(), name.partition(".")[0]
    forms = f"def {own}(", f"'{own}'", f'"{own}"', f'"cifar_{own}"'  # of which the last has a short name
    if sources and not any(form in sources for form in forms):
        raise unknown_model(flag, name, re.findall(
            r'(?:^@register_model\s+def |^ *\{?")(\w+)(?:\(|": )', sources, re.MULTILINE))


def refuse_unknown_optimizer(name: str) -> None:
    """Raise a `UserError` for an optimizer that is not in timm's list of them."""
    known = re.findall(r"'(\w+)'", _timm_source("optim/_optim_factory.py"))  # and other words
    if known and name.lower().removeprefix("lookahead_") not in known:
        raise unknown_optimizer(name, known)


def unknown_optimizer(name: str, known: Iterable[str]) -> UserError:
    """Return the error of a name that none of the optimizers has."""
    return UserError(f"--opt: unknown optimizer '{name}'{nearest(name, known)}")


def unknown_model(flag: str, name: str, models: Iterable[str]) -> UnknownName:
    """Return the error of a name that none of ``models`` has."""
    hint = nearest(name.partition(".")[0], models) or "; `timm.list_models()` lists them"
    if "/" in name:
        hint = near_path(name) or f" (nearest: hf-hub:{name}, local-dir:{name})"
    return UnknownName(f"{flag}: unknown model '{name}'{hint}")


@functools.cache
def refuse_unknown_kind(flag: str, name: str, *others: str) -> None:
    """Raise `UnknownName` for ``KIND:NAME`` of a teacher whose kind nothing in this package opens.

    Args:
        flag: begins the message.
        name: of the teacher.
        others: further kinds.
    """
    if ":" not in name:
        return
    known = [*others, *OTHER_TEACHERS, *re.findall(
        r'^@register_teacher\("(\w+)"\)', _read(PACKAGE / "teachers", "kinds.py"), re.MULTILINE)]
    if name.partition(":")[0] not in known:
        raise unknown_kind(flag, name, known)


def unknown_kind(flag: str, name: str, known: Iterable[str]) -> UnknownName:
    """Return the error of a teacher whose kind is none of ``known``."""
    kind, known = name.partition(":")[0], [kind for kind in known if kind != "hf_hub"]
    return UnknownName(f"{flag} {name}: unknown kind of teacher '{kind}'{nearest(kind, known)}; one of "
                       f"{', '.join(known)}, or MODULE:FUNCTION with --plugins MODULE")


@functools.cache
def _model_sources() -> str:
    """Return the source of timm's models and of this package's; nothing where timm's is not to be had."""
    theirs = _timm_source("models/*.py")
    return theirs and theirs + _read(PACKAGE / "models", "*.py")


def _timm_source(pattern: str) -> str:
    """Return the source of files of timm, which is not imported; nothing where it is not to be had."""
    timm = find_spec("timm")
    return _read(Path(timm.origin).parent, pattern) if timm and timm.origin else ""


def _read(folder: Path, pattern: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern)))
