"""The training task: it asks the teacher, runs the student, and compares both by the loss.

A training step calls `teacher_forward`, `student_forward` and `combine_losses` of `WeakToStrongTask`, in this order. In
shapes, B is the batch, C the number of classes, M the number of teachers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import torch
from timm.task import TrainingTask
from timm.utils.model import unwrap_model
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..labels.store import check_positions
from ..losses import DistillationLoss, LossContext, LossInputs, create_loss
from ..losses.arguments import Bounds, Count, check_argument
from ..models.feature_extraction import FeatureExtractor
from ..models.inference import first_output
from ..models.loading import of_timm
from ..settings.values import as_number
from ..students.tuning import layers_of
from ..target_kind import ONE_CLASS, TargetKind


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch.

    Args:
        logits: (B, C), or (M, B, C) if there are several teachers whose answers are mixed later. None if no teacher is
            asked.
        features: the teacher's feature maps, if the loss needs them.
    """

    logits: Tensor | None
    features: list[Tensor] | None = None


class StudentOutput(NamedTuple):
    """What the student says of a batch, and how far that is from what the teacher says.

    Args:
        logits: (B, C), of the student.
        terms: the parts of the distillation loss, by name. Their sum is the loss.
        figures: more numbers for the log.
    """

    logits: Tensor
    terms: dict[str, Tensor]
    figures: Mapping[str, Tensor]


class Extractor(Protocol):
    """Runs the student; returns its logits and, where losses compare them, its features."""

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]: ...

    def __call__(
        self, model: nn.Module, images: Tensor, /
    ) -> tuple[Tensor, list[Tensor] | None]: ...


@runtime_checkable
class FeatureTeacher(Protocol):
    """A teacher whose features can be compared with the student's."""

    @property
    def feature_shapes(self) -> Sequence[tuple[int, ...]]: ...

    def with_features(self, images: Tensor, /) -> tuple[Tensor | None, list[Tensor] | None]: ...


@runtime_checkable
class SeveralTeachers(Protocol):
    """Teachers whose answers can be had one by one, (M, B, C)."""

    def by_member(self, query: Tensor, /) -> Tensor: ...


@runtime_checkable
class FollowsEpochs(Protocol):
    """A teacher that answers for the views of an epoch."""

    def set_epoch(self, epoch: int, /) -> None: ...


# what a caller in Python may give, as `check_argument` words it
NotNegative = Annotated[int, Bounds(">= 0", lambda count: count >= 0)]
Size = Count | None
Criterion = Callable | None

OF_STUDENT = "student."  # what names of its weights begin with in the module that is trained
# what says what is on images, or at their positions; of episodes without a teacher nobody does
Ask = Callable[[Tensor], Tensor | None]
# the answers of several teachers, and the student's, to one target and figures for the log
Mix = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class StudentModule(nn.Module):
    """Student and distillation loss together, so that DDP, optimizer and clipping see the parameters of both.

    Args:
        student: the model that is trained.
        loss: the distillation loss.
        extractor: runs the student and returns logits and features in one pass. Losses that compare features need it.
        mix: makes one target of the answers of several teachers. None if there is one teacher.
        labelled_count: so many samples at the start of a batch have true labels. This loss leaves them out, because the
            criterion on ground truth takes them.
        strong_views: a batch ends with a strong view of each sample without a label, see `consistency`.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: DistillationLoss,
        extractor: Extractor | None = None,
        mix: Mix | None = None,
        labelled_count: int = 0,
        strong_views: bool = False,
    ):
        super().__init__()
        self.student = student
        self.labelled_count = labelled_count
        self.strong_views = strong_views
        self.loss = loss
        self.mix = mix
        self.extractor = extractor
        self.runner = self.run  # or its compiled form

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        """Return the student's logits (B, C), and its features where the loss needs them, in one pass."""
        if self.extractor is None:
            return first_output(self.student(images)), None
        return self.extractor(self.student, images)

    def forward(
        self,
        images: Tensor,
        teacher: TeacherOutput,
        target: Tensor | None,
        index: Tensor | None,
        progress: float,
    ) -> StudentOutput:
        """Run the student and compare it with the teacher.

        If there is no ``target``, the logits are returned without a gradient, because DDP would otherwise wait for one.
        """
        # One pass, because a second one would draw another dropout mask and move batch norm twice.
        logits, features = self.runner(images)
        if teacher.logits is None:
            return StudentOutput(logits, {}, {})
        # Leave out the samples with true labels at the start of the batch, because the teacher was not asked about
        # them, and the strong views at its end: its answers, which are about the others, are put in after that.
        stop = count_without_strong(len(logits), self.labelled_count) if self.strong_views else None
        inputs = LossInputs(logits, teacher.logits, target, features, None, index, progress)
        if self.labelled_count or self.strong_views:
            inputs = inputs.rows(slice(self.labelled_count, stop))
        if self.labelled_count:
            inputs = inputs.replace(target=None)
        # A loss expects one target, so the answers of several teachers become one first.
        weak, figures = teacher.logits, {}
        if self.mix is not None:
            weak, figures = self.mix(weak, inputs.student_logits)
        terms = self.loss(inputs.replace(teacher_logits=weak, teacher_features=teacher.features))
        # Of a strong view the student learns what it says of the first one itself.
        if stop is not None:
            first, strong = inputs.student_logits, logits[stop:]
            terms = {**terms, "strong": consistency(first, strong, self.loss.target_kind)}
            logits = logits[:stop]
        return StudentOutput(logits if target is not None else logits.detach(), terms, figures)

    def predict(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, C)."""
        return first_output(self.student(images))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, which timm's optimizer factory asks for."""
        names = getattr(self.student, "no_weight_decay", set)()
        return {OF_STUDENT + name for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function from a parameter's name to its layer, for layer decay. A loss is in the last layer."""
        layers = layers_of(of_timm(self.student), coarse)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix(OF_STUDENT), last)


