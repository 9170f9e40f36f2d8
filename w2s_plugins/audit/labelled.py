"""The images that a person has said the class of, as a labelled set, and the command that learns from them."""

import itertools
import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ..cli.declare import words_of
from ..cli.parser import train_parser
from ..errors import UserError, typed, write_errors
from ..files import delete, read_plain, to_json, write_text
from ..labels.table_writer import write_label_table
from ..no_label import NO_LABEL
from ..private_names import search_split
from ..resolve.train import has_attention
from ..run.args_file import read_run_args
from ..settings.forms import OF_PART
from ..settings.programs import train_program
from ..settings.teacher_name import TeacherName
from ..settings.values import split_names
from ..training.learned import Learned
from .page import UNSURE, encode

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
OF_TEST_SET = ("val_labels", "val_slice", "slice_seed")
TYPED = ("batch_size", *OF_PART)  # only where they were typed: the stages have their own

WRITTEN = "written.json"  # in a folder of labelled images, the files that were written, and are no person's

_logger = logging.getLogger(__name__)


def write_labelled(
    folder: Path,
    images: Iterable[Image.Image],
    keys: Sequence[str | int],
    by: str,
    labels: Sequence[int],
    classes: Sequence[str],
    validation: int = VALIDATION,
) -> None:
    """Write images as ``train/CLASS/`` and ``validation/CLASS/``, and the answers about them, in place of earlier ones.
    Images that a person has put there stay; where nothing says which these are, nothing is written.

    Args:
        folder: where to.
        images: in the order in which they were drawn.
        keys: of the images.
        by: what the keys are, ``filename`` or ``id``.
        labels: their classes; images with `NO_LABEL` are left out.
        classes: their names.
        validation: every so many-th image is for validation; 0 for none.

    Raises:
        UserError: there are answers and images, and no list of those that were written, as by an older version.
    """
    before, present = written_images(folder), images_in(folder)
    if before is None and present and (folder / ANSWERS).exists():
        raise UserError(
            f"{folder}: no {WRITTEN} says which of its {len(present)} images are written anew; move the folder away, "
            "and repeat the command"
        )
    before = before or set()
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
    # by its number in the draw, so that more answers leave each image in its part; a person's images keep their names
    others = present - before
    names: list[str | None] = []
    for number, label in enumerate(labels, start=1):
        is_left_out = label == NO_LABEL or classes[label] in unfit
        part = "validation" if validation and number % validation == 0 else "train"
        name = f"{part}/{classes[label]}/{number:05}"
        names.append(None if is_left_out else _free_name(name, others))

    # whatever ends this, the next one knows what it may replace; a training may be reading: those that are right stay
    wanted = {name for name in names if name}
    _write_names(folder, before | wanted)
    for name, image in zip(names, images):
        if name is None:
            continue
        file, content = folder / name, encode(image)
        with write_errors(file.parent):
            if not file.is_file() or file.read_bytes() != content:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    for name in images_in(folder) & before - wanted:
        delete(folder / name)
    _write_names(folder, wanted)
    for path in [*folder.glob("*/*"), *folder.glob("*")]:
        with suppress(OSError):  # only where nothing is in it
            path.rmdir()


