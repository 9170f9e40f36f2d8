"""Everything that one training run works with."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.task import TrainingTask
from torch import Tensor

from ..distributed.world import Precision, World
from ..made_of import Ingredient
from ..run.folder import RunFiles
from ..run.position import Position
from ..run.saver import Saver
from ..settings.composite import TrainSettings
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher
from .few_shot import FewShotTest
from .loaders import Loaders
from .optimisation import Schedule
from .splits import Data
from .student import Student
from .task import WeakToStrongTask


@dataclass(kw_only=True)
class Run:
    """Everything that one training run works with."""

    # What is trained, on what, and how.
    settings: TrainSettings
    world: World
    precision: Precision
    task: TrainingTask
    loaders: Loaders
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    # What it is made of besides its task; its record tells of these.
    data: Data
    student: Student
    made_of: list[Ingredient] = field(default_factory=list)
    teacher: Teacher | None = None
    targets: CachedTargets | None = None
    few_shot: FewShotTest | None = None
    # Where it writes and stands. Rank 0 has files, and a saver, which with sharding every rank has.
    folder: Path = Path()
    position: Position = field(default_factory=Position)
    files: RunFiles | None = None
    saver: Saver | None = None
    # What was measured of the teacher before the first step, by split; its predictions are classes of this rank's
    # samples, on the CPU.
    teacher_metrics: dict[str, dict] = field(default_factory=dict)
    teacher_predictions: dict[str, Tensor] = field(default_factory=dict)
    # where several classes an image are ranked by them
    teacher_logits: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def weak_to_strong(self) -> WeakToStrongTask | None:
        """The task, if the student learns from weak labels; None for timm's own tasks."""
        return self.task if isinstance(self.task, WeakToStrongTask) else None

    @property
    def updates_in_epoch(self) -> int:
        """Updates of this epoch that are done."""
        return math.ceil(self.position.batch / self.settings.optim.grad_accum_steps)

    @property
    def updates_done(self) -> int:
        """Updates of the whole run that are done."""
        return self.position.epoch * self.schedule.updates_per_epoch + self.updates_in_epoch

    @property
    def stop(self) -> int:
        """The number of epochs to train."""
        return min(
            self.schedule.num_epochs, self.settings.run.stop_epoch or self.schedule.num_epochs
        )

    @property
    def evaluation_due(self) -> bool:
        """True when an evaluation and a checkpoint follow this epoch."""
        done, evaluation = self.position.epoch + 1, self.settings.evaluation
        regular = done % evaluation.val_interval == 0
        return regular or done == self.stop or done in evaluation.save_epochs

    @property
    def evaluates_average(self) -> bool:
        """True when the average of the weights is what is evaluated and exported."""
        return self.task.has_ema() and not self.settings.optim.model_ema_force_cpu
