"""The weak-to-strong training task: student, teacher and losses in one forward pass."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models import group_parameters
from timm.task import TrainingTask
from timm.utils import unwrap_model
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..losses import DistillationLoss, LossContext, LossInputs, create_loss
from ..models.features import FeatureExtractor


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch.

    Args:
        logits: (B, C); (M, B, C) of several teachers that are mixed later; None where no teacher is asked.
        features: by level, for losses that need them.
    """

    logits: Tensor | None
    features: list[Tensor] | None = None


class StudentOutput(NamedTuple):
    """What the student says of a batch, and how far that is from what the teacher says.

    Args:
        logits: (B, C).
        terms: scalar terms of the distillation loss, by name.
        figures: further scalars for the log.
    """

    logits: Tensor
    terms: dict[str, Tensor]
    figures: dict[str, object]


OF_STUDENT = "student."  # what names of its weights begin with in the module that is trained
Mix = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]  # teachers and student to a target and figures


class StudentModule(nn.Module):
    """Student and distillation loss together, so that DDP, optimizer and clipping see the parameters of both.

    Args:
        student: the model that is trained.
        loss: the distillation loss.
        extractor: gives logits and features in one pass, for losses that need features and for other logits than the
            student's own.
        mix: makes one target of several teachers, or None when the teacher gives one.
        labelled: so many samples at the start of a batch are for the criterion on ground truth, not for this loss.
    """

    def __init__(
            self,
            student: nn.Module,
            loss: DistillationLoss,
            extractor: FeatureExtractor | None = None,
            mix: Mix | None = None,
            labelled: int = 0,
    ):
        super().__init__()
        self.student = student
        self.labelled = labelled
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

        Without ``target`` the logits have no gradient, which would lead DDP to expect one for the head.
        """
        logits, features = self.runner(images)
        if teacher.logits is None:
            return StudentOutput(logits, {}, {})
        # The loss is about what teacher and student say of the same samples; labelled ones at the start of the batch
        # are for the criterion alone.
        inputs = LossInputs(logits, None, target, features, None, index, progress)
        if self.labelled:
            inputs = inputs.rows(slice(self.labelled, None)).replace(target=None)
        # Several teachers become one target first.
        weak, figures = teacher.logits, {}
        if self.mix is not None:
            weak, figures = self.mix(weak, inputs.student_logits)
        terms = self.loss(inputs.replace(teacher_logits=weak, teacher_features=teacher.features))
        return StudentOutput(logits if target is not None else logits.detach(), terms, figures)

    def predict(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, C)."""
        return first_output(self.student(images))

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizer factory exempts from weight decay."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer of each parameter for layer decay; parameters of the loss count with the head."""
        groups = group_parameters(
            self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        layers = {f"student.{name}": layer for name, layer in groups.items()}
        return lambda name: layers.get(name, max(layers.values(), default=0))


class WeakToStrongTask(TrainingTask):
    """Train a student on a teacher's outputs and, where there is any, on ground truth.

    loss = task_loss_weight * criterion(student, target) + distill_loss_weight * sum of the distillation terms

    It works inside any timm training loop: ``task(input, target)`` returns a dictionary with ``loss`` and ``output``,
    and each term by name (``task`` for the criterion), unweighted ones of the distillation loss included.

    Args:
        student: model that is trained.
        teacher: maps a normalised batch of the student to logits (B, C); or, with ``cached``, sample indices to them.
        loss: distillation loss, or the name of one with its defaults.
        criterion: supervised criterion on (logits, target).
        task_loss_weight: weight of the criterion; 0 leaves ground truth unused.
        distill_loss_weight: weight of the distillation loss.
        cached: the teacher is called with indices on the CPU, not images.
        num_samples: size of the training set, for losses that keep memory by sample.
        extractor: gives the student's features, for losses that need them; ``teacher.with_features`` gives the other.
        mix: makes one target of several teachers; ``teacher.by_member`` then gives their logits (M, B, C).
        labelled: where only some samples have labels: how many at the start of a batch. The criterion is on these, and
            the teacher is asked about the others; 0 where both are about all of them.
        device: where the task's own tensors live.
        dtype: dtype of the model.
        verbose: log.
    """

    def __init__(
            self,
            student: nn.Module,
            teacher: Callable[[Tensor], Tensor],
            loss: DistillationLoss | str,
            criterion: nn.Module | None = None,
            *,
            task_loss_weight: float = 1.0,
            distill_loss_weight: float = 1.0,
            cached: bool = False,
            num_samples: int | None = None,
            extractor: FeatureExtractor | None = None,
            mix: Mix | None = None,
            labelled: int = 0,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.teacher = teacher
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.task_loss_weight = task_loss_weight
        self.distill_loss_weight = distill_loss_weight
        # The teacher is no part of the module that is trained, so it is in no checkpoint and no optimizer.
        self.cached, self.labelled = cached, labelled
        self.progress = 0.0
        # The loss says what it needs; it is given shapes and sizes once.
        loss = create_loss(loss) if isinstance(loss, str) else loss
        if loss.needs_features and extractor is None:
            raise UserError(f"loss '{loss.name}' compares features, which needs an extractor, and a teacher that has "
                            "features; a loss of logits takes any teacher")
        num_classes = getattr(extractor, "num_classes", getattr(student, "num_classes", None))
        if num_classes is None:
            raise UserError("the student has no attribute num_classes, as timm's models have: set it to their number")
        context = LossContext(
            num_classes=num_classes,
            num_samples=num_samples,
            student_feature_shapes=extractor and list(extractor.shapes),
            teacher_feature_shapes=extractor and list(teacher.feature_shapes),
        )
        loss.setup(context)
        # What is trained, and what is evaluated and exported: the student alone.
        self.trainable_module = StudentModule(student, loss, extractor, mix, labelled).to(self.device)
        self.eval_model = student

    @property
    def student(self) -> nn.Module:
        """The model that is trained, without wrappers."""
        return unwrap_model(self.trainable_module).student

    @property
    def loss(self) -> DistillationLoss:
        """The distillation loss."""
        return unwrap_model(self.trainable_module).loss

    def set_progress(self, progress: float) -> None:
        """Tell the losses which share of training, in [0, 1], is done."""
        self.progress = progress

    def set_epoch(self, epoch: int) -> None:
        """Tell a teacher that answers otherwise from epoch to epoch, as cached views do, which one follows."""
        if hasattr(self.teacher, "set_epoch"):
            self.teacher.set_epoch(epoch)

    def forward(
            self,
            input: Tensor,
            target: Tensor | None = None,
            index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``output`` (B, C), ``task`` where ground truth is used, and the distillation terms.

        Args:
            input: normalised images (B, 3, H, W).
            target: (B,) class indices or (B, C) soft labels; unused when ``task_loss_weight`` is 0.
            index: (B,) positions in the training set.
        """
        weak = self.teacher_forward(input, index)
        strong = self.student_forward(input, weak, target, index)
        return self.combine_losses(strong, target)

    def teacher_forward(self, input: Tensor, index: Tensor | None = None, share: Tensor | None = None) -> TeacherOutput:
        """Return what the teacher says of a batch, without autograd and autocast.

        Cached answers are of single images: ``share`` (B, 1) says how they are mixed, see `mix_answers`.
        """
        # Labelled samples, at the start of a batch, are not for the teacher.
        query = (index if self.cached else input)[self.labelled:]
        module = unwrap_model(self.trainable_module)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if module.extractor is not None:
                return TeacherOutput(*self.teacher.with_features(query))
            logits = self.teacher(query) if module.mix is None else self.teacher.by_member(query)
            if self.cached and share is not None:
                logits = mix_answers(logits, share)
            return TeacherOutput(logits)

    def student_forward(
            self,
            input: Tensor,
            weak: TeacherOutput,
            target: Tensor | None = None,
            index: Tensor | None = None,
    ) -> StudentOutput:
        """Return what the student says of a batch, and the distillation loss's terms; ``weak`` is the teacher's answer.
        """
        if index is not None:
            index = index.to(input.device, non_blocking=True)
        return self.trainable_module(
            input, weak, target if self.task_loss_weight != 0 else None, index, self.progress)

    def combine_losses(
            self, strong: StudentOutput, target: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted sum of criterion and distillation terms as ``loss``, with all of its parts."""
        # Terms of the distillation loss have their own weights in them already.
        total = self.distill_loss_weight * sum(strong.terms.values())
        result = {"output": strong.logits, **strong.terms, **strong.figures}
        if self.task_loss_weight != 0 and target is not None:
            with torch.autocast(strong.logits.device.type, enabled=False):
                known = slice(self.labelled or None)
                result["task"] = self.criterion(strong.logits[known].float(), target[known])
            total = total + self.task_loss_weight * result["task"]
        return {"loss": total, **result}

    def prepare_distributed(
            self, device_ids: list | None = None, **ddp_kwargs: object) -> "WeakToStrongTask":
        """Wrap student and loss in DDP; the teacher stays as it is. Works on CPUs as well."""
        # A loss of features does not train what lies behind them, for whose gradients DDP would wait.
        if self.task_loss_weight == 0 and self.trainable_module.extractor is not None:
            ddp_kwargs.setdefault("find_unused_parameters", True)
        # The memory of a loss is the same on every rank, and may be larger than the student: it is not sent.
        memory = [
            name
            for name, _ in self.trainable_module.named_buffers()
            if name.startswith("loss.")
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.trainable_module, memory)
        self.trainable_module = DistributedDataParallel(
            self.trainable_module,
            device_ids=None if self.device.type == "cpu" else device_ids,
            **ddp_kwargs,
        )
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: object) -> nn.Module:
        """Compile the student's forward pass; a teacher is compiled on its own."""
        # Training runs the student through the module, evaluation by itself: two graphs of one set of weights.
        self.eval_model = torch.compile(self.student, backend=backend, mode=mode, **kwargs)
        module = unwrap_model(self.trainable_module)
        module.runner = torch.compile(module.run, backend=backend, mode=mode, **kwargs)
        return self.eval_model

    def setup_ema(self, decay: float = 0.9999, use_warmup: bool = False, device: torch.device | None = None,
                  **kwargs: object) -> nn.Module:
        """Keep an average of the student's weights; the loss has none."""
        self.trainable_module_ema = ModelEmaV3(
            self.student, decay=decay, use_warmup=use_warmup, device=device, **kwargs)
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        if self.has_ema():
            self.trainable_module_ema.update(self.student, step=step)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters for clipping; without the head those of the student but for its last layer's two."""
        parameters = list(self.trainable_module.parameters())  # the student's come first
        end = len(list(self.student.parameters()))
        return parameters[:end - 2] + parameters[end:] if exclude_head else parameters

    def get_task_state(
            self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Tensor]:
        """Parameters and memory of the loss, which are no part of the student's ``state_dict``."""
        state = {} if ema else unwrap_model(self.trainable_module).state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(OF_STUDENT)}

    def load_task_state(self, state: dict | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        if not ema:
            trained = unwrap_model(self.trainable_module)
            student = {
                name: tensor
                for name, tensor in trained.state_dict().items()
                if name.startswith(OF_STUDENT)
            }
            trained.load_state_dict({**student, **(state or {})}, strict=strict)


def mix_answers(logits: Tensor, share: Tensor) -> Tensor:
    """Return what is said of mixed images: the logarithm of the probabilities, mixed as the images are.

    Args:
        logits: (..., B, C) of the samples.
        share: (B, 1) of sample i in image i, the rest of which is of sample B - 1 - i. Where it is 1, logits stay.
    """
    # In the logarithm, where small probabilities do not vanish.
    own = logits.log_softmax(dim=-1)
    mixed = torch.logaddexp(own + share.log(), own.flip(-2) + (1 - share).log())
    return torch.where(share == 1, logits, mixed)


def first_output(output: Tensor | tuple | list) -> Tensor:
    """Return the logits of a model that may also return more."""
    return output[0] if isinstance(output, (tuple, list)) else output
