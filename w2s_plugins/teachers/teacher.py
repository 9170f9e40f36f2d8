"""Weak teachers: frozen models of any kind as one callable on the student's normalised batch."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..models.class_names import match_classes
from ..models.feature_extraction import create_feature_extractor, pooled_features
from ..models.fingerprint import digest, fingerprint
from ..models.inference import CompileOptions, first_output, inference_form
from ..models.loading import check_input_size
from ..private_names import tree_map
from ..settings.teacher_name import TeacherName
from ..settings.values import as_plain
from ..target_kind import ONE_CLASS, TargetKind
from .kinds import open_classifier
from .openers import TEACHER_FLAGS, Opened, Request

# what a method of a teacher is given, a batch or one for each of its models, and what it returns
Images = TypeVar("Images", Tensor, Sequence[Tensor])
Output = TypeVar("Output")


@dataclass(frozen=True)
class StudentInput:
    """How the loader prepared the batches that the teacher will see.

    Args:
        mean: mean that was subtracted, by channel.
        std: standard deviation that was divided by.
        in_chans: channels.
        num_classes: classes of the student; None when teacher and student need not have the same.
        class_names: their names, None where they have none.
        size: height and width of the student's images, where known.
        target_kind: what the labels are that student and teacher speak of.
    """

    mean: Sequence[float]
    std: Sequence[float]
    in_chans: int
    num_classes: int | None
    class_names: Sequence[str] | None = None
    size: tuple[int, int] | None = None
    target_kind: TargetKind = ONE_CLASS

    def __post_init__(self) -> None:
        # A value that is not finite, or a std of 0, would turn every answer into NaN without a word.
        self._check("mean", self.mean, -math.inf, "finite numbers")
        self._check("std", self.std, 0, "numbers above 0")

    def _check(self, name: str, values: object, low: float, expected: str) -> None:
        plain = as_plain(values)
        numbers = plain if isinstance(plain, list) else [plain]
        in_range = [
            isinstance(number, (int, float)) and low < number < math.inf for number in numbers
        ]
        # one for all channels will do, as it does for timm
        if not all(in_range) or len(numbers) not in (1, self.in_chans):
            raise UserError(
                f"{name} of the student's batches is {values!r:.60}, expected {expected}, one for each of "
                f"{self.in_chans} channels"
            )

    @classmethod
    def of(
        cls,
        data_config: Mapping[str, Any],
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        target_kind: TargetKind = ONE_CLASS,
    ) -> "StudentInput":
        """Return that of a model by timm's data configuration of it."""
        channels, *size = data_config["input_size"]
        mean, std = data_config["mean"], data_config["std"]
        return cls(mean, std, channels, num_classes, class_names, tuple(size), target_kind)


