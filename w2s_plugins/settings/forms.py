"""Values of flags that have a form of their own, such as 5x1 or symmetric:0.2, and what they mean together."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, near_path, nearest, said_of
from .values import find_export, locate, split_names

# of datasets that timm knows by a name
PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/", "w2s/")
DIGITS = "w2s/digits"
# what the list of a split is called
LIST_FILES = {"inat2018": "{}2018.json", "inat2021": "{}.json"}
# as timm has them; tests/cli/test_startup.py compares
TORCH_NAMES = [
    "torch/cifar10",
    "torch/cifar100",
    "torch/mnist",
    "torch/kmnist",
    "torch/fashion_mnist",
    "torch/qmnist",
    "torch/inaturalist",
    "torch/places365",
    "torch/imagenet",
    "torch/image_folder",
]

# of augmentation, with the numbers that each takes, as timm has them
AUTO_AUGMENT = ("mstd",)
POLICIES = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc"),
    "augmix": ("m", "w", "d", "a", "b", "mstd"),
    "3a": AUTO_AUGMENT,
    "v0": AUTO_AUGMENT,
    "v0r": AUTO_AUGMENT,
    "original": AUTO_AUGMENT,
    "originalr": AUTO_AUGMENT,
}
SETS_OF_OPERATIONS = ("tweights", "t3a", "t3aw")  # of rand

NOISE_KINDS = ("symmetric", "asymmetric", "pairflip", "labels")
NOISE_FORMS = (
    "expected symmetric:R, asymmetric:R, pairflip:R with a ratio R from 0 to 1, or "
    "labels:FILE[#COLUMN]"
)

# features of a model and the labels decide; by the other rules what the model says does
KNN = "knn"
SELECTION_RULES = (KNN, "entropy", "file")
SELECTION_FORMS = "expected knn:K (K neighbours), entropy:R (a share R, 0 < R <= 1) or file:PATH"

# feature levels: of every loss on features, and of a sum of losses as a whole
STAGES = ("student_stages", "teacher_stages")
# kinds on which PyTorch can train
DEVICES = ("cuda", "cpu", "mps", "xpu", "hpu", "npu", "mtia", "xla")
LONG_TAIL_MODES = ("auto", "always", "never")
ADAPTER_KINDS = ("lora", "dora", "rslora")
# of several annotators; those after the mean know each of them by all answers, and auto takes what suits these
MEANS = ("majority", "mean", "one-coin", "dawid-skene", "dawid-skene-pooled", "auto")
FITTED = MEANS[2:]
# begins the name of a teacher that is a file or folder of labels
LABELS_PREFIX = "labels:"
TUNED_PARTS = ("all", "head", "norm", "bias", "last:N", "last:SHARE", "lora")
OF_PART = ("tune", "lr", "layer_decay")  # flags of what is trained of a student, and how fast
# unless a number is given
TEST_EPISODES, BATCH_EPISODES = 2000, 4


# ---------------------------------------------------------------- settings in a flag, NAME=VALUE


@dataclass(frozen=True)
class Setting:
    """One of them.

    Args:
        read: makes a value of its text. Raises `ValueError` for one that it does not take.
        expected: what it takes, for messages.
    """

    read: Callable[[str], object]
    expected: str


def _within(low: float, high: float, kind: type[float] = float) -> Callable[[str], float]:
    """Return a reader of numbers from ``low`` to ``high``."""

    def read(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:  # not a number is refused too
            raise ValueError(text)
        return number

    return read


def _choice(*choices: str) -> Setting:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return Setting(read, f"one of {', '.join(choices)}")


def _layers(text: str) -> tuple[str, ...]:
    names = tuple(text.split("+"))
    if not all(names):
        raise ValueError(text)
    return names


# --tune lora:...
ADAPTER_SETTINGS = {
    "rank": Setting(_within(1, math.inf, int), "a whole number of at least 1"),
    "alpha": Setting(_within(1e-6, sys.float_info.max), "a number above 0"),
    "dropout": Setting(_within(0, 0.99), "a share from 0 to 0.99"),
    "targets": Setting(_layers, "names of layers, or last parts of names, joined by +"),
    "kind": _choice(*ADAPTER_KINDS),
}
MULTILABEL = "multilabel"  # timm's name of the task with several classes an image
# what may stand between the labels of a cell; a comma ends a name on the command line
DELIMITERS = {"comma": ",", "semicolon": ";", "bar": "|", "space": " ", "slash": "/", "none": ""}
# --teacher labels:FILE?...
LABEL_SETTINGS = {
    "combine": _choice(*MEANS),
    "confidence": Setting(_within(0, 1), "a probability from 0 to 1"),
    "missing": _choice("skip", "error"),
    "unlisted": _choice("no", "unknown"),
    # itself, too, but a space, which ends a name
    "delimiter": Setting(
        _choice(*DELIMITERS, *filter(None, DELIMITERS.values())).read,
        f"one of {', '.join(DELIMITERS)}",
    ),
}


def _parse_settings(
    items: Sequence[str], known: Mapping[str, Setting], where: str
) -> dict[str, object]:
    """Return the values of ``NAME=VALUE`` items. Raises a `UserError` that begins with ``where``."""
    values: dict[str, object] = {}
    for item in filter(None, items):
        name, _, text = item.partition("=")
        if name not in known:
            raise UserError(
                f"{where}: unknown setting '{name}'{nearest(name, known)}; expected {', '.join(known)}"
            )
        if name in values:
            raise UserError(f"{where}: {name} is given twice; expected one of them")
        setting = known[name]
        try:
            values[name] = setting.read(text)
        except ValueError as error:
            # what is not one of a few choices has none that is near
            choices = setting.expected.removeprefix("one of ").split(", ")
            raise UserError(
                f"{where}: {name}={text}: expected {setting.expected}{nearest(text, choices)}"
            ) from error
    return values


# ---------------------------------------------------------------- types of flags


def share_or_count(text: str) -> float | int:
    """A share such as 0.1, or a count such as 500."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}': expected a share such as 0.1, or a count such as 500"
        ) from error


