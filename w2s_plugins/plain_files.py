"""YAML and JSON from anywhere, read as plain values: no tags that make objects, no bombs. And JSON for any reader."""

import json
import math
import os
import stat
from pathlib import Path

import yaml

LARGEST_FILE = 10_000_000  # bytes
MOST_VALUES = 1_000_000  # in all, with every alias written out
_SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def read_plain(path: Path) -> object:
    """Read a file of plain values: json where its name ends so, else yaml.

    A YAML bomb is a small file whose aliases stand for aliases, and so on, until whoever prints or copies the value
    needs all memory; it is refused before a value is made, and so is an alias of what it is in.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else, too large, or nested too deeply.
    """
    if kind := special_kind(path):
        raise ValueError(f"{kind}, not a regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE / 1e6:g} MB")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text)
        _refuse_bomb(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:  # of PyYAML, at odd scalars
        raise ValueError(f"a value that cannot be read ({error})") from error


def special_kind(path: str | Path) -> str | None:
    """Say what a path is, through links, that is neither a regular file nor a folder; None for those and for nothing.

    Whoever opens a FIFO waits until somebody writes to it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "a special file")


def to_json(content: object, indent: int | None = None) -> str:
    """Return a value as JSON. NaN and infinity, which JSON has not, become null."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_bomb(root: yaml.Node | None) -> None:
    if root is not None and _count(root, {}) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values when its aliases are written out")


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Number of values in a node, aliases written out."""
    if id(node) in known:
        if known[id(node)] is None:
            raise ValueError("an alias of what it is in")
        return known[id(node)]
    known[id(node)] = None  # until it is counted
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
