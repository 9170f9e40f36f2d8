"""What opens a teacher: its request, its outcome, and the registry of openers by kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..errors import logger
from ..registry import Registry
from ..target_kind import ONE_CLASS, TargetKind

TEACHER_FLAGS = "--teacher", "--teacher-checkpoint"
# for photographs of any kind; --prompts replaces them
PROMPTS = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a drawing of a {}.",
)


@dataclass(frozen=True)
class Request:
    """What a teacher is asked to be.

    Args:
        class_names: names of the classes of the data, None where they have none.
        num_classes: how many there are, None where any number will do.
        in_chans: channels of the images; None for the model's own.
        img_size: size of the images in place of its own.
        student_size: height and width of the student's images, where known.
        prompts: templates with ``{}`` for the name of a class, for zero-shot classifiers.
        checkpoint: of a model of timm, a file or run folder; None for its pretrained weights.
        model_kwargs: arguments of the constructor of a model of timm.
        features: it is asked for features alone, so that it may do without classes.
        target_kind: what the labels are that it is to give.
        flags: those that named the model and the checkpoint, for messages.
    """

    class_names: Sequence[str] | None = None
    num_classes: int | None = None
    in_chans: int | None = 3
    img_size: int | None = None
    student_size: tuple[int, int] | None = None
    prompts: Sequence[str] = PROMPTS
    checkpoint: str | None = None
    model_kwargs: Mapping[str, object] | None = None
    features: bool = False
    target_kind: TargetKind = ONE_CLASS
    flags: tuple[str, str] = TEACHER_FLAGS


class Opened(NamedTuple):
    """A teacher that has been opened.

    Args:
        model: from images (B, 3, H, W) in its own normalisation to logits (B, C); ``num_classes`` is C.
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode, as timm has them.
        class_names: names of its classes, or None.
        origin: where its weights are from, for the record.
        target_kind: what its logits are about.
    """

    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    origin: Mapping[str, object] | None
    target_kind: TargetKind = ONE_CLASS

    @property
    def num_classes(self) -> int:
        return getattr(self.model, "num_classes", 0)


Opener = Callable[[str, Request], Opened]


class TeacherKind(NamedTuple):
    """A kind of teachers, as `register_teacher` takes it."""

    open: Opener
    takes_class_names: bool


TEACHERS: Registry[TeacherKind] = Registry("kind of teacher")


def register_teacher(kind: str, takes_class_names: bool = False) -> Callable[[Opener], Opener]:
    """Return a decorator that registers what opens ``kind:NAME``.

    The function takes NAME and a `Request` and returns an `Opened`. What is stored of a teacher is found again by its
    weights and its ``repr``; a model with more to it has a method ``cache_identity()`` that returns a text.

    Args:
        kind: what stands before the colon.
        takes_class_names: it has no classes of its own, and is always told those of the data. Images without labels
            get their classes from somewhere else then.
    """

    def register(opener: Opener) -> Opener:
        TEACHERS.register(kind, TeacherKind(opener, takes_class_names))
        return opener

    return register


def origin_text(origin: Mapping[str, object] | None) -> str:
    """Return where weights are from as a text."""
    return ", ".join(f"{key} {value}" for key, value in (origin or {"origin": "unknown"}).items())


def usable_names(who: str, names: list[str] | None) -> list[str] | None:
    """Return the names of classes where they say something: generated ones, and double ones, do not."""
    # transformers calls classes so that nobody has named
    if names is None or names == [f"LABEL_{i}" for i in range(len(names))]:
        return None
    # By a double name a class of the data would be matched with either of two.
    if len(set(names)) == len(names):
        return names
    logger.warning(
        f"WARNING: {who}: two of its classes have the same name; its classes are taken by position"
    )
    return None