class TeacherModel(nn.Module):
    """One frozen model with its own normalisation and input size: a member of a `Teacher`, which has one or several.

    Args:
        model: from images in its own form to logits; ``num_classes`` says how many.
        data_config: timm's data configuration of the model.
        student: how the student's batches were prepared.
        class_map: for each teacher class its student class, -1 for none; None where they are the same.
        source: where it came from, for the record.
        dtype: dtype it runs in.
        compile_options: arguments of torch.compile; None does not compile it.

    Attributes:
        fast: its inference form, which is the one that runs.
        fingerprint: who it is, and how it is used: its stored answers are found again by this.
    """

    fast: nn.Module
    num_classes: int
    scale: Tensor
    shift: Tensor
    class_map: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        data_config: dict[str, Any],
        student: StudentInput,
        *,
        class_map: Tensor | None = None,
        source: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        compile_options: CompileOptions | None = None,
    ):
        super().__init__()
        self.source = dict(source or {})
        # It is known by its plain form, with the weights as they were read, and runs in another: merged layers and
        # dtypes differ between machines, on which its stored answers are to be found all the same.
        self.fingerprint = dict(
            fingerprint(model.eval().requires_grad_(False), self.source.get("name")),
            class_map=None if class_map is None else class_map.tolist(),
            dtype=str(dtype).removeprefix("torch."),
        )
        # the same logits mean something else
        if student.target_kind.name != ONE_CLASS.name:
            self.fingerprint["labels"] = student.target_kind.name
        fast = inference_form(model, data_config["input_size"]).to(dtype)
        self.fast = fast.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it
        self.data_config = data_config
        self.dtype = dtype
        self.num_classes = student.num_classes or getattr(model, "num_classes", 0)
        self.target_kind = student.target_kind
        self.compile_options = compile_options
        self.run = self._compiled(self.fast)

        # One multiplication and one addition undo the student's normalisation and apply its own.
        student_mean, student_std, mean, std = (
            torch.tensor(values, dtype=torch.float32)
            .view(1, -1, 1, 1)
            .expand(1, student.in_chans, 1, 1)
            for values in (student.mean, student.std, data_config["mean"], data_config["std"])
        )
        # They follow the model to its device, and are no weights: nothing stores them.
        self.register_buffer("scale", student_std / std, persistent=False)
        self.register_buffer("shift", (student_mean - mean) / std, persistent=False)
        self.same_normalization = bool((student_mean == mean).all() and (student_std == std).all())

        # Its classes become those of the student: exactly, where they only stand in another order.
        self.register_buffer("class_map", class_map, persistent=False)
        every_class = list(range(self.num_classes))
        # a map that leaves none out and takes none twice
        self.reorders = class_map is not None and sorted(class_map.tolist()) == every_class
        self.size = tuple(data_config["input_size"][-2:])

    def train(self, mode: bool = True) -> "TeacherModel":
        """Stay in eval mode: a parent's ``train()`` must not reach batch norm or dropout."""
        return super().train(False)

    def adapt(self, images: Tensor) -> Tensor:
        """Turn the student's normalised images into the teacher's: undo its normalisation, apply ours, resize."""
        # In one memory layout, whatever the student's is, so that both hear the same: another layout rounds otherwise.
        # Where nothing has to change, images stay in their dtype, without a pass over them.
        images = images.contiguous(memory_format=torch.channels_last)
        if not self.same_normalization:
            images = torch.addcmul(self.shift, images.float(), self.scale)
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(
                images.float(), self.size, mode="bicubic", antialias=True, align_corners=False
            )
        return images

    @property
    def fills_batches(self) -> bool:
        """Whether it is always asked about equally many images: what is compiled is compiled anew for another number."""
        return self.compile_options is not None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits over the student's classes, (B, C) in float32, for images in the teacher's own form."""
        return self._student_classes(first_output(self.run(self._arrange(images))))

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits as `forward`, and the features of the stages that `choose_stages` has chosen."""
        logits, features = self.run_for_features(self._arrange(images))
        return self._student_classes(logits), features

    @property
    def embeds(self) -> bool:
        """True where it has features of an image that can be had: models of timm, and kinds with a method ``embed``."""
        return hasattr(self.fast, "forward_head") or hasattr(self.fast, "embed")

    def encode(self, images: Tensor) -> Tensor:
        """Return the pooled pre-logits, or what ``embed`` gives, (B, D) in float32, for images in its own form."""
        images = self._arrange(images)
        # Kinds beyond timm say themselves what their features are.
        embed = getattr(self.fast, "embed", None)
        features = pooled_features(self.fast, images) if embed is None else embed(images)
        return features.float()

    def feature_width(self, who: str) -> int:
        """Return D of what `encode` gives, by one black image.

        Args:
            who: begins the message.

        Raises:
            UserError: it has no features that can be had.
        """
        reason = "it gives logits alone"
        if self.embeds:
            images = torch.zeros(1, *self.data_config["input_size"], device=self.scale.device)
            try:
                with torch.inference_mode():
                    return self.encode(images).shape[1]
            except Exception as error:  # models of plugins have errors of their own
                reason = one_line(error)
        raise UserError(
            f"{who}: has no features ({reason}); expected a model of timm, hf: or clip:, or one with a method "
            "embed"
        )

    def choose_stages(self, stages: Sequence[int] | None) -> None:
        """Choose the feature levels; None for the usual ones."""
        fast = self.fast
        extractor = create_feature_extractor(fast, self.data_config["input_size"], stages)
        self.feature_shapes = extractor.shapes
        self.run_for_features = self._compiled(lambda images: extractor(fast, images))

    def _compiled(self, run: Callable[[Tensor], Output]) -> Callable[[Tensor], Output]:
        if self.compile_options is None:
            return run
        return torch.compile(run, **self.compile_options)

    def _arrange(self, images: Tensor) -> Tensor:
        return images.to(self.dtype, memory_format=torch.channels_last)

    def _student_classes(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.class_map is None:
            return logits
        # A new order is no sum of probabilities, so that nothing is rounded.
        if self.reorders:
            return torch.empty_like(logits).index_copy_(1, self.class_map, logits)
        return self.target_kind.map_classes(logits, self.class_map, self.num_classes)


class Encoder(TeacherModel):
    """A model without its head: what it gives are the features (B, D) of images, so that D stands for its classes."""

    stores = torch.float32

    @property
    def width(self) -> int:
        """D."""
        return self.num_classes

    def encode(self, images: Tensor) -> Tensor:
        return self(images)


def _frozen(
    method: Callable[["Teacher", Images], Output],
) -> Callable[["Teacher", Images], Output]:
    """Compute without autograd and autocast: a teacher has a dtype of its own, whatever the student trains in."""

    @functools.wraps(method)
    def compute(teacher: "Teacher", images: Images) -> Output:
        with torch.inference_mode(), torch.autocast(images[0].device.type, enabled=False):
            output = method(teacher, images)
        # a loss needs normal tensors: autograd cannot save those of inference mode
        with torch.no_grad():
            return tree_map(torch.clone, output)

    return compute


class Teacher(nn.Module):
    """A frozen teacher, or an ensemble of them, on the student's normalised batch."""

    members: Sequence[TeacherModel]

    def __init__(self, members: Sequence[TeacherModel]):
        super().__init__()
        self.members = nn.ModuleList(members)  # pyright: ignore[reportAttributeAccessIssue]  # is a sequence of them
        self.target_kind = members[0].target_kind

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @_frozen
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) in float32 for a normalised batch (B, 3, H, W) of the student, without autograd."""
        opinions = [member(member.adapt(images)) for member in self.members]
        return self.target_kind.average(opinions)

    @_frozen
    def by_member(self, images: Tensor) -> Tensor:
        """Return the logits of every member, (M, B, C)."""
        return torch.stack([member(member.adapt(images)) for member in self.members])

    @_frozen
    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and features of the only member; `choose_stages` must have been called."""
        # `choose_stages` has refused several
        (member,) = self.members
        return member.with_features(member.adapt(images))

    @_frozen
    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the pooled pre-logits (B, D) of every member in float32."""
        return [member.encode(member.adapt(images)) for member in self.members]

    @_frozen
    def of_own_views(self, views: Sequence[Tensor]) -> Tensor:
        """Return logits as `forward`, where each member is given its own images of the same samples."""
        opinions = [member(images) for member, images in zip(self.members, views)]
        return self.target_kind.average(opinions)

    def choose_stages(self, stages: Sequence[int] | None) -> None:
        """Choose the feature levels for `with_features`. Raises `UserError` for an ensemble."""
        if len(self.members) > 1:
            raise UserError(
                "a loss on features needs one --teacher; several have no common features"
            )
        self.members[0].choose_stages(stages)

    @property
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the features, without batch dimension."""
        return self.members[0].feature_shapes

    @property
    def digest(self) -> str:
        """One text for all of its models and what they see of an image."""
        return digest(
            {**member.fingerprint, "input": member.data_config} for member in self.members
        )

    @property
    def sources(self) -> list[dict[str, Any]]:
        return [member.source for member in self.members]


