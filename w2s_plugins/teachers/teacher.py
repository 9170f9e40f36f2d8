"""Weak teachers: from a name, a Hub id, a folder or a file to a frozen callable."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.model_config import resolve_input_data_config
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import UserError, near_path, nearest, one_line
from ..files import file_sha256, read_plain
from ..models.class_names import imagenet_names, match_classes, names_of_model
from ..models.features import FeatureExtractor, create_feature_extractor, pooled_features
from ..models.fingerprint import digest, fingerprint, hash_tensors
from ..models.inference import inference_form
from ..models.loading import (
    INPUT_KEYS,
    adapt_state,
    check_finite,
    check_input_size,
    classifier_prefixes,
    create_model,
    find_weights,
    has_ema,
    load_weights,
    pretrained_source,
    read_weights,
    settings_beside,
)
from .kinds import Request, input_text, open_kind
from .name import TeacherName
from .opened import PROMPTS

_logger = logging.getLogger(__name__)

TEACHER_FLAGS = "--teacher", "--teacher-checkpoint"
UNMAPPED_LOGIT = -1e4  # finite, so that no loss meets 0 * inf; its probability is 0 in float32


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
    """

    mean: Sequence[float]
    std: Sequence[float]
    in_chans: int
    num_classes: int | None
    class_names: Sequence[str] | None = None
    size: tuple[int, int] | None = None


