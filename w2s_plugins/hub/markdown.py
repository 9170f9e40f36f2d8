"""Pieces of Markdown from texts that may hold anything, such as names of models and flags."""

import json
import re
from collections.abc import Iterable


def plain(text: object, limit: int = 300) -> str:
    """Fold white space and drop control and direction characters, so that a value stays on its line."""
    folded = " ".join(str(text).split())
    return "".join(c for c in folded if c.isprintable())[:limit]


def code(value: object) -> str:
    """Return an inline code span in which nothing is markup. What is no text is shown as JSON."""
    text = plain(value if isinstance(value, str) else json.dumps(value, default=str))
    if text and "`" not in text and "|" not in text:
        return f"`{text}`"
    # a back-tick would end the span, and a pipe the cell of a table
    entities = [c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text]
    return f"<code>{''.join(entities)}</code>"


def fenced(text: str, language: str) -> str:
    """Return a block of code, in a fence that is longer than any in the text."""
    # nothing in the text ends the block
    body = "\n".join("".join(c for c in line if c.isprintable()) for line in text.splitlines())
    longest = max(map(len, re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def markdown_table(header: Iterable[str], rows: Iterable[tuple]) -> str:
    """Return a table without the columns that are empty in every row; nothing when all are."""
    # column by column: what no row has is left out
    columns = [column for column in zip(header, *rows) if any(column[1:])]
    if not columns:
        return ""
    head, *body = [[cell or "" for cell in line] for line in zip(*columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])
