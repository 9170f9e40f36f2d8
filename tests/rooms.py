"""Print the tokens of each room of the package beside its guide, and how much it has grown since the last git tag.

    .venv/bin/python -m tests.rooms

A mirror for whoever makes a change. Tests fail only where a room is more than a fifth above its guide, or above what it
had where that was more.
"""

import ast
import io
import itertools
import re
import subprocess
import tarfile
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train_w2s.py", "validate.py")
CODE = ("w2s_plugins", *SCRIPTS)

# Tokens of Python without comments and docstrings that a room should have
GUIDES = {
    "training": 28_000,
    "labels": 24_000,
    "study": 23_000,
    "audit": 21_000,
    "data": 18_000,
    "losses": 18_000,
    "models": 14_000,
    "teachers": 12_000,
    "settings": 8_000,
    "root": 8_000,
    "hub": 6_500,
    "run": 6_000,
    "scripts": 5_000,
    "students": 5_000,
    "metrics": 4_500,
    "cli": 4_000,
    "resolve": 4_000,
    "target_kind": 4_000,
    "predictions": 3_000,
    "monitor": 1_500,
    "distributed": 1_000,
}
# Those above their guide are held to what they had when this was written. A room that needs more for a reason gets it
# here, in the commit that says why.
HAD = {
    "training": 35_600,
    "labels": 34_000,
    "study": 27_400,
    "audit": 22_300,
    "settings": 19_200,
    "data": 18_200,
    "models": 14_500,
    "teachers": 12_600,
    "root": 8_700,
    "hub": 6_800,
    "students": 6_600,
    "run": 6_400,
    "metrics": 5_100,
    "cli": 4_100,
    "resolve": 4_600,
}
MARGIN = 1.2

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
FSTRING = [
    getattr(tokenize, f"FSTRING_{end}", None) for end in ("START", "END")
]  # Python 3.12 takes f-strings apart


def code_tokens(source: str) -> list[tokenize.TokenInfo]:
    """Return the tokens of a file without comments, docstrings and layout. An f-string is one, by every Python."""
    docstrings = docstring_lines(ast.parse(source))
    tokens, depth = [], 0  # depth: of f-strings within each other
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth -= token.type == FSTRING[1]
        in_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if (
            not depth
            and token.type not in NO_CODE
            and token.type != FSTRING[0]
            and not in_docstring
        ):
            tokens.append(token)
        depth += token.type == FSTRING[0]
    return tokens


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines where docstrings begin, those below the fields of a dataclass among them."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lines = {
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            lines |= {
                text.lineno
                for field, text in itertools.pairwise(node.body)
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
            }
    return lines


@dataclass
class Count:
    """What a room consists of."""

    tokens: int = 0
    lines: int = 0
    comments: int = 0


def room_of(path: str) -> str:
    """Return the room of a file, from its path within the repository."""
    parts = path.split("/")
    return "scripts" if len(parts) == 1 else "root" if len(parts) == 2 else parts[1]


def count_rooms(files: Mapping[str, str]) -> dict[str, Count]:
    """Count the rooms of some files (text by path)."""
    rooms: dict[str, Count] = {}
    for path, source in files.items():
        count = rooms.setdefault(room_of(path), Count())
        count.tokens += len(code_tokens(source))
        count.lines += source.count("\n")
        count.comments += len(re.findall(r"^ *#", source, re.MULTILINE))
    return rooms


def too_large(rooms: Mapping[str, Count]) -> dict[str, int]:
    """Return the tokens of the rooms that are more than a fifth above their guide, or what they had."""
    numbers = GUIDES | HAD
    return {
        room: count.tokens for room, count in rooms.items() if count.tokens > MARGIN * numbers[room]
    }


def files_here(root: Path = ROOT) -> dict[str, str]:
    """Read the code as it is on the disk: text by path."""
    scripts = [root / name for name in SCRIPTS if (root / name).is_file()]
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in (*(root / "w2s_plugins").rglob("*.py"), *scripts)
    }


def files_at_last_tag(root: Path = ROOT) -> dict[str, str] | None:
    """Read the code as it was at the last tag; None without a tag, a repository or git."""
    git = ["git", "-C", str(root)]
    try:
        described = [*git, "describe", "--tags", "--abbrev=0"]
        tag = subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
        archived = [*git, "archive", "--format=tar", tag]
        archive = subprocess.run(archived, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            is_code = member.name.split("/")[0] in CODE and member.name.endswith(".py")
            text = tar.extractfile(member) if is_code else None
            if text is not None:
                files[member.name] = text.read().decode()
    return files


def table_of_rooms(rooms: Mapping[str, Count], before: Mapping[str, Count] | None) -> str:
    """Return the table, largest room first; ``before`` are the counts at the last tag."""
    lines = [f"{'room':<12}{'guide':>9}{'tokens':>9}{'growth':>9}"]
    total, grown = Count(), 0
    for room, count in sorted(rooms.items(), key=lambda item: -item[1].tokens):
        growth = "" if before is None else f"{count.tokens - before.get(room, Count()).tokens:+,}"
        lines.append(f"{room:<12}{GUIDES.get(room, 0):>9,}{count.tokens:>9,}{growth:>9}")
        total.tokens += count.tokens
        total.lines += count.lines
        total.comments += count.comments
    if before is not None:
        grown = total.tokens - sum(count.tokens for count in before.values())
    growth = "" if before is None else f"{grown:+,}"
    lines.append(f"{'all':<12}{sum(GUIDES.values()):>9,}{total.tokens:>9,}{growth:>9}")
    # how densely it is written, which nobody gains by
    density = total.tokens / max(1, total.lines)
    comments = 100 * total.comments / max(1, total.lines)
    lines.append(f"{density:.1f} tokens a line, {comments:.1f} comment lines in 100")
    return "\n".join(lines)


if __name__ == "__main__":
    at_tag = files_at_last_tag()
    print(
        table_of_rooms(count_rooms(files_here()), None if at_tag is None else count_rooms(at_tag))
    )
