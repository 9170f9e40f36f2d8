"""Beside mkdocs.yml: on the site, a link to a file outside of docs/ is the path of that file in the project."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"(!?)\[([^]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """Return the text of a page without links that leave docs/. Raises `FileNotFoundError` for one to no file."""
    def path_of(link: re.Match) -> str:
        place = (Path(page.file.abs_src_path).parent / link[3]).resolve()
        if not place.exists():
            raise FileNotFoundError(f"{page.file.src_path}: {link[0]}")
        if place.is_relative_to(ROOT / "docs"):
            return link[0]
        path, text = place.relative_to(ROOT).as_posix(), link[2].strip("`")
        return f"`{path}`" if path.endswith(text) else f"{link[2]} (`{path}`)"
    return OUTSIDE.sub(path_of, markdown)
