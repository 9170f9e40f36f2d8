"""The images that a person has said the class of, as a labelled set, and the command that learns from them."""

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..cli.declare import words_of
from ..cli.parser import train_parser
from ..data import MapDataset
from ..data.keys import sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError, typed, write_errors
from ..files import delete, write_text
from ..no_label import NO_LABEL
from ..training.learned import Learned
from .page import encode

VALIDATION = 5  # every fifth checked image is for validation
# flags that a run on the checked images shares with this one: who labels, how the student begins, what it sees
KEPT = (
    "plugins",
    "unlabeled",
    "teacher",
    "teacher_checkpoint",
    "teacher_kwargs",
    "teacher_img_size",
    "prompts",
    "model",
    "model_kwargs",
    "pretrained",
    "pretrained_path",
    "initial_checkpoint",
    "finetune",
    "img_size",
    "in_chans",
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "hflip",
    "vflip",
)

_logger = logging.getLogger(__name__)


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


def write_labelled(
    folder: Path, images: Iterable[Image.Image], labels: Iterable[int], classes: Sequence[str]
) -> None:
    """Write images as ``train/CLASS/`` and ``validation/CLASS/``, in place of earlier ones.

    Args:
        folder: where to.
        images: in the order in which they were drawn.
        labels: their classes; images with `NO_LABEL` are left out.
        classes: their names.
    """
    delete(folder)
    # a class may have a name that no folder can have
    unfit = {
        name
        for name in classes
        if not name.isprintable() or Path(name).name != name or name == ".."
    }
    if unfit:
        _logger.warning(
            f"WARNING: no folder can be called {', '.join(sorted(unfit))}: their images are left out"
        )
    for number, (image, label) in enumerate(zip(images, labels), start=1):
        name = classes[label]
        if label == NO_LABEL or name in unfit:
            continue
        # by its number in the draw, so that more answers leave each image in its part
        of_class = folder / ("train" if number % VALIDATION else "validation") / name
        with write_errors(of_class):
            of_class.mkdir(parents=True, exist_ok=True)
            (of_class / f"{number:05}.jpeg").write_bytes(encode(image))


def command_with_labelled(learned: Learned, folder: Path, classes: Sequence[str]) -> str | None:
    """Return the command that learns from labelled images beside those without labels, as a run was trained.

    None if the run has no images without labels, or the folder has none for training or for validation.
    """
    both_parts = all((folder / part).is_dir() for part in ("train", "validation"))
    if not learned.settings.data.unlabeled or not both_parts:
        return None
    # a class may have no image among the labelled ones, and a file says that it is one
    listed = folder / "classes.txt"
    write_text(listed, "".join(f"{name}\n" for name in classes))

    # as the run was trained, where its flags say otherwise than the defaults
    flags = train_parser().by_dest()
    words: list[str] = []
    for name in KEPT:
        value = learned.settings.flags[name]
        if value not in (None, flags[name].default):
            words += words_of(flags[name], value)
    words += ["--data-dir", str(folder), "--class-map", str(listed)]
    words += ["--stages", "weak-labels-plus-few-true"]
    words += ["--experiment", f"{learned.run.name}-{folder.name}"]
    return f"{typed('train')} {shlex.join(words)}"
