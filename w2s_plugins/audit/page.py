"""The page on which a person says what is on the images, and the table beside it for who prefers a spreadsheet.

The page is read from disk, and needs no network. Images, names and answers are data to it: its content security policy
allows one script, by its hash, and no address.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from ..data import MapDataset
from ..data.decoding import to_mode
from ..data.keys import sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError, say
from ..files import write_text
from ..labels.table_writer import Columns, write_label_table

SHOWN = 480  # pixels of an image on the page, at most
UNSURE = "?"  # the answer of who cannot tell
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


def pictures(dataset: MapDataset, keys: Sequence[str | int]) -> Iterator[Image.Image]:
    """Return the images with some keys, one by one. Raises `UserError` at once where one is not there any more."""
    images = without_transform(dataset)
    images.transform = None
    row_of = {key: row for row, key in enumerate(sample_keys(images).values)}
    gone = [key for key in keys if key not in row_of]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(keys)} drawn images are not in the data any more, such as {gone[0]}"
        )

    def read(key: str | int) -> Image.Image:
        image, _ = images[row_of[key]]
        if not isinstance(image, Image.Image):
            raise TypeError("without a transform a dataset gives images as they are")
        return image

    return map(read, keys)


@dataclass(kw_only=True)
class Sheet:
    """What a person is asked, on a page or in a table.

    Args:
        id: of the draw, which the answers name.
        title: of the page.
        by: what the keys of images are, ``filename`` or ``id``.
        images: (n,) keys of the images that are asked about.
        classes: what may be answered.
        candidates: for each image the numbers of the classes that are shown first.
        table: the columns of the table for the answers.
        keys: (n,) what is asked, as the page calls it; None where that is the images.
        given: the answers that there are, by these.
        earlier: draws whose answers count, if the browser has kept them.
        questions: (n,) image and class, where a person is asked whether that is there.
        labels: (n,) numbers of the answers that labels give, where a person is asked whether these are right.
        shares: by image, how likely each candidate is, from 0 to 1.
    """

    id: str
    title: str
    by: str
    images: Sequence[str | int]
    classes: Sequence[str]
    candidates: Sequence[Sequence[int]]
    table: Columns
    keys: Sequence[str | int] | None = None
    given: Mapping[str | int, str] = field(default_factory=dict)
    earlier: Sequence[str] = ()
    questions: Sequence[tuple[str | int, str]] = ()
    labels: Sequence[int] = ()
    shares: Sequence[Sequence[float]] = ()


def hand_out(sheet: Sheet, folder: Path, dataset: MapDataset, command: str, todo: str = "") -> None:
    """Write the page and the table for the answers into a folder, and say what to do with them.

    Args:
        sheet: what is asked.
        folder: where to.
        dataset: has the images.
        command: reads the answers.
        todo: what to do on the page, if that is not to answer.

    Raises:
        UserError: an image is not there any more.
    """
    # the page holds its images, the table is for who prefers a spreadsheet
    command = f"{command} --answers FILE"
    page, table = folder / "index.html", folder / f"answers-{sheet.id}-{len(sheet.images)}.csv"
    write_page(page, pictures(dataset, sheet.images), sheet, command)
    # one that is there may hold answers
    if not table.exists():
        write_label_table(table, [sheet.table])
    todo = todo or f"download your answers, or fill in {table}"
    say(f"* open {page} in a browser and {todo}; then", command)


def write_page(path: Path, images: Iterable[Image.Image], sheet: Sheet, command: str) -> None:
    """Write the page.

    Args:
        path: of the page.
        images: as they are to be seen.
        sheet: what is asked about them.
        command: what is typed when all images have an answer.
    """
    # images are within the page, so that it can be sent, and read without a server
    sources = [
        f"data:image/jpeg;base64,{base64.b64encode(encode(image, SHOWN)).decode()}"
        for image in images
    ]
    # what the script reads; numbers and names only, no markup
    keys = sheet.images if sheet.keys is None else sheet.keys
    content = dict(
        id=sheet.id,
        earlier=sheet.earlier,
        given=[[key, sheet.given[key]] for key in keys if key in sheet.given],
        by=sheet.by,
        classes=sheet.classes,
        unsure=UNSURE,
        keys=keys,
        candidates=sheet.candidates,
        questions=sheet.questions,
        labels=sheet.labels,
        shares=sheet.shares,
        sources=sources,
    )
    # of all scripts the browser runs the one with this hash
    template = "question" if sheet.questions else "page"
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    script = templates.get_template(f"{template}.js.j2").render() + "\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = templates.get_template(f"{template}.html.j2").render(
        title=sheet.title,
        command=command,
        digest=digest,
        has_labels=bool(sheet.labels),
        script=Markup(script),
        audit=content,
    )
    write_text(path, text)