class TeacherModel(nn.Module):
    """One frozen model with its own normalisation and input size.

    Args:
        model: a timm model.
        data_config: timm's data configuration of the model.
        student: how the student's batches were prepared.
        class_map: for each teacher class its student class, -1 for none; or None.
        source: where it came from, for the record.
        dtype: dtype it runs in.
        compile_options: arguments of torch.compile; None does not compile it.

    Attributes:
        model: the model as it was given, by which it is identified; no part of this module, so that what `fast` has
            not of it stays where it was made, and takes no memory of the device.
        fast: its inference form, which is the one that runs.
    """

    def __init__(
            self,
            model: nn.Module,
            data_config: dict,
            student: StudentInput,
            *,
            class_map: Tensor | None = None,
            source: dict | None = None,
            dtype: torch.dtype = torch.float32,
            compile_options: Mapping[str, object] | None = None,
    ):
        super().__init__()
        object.__setattr__(self, "model", model.eval().requires_grad_(False))
        self.weights = hash_tensors(model.state_dict())  # as they were read, whatever dtype they are brought to
        self.fast = inference_form(model, data_config["input_size"])
        for form in (model, self.fast):
            form.to(dtype).to(memory_format=torch.channels_last)
        self.data_config, self.source, self.dtype = data_config, source, dtype
        self.num_classes = student.num_classes or model.num_classes
        self.compile_options = compile_options
        self.run = self._compiled(self.fast)
        stats = [torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1).expand(1, student.in_chans, 1, 1) for v in (
            student.mean, student.std, data_config["mean"], data_config["std"])]
        student_mean, student_std, mean, std = stats
        self.register_buffer("scale", student_std / std, persistent=False)
        self.register_buffer("shift", (student_mean - mean) / std, persistent=False)
        self.register_buffer("class_map", class_map, persistent=False)
        self.reorders = class_map is not None and sorted(class_map.tolist()) == list(range(self.num_classes))
        self.same_normalization = bool((student_mean == mean).all() and (student_std == std).all())
        self.size = tuple(data_config["input_size"][-2:])
        self.extractor: FeatureExtractor | None = None

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """Who it is, and how it is used: its stored answers are found again by this. A frozen model does not change."""
        return dict(
            fingerprint(self.model, (self.source or {}).get("name"), self.weights),
            class_map=None if self.class_map is None else self.class_map.tolist(),
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def train(self, mode: bool = True) -> "TeacherModel":
        """Stay in eval mode: a parent's ``train()`` must not reach batch norm or dropout."""
        return super().train(False)

    def adapt(self, images: Tensor) -> Tensor:
        """Turn the student's normalised images into the teacher's: undo its normalisation, apply ours, resize."""
        if not self.same_normalization:
            images = torch.addcmul(self.shift, images.float(), self.scale)
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True, align_corners=False)
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Return logits over the student's classes, (B, C) in float32, for images in the teacher's own form."""
        logits = self.run(self._arrange(images))
        return self._student_classes(logits[0] if isinstance(logits, (tuple, list)) else logits)

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits as `forward`, and the features of the stages that `choose_stages` has chosen."""
        logits, features = self.run_for_features(self._arrange(images))
        return self._student_classes(logits), features

    @property
    def embeds(self) -> bool:
        """True where it has features of an image that can be had: models of timm, and kinds with a method ``embed``."""
        return hasattr(self.model, "forward_head") or hasattr(self.model, "embed")

    def encode(self, images: Tensor) -> Tensor:
        """Return the pooled pre-logits, or what ``embed`` gives, (B, D) in float32, for images in its own form."""
        images = self._arrange(images)
        return (self.fast.embed(images) if hasattr(self.fast, "embed") else pooled_features(self.fast, images)).float()

    def choose_stages(self, stages: Sequence[int] | None) -> None:
        """Choose the feature levels; None for the usual ones."""
        self.extractor = extractor = create_feature_extractor(self.fast, self.data_config["input_size"], stages)
        fast = self.fast
        self.run_for_features = self._compiled(lambda images: extractor(fast, images))

    def _compiled(self, run: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
        return torch.compile(run, **self.compile_options) if self.compile_options else run

    def _arrange(self, images: Tensor) -> Tensor:
        return images.to(self.dtype, memory_format=torch.channels_last)

    def _student_classes(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.reorders:  # exactly
            return torch.empty_like(logits).index_copy_(1, self.class_map, logits)
        return logits if self.class_map is None else map_classes(logits, self.class_map, self.num_classes)


class Teacher(nn.Module):
    """A frozen teacher, or an ensemble of them, on the student's normalised batch."""

    def __init__(self, members: Sequence[TeacherModel]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) in float32 for a normalised batch (B, 3, H, W) of the student, without autograd."""
        return self._frozen(images, lambda: combine(self._ask(images)))

    def by_member(self, images: Tensor) -> Tensor:
        """Return the logits of every member, (M, B, C)."""
        return self._frozen(images, lambda: torch.stack(self._ask(images)))

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and features of the only member; `choose_stages` must have been called."""
        (member,) = self.members
        return self._frozen(images, lambda: member.with_features(member.adapt(images)))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the pooled pre-logits (B, D) of every member in float32."""
        return self._frozen(images, lambda: [member.encode(member.adapt(images)) for member in self.members])

    def of_own_views(self, views: Sequence[Tensor]) -> Tensor:
        """Return logits as `forward`, where each member is given its own images of the same samples."""
        return self._frozen(views[0], lambda: combine([member(own) for member, own in zip(self.members, views)]))

    def choose_stages(self, stages: Sequence[int] | None) -> None:
        """Choose the feature levels for `with_features`. Raises `UserError` for an ensemble."""
        if len(self.members) > 1:
            raise UserError("a loss on features needs one --teacher; several have no common features")
        self.members[0].choose_stages(stages)

    @property
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the features, without batch dimension."""
        return self.members[0].extractor.shapes

    def _ask(self, images: Tensor) -> list[Tensor]:
        return [member(member.adapt(images)) for member in self.members]

    @staticmethod
    def _frozen(images: Tensor, compute: Callable[[], object]) -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            output = compute()
        with torch.no_grad():  # normal tensors: autograd cannot save those of inference mode
            return tree_map(torch.clone, output)

    def log_input(self, whole: bool) -> None:
        """Say what each member sees: with ``whole`` the plain image, else the student's view."""
        for member in self.members:
            _logger.info(f"Teacher {(member.source or {}).get('name')} sees {input_text(member.data_config, whole)}")

    @property
    def digest(self) -> str:
        """One text for all of its models and what they see of an image."""
        return digest({**member.fingerprint, "input": member.data_config} for member in self.members)

    @property
    def sources(self) -> list[dict]:
        return [member.source for member in self.members]


def combine(logits: list[Tensor]) -> Tensor:
    """Return the logits of one model as they are, of several as the log of the mean of their probabilities."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([z.log_softmax(dim=1) for z in logits]).logsumexp(dim=0) - torch.log(torch.tensor(len(logits)))


def map_classes(logits: Tensor, class_map: Tensor, num_classes: int) -> Tensor:
    """Return student-class logits: the log of the summed exponentials of the teacher classes mapped to each.

    Args:
        logits: (B, T) of the teacher.
        class_map: (T,) student class of each teacher class, -1 for none.
        num_classes: C.

    Returns:
        (B, C); `UNMAPPED_LOGIT` for classes that no teacher class is mapped to.
    """
    peak = logits.amax(dim=1, keepdim=True)
    sums = torch.zeros(len(logits), num_classes + 1, device=logits.device)
    sums.index_add_(1, class_map % (num_classes + 1), (logits - peak).exp())  # -1 is the last column
    sums = sums[:, :num_classes]
    mapped = (sums.log() + peak).clamp(min=UNMAPPED_LOGIT)
    return torch.where(sums > 0, mapped, torch.full_like(mapped, UNMAPPED_LOGIT))


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is opened and run.

    Args:
        dtype: dtype it runs in.
        use_ema: take EMA weights from the checkpoints.
        class_map_file: json or yaml from teacher classes to student classes.
        img_size: input size in place of the teacher's own.
        model_kwargs: arguments of the constructor.
        compile_options: arguments of torch.compile; None does not compile it.
        prompts: templates of a zero-shot classifier.
    """

    dtype: torch.dtype = torch.float32
    use_ema: bool = False
    class_map_file: str | None = None
    img_size: int | None = None
    model_kwargs: dict | None = None
    compile_options: Mapping[str, object] | None = None
    prompts: Sequence[str] = PROMPTS


def create_teacher(
        names: Sequence[str],
        checkpoints: Sequence[str],
        student: StudentInput,
        device: torch.device,
        settings: TeacherSettings = TeacherSettings(),
) -> Teacher:
    """Create a teacher, or an ensemble of several.

    Args:
        names: timm names, ``hf-hub:ORG/NAME[@REVISION]``, ``local-dir:PATH``, or of other kinds.
        checkpoints: a file or run folder for each name, or none: then the pretrained weights are used.
        student: how the student's batches were prepared.
        device: where it runs.
        settings: how it is opened and run.

    Raises:
        UserError: unknown names, weights that do not fit, another number of classes.
    """
    members = [open_member(name, checkpoint, student, device, settings)
               for name, checkpoint in pair_checkpoints(names, checkpoints)]
    return Teacher(members).to(device).eval()


def pair_checkpoints(names: Sequence[str], checkpoints: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return each name of a teacher with its checkpoint, or None.

    Checkpoints are in the order of the names: one for each, or one for each that names an architecture of timm alone.

    Raises:
        UserError: another number of them, or one for a name that says itself where its weights are.
    """
    parsed = [TeacherName.parse(name) for name in names]
    plain = [name for name in parsed if name.is_architecture]
    if len(checkpoints) not in (0, len(names), len(plain)):
        raise UserError(f"--teacher names {len(names)} models but --teacher-checkpoint {len(checkpoints)} files; "
                        "expected one a model, in the same order")
    of_all, files = len(checkpoints) == len(names), iter(checkpoints)
    pairs = []
    for name in parsed:
        file = next(files, None) if of_all or name.is_architecture else None
        if file is not None and not name.is_of_timm:
            raise UserError(f"--teacher-checkpoint {file}: --teacher {name.text} says itself where its weights are; "
                            "give checkpoints for timm's models alone")
        pairs.append((name.text, file))
    return pairs


def open_member(
        name: str,
        checkpoint: str | None,
        student: StudentInput,
        device: torch.device,
        settings: TeacherSettings = TeacherSettings(),
        flags: tuple[str, str] = TEACHER_FLAGS,
) -> TeacherModel:
    """Create one model of a teacher; arguments as for `create_teacher`, ``flags`` as for `load_frozen_model`."""
    parsed, who = TeacherName.parse(name), f"{flags[0]} {name}"
    if parsed.is_of_timm:
        model, data_config, source = load_frozen_model(name, checkpoint, student.in_chans, settings, flags)
        own = names_of_model(model, checkpoint, flags[1])
        if own is None and checkpoint is None and parsed.is_architecture and student.class_names:
            own = imagenet_names(model, student.class_names)
    else:
        if settings.model_kwargs:
            raise UserError(f"--teacher-kwargs are arguments of timm's constructors, which {who} does not use")
        model, data_config, own, origin = open_kind(name, Request(
            student.class_names, student.num_classes, student.in_chans, settings.img_size, student.size,
            settings.prompts), flags[0])
        _logger.info(f"{flags[0].removeprefix('--').capitalize()} {name}: {model.num_classes} classes "
                     f"({_origin_text(origin)})")
        source = {"name": name, "params": _count(model), "kind": parsed.kind, "source": origin}
    # its images and its classes are brought together with the student's
    channels = data_config["input_size"][0]
    if channels != student.in_chans:
        raise UserError(f"{who}: it has {channels} input channel(s), the student {student.in_chans}")
    check_input_size(model, data_config["input_size"], who)
    class_map = None
    if settings.class_map_file:
        class_map = read_class_map(
            settings.class_map_file, (own, model.num_classes), (student.class_names, student.num_classes))
    elif student.num_classes is not None:
        class_map = match_classes(who, own, student.class_names)
    if class_map is None and student.num_classes not in (None, model.num_classes):
        remedy = ", or map classes with --teacher-class-map FILE" if flags == TEACHER_FLAGS else ""
        raise UserError(f"{who}: it has {model.num_classes} classes, the student {student.num_classes}; give weights "
                        f"that were trained on the student's classes ({flags[1]}){remedy}")
    return TeacherModel(
        model, data_config, student, class_map=class_map, source=source,
        dtype=settings.dtype if _count(model) else torch.float32,
        compile_options=settings.compile_options).to(device)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def load_frozen_model(
        name: str,
        checkpoint: str | None,
        in_chans: int,
        settings: TeacherSettings = TeacherSettings(),
        flags: tuple[str, str] = TEACHER_FLAGS,
) -> tuple[nn.Module, dict, dict]:
    """Return a model with its weights, its data configuration, and where they came from.

    Args:
        name: timm name, ``hf-hub:ORG/NAME[@REVISION]`` or ``local-dir:PATH``.
        checkpoint: a file or run folder, or None: then the pretrained weights are used.
        in_chans: channels of the images.
        settings: how it is opened.
        flags: the flags that named model and checkpoint.

    Raises:
        UserError: unknown name, weights that do not fit.
    """
    name_flag, file_flag = flags
    role, model_kwargs = name_flag.removeprefix("--").capitalize(), dict(settings.model_kwargs or {})
    img_size = settings.img_size
    recorded: dict[str, object] = {}
    if checkpoint is None:
        inputs = {"in_chans": in_chans, "img_size": img_size}
        model = create_model(name_flag, name, pretrained=True, inputs=inputs, **model_kwargs)
        origin = pretrained_source(model, name, name_flag)
        _logger.info(f"{role} {name}: pretrained weights ({_origin_text(origin)})")
    else:
        # what the run beside the weights says of its model decides, where nothing else is asked for
        file = find_weights(checkpoint, file_flag)
        if settings.use_ema and not has_ema(file, file_flag):
            raise UserError(f"--use-ema-teacher: {file} has no EMA weights (state_dict_ema); leave the flag out")
        state = read_weights(file, file_flag, settings.use_ema)
        check_finite(state, str(file), file_flag)
        recorded = settings_beside(file, file_flag)
        inputs = {"img_size": img_size} if img_size else {k: recorded.get(k) for k in ("img_size", "input_size")}
        model = create_model(
            name_flag, name, pretrained=False, inputs=inputs, **model_kwargs,
            recorded={"in_chans": recorded.get("in_chans") or in_chans, **recorded.get("model_kwargs", {})})
        heads = [state[key] for key in (f"{prefix}weight" for prefix in classifier_prefixes(model)) if key in state]
        classes = (len(heads[0]) if heads else recorded.get("num_classes")) or model.num_classes
        if classes != model.num_classes:
            model.reset_classifier(classes)
        if not state.keys() <= model.state_dict().keys():
            state = adapt_state(model, state)  # a published checkpoint under other names
        report = load_weights(model, state, str(file), file_flag)
        origin = {"file": str(file), "sha256": file_sha256(file)}
        _logger.info(f"{role} {name}: {report}")
    # how its images are prepared
    requests = {**{k: recorded[k] for k in INPUT_KEYS if k in recorded}, "in_chans": None}
    if img_size:
        requests.update(img_size=img_size, input_size=None)
    try:
        data_config = resolve_input_data_config(model, args=requests)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{name_flag} {name}: {one_line(error)}") from error
    return model, data_config, {"name": name, "params": _count(model), "source": origin}


def _origin_text(origin: dict | None) -> str:
    found = origin or {}
    place = f"{found['repo']}@{found.get('revision')}" if found.get("repo") else (
        found.get("file") or found.get("folder") or "origin unknown")
    return f"{place}, sha256 {str(found['sha256'])[:12]}" if found.get("sha256") else place


Classes = tuple[Sequence[str] | None, int]  # names, where there are any, and number


def read_class_map(file: str, teacher: Classes, student: Classes) -> Tensor:
    """Read a map from teacher classes to student classes.

    The file is json or yaml: a list with the student class (or null) of every teacher class, or a mapping from teacher
    class to student class, in which absent classes have that of their name, if any. A class is a name, or the number of
    its position.

    Returns:
        (T,) student classes, -1 for none.

    Raises:
        UserError: unreadable, or classes that there are not.
    """
    where = f"--teacher-class-map {file}"
    if not Path(file).is_file():
        raise UserError(f"{where}: no such file{near_path(file)}")
    try:
        content = read_plain(Path(file))
        pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{where}: expected a list or a mapping of classes") from error
    class_map = torch.full((teacher[1],), -1, dtype=torch.long)
    if isinstance(content, dict) and teacher[0] and student[0]:  # it is for those whose names differ
        numbers = {name: number for number, name in enumerate(student[0])}
        class_map = torch.tensor([numbers.get(name, -1) for name in teacher[0]])
    for theirs, ours in pairs:
        number = _class_number(theirs, teacher, f"{where}: teacher")
        class_map[number] = -1 if ours in (None, -1) else _class_number(ours, student, f"{where}: student")
    mapped = class_map[class_map >= 0]
    if not len(mapped):
        raise UserError(f"{where}: no teacher class is mapped")
    _logger.info(f"{where}: {len(mapped)} of {teacher[1]} classes of the teacher are mapped, to "
                 f"{len(mapped.unique())} classes of the data")
    return class_map


def _class_number(said: object, classes: Classes, whose: str) -> int:
    """Return the number of a class that a file names."""
    names, count = classes
    if isinstance(said, str) and said in (names or ()):
        return list(names).index(said)
    try:
        number = int(said)
    except (ValueError, TypeError, OverflowError) as error:
        hint = nearest(str(said), names) if names else "; it has no names, expected numbers"
        raise UserError(f"{whose} has no class {str(said)[:60]!r}{hint}") from error
    if not 0 <= number < count:
        raise UserError(f"{whose} class {number} is out of range, expected 0 to {count - 1}")
    return number
