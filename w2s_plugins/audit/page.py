"""The page on which a person says what is on the images. It is read from disk, and needs no network.

Images, names and answers are data to it: its content security policy allows one script, by its hash, and no address.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from ..data.decoding import to_mode
from ..files import write_text

SHOWN = 320  # pixels of an image on the page, at most
TEMPLATES = Path(__file__).parent / "templates"


def encode(image: Image.Image, most: int | None = None) -> bytes:
    """Return an image, shrunk to ``most`` pixels, as the bytes of a JPEG file."""
    image = to_mode(image, "RGB")
    buffer = io.BytesIO()
    # colours are not made coarser than brightness, as JPEG does by default: a label may depend on them
    if most:
        image.thumbnail((most, most))
    image.save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()


def write_page(
    path: Path,
    images: Iterable[Image.Image],
    audit: Mapping[str, object],
    title: str,
    command: str,
    template: str = "page",
) -> None:
    """Write the page.

    Args:
        path: of the page.
        images: as they are to be seen.
        audit: ``id``, ``by`` (what ``keys`` are), ``classes``, ``unsure`` (the answer of who cannot tell), ``keys`` of
            the images and ``candidates``, numbers of classes for each that are shown first.
        title: of the page.
        command: what is typed when all images have an answer.
        template: ``page`` asks for a class, ``question`` whether a class is there.
    """
    # images are within the page, so that it can be sent, and read without a server
    sources = [
        f"data:image/jpeg;base64,{base64.b64encode(encode(image, SHOWN)).decode()}"
        for image in images
    ]
    # of all scripts the browser runs the one with this hash
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    script = templates.get_template(f"{template}.js.j2").render() + "\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = templates.get_template(f"{template}.html.j2").render(
        title=title,
        command=command,
        digest=digest,
        script=Markup(script),
        audit={**audit, "sources": sources},
    )
    write_text(path, text)
