"""The weak-to-strong training task: student, teacher and losses in one forward pass."""

from collections.abc import Callable

import torch
from timm.models import group_parameters
from timm.task import TrainingTask
from timm.utils import unwrap_model
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .losses import DistillationLoss, LossContext, LossInputs


class StudentModule(nn.Module):
    """Student and distillation loss together, so that DDP, optimizer and clipping see the parameters of both.

    Args:
        student: the model that is trained.
        loss: the distillation loss.
    """

    def __init__(self, student: nn.Module, loss: DistillationLoss):
        super().__init__()
        self.student = student
        self.loss = loss
        self.set_runner(student)

    def set_runner(self, runner: Callable[[Tensor], Tensor]) -> None:
        """Run the student through ``runner``, itself or its compiled form."""
        object.__setattr__(self, "runner", runner)  # not a second registration of its parameters

    def forward(
            self,
            images: Tensor,
            teacher_logits: Tensor,
            target: Tensor | None,
            index: Tensor | None,
            progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's logits (B, C) and the terms of the loss."""
        logits = first_output(self.runner(images))
        terms = self.loss(LossInputs(logits, teacher_logits, target, index=index, progress=progress))
        return logits, terms

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizer factory exempts from weight decay."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer of each parameter for layer decay; parameters of the loss count with the head."""
        layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        top = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix("student."), top) if name.startswith("student.") else top


class WeakToStrongTask(TrainingTask):
    """Train a student on a teacher's outputs and, where there is any, on ground truth.

    loss = task_loss_weight * criterion(student, target) + distill_loss_weight * sum of the distillation terms

    It works inside any timm training loop: ``task(input, target)`` returns a dictionary with ``loss`` and ``output``,
    and each term by name (``task`` for the criterion), unweighted ones of the distillation loss included.

    Args:
        student: model that is trained.
        teacher: maps a normalised batch of the student to logits (B, C); or, with ``cached``, sample indices to them.
        loss: distillation loss.
        criterion: supervised criterion on (logits, target).
        task_loss_weight: weight of the criterion; 0 leaves ground truth unused.
        distill_loss_weight: weight of the distillation loss.
        cached: the teacher is called with indices, not images.
        num_samples: size of the training set, for losses that keep memory by sample.
        device: where the task's own tensors live.
        dtype: dtype of the model.
        verbose: log.
    """

    def __init__(
            self,
            student: nn.Module,
            teacher: Callable[[Tensor], Tensor],
            loss: DistillationLoss,
            criterion: nn.Module | None = None,
            *,
            task_loss_weight: float = 1.0,
            distill_loss_weight: float = 1.0,
            cached: bool = False,
            num_samples: int | None = None,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.teacher = teacher
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.task_loss_weight = task_loss_weight
        self.distill_loss_weight = distill_loss_weight
        self.cached = cached
        self.progress = 0.0
        loss.setup(LossContext(num_classes=student.num_classes, num_samples=num_samples, device=self.device))
        self.trainable_module = StudentModule(student, loss)
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
        teacher_logits = self.teacher(index if self.cached else input)
        with_target = self.task_loss_weight != 0 and target is not None
        logits, terms = self.trainable_module(
            input, teacher_logits, target if with_target else None, index, self.progress)
        total = self.distill_loss_weight * sum(terms.values())
        result = {"output": logits, **terms}
        if with_target:
            result["task"] = self.criterion(logits, target)
            total = total + self.task_loss_weight * result["task"]
        return {"loss": total, **result}

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: object) -> "WeakToStrongTask":
        """Wrap student and loss in DDP; the teacher stays as it is. Works on CPUs as well."""
        if self.device.type == "cpu":
            device_ids = None  # DDP refuses device ids there
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: object) -> nn.Module:
        """Compile the student's forward pass; a teacher is compiled on its own."""
        self.eval_model = torch.compile(self.student, backend=backend, mode=mode, **kwargs)
        unwrap_model(self.trainable_module).set_runner(self.eval_model)
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
        if not exclude_head:
            return list(self.trainable_module.parameters())
        return list(self.student.parameters())[:-2] + list(self.loss.parameters())

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Tensor]:
        """Parameters and memory of the loss, which are no part of the student's ``state_dict``."""
        return {} if ema else self.loss.state_dict()

    def load_task_state(self, state: dict | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        if not ema:
            self.loss.load_state_dict(state or {}, strict=strict)


def first_output(output: Tensor | tuple | list) -> Tensor:
    """Return the logits of a model that may also return more."""
    return output[0] if isinstance(output, (tuple, list)) else output
