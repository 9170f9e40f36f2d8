"""The images that a person has said the class of, as a labelled set, and the command that learns from them."""

import itertools
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ..cli.declare import words_of
from ..cli.forms import OF_PART
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..data import MapDataset
from ..data.keys import sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError, typed, write_errors
from ..files import delete, read_plain, write_text
from ..labels.table_writer import write_label_table
from ..no_label import NO_LABEL
from ..run.args_file import read_run_args
from ..settings.flags import has_attention
from ..teachers.name import TeacherName
from ..training.learned import Learned
from .answers import UNSURE
from .page import encode

ANSWERS = "answers.csv"  # in a folder of labelled images, what a person has said of these
LONGEST = 255  # bytes of the name of a folder
VALIDATION = 5  # every fifth checked image is for validation
# flags that a run on the checked images shares with this one: who labels, how the student begins, what it sees, precision
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
    "amp",
    "amp_dtype",
)

is_written = re.compile("[0-9]{5,}[.]jpeg").fullmatch  # the name of a checked image

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
    folder: Path,
    images: Iterable[Image.Image],
    keys: Sequence[str | int],
    by: str,
    labels: Sequence[int],
    classes: Sequence[str],
) -> None:
    """Write images as ``train/CLASS/`` and ``validation/CLASS/``, and the answers about them, in place of earlier ones.
    Images that a person has put there stay.

    Args:
        folder: where to.
        images: in the order in which they were drawn.
        keys: of the images.
        by: what the keys are, ``filename`` or ``id``.
        labels: their classes; images with `NO_LABEL` are left out.
        classes: their names.
    """
    # The answers first, whatever happens then: they cannot be made again. A run that learns from these images is not
    # asked about them again.
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
    said = [UNSURE if label == NO_LABEL else classes[label] for label in labels]
    write_label_table(folder / ANSWERS, [{by: list(keys), "label": said}])
    # a class may have a name that no folder can have
    unfit = {
        name
        for name in classes
        if not name.isprintable()
        or Path(name).name != name
        or name == ".."
        or len(name.encode()) > LONGEST
    }
    if unfit:
        _logger.warning(
            f"WARNING: no folder can be called {', '.join(sorted(unfit))}: their images are left out"
        )
    # a training may be reading them: those that are right stay
    wanted = set()
    for number, (image, label) in enumerate(zip(images, labels), start=1):
        name = classes[label]
        if label == NO_LABEL or name in unfit:
            continue
        # by its number in the draw, so that more answers leave each image in its part
        of_class = folder / ("train" if number % VALIDATION else "validation") / name
        file, content = of_class / f"{number:05}.jpeg", encode(image)
        wanted.add(file)
        with write_errors(of_class):
            if not file.is_file() or file.read_bytes() != content:
                of_class.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    for path in folder.glob("*/*/*"):
        if is_written(path.name) and path not in wanted:
            delete(path)
    for path in [*folder.glob("*/*"), *folder.glob("*")]:
        with suppress(OSError):  # only where nothing is in it
            path.rmdir()


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
        if name == "teacher":
            value = teacher_of_command(learned)
        # without --amp a run has this of its defaults, and no use for it
        is_idle = name == "amp_dtype" and not learned.settings.flags["amp"]
        if value not in (None, flags[name].default) and not is_idle:
            words += words_of(flags[name], value)
    for name, value in flags_of_part(learned.settings.flags).items():
        words += words_of(flags[name], value)
    words += ["--data-dir", str(folder), "--class-map", str(listed)]
    words += ["--stages", "weak-labels-plus-few-true"]
    words += ["--experiment", name_of_next(learned, folder.name)]
    return f"{typed('train')} {shlex.join(words)}"


def flags_of_part(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags by which stages train the part of the student that a run has trained, at its rate; none where they
    compare it with all weights by themselves, or cannot train it: probes, and rates of another optimizer.

    Args:
        flags: of the run, all of them.
    """
    if flags["linear_probe"] or flags["opt"] != "adamw":
        return {}
    # as weak-labels-plus-few-true.yaml says
    usual = "lora" if has_attention(flags["model"], flags["model_kwargs"]) else "last:0.3"
    return {} if flags["tune"] == usual else {name: flags[name] for name in OF_PART}


def has_learned_labelled(learned: Learned) -> bool:
    """True if a run has learned from labelled images beside those without labels; without a weight these only measured
    it.
    """
    # the settings of a run that is opened again have no weight of them
    beside = learned.settings.data.unlabeled and learned.settings.data.data_dir
    return bool(beside and read_run_args(learned.run, "RUN").get("task_loss_weight"))


def stages_with(run: Path) -> list[str]:
    """Return the names of the stages that were trained in turn with a run, and of itself; none if it is no stage."""
    try:
        content = read_plain(run.resolve().parent / "result.json")
    except (OSError, ValueError):
        return []
    stages = content.get("stages", ()) if isinstance(content, dict) else ()
    return [*stages] if run.resolve().name in stages else []


def is_stage(run: Path) -> bool:
    """True if a run is a stage of several that were trained in turn."""
    return bool(stages_with(run))


def teacher_of_command(learned: Learned) -> str | None:
    """Return the teacher of a run as it was typed, without the students of earlier stages, which are trained anew."""
    teacher = learned.settings.teacher.teacher
    if not teacher or not is_stage(learned.run):
        return teacher
    stages = learned.run.resolve().parent
    typed_ones = []
    for part in split_names(teacher):
        name = TeacherName.parse(part)
        if name.kind != "local-dir" or stages not in Path(name.rest).resolve().parents:
            typed_ones.append(part)
    return ",".join(typed_ones) or teacher


def name_of_next(learned: Learned, purpose: str) -> str:
    """Return a name for the run that learns from more answers, such as student-answered and then student-answered-2,
    which no run beside this one has.
    """
    run = learned.run.resolve()
    run = run.parent if is_stage(run) else run
    before = re.fullmatch(f"(.*)-{purpose}(?:-([0-9]+))?", run.name)
    begin, number = (run.name, 1) if before is None else (before[1], int(before[2] or 1) + 1)
    names = (f"{begin}-{purpose}" + f"-{k}" * (k > 1) for k in itertools.count(number))
    return next(name for name in names if not (run.parent / name).exists())
