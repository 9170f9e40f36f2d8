"""Files: written whole or not at all; YAML and JSON read as plain values, without tags and bombs; CSV; hashes; where
the scripts and the recipes are."""

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import yaml
from safetensors import SafetensorError

from .errors import AGAIN, INSTALLED, UserError, cannot_be_written, nearest, one_line

LARGEST_FILE = 10_000_000  # bytes
# which takes PyYAML as long as the json module takes for a hundred times that
LARGEST_YAML = 1_000_000
MOST_VALUES = 1_000_000  # in all, with every alias written out
# bytes by which an archive may unpack to more than its own size; torch.save does not compress
INFLATION = 2**24
# classes or samples that a file may speak of without anything of that size behind it
MODEST = 2**16
WRITTEN = ".w2s-written"  # notes what was written beside it, as sha256sum does
_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_PACKAGE = Path(__file__).resolve().parent
# the folder of train_w2s.py, validate.py and hparams/: that of the checkout, or the one that a wheel has them in
TOP = _PACKAGE / "top" if INSTALLED else _PACKAGE.parent


def is_name(text: str) -> bool:
    """True for a text that may name a file which comes with the package: no path, and no suffix."""
    return text == Path(text).stem


def recipe_path(name: str | Path, where: str = "") -> Path:
    """Return the path of a YAML file; a name alone is that of a file in a folder of ``hparams/``, without its suffix.

    Args:
        name: as it was typed, or a path, which loses its ``./`` and is taken as it is.
        where: begins the message, such as the flag.

    Raises:
        UserError: no file has this name.
    """
    if isinstance(name, Path):
        return name
    # the package's own come first: ./NAME is one of the user's
    shipped = {path.stem: path for path in TOP.glob("hparams/*/*.yaml")}
    if name in shipped:
        return shipped[name]
    if is_name(name) and not os.path.exists(name):
        raise UserError(
            f"{where or name}: no such file, and no recipe of that name{nearest(name, shipped)}"
        )
    return Path(name)


def read_plain(path: Path) -> object:
    """Read a file of plain values: json where its name ends so, else yaml.

    A YAML bomb is a small file whose aliases stand for aliases, and so on, until whoever prints or copies the value
    needs all memory; it is refused before a value is made, and so is an alias of what it is in.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else, too large, nested too deeply, or has a key twice.
    """
    check_regular(path)
    # nothing is read that is not believed
    largest = LARGEST_FILE if path.suffix == ".json" else LARGEST_YAML
    if path.stat().st_size > largest:
        raise ValueError(
            f"larger than {largest / 1e6:g} MB{'' if path.suffix == '.json' else '; as .json it may be'}"
        )
    # JSON has no aliases; of YAML they are counted first
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_once)
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and _count(root, {}) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values when its aliases are written out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    # of PyYAML, at odd scalars
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"a value that cannot be read ({error})") from error


def special_kind(path: str | Path) -> str | None:
    """Say what a path is, through links, that is neither a regular file nor a folder; None for those and for nothing.

    Whoever opens a FIFO waits until somebody writes to it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return _SPECIAL.get(stat.S_IFMT(mode), "a special file")


def check_regular(path: str | Path) -> None:
    """Raise an `OSError` for a FIFO, a socket or a device, before something opens it: that might never return."""
    if kind := special_kind(path):
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file that comes from outside, to read its bytes; see `check_regular`."""
    check_regular(path)
    return open(path, "rb")


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """Return the text of a file that comes from outside; see `check_regular`."""
    check_regular(path)
    return Path(path).read_text(encoding)


def check_count(count: int, behind: int, what: str) -> None:
    """Raise a `UserError` unless a number that a file names is believed: a few bytes can ask for any amount of memory.

    Args:
        count: classes, samples or rows.
        behind: how much there is of what stands behind them: names, rows, bytes.
        what: begins the message, and says what is counted.
    """
    if count > max(MODEST, behind):
        raise UserError(
            f"{what}: {count} are more than the {behind} that stand behind them; without, up to {MODEST} "
            "are believed"
        )


def check_extent(arrays: Iterable[object], path: Path) -> None:
    """Raise a `ValueError` for a tensor or array that says it is larger than its file: a few bytes repeated, which the
    first copy would write out.
    """
    largest = path.stat().st_size + INFLATION
    # other leaves of the content, such as numbers, take no room
    if any(getattr(array, "nbytes", 0) > largest for array in arrays):
        raise ValueError("refused: a tensor in it says that it is larger than the whole file")


def check_replaceable(path: Path, flag: str, inputs: Iterable[Path] = ()) -> None:
    """Raise a `UserError` for a file that may not be overwritten: one that is read, or that this program has not
    written, or that somebody has changed since.

    Args:
        path: the file, which need not be there.
        flag: that names it.
        inputs: files that the command reads.
    """
    if not path.is_file():
        return
    if any(file.exists() and file.samefile(path) for file in inputs):
        raise UserError(
            f"{flag} {path}: is one of the files that are read; expected the name of a new file"
        )
    notes = path.with_name(WRITTEN)
    noted = read_text(notes).split() if notes.is_file() else []
    if file_sha256(path) not in noted:
        raise UserError(
            f"{flag} {path}: is there already, and not as this program has written it; expected the name "
            "of a new file, or delete this one before"
        )


