"""What no flag may hold, wherever it came from."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import LOGIN, UserError, holds_login, holds_token, name_runs, near_path, said_of
from ..files import special_kind

T = TypeVar("T")

ANY_MODEL = (
    "a name of timm, hf-hub:ORG/NAME, local-dir:FOLDER of an export or, of a trained model, the folder of its "
    "run, its export or a checkpoint in it"
)
UNTRAINED_MODEL = "a name of timm, hf-hub:ORG/NAME, or local-dir:FOLDER of an export"
# in the name of a file
MOST_COMMAS = 16
# bytes; file systems take no longer name
LONGEST = 255
# which name nothing
SENTENCES = ("commit_message",)
# not of a model's constructor: there are flags for the first, and the others make something else of a model
NO_MODEL_KWARGS = ("pretrained", "inputs", "recorded", "features_only")


def check_values(given: Mapping[str, object]) -> None:
    """Raise a `UserError` for values that cannot be names of anything, hold a token, or lead out of the run folder.

    Args:
        given: values by the flag's name, those of files included; what has no flag is named in capitals.
    """
    # all texts at once: the user's own token is read from its file each time
    suspect = holds_token("\n".join(_texts(dict(given))))
    for name, value in given.items():
        flag = name if name.isupper() else f"--{name.replace('_', '-')}"
        for text in _texts(value):
            if suspect and holds_token(text):
                what = "a name or password in a URL" if holds_login(text) else "an access token"
                remedy = "give the address without it" if holds_login(text) else LOGIN
                raise UserError(
                    f"{flag} holds {what}, which would be recorded or published; {remedy}"
                )
            if "\0" in text:
                raise UserError(f"{flag} {text!r:.60}: a NUL character cannot be in a name")
            # a path, or several names by commas: it is each part that the system has to take
            parts = () if name in SENTENCES else re.split("[/,]", text)
            if any(len(part.encode(errors="replace")) > LONGEST for part in parts):
                raise UserError(
                    f"{flag} {text[:40]}...: longer than {LONGEST} bytes, which no name of a file may be"
                )
            # whoever opened a FIFO would wait for ever
            kind = special_kind(text)
            if kind and name != "results_file":
                raise UserError(f"{flag} {text} is {kind}; expected a regular file or a folder")
    # what timm would take for itself, and not hand on to the model
    for name in ("model_kwargs", "teacher_kwargs"):
        kwargs = given.get(name)
        taken = [key for key in NO_MODEL_KWARGS if isinstance(kwargs, Mapping) and key in kwargs]
        if taken:
            raise UserError(
                f"--{name.replace('_', '-')} {taken[0]}: not an argument of a classifier's constructor; "
                "pretrained weights are asked for by --pretrained, and a teacher has them anyway"
            )
    # the run folder is made in --output, nowhere else
    experiment = str(given.get("experiment") or "")
    if experiment == ".." or Path(experiment).name != experiment:
        raise UserError(
            f"--experiment {experiment}: expected the name of a folder, not a path; --output is where it "
            "is made"
        )


def as_plain(value: object) -> object:
    """Return a value as YAML has it: of a path its text, of scalars and arrays of NumPy and torch numbers or lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return as_plain(to_list())
    if isinstance(value, Mapping):
        return {as_plain(key): as_plain(part) for key, part in value.items()}
    return [as_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def as_number(value: T) -> T:
    """Return a scalar of NumPy or torch as the number that it is, and anything else as it is."""
    is_scalar = getattr(value, "shape", None) == ()
    return getattr(value, "tolist")() if is_scalar else value  # noqa: B009  only some T have it


def name_of(value: object, where: str) -> str:
    """Return a path, or the name of a model, as text. Raises `UserError` for anything else, or what can be neither."""
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"{where}: is a {type(value).__name__}, expected a path or a name")
    text = os.fsdecode(value)
    # no flag of its own: `where` says what it is
    with said_of(f"{where}: "):
        check_values({"NAME": text})
    return text


def _texts(value: object) -> Iterator[str]:
    """All strings in a value of a flag."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def split_names(names: str | None) -> list[str]:
    """Split the comma-separated names of ``--teacher`` and the like.

    A file or folder may have commas in its name: what is there by its whole name is one. Behind ``labels:FILE#COLUMN``
    stand more columns, up to a name with a colon, and ``?`` ends them.
    """
    split: list[str] = []
    pieces = (names or "").split(",")
    start = 0
    while start < len(pieces):
        # a name ends at the next comma, or further on if a file says so
        stop = _end_of_name(pieces, start)
        name = ",".join(pieces[start:stop]).strip()
        start = stop
        if not name:
            continue
        # another column of the file before it, if that is one of labels and its columns have not ended
        previous = split[-1] if split else ""
        file, _, columns = previous.rpartition("#")
        is_column = file.startswith("labels:") and ":" not in name and "?" not in columns
        if is_column and not os.path.exists(previous.removeprefix("labels:")):
            split[-1] += f",{name}"
        else:
            split.append(name)
    return split


def _end_of_name(pieces: Sequence[str], start: int) -> int:
    """Return behind which of the pieces between commas the name ends that begins at ``start``: the longest that is
    there as a file or folder, else the first piece.

    Before it may stand a kind, ``labels:``, and behind it ``#COLUMN`` and ``?SETTING``.
    """
    stop_of_name = start + 1
    kind = pieces[start].partition(":")[0].lstrip() + ":"
    for stop in range(start + 2, min(start + MOST_COMMAS + 1, len(pieces)) + 1):
        before = ",".join(pieces[start : stop - 1]).lstrip()
        last = pieces[stop - 1]
        # the name may end with the piece, before its setting, or before its column
        without_setting = last.partition("?")[0]
        without_column = without_setting.rpartition("#")[0]
        endings = {last.rstrip(), without_setting.rstrip(), without_column} - {""}
        beginnings = {before, before.removeprefix(kind)}
        if any(os.path.exists(f"{begin},{end}") for begin in beginnings for end in endings):
            stop_of_name = stop
    return stop_of_name


def locate(name: str) -> tuple[str | None, Path | None]:
    """Return where a model is that a command was given: timm's name of its export, and the run with its flags.

    All commands are given it in the same ways: the folder of a run or an export, or a file of weights in one.
    """
    path = Path(name)
    folder = path.parent if path.is_file() else path
    # another checkpoint than the one that was exported is itself, with the flags of its run
    export = find_export(folder) if path.is_dir() or path.name == "model.safetensors" else None
    run = folder.parent if folder.name == "export" else folder
    return export, run if (run / "args.yaml").is_file() else None


def no_model(flag: str, name: str, expected: str = ANY_MODEL) -> UserError:
    """Return the error for a path where no model is, with the nearest one."""
    path = Path(name)
    export = find_export(path)
    # the folder of a protocol has runs in it; for a path that is not there, what is called like it
    near = name_runs(path) if path.exists() else near_path(path)
    if export:
        near = f" (nearest: {export})"
    return UserError(f"{flag}: unknown model '{name}'{near}; expected {expected}")


def find_export(folder: Path) -> str | None:
    """Return the name of the model in the folder of a run that has ended, or of an export; None where there is none."""
    places = (folder / "export", folder)
    return next(
        (f"local-dir:{place}" for place in places if (place / "config.json").is_file()), None
    )