def augmentation_policy(text: str) -> str:
    """A policy of timm's: a name and, separated by dashes, letters with a number each."""
    # timm reads over what has no number, so that it would train without what was meant.
    name, *sections = text.split("-")
    if name not in POLICIES:
        raise argparse.ArgumentTypeError(
            f"'{text}': unknown policy{nearest(name, POLICIES)}; expected one of {', '.join(POLICIES)}, such as "
            "rand-m10-n3-mstd101"
        )
    keys = POLICIES[name]
    for section in sections:
        key = re.sub(r"\d+(\.\d+)?$", "", section)
        is_set = name == "rand" and section in SETS_OF_OPERATIONS
        if not is_set and (key not in keys or key == section):
            raise argparse.ArgumentTypeError(
                f"'{text}': '{section}' is no part of {name}; expected {', '.join(keys)}, each with a number"
            )
    return text


def teacher_names(text: str) -> str:
    """Names of teachers; a path to the folder of a run, or of an export, becomes ``local-dir:FOLDER``, and one to a
    checkpoint of a run ``checkpoint:FILE``.
    """
    return ",".join(map(_teacher_name, split_names(text)))


def _teacher_name(name: str) -> str:
    # a name of timm has no slash, and every other kind of teacher has its colon
    if "/" not in name or ":" in name:
        return name
    if not Path(name).is_file():
        return find_export(Path(name)) or name
    # the weights of the export are those of its folder
    export, run = locate(name)
    return export or (f"checkpoint:{name}" if run else name)


# ---------------------------------------------------------------- values that have a form


def check_dataset_name(name: str) -> None:
    """Raise a `UserError` with the nearest names unless ``--dataset`` names something that can be opened."""
    choices = [DIGITS, *LIST_FILES, *TORCH_NAMES]
    if name and name not in LIST_FILES and not name.lower().startswith(PREFIXES):
        raise UserError(
            f"--dataset: unknown dataset '{name}'{nearest(name, choices)}; expected one of "
            f"{', '.join(PREFIXES)} followed by a name, {' or '.join(LIST_FILES)}, or nothing for a folder"
        )
    # of torchvision and this project all names are known, of the Hub none
    closed = [*choices, "torch/inat", "torch/folder"]
    if name.lower().startswith(("torch/", "w2s/")) and name.lower() not in closed:
        raise UserError(
            f"--dataset: unknown dataset '{name}'{nearest(name, closed)}; known: {', '.join(choices)}"
        )


def parse_noise(text: str) -> tuple[str, float | str]:
    """Parse ``--label-noise``: its kind, and the ratio or the table.

    Raises:
        UserError: of no such form.
    """
    kind, _, rest = text.partition(":")
    if kind not in NOISE_KINDS:
        raise UserError(
            f"--label-noise {text}: unknown kind '{kind}'{nearest(kind, NOISE_KINDS)}; {NOISE_FORMS}"
        )
    if kind == "labels":
        if not rest:
            raise UserError(f"--label-noise {text}: names no file; {NOISE_FORMS}")
        return kind, rest
    try:
        ratio = float(rest)
    except ValueError:
        ratio = math.nan
    # not a number is refused, too
    if not 0 <= ratio <= 1:
        raise UserError(f"--label-noise {text}: {NOISE_FORMS}, e.g. {kind}:0.2")
    return kind, ratio