def note_written(path: Path, content: Path | None = None) -> None:
    """Note, in a file beside ``path``, what this program writes there, for `check_replaceable`.

    Args:
        path: the file that the user has named.
        content: where its content is, if it is not there yet. What was there before stays noted, so that a process that
            is killed meanwhile can be started again.
    """
    with path.with_name(WRITTEN).open("a", encoding="utf-8") as notes:
        notes.write(f"{file_sha256(content or path)}  {path.name}\n")


def to_json(content: object, indent: int | None = None) -> str:
    """Return a value as JSON. NaN and infinity, which JSON has not, become null."""
    # Most content has no such number, and is then written without being copied.
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(content), parse_constant=lambda name: None)
        return json.dumps(finite, indent=indent)


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of values in a node, aliases written out; infinite where one is an alias of what it is in."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(key for key, _ in parts)
            parts = itertools.chain.from_iterable(parts)
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _check_keys(keys: Iterable[yaml.Node]) -> None:
    """Raise a `ValueError` for a key that a mapping has twice; one with dashes is that with underscores, as of flags."""
    first: dict[str, yaml.Node] = {}
    for key in keys:
        same = first.setdefault(str(key.value).replace("-", "_"), key)
        if same is not key:
            lines = [node.start_mark.line + 1 for node in (same, key)]
            raise ValueError(
                f"'{key.value}' is given twice, in lines {lines[0]} and {lines[1]}; expected one of them"
            )


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON as a mapping. Raises `ValueError` for a key that it has twice."""
    content: dict[str, object] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"'{key}' is given twice; expected one of them")
        content[key] = value
    return content


class DamagedArchive(Exception):
    """What is wrong with a file of torch.save that it is not read for."""


def check_archive(path: Path) -> None:
    """Raise unless a file of torch.save, a zip archive, has the sizes and checksums that it says; torch does not look.

    A file of another kind passes, and so does one that was saved without checksums.

    Raises:
        DamagedArchive: it would unpack to more than torch.save writes, or a checksum is wrong.
        zipfile.BadZipFile: it is cut off, or no archive inside.
    """
    with open_regular(path) as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        # what it would unpack to, then what it says of its own bytes
        records = archive.infolist()
        size, unpacked = path.stat().st_size, sum(record.file_size for record in records)
        if unpacked > size + INFLATION:
            raise DamagedArchive(
                f"refused: its {size / 1e6:.1f} MB would unpack to {unpacked / 1e6:.1f} MB; expected "
                "a file of torch.save, which does not compress"
            )
        if any(record.CRC for record in records) and (broken := archive.testzip()) is not None:
            raise DamagedArchive(
                f"damaged: the checksum (CRC-32) of {broken} in it is wrong; take another copy of "
                "the file, or an earlier checkpoint"
            )


@contextmanager
def atomic_write(path: Path, then: str = AGAIN) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of ``path``, on failure it is removed.

    ``then`` is what to do after a failure, see `errors.cannot_be_written`.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    # written beside its place under a name of this process alone, flushed, and renamed into it
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        apply_umask(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        delete(temporary)
        if not isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise
        # torch.save does not pass on why the system refused
        reason = one_line(error)
        if type(error) is RuntimeError:
            reason = "the disk is full, or the folder is gone"
        raise cannot_be_written(path, reason, then) from error


def remove_temporary_files(folder: Path) -> None:
    """Delete what a process that was killed while it wrote to a folder has left."""
    for path in folder.glob(".*.tmp"):
        delete(path)


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there; on a disk that is read-only now it stays."""
    with suppress(OSError):
        # of a link to a folder only the link goes
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, atomically; its content is copied where the file system has no hard links."""
    # to rename one name of a file onto another one of its names would do nothing, and leave the temporary one
    if target.exists() and target.samefile(source):
        return
    with atomic_write(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())


def write_text(path: Path, text: str, then: str = AGAIN) -> None:
    """Write a text file atomically, as `atomic_write`."""
    with atomic_write(path, then) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a json file atomically."""
    write_text(path, to_json(content, indent=2) + "\n")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder in order of their names, as 64 hex digits."""
    # In blocks: a file may be larger than memory.
    digest, path = hashlib.sha256(), Path(path)
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with open_regular(part) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def apply_umask(path: Path) -> None:
    """Give a file or folder the mode that the user's umask asks for; safetensors and temporary files are private."""
    # It can be read only by setting it.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are full-width


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with a header; names of classes, files, runs and flags may hold anything.

    A text that begins like a formula gets an apostrophe before it, which spreadsheets take for "this is text".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # columns in the order in which they first come
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(map(_cell, names))
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, (int, float, type(None))):
        return value
    text = str(value)
    try:
        float(text)
    except ValueError:
        # `csv` does not quote \r, at which some readers begin a new row
        one_row = re.sub(r"[\r\n]", " ", text)
        return f"'{one_row}" if text.startswith(_FORMULA) else one_row
    return text