def count_without_strong(batch_size: int, labelled_count: int) -> int:
    """Return how many samples of a batch are no strong views: of those without labels there are as many."""
    return (batch_size + labelled_count) // 2


def consistency(first: Tensor, strong: Tensor, target_kind: TargetKind = ONE_CLASS) -> Tensor:
    """Return the cross-entropy of strong views (B, C) to the classes that the student says of the first ones (B, C).

    This is the loss of FixMatch (2020, arXiv 2001.07685) without its threshold: on all images, sure or not. Of several
    classes an image it is the binary one, a mean over the classes.
    """
    labels = target_kind.decide(first.detach())
    with torch.autocast(strong.device.type, enabled=False):
        if labels.ndim == 1:
            return nn.functional.cross_entropy(strong.float(), labels)
        return nn.functional.binary_cross_entropy_with_logits(strong.float(), labels.float())


class WeakToStrongTask(TrainingTask):
    """Train a student on a teacher's answers and, if there are any, on true labels.

    loss = task_loss_weight * criterion(student, target) + distill_loss_weight * sum of the distillation terms

    You can use it in any training loop of timm or of your own: ``task(input, target)`` returns a dictionary with
    ``loss``, which you call ``backward`` on, and ``output``, the student's logits. It also has each part of the loss by
    name, without its weight; ``task`` is the criterion.

    Args:
        student: the model to train.
        teacher: a function from a batch, normalised for the student, to logits (B, C). If ``cached``, it gets the
            positions of the samples in the training set instead. It may do more: see `FeatureTeacher`,
            `SeveralTeachers`, `FollowsEpochs`.
        loss: the distillation loss, or its name if you want its default values.
        criterion: the loss on true labels, called with (logits, target). By default cross-entropy.
        task_loss_weight: weight of the criterion. If it is 0, true labels are not used.
        distill_loss_weight: weight of the distillation loss.
        cached: call the teacher with positions, not with images, because its answers are stored.
        num_samples: size of the training set. Losses that remember something about each sample need it.
        extractor: gives the student's features, if the loss needs them. The teacher must have ``with_features`` then.
        mix: makes one target of several teachers. The teacher must have ``by_member`` then, which returns (M, B, C).
        labelled: so many samples at the start of each batch have true labels. The criterion takes these, and the
            teacher is asked about the others. If it is 0, both take the whole batch.
        strong_views: each batch ends with a strongly augmented view of each sample without a label, in their order. The
            student learns there what it says of the first view; nobody else is asked about it.
        device: where the task's own tensors are.
        dtype: dtype of the model.
        verbose: whether timm's base class logs.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Ask,
        loss: DistillationLoss | str,
        criterion: Criterion = None,
        *,
        task_loss_weight: float = 1.0,
        distill_loss_weight: float = 1.0,
        cached: bool = False,
        num_samples: Size = None,
        extractor: Extractor | None = None,
        mix: Mix | None = None,
        labelled: int = 0,
        strong_views: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ):
        # What a caller in Python may have mistaken, before any of it is used.
        task_loss_weight = as_number(task_loss_weight)
        distill_loss_weight = as_number(distill_loss_weight)
        checked: dict[str, tuple[object, object]] = dict(
            student=(student, nn.Module),
            loss=(loss, DistillationLoss | str),
            criterion=(criterion, Criterion),
            task_loss_weight=(task_loss_weight, float),
            distill_loss_weight=(distill_loss_weight, float),
            num_samples=(num_samples, Size),
            labelled=(labelled, NotNegative),
            strong_views=(strong_views, bool),
            teacher=(teacher, Callable),
        )
        for name, (value, annotation) in checked.items():
            check_argument("WeakToStrongTask", name, value, annotation)
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.teacher = teacher
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.task_loss_weight = task_loss_weight
        self.distill_loss_weight = distill_loss_weight
        # The teacher stays outside the module that is trained, so that it is in no checkpoint and in no optimizer.
        self.cached, self.labelled_count, self.num_samples = cached, labelled, num_samples
        self.strong_views = strong_views
        self.progress = 0.0
        # A loss says what it needs. It is told sizes and shapes once, here, so that it can make its parameters and
        # memory.
        loss = create_loss(loss) if isinstance(loss, str) else loss
        student_shapes = teacher_shapes = None
        if extractor is not None and isinstance(teacher, FeatureTeacher):
            student_shapes, teacher_shapes = list(extractor.shapes), list(teacher.feature_shapes)
        elif loss.needs_features:
            raise UserError(
                f"loss '{loss.name}' compares features, which needs an extractor, and a teacher that has "
                "features; a loss of logits takes any teacher"
            )
        num_classes = getattr(extractor, "num_classes", getattr(student, "num_classes", None))
        if num_classes is None:
            raise UserError(
                "the student has no attribute num_classes, as timm's models have: set it to their number"
            )
        self.num_classes = num_classes
        loss.setup(LossContext(num_classes, num_samples, student_shapes, teacher_shapes))
        # Student and loss are trained together. Only the student is evaluated and exported.
        self.trainable_module = StudentModule(
            student, loss, extractor, mix, labelled, strong_views
        ).to(self.device)
        self.eval_model = student

    @property
    def student(self) -> nn.Module:
        """The model that is trained, without DDP or other wrappers."""
        return unwrap_model(self.trainable_module).student

    @property
    def loss(self) -> DistillationLoss:
        """The distillation loss."""
        return unwrap_model(self.trainable_module).loss

    def set_progress(self, progress: float) -> None:
        """Tell the loss which share of training is done, from 0 to 1. Some losses change with it."""
        if not 0 <= progress <= 1:
            raise UserError(
                f"the task's progress is {progress!r:.60}: expected a share from 0 to 1"
            )
        self.progress = progress

    def set_epoch(self, epoch: int) -> None:
        """Tell the teacher which epoch begins. It matters if answers were stored for the views of several epochs."""
        if isinstance(self.teacher, FollowsEpochs):
            self.teacher.set_epoch(epoch)

    def forward(
        self,
        input: Tensor,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return a dictionary with ``loss``, ``output`` (B, C), the distillation terms and, with true labels, ``task``.

        Args:
            input: normalised images (B, 3, H, W).
            target: true labels, as class indices (B,) or probabilities (B, C). Not used if ``task_loss_weight`` is 0.
            index: positions of the samples in the training set (B,). Stored answers and some losses need them.

        Raises:
            UserError: true labels, or positions, are missing or of another batch, or the teacher's answer is none.
        """
        self._check_batch(input, target, index)
        weak = self.teacher_forward(input, index)
        self._check_answer(weak.logits, len(input))
        strong = self.student_forward(input, weak, target, index)
        return self.combine_losses(strong, target)

    def _check_batch(self, input: Tensor, target: Tensor | None, index: Tensor | None) -> None:
        """Raise a `UserError` for a batch that would train on something else than its caller means."""
        # What a loop of one's own gives by mistake would often train, on something else; nothing below would notice.
        is_batch = isinstance(input, Tensor) and input.is_floating_point()
        if not is_batch or len(input) <= self.labelled_count:
            raise UserError(
                f"the task's input is {_kind(input)}: expected images, a tensor (B, C, H, W) of floating "
                f"point, more than the {self.labelled_count} with true labels"
            )
        if self.task_loss_weight != 0:
            # in episodes the queries alone have labels
            extractor = unwrap_model(self.trainable_module).extractor
            whole = extractor is None or isinstance(extractor, FeatureExtractor)
            self._check_target(target, len(input) if whole else None)
        if index is not None:
            if not isinstance(index, Tensor) or len(index) != len(input):
                raise UserError(
                    f"the task's index is {_kind(index)}: expected positions of {len(input)} samples"
                )
            # Samples with true labels, at the start, are of another data set, whose positions follow.
            check_positions(index[self.asked_about(len(input))], self.num_samples)

    def _check_target(self, target: Tensor | None, size: int | None) -> None:
        """Raise a `UserError` unless there are true labels of a batch, whose size may be known."""
        if not isinstance(target, Tensor) or size not in (len(target), None):
            labels = "true labels" if size is None else f"true labels of {size} samples"
            weight = f"task_loss_weight is {self.task_loss_weight:g}"
            raise UserError(
                f"the task's target is {_kind(target)}: expected {labels}, since {weight}; with 0 there "
                "need not be any"
            )
        if target.ndim == 1 and (target.is_floating_point() or target.is_complex()):
            raise UserError(
                f"the task's target is {_kind(target)}: expected numbers of classes, or shares (B, C)"
            )
        # What other criteria take is not known.
        if target.ndim != 1 or not isinstance(self.criterion, nn.CrossEntropyLoss):
            return
        labels = target[: self.labelled_count or None]
        unknown = (labels < 0) | (labels >= self.num_classes)
        odd = labels[unknown & (labels != self.criterion.ignore_index)]
        if len(odd):
            raise UserError(
                f"the task's target has the class {odd[0].item()}: expected 0 to {self.num_classes - 1}"
            )

    def _check_answer(self, logits: Tensor | None, size: int) -> None:
        """Raise a `UserError` for an answer of the teacher that is none about ``size`` images."""
        module = unwrap_model(self.trainable_module)
        if module.extractor is not None:
            return
        # Also (M, B, C) of several teachers, of which the last two are looked at.
        asked = self.asked_about(size)
        shape = (len(range(size)[asked]), self.num_classes)
        is_float = isinstance(logits, Tensor) and logits.is_floating_point()
        if logits is None or not is_float or logits.shape[-2:] != shape:
            raise UserError(
                f"the teacher answered with {_kind(logits)}: expected logits {shape} in floating point"
            )

    def asked_about(self, batch_size: int) -> slice:
        """Return the samples of a batch that the teacher is asked about: not those with true labels at its start, nor
        the strong views at its end.
        """
        if not self.strong_views:
            return slice(self.labelled_count, None)
        return slice(self.labelled_count, count_without_strong(batch_size, self.labelled_count))

    def teacher_forward(
        self, input: Tensor, index: Tensor | None = None, share: Tensor | None = None
    ) -> TeacherOutput:
        """Return what the teacher says of a batch, without gradients and without autocast.

        If images were mixed (mixup, cutmix), stored answers have to be mixed in the same way, because they are about
        single images. ``share`` (B, 1) says how, see `TargetKind.mix`.
        """
        asked_about = index if self.cached else input
        if asked_about is None:
            raise UserError(
                "the task's index is missing: stored answers are found by the positions of the samples"
            )
        query = asked_about[self.asked_about(len(input))]
        module, teacher = unwrap_model(self.trainable_module), self.teacher
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if module.extractor is not None and isinstance(teacher, FeatureTeacher):
                return TeacherOutput(*teacher.with_features(query))
            if module.mix is not None and isinstance(teacher, SeveralTeachers):
                logits = teacher.by_member(query)
            else:
                logits = teacher(query)
            if self.cached and share is not None and logits is not None:
                logits = self.loss.target_kind.mix(logits, share)
            return TeacherOutput(logits)

    def student_forward(
        self,
        input: Tensor,
        weak: TeacherOutput,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> StudentOutput:
        """Return the student's answer, and the terms that compare it with ``weak``, the teacher's answer."""
        if index is not None:
            # Stored answers are read on the CPU; memories of losses are on the device.
            index = index.to(input.device, non_blocking=True)
        return self.trainable_module(
            input, weak, target if self.task_loss_weight != 0 else None, index, self.progress
        )

    def combine_losses(
        self, strong: StudentOutput, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the final ``loss``, the weighted sum of criterion and distillation terms, with all of its parts."""
        # The terms already have their weights among each other, so they are summed.
        total = self.distill_loss_weight * sum(strong.terms.values())
        result = {"output": strong.logits, **strong.terms, **strong.figures}
        if self.task_loss_weight != 0 and target is not None:
            # In float32, as distillation losses are: half precision loses small differences of logits.
            with torch.autocast(strong.logits.device.type, enabled=False):
                # All of them, or those at the start. Strong views are not in the logits any more.
                known = slice(self.labelled_count or len(strong.logits))
                result["task"] = self.criterion(strong.logits[known].float(), target[known])
            total = total + self.task_loss_weight * result["task"]
        return {"loss": torch.as_tensor(total), **result}

    def prepare_distributed(
        self, device_ids: list | None = None, **ddp_kwargs: Any
    ) -> "WeakToStrongTask":
        """Wrap student and loss in DDP. The teacher needs none, because it is not trained. This works on CPUs too."""
        # A loss of features alone does not train the head. DDP would wait for the head's gradients, so it is told.
        if self.task_loss_weight == 0 and self.trainable_module.extractor is not None:
            ddp_kwargs.setdefault("find_unused_parameters", True)
        # The memory of a loss may be larger than the student. It is the same on every rank, so DDP need not send it.
        memory = [
            name for name, _ in self.trainable_module.named_buffers() if name.startswith("loss.")
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self.trainable_module, memory
        )
        self.trainable_module = DistributedDataParallel(
            self.trainable_module,
            device_ids=None if self.device.type == "cpu" else device_ids,
            **ddp_kwargs,
        )
        return self

    def compile(
        self, backend: str = "inductor", mode: str | None = None, **kwargs: Any
    ) -> nn.Module:
        """Compile the student's forward pass. Teachers are compiled where they are created."""
        # Training calls the student inside its module, evaluation calls it alone. So one set of weights has two graphs.
        self.eval_model = torch.compile(self.student, backend=backend, mode=mode, **kwargs)
        module = unwrap_model(self.trainable_module)
        module.runner = torch.compile(module.run, backend=backend, mode=mode, **kwargs)
        return evaluated_model(self)

    def setup_ema(
        self,
        decay: float = 0.9999,
        use_warmup: bool = False,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """Keep a moving average of the student's weights. Parameters of the loss are not averaged."""
        self.trainable_module_ema = ModelEmaV3(
            self.student, decay=decay, use_warmup=use_warmup, device=device, **kwargs
        )
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        if self.has_ema():
            self.trainable_module_ema.update(self.student, step=step)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters to clip. ``exclude_head`` leaves out the student's last two, as timm does."""
        # The student is the first part of the module, so its parameters come first, and then those of the loss.
        parameters = list(self.trainable_module.parameters())
        end = len(list(self.student.parameters()))
        return parameters[: end - 2] + parameters[end:] if exclude_head else parameters

    def get_task_state(
        self, module: nn.Module | None = None, ema: bool = False
    ) -> dict[str, Tensor]:
        """Return the parameters and the memory of the loss, which the student's ``state_dict`` does not have."""
        # The average is of the student alone; a loss has one state, which is that of the last update.
        state = {} if ema else unwrap_model(self.trainable_module).state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(OF_STUDENT)}

    def load_task_state(
        self,
        state: dict | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        if not ema:
            trained = unwrap_model(self.trainable_module)
            student = {
                name: tensor
                for name, tensor in trained.state_dict().items()
                if name.startswith(OF_STUDENT)
            }
            trained.load_state_dict({**student, **(state or {})}, strict=strict)


def _kind(value: object) -> str:
    """Return in words what a value is."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return "missing" if value is None else f"a {type(value).__name__}"


def trained_module(task: TrainingTask, average: bool = False) -> nn.Module:
    """Return the module that a task trains, or the average of its weights."""
    module = task.get_trainable_module(ema=average)
    if module is None:
        raise RuntimeError("the task keeps no average of the weights")
    return module


def evaluated_model(task: TrainingTask, average: bool = False) -> nn.Module:
    """Return the student as it is evaluated, or the average of its weights."""
    model = task.get_eval_model(ema=average)
    if model is None:
        raise RuntimeError("the task keeps no average of the weights")
    return model
