"""Everything that one training run works with."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from timm.task import TrainingTask

from ..build.optimisation import Schedule
from ..build.student import Student
from ..distributed.world import Precision, World
from ..engine.evaluation import Predictions
from ..engine.few_shot import FewShotTest
from ..labels.splits import Data
from ..run.folder import RunFiles
from ..run.position import Position
from ..run.saver import Saver
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher


class Parts(NamedTuple):
    """What a run is made of besides its task; its record tells of them."""

    data: Data
    student: Student
    made_of: dict[str, object]  # `ingredients`, by which it goes on with the same ones
    teacher: Teacher | None = None
    targets: CachedTargets | None = None
    few_shot: FewShotTest | None = None


@dataclass
class Output:
    """Where a run writes."""

    folder: Path
    files: RunFiles | None = None  # rank 0
    saver: Saver | None = None  # rank 0; every rank when the student is sharded


@dataclass
class Run:
    """Everything that one training run works with."""

    args: argparse.Namespace
    world: World
    precision: Precision
    task: TrainingTask
    loaders: dict
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    position: Position = field(default_factory=Position)
    parts: Parts | None = None
    output: Output | None = None
    weak_metrics: dict[str, dict] = field(default_factory=dict)  # of the teacher, by split
    weak_said: dict[str, Predictions] = field(default_factory=dict)  # the teacher, on this rank

    @property
    def files(self) -> RunFiles | None:
        return self.output and self.output.files

    @property
    def stop(self) -> int:
        """The number of epochs to train."""
        return min(self.schedule.num_epochs, self.args.stop_epoch or self.schedule.num_epochs)