@dataclass(frozen=True)
class TeacherSettings(Request):
    """How a teacher is opened and run; what follows from the student, and the checkpoint, is filled in.

    Args:
        dtype: dtype it runs in.
        compile_options: arguments of torch.compile; None does not compile it.
        opened: models that are open already, by their names.
    """

    dtype: torch.dtype = torch.float32
    compile_options: CompileOptions | None = None
    opened: Mapping[TeacherName, Opened] | None = None


def open_teacher(
    names: Sequence[TeacherName],
    checkpoints: Sequence[str],
    student: StudentInput,
    device: torch.device,
    settings: TeacherSettings = TeacherSettings(),
) -> Teacher:
    """Open a teacher, which is one model or several. Training, evaluation and Python all come through here.

    From a name to logits::

        TeacherName.parse("clip:ViT-B-32/openai")   its kind is "clip", the rest is for whoever opens that kind
        open_teacher                                each name with its checkpoint, where it has one
          open_member                               one model: input size tried, classes matched with the student's
            kinds.open_classifier                   finds who opens the kind, and words what goes wrong there
              clip.open_clip_model                  a network with its transform and classes: `Opened`
            TeacherModel                            the network frozen, in its fastest form, dtype and device
        Teacher(images)                             the student's batch, in the form of each model; one answer of all

    Args:
        names: of models of any kind.
        checkpoints: a file or run folder for each name, or none: then the pretrained weights are used.
        student: how the student's batches were prepared.
        device: where it runs.
        settings: how it is opened and run.

    Raises:
        UserError: unknown names, weights that do not fit, another number of classes.
    """
    members = [
        open_member(name, checkpoint, student, device, settings)
        for name, checkpoint in pair_checkpoints(names, checkpoints)
    ]
    return Teacher(members).to(device).eval()


