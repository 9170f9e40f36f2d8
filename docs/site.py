"""Beside mkdocs.yml: pages that stand outside docs/, and links that leave it.

README.md is the home of the site, and the list of public names is made of the docstrings. A link to any other file
outside docs/, for example to code, becomes the path of that file in the project.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(!?)\[([^]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")
REFERENCE = """# Public names

`import w2s_plugins as w2s` has all of these as `w2s.NAME`. [Publish and Python](publish.md#python) shows them at work.

::: w2s_plugins.api
    options:
      members: [train, protocol, predict, load_student, create_teacher]

::: w2s_plugins.training.task.WeakToStrongTask
    options:
      members: [forward, set_epoch]

::: w2s_plugins.losses
    options:
      members: [create_loss, list_losses, register_loss, LossInputs, DistillationLoss]

::: w2s_plugins.errors.UserError
"""


def on_files(files, config):
    """Add the pages that are not in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference.md", content=REFERENCE))
    return files


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """Return the text of a page with links that work on the site. Raises `FileNotFoundError` for one to no file."""
    source = page.file.abs_src_path
    if source is None:  # made here
        return markdown
    in_docs = Path(source).is_relative_to(DOCS)

    def on_site(link: re.Match) -> str:
        mark, text, name, anchor = link[1], link[2], link[3], link[4] or ""
        place = (Path(source).parent / name).resolve()
        if in_docs and place.is_relative_to(DOCS):
            return link[0]  # which mkdocs checks
        if not place.exists():
            raise FileNotFoundError(f"{source}: {link[0]}")
        path = place.relative_to(ROOT).as_posix()
        if place.is_relative_to(DOCS) or path in PAGES:
            target = PAGES.get(path) or place.relative_to(DOCS).as_posix()
            return (
                f"{mark}[{text}]({os.path.relpath(target, Path(page.file.src_uri).parent)}{anchor})"
            )
        plain = text.strip("`")
        return f"`{path}`" if path.endswith(plain) else f"{text} (`{path}`)"

    return LINK.sub(on_site, markdown)