def images_in(folder: Path) -> set[str]:
    """Return the files in the classes of a labelled set, ``train/CLASS/NAME``."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")}


def written_images(folder: Path) -> set[str] | None:
    """Return which images of a folder were written by `write_labelled`, None if it has not written there.

    Any other folder may have a table of that name, the weak labels for example, and images of these names.
    """
    try:
        content = read_plain(folder / WRITTEN)
    except (OSError, ValueError):
        return None
    names = content.get("images") if isinstance(content, dict) else None
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else None


def _write_names(folder: Path, names: set[str]) -> None:
    write_text(folder / WRITTEN, to_json({"images": sorted(names)}))


def _free_name(name: str, others: set[str]) -> str:
    """Return the name of an image, with a number behind it if somebody else has such a file."""
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(free for end in ends if (free := f"{name}{end}.jpeg") not in others)


def test_set_of(learned: Learned) -> dict[str, object]:
    """Return the flags by which another run is measured on the images that a run was measured on; none where it was
    measured on none that have true labels, or on those that a person has answered about, of which there are more now.
    """
    # a run that is opened again measures nothing, so that its flags are read as they were written
    flags = read_run_args(learned.run, "RUN")
    root, split = flags.get("data_dir"), flags.get("val_split")
    # the images of a split that is downloaded, or streamed, are found by its name alone
    if not root or not split or flags.get("dataset") or written_images(Path(str(root))) is not None:
        return {}
    place = Path(search_split(str(root), str(split))).resolve()
    # a table of true labels says which images of the whole folder are meant
    if not place.exists() or (place == Path(str(root)).resolve() and not flags.get("val_labels")):
        return {}
    # the labelled images that are printed lie elsewhere, which makes no difference to a whole path
    return {"val_split": str(place), **{name: flags.get(name) for name in OF_TEST_SET}}


def validation_of(learned: Learned | None) -> int:
    """Return how many labelled images have one for validation among them: 0 if there is a test set to measure on."""
    return 0 if learned is not None and test_set_of(learned) else VALIDATION


def typed_for(run: Path) -> dict[str, Any]:
    """Return the flags on the command line that a run was trained by; none if it does not say that."""
    try:
        content = read_plain(run / "result.json")
        words = shlex.split(str(content["command"] if isinstance(content, dict) else ""))
    except (OSError, ValueError, KeyError):
        return {}
    # the words before are the script, and perhaps the folder of the data
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    try:
        return train_parser().take(words[first:])
    except (UserError, SystemExit):  # of a program in Python, or by others
        return {}


def command_with_labelled(learned: Learned, folder: Path, classes: Sequence[str]) -> str | None:
    """Return the command that learns from labelled images beside those without labels, as a run was trained, and is
    measured on the same images.

    None if the run has no images without labels, or the folder has none for training or for validation.
    """
    measured = test_set_of(learned)
    needed = ["train"] if measured else ["train", "validation"]
    if not learned.settings.data.unlabeled or not all((folder / part).is_dir() for part in needed):
        return None
    # a class may have no image among the labelled ones; stages without these, and tables, have the same classes
    listed = folder / "classes.json"
    write_text(listed, to_json([*classes]))

    # as the run was trained, where its flags say otherwise than the defaults
    flags = train_program().flags
    of_run = learned.settings.flags
    values: dict[str, Any] = {name: of_run[name] for name in KEPT}
    values["teacher"] = teacher_of_command(learned)
    values |= measured
    # without --amp a run has this of its defaults, and no use for it
    idle = () if of_run["amp"] else ("amp_dtype",)
    values = {
        name: value
        for name, value in values.items()
        if value not in (None, flags[name].default) and name not in idle
    }
    # what the stages would choose otherwise stays as it was trained, or typed
    values |= flags_of_part(of_run)
    typed_ones = {name: value for name, value in typed_for(learned.run).items() if name in TYPED}
    # a probe trains no part, and a rate is that of an optimizer
    others = [*OF_PART] if of_run["linear_probe"] else []
    if of_run["opt"] != "adamw":
        others += OF_PART[1:]
    # stages that measure themselves learn from half of the labelled images
    if typed_ones.get("batch_size", 0) > len([*folder.glob("train/*/*")]) // 2:
        others.append("batch_size")
    values |= {name: value for name, value in typed_ones.items() if name not in others}
    # the labelled images take the place of the run's data folder, whatever that was
    words = [word for name, value in values.items() for word in words_of(flags[name], value)]
    words += ["--data-dir", str(folder), "--class-names", str(listed)]
    words += ["--stages", "weak-labels-plus-few-true"]
    # beside the run, where its name is free
    runs, name = name_of_next(learned, folder.name)
    if runs != Path("./output/train").resolve():
        words += ["--output", os.path.relpath(runs)]
    words += ["--experiment", name]
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


def name_of_next(learned: Learned, purpose: str) -> tuple[Path, str]:
    """Return the folder of this run, and a name for the one that learns from more answers, such as student-answered and
    then student-answered-2, which no run there has.
    """
    run = learned.run.resolve()
    run = run.parent if is_stage(run) else run
    before = re.fullmatch(f"(.*)-{purpose}(?:-([0-9]+))?", run.name)
    begin, number = (run.name, 1) if before is None else (before[1], int(before[2] or 1) + 1)
    names = (f"{begin}-{purpose}" + f"-{k}" * (k > 1) for k in itertools.count(number))
    return run.parent, next(name for name in names if not (run.parent / name).exists())