def pair_checkpoints(
    names: Sequence[TeacherName], checkpoints: Sequence[str]
) -> list[tuple[TeacherName, str | None]]:
    """Return each name of a teacher with its checkpoint, or None.

    Checkpoints are in the order of the names: one for each, or one for each that names an architecture of timm alone.

    Raises:
        UserError: another number of them, or one for a name that says itself where its weights are.
    """
    # One file a name, or one for each name that does not say itself where its weights are.
    takers = names
    if len(checkpoints) != len(names):
        takers = [name for name in names if name.is_architecture]
    if checkpoints and len(checkpoints) != len(takers):
        raise UserError(
            f"--teacher names {len(names)} models but --teacher-checkpoint {len(checkpoints)} files; "
            "expected one a model, in the same order"
        )
    for name in takers:
        if checkpoints and not name.is_of_timm:
            raise UserError(
                f"--teacher-checkpoint: --teacher {name} says itself where its weights are; give "
                "checkpoints for timm's models alone"
            )
    # In order: each name that takes a file takes the next one.
    files = iter(checkpoints)
    return [(name, next(files, None) if name in takers else None) for name in names]


def open_member(
    name: TeacherName,
    checkpoint: str | None,
    student: StudentInput,
    device: torch.device,
    settings: TeacherSettings = TeacherSettings(),
) -> TeacherModel:
    """Create one model of a teacher; arguments as for `open_teacher`."""
    request = replace(
        settings,
        class_names=student.class_names,
        num_classes=student.num_classes,
        in_chans=student.in_chans,
        student_size=student.size,
        checkpoint=checkpoint,
        target_kind=student.target_kind,
    )
    opened = (settings.opened or {}).get(name) or open_classifier(name, request)
    model, data_config = opened.model, opened.data_config

    # A size that the model does not take is told now, and not in the first step of a long run.
    who = f"{settings.flags[0]} {name}"
    channels = data_config["input_size"][0]
    if channels != student.in_chans:
        raise UserError(
            f"{who}: it has {channels} input channel(s), the student {student.in_chans}"
        )
    check_input_size(model, data_config["input_size"], who)

    # A softmax over all classes and a sigmoid of each do not mean the same.
    if student.num_classes is not None and opened.target_kind.name != student.target_kind.name:
        raise UserError(
            f"{who}: gives labels of {opened.target_kind.words}, the student learns {student.target_kind.words}; give a "
            "teacher of that kind, or the other --task"
        )

    # Classes are matched by their names, else by their places.
    # For features alone no classes are compared.
    class_map = None
    if student.num_classes is not None:
        class_map = match_classes(who, opened.class_names, student.class_names)
    if class_map is None and student.num_classes not in (None, opened.num_classes):
        raise UserError(
            f"{who}: it has {opened.num_classes} classes, the student {student.num_classes}; give weights "
            f"that were trained on the student's classes ({settings.flags[1]})"
        )

    # The record says where it is from; a model without weights, behind a service, has no dtype.
    params = sum(parameter.numel() for parameter in model.parameters())
    source: dict[str, object] = {"name": name.text, "params": params}
    if not name.is_of_timm:
        source["kind"] = name.kind
    source["source"] = opened.origin
    return TeacherModel(
        model,
        data_config,
        student,
        class_map=class_map,
        source=source,
        dtype=settings.dtype if params else torch.float32,
        compile_options=settings.compile_options,
    ).to(device)


def open_alone(
    name: TeacherName,
    opened: Opened,
    device: torch.device,
    flags: tuple[str, str] = TEACHER_FLAGS,
) -> TeacherModel:
    """Return an opened model that answers with its own classes to images in its own form, beside no student."""
    # The student that it is adapted to is itself.
    itself = StudentInput.of(opened.data_config, target_kind=opened.target_kind)
    settings = TeacherSettings(opened={name: opened}, flags=flags)
    return open_member(name, None, itself, device, settings)
