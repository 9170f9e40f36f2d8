"""Pieces of Markdown from texts that may hold anything, such as names of models and flags."""

import json
import re
from collections.abc import Iterable


def plain(text: object, limit: int = 300) -> str:
    """Fold white space and drop control and direction characters, so that a value stays on its line."""
    folded = " ".join(str(text).split())
    return "".join(c for c in folded if c.isprintable())[:limit]


def code(text: object) -> str:
    """Return an inline code span in which nothing is markup; a back-tick or a table's pipe needs HTML entities for it.

    What is no text is shown as JSON.
    """
    text = plain(text if isinstance(text, str) else json.dumps(text, default=str))
    if text and not re.search(r"[`|]", text):
        return f"`{text}`"
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text) + "</code>"


def fenced(text: str, language: str) -> str:
    """Return a block of code, in a fence that is longer than any in the text."""
    text = "\n".join("".join(c for c in line if c.isprintable()) for line in text.splitlines())
    fence = "`" * (max(map(len, re.findall("`{3,}", text)), default=2) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_table(header: Iterable[str], rows: Iterable[tuple]) -> str:
    """Return a table without the columns that are empty in every row; nothing when there are no rows."""
    header, rows = tuple(header), [tuple(row) for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in kept], ["---"] * len(kept), *([row[i] or "" for i in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