def parse_selection_model(text: str | None) -> tuple[str | None, str | None]:
    """Return the name in ``--clean-select-model NAME=PATH``, and the file of its weights, or None."""
    if not text:
        return None, None
    # a folder may have such a sign in its name
    if os.path.exists(text):
        return find_export(Path(text)) or text, None
    name, _, checkpoint = text.partition("=")
    return name, checkpoint or None


def parse_selection(text: str) -> tuple[str, int | float, str]:
    """Parse ``--clean-select``: the rule, its number (1 where it has none) and its file.

    Raises:
        UserError: of no such form.
    """
    rule, _, rest = text.partition(":")
    if rule not in SELECTION_RULES:
        raise UserError(
            f"--clean-select {text}: unknown rule '{rule}'{nearest(rule, SELECTION_RULES)}; {SELECTION_FORMS}"
        )
    if rule == "file" and rest:
        return rule, 1.0, rest
    # a number of neighbours, or a share of the samples
    try:
        value = int(rest) if rule == KNN else float(rest)
    except ValueError:
        value = 0
    fits = value >= 1 if rule == KNN else 0 < value <= 1
    if not fits or rule == "file":
        raise UserError(f"--clean-select {text}: {SELECTION_FORMS}")
    return rule, value, ""


@dataclass(frozen=True)
class EpisodeShape:
    """The numbers of classes, and of labelled and queried images of each."""

    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        return f"{self.ways}x{self.shots}"

    @property
    def per_class(self) -> int:
        return self.shots + self.queries

    @property
    def size(self) -> int:
        return self.ways * self.per_class


def parse_shapes(text: str, queries: int, flag: str) -> list[EpisodeShape]:
    """Parse ``5x1,5x5:500``: ways x shots, comma-separated; for the number see `count_episodes`.

    Raises:
        UserError: of another form, less than 2 ways, or the same twice.
    """
    shapes = []
    # behind the colon stands the number of episodes
    for part in text.partition(":")[0].replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)x(\d+)", part)
        if not match or int(match[1]) < 2 or int(match[2]) < 1:
            raise UserError(
                f"{flag} {text}: expected WAYSxSHOTS, at least 2 ways and 1 shot, such as 5x1 or 5x1,5x5"
            )
        shapes.append(EpisodeShape(int(match[1]), int(match[2]), queries))
    if len(set(shapes)) < len(shapes):
        raise UserError(f"{flag} {text}: the same episodes are asked for twice")
    return shapes


def count_episodes(text: str, flag: str, default: int, low: int) -> int:
    """Return the number of episodes in ``5x1,5x5:500``. Raises `UserError` for one below ``low``."""
    _, colon, number = text.partition(":")
    if not colon:
        return default
    if not re.fullmatch(r"\d{1,9}", number) or int(number) < low:
        raise UserError(
            f"{flag} {text}: expected a number of episodes of at least {low} after the colon, such as 500"
        )
    return int(number)


def unlabeled_roots(paths: str) -> list[str]:
    """Return the folders and tar files of ``--unlabeled``, by commas. Raises `UserError` for what is none."""
    roots = split_names(paths)
    if not roots:
        raise UserError(f"--unlabeled '{paths}': expected a folder of images, or a tar file")
    for root in roots:
        if not (os.path.isdir(root) or os.path.isfile(root)):
            raise UserError(f"--unlabeled {root}: no such folder or tar file{near_path(root)}")
    return roots


def check_device(name: str) -> None:
    """Raise a `UserError` with the nearest kinds unless ``--device`` is a kind of device, or one with a number."""
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise UserError(
            f"--device {name}: unknown device{nearest(kind, DEVICES)}; expected cuda, cuda:1, cpu, mps, "
            "..."
        )


def parse_long_tail(text: str) -> tuple[str, int, int]:
    """Parse ``--long-tail``: auto, always or never; fewer samples than the second number are few, more than the third
    many.

    Raises:
        UserError: neither of these words nor FEW:MANY.
    """
    if text in LONG_TAIL_MODES:
        return text, 20, 100
    match = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,8})", text)
    if not match or int(match[1]) > int(match[2]):
        modes = f"{', '.join(LONG_TAIL_MODES)}{nearest(text, LONG_TAIL_MODES)}"
        raise UserError(
            f"--long-tail {text}: expected one of {modes}, or FEW:MANY with FEW <= MANY, such as 20:100"
        )
    return "auto", int(match[1]), int(match[2])


def parse_slice(
    text: str, flag: str = "--train-slice"
) -> tuple[float | int | None, float | int | None]:
    """Parse ``A:B``: fractions when either has a decimal point, counts otherwise; an empty side is open.

    Raises:
        UserError: not of that form, or empty.
    """
    number = r"(\d{1,15}\.?\d*|\.\d+)?"
    match = re.fullmatch(f"{number}:{number}", text.replace(" ", ""))
    if match is None:
        raise UserError(f"{flag} {text}: expected A:B, as fractions (0:0.3) or counts (0:40)")
    # a point in one of the two makes both shares
    convert = float if "." in text else int
    start, stop = (None if part is None else convert(part) for part in match.groups())
    highest = math.inf if stop is None else stop
    is_empty = (start or 0) >= highest
    if is_empty or (convert is float and 1 < highest < math.inf):
        raise UserError(
            f"{flag} {text}: the slice is empty or out of range; expected A < B, fractions up to 1.0"
        )
    return start, stop


@dataclass(frozen=True)
class Tuning:
    """Which part of a student is trained, from ``--tune``. All but ``all`` train the head too.

    Args:
        text: as it was typed, for messages and records.
        part: the first word of one of `TUNED_PARTS`.
        blocks: the N of ``last:N``, a share of the blocks where it is below 1.
        adapters: the settings of ``lora:rank=8,alpha=16``, as `students.adapters.Adapters` takes them.
    """

    text: str
    part: str
    blocks: float = 0
    adapters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether some weights stay as they began."""
        return self.part != "all"

    @property
    def adds_modules(self) -> bool:
        """Whether a checkpoint has modules that the model by itself has not; an export has their weights merged."""
        return self.part == "lora"


def parse_tuning(text: str) -> Tuning:
    """Return what ``--tune`` says. Raises `UserError` for what is not of that form."""
    part, _, number = text.partition(":")
    # a number of blocks up to 9999, or a share above 0 of them
    if part == "last" and re.fullmatch(r"[1-9]\d{0,3}|0?\.(?=\d*[1-9])\d{1,6}", number):
        return Tuning(text, part, blocks=float(number))
    if part == "lora":
        settings = _parse_settings(number.split(","), ADAPTER_SETTINGS, f"--tune {text[:60]}")
        return Tuning(text, part, adapters=settings)
    if number or text not in TUNED_PARTS:
        raise UserError(
            f"--tune {text[:40]}: expected one of {', '.join(TUNED_PARTS)}{nearest(text, TUNED_PARTS)}"
        )
    return Tuning(text, part)


def parse_labels(names: str | None, alone: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Return the files of labels among names such as ``labels:FILE?combine=mean&missing=skip``, and what these set by
    the name of the setting, None where they do not: the one reader of such names.

    Args:
        names: separated by commas.
        alone: all of them are labels; ``labels:`` may be left out.

    Raises:
        UserError: an unknown setting, or a value that it does not take.
    """
    files: list[str] = []
    settings: dict[str, object] = {}
    for text in split_names(names):
        name = text.removeprefix(LABELS_PREFIX)
        if name == text and not alone:
            continue
        # a file may have such a sign in its name
        file = name if os.path.exists(name) else name.partition("?")[0]
        files.append(file)
        query = name.removeprefix(file).removeprefix("?").split("&")
        settings |= _parse_settings(query, LABEL_SETTINGS, f"{LABELS_PREFIX}{name[:60]}")
    return files, {**dict.fromkeys(LABEL_SETTINGS), **settings}


def parse_true_labels(text: str, flag: str) -> tuple[str, dict[str, Any]]:
    """Return the file of ``--train-labels`` or ``--val-labels`` and its settings, as `parse_labels` does; there is no
    ``confidence`` among them.

    Raises:
        UserError: several files, or a setting that true labels have not.
    """
    # the prefix says that more columns may follow a comma
    with said_of(f"{flag} "):
        files, settings = parse_labels(LABELS_PREFIX + text.removeprefix(LABELS_PREFIX), alone=True)
    if len(files) != 1:
        raise UserError(
            f"{flag} {text:.80}: expected one table, with columns behind its name, FILE#COLUMN,COLUMN"
        )
    if settings.pop("confidence") is not None:
        raise UserError(
            f"{flag} {text:.80}: ?confidence= is about weak labels; expected ?combine= or ?missing="
        )
    return files[0], settings


def loss_weights(task: float | None, distill: float | None) -> tuple[float, float]:
    """Return the weights of ground truth and distillation by timm's rule: one given alone as 1 - the other, or 1."""
    # the weight of ground truth, given alone, leaves the rest to distillation; that of distillation leaves 1
    if distill is None and task is not None:
        return task, 1.0 - task
    return (1.0 if task is None else task), (1.0 if distill is None else distill)
