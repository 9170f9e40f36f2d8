"""One training step of every loss, and of what else a step may be made of, on a CUDA without content."""

import argparse
import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor

from train_w2s import train_one_epoch
from w2s_plugins.build.optimisation import Schedule
from w2s_plugins.cli import train_parser
from w2s_plugins.cli.forms import EpisodeShape
from w2s_plugins.data import Batch
from w2s_plugins.distributed.signals import SignalWatch
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.engine.few_shot import EpisodicTask
from w2s_plugins.engine.task import WeakToStrongTask
from w2s_plugins.engine.training_run import Run
from w2s_plugins.losses import LossInputs, create_loss, list_losses, register_loss
from w2s_plugins.models.features import create_feature_extractor
from w2s_plugins.monitor import Console
from w2s_plugins.teachers.mix import LearnedTeacherWeights, NearestTeacher
from w2s_plugins.teachers.teacher import StudentInput, Teacher, TeacherModel

from .device import CUDA, fake_cuda, on_cuda

SIZE, BATCH, CLASSES = 32, 16, 20
INDEX = torch.arange(BATCH)


class Loader:
    """Batches without content."""

    average_batch_size = float(BATCH)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        while True:
            yield Batch(torch.empty(BATCH, 3, SIZE, SIZE, dtype=self.dtype, device=CUDA),
                        torch.empty(BATCH, dtype=torch.long, device=CUDA), INDEX)


class Enough(Exception):
    """Two steps are done."""


class Marks(Console):
    """Forgets the first step, which is like no other, and stops after the second, which logs nothing."""

    def __init__(self, watch: object):
        super().__init__(primary=False, total=0)
        self.watch, self.steps = watch, 0

    def update(self, samples: int) -> None:
        self.steps += 1
        if self.steps == 2:
            raise Enough
        self.watch.waits.clear()


def teacher(
        name: str = "w2s_cnn2", count: int = 1, class_map: Tensor | None = None, mean: tuple[float, ...] | None = None,
        classes: int | None = CLASSES) -> Teacher:
    """A frozen teacher of one or several models, still on the CPU."""
    members = []
    for _ in range(count):
        model = timm.create_model(name, num_classes=CLASSES)
        config = resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=model)
        members.append(TeacherModel(model, config, StudentInput(mean or config["mean"], config["std"], 3, classes),
                                    class_map=class_map, dtype=torch.bfloat16))
    return Teacher(members)


def step(
        loss: str = "kd", kwargs: dict | None = None, *, student: str | None = None, weak: Callable = teacher,
        amp: torch.dtype | None = torch.bfloat16, dtype: torch.dtype = torch.float32, opt: str = "sgd",
        ema: bool = False, mix: Callable | None = None,
        episodes: EpisodeShape | None = None, **flags: object) -> dict[str, dict[str, int]]:
    """What a step that is neither the first nor the last asks of the device."""
    loss = create_loss(loss, **kwargs or {})
    small = "test_resnet" if loss.needs_features else "w2s_cnn2"
    model, weak = timm.create_model(student or small, num_classes=CLASSES).to(dtype), weak(small)
    shared = dict(device=CUDA, verbose=False)
    if loss.needs_features:
        weak.choose_stages(None)
        shared["extractor"] = create_feature_extractor(model, (3, SIZE, SIZE))
    on_cuda(model), on_cuda(weak)
    with fake_cuda() as watch:
        if episodes:
            task = EpisodicTask(model, weak, loss, shape=episodes, **shared)
        else:
            task = WeakToStrongTask(model, weak, loss, num_samples=100, mix=mix and mix(), **shared)
        if ema:
            task.setup_ema(0.999)
        optimizer = create_optimizer_v2(task.get_trainable_module(), opt=opt, lr=0.1, weight_decay=1e-4)
        scaler = NativeScaler(device="cuda") if amp == torch.float16 else None
        args = argparse.Namespace(**{**train_parser().defaults(), "log_interval": 10 ** 9, **flags})
        run = Run(args, World(CUDA, 0, 1, False), Precision(CUDA, dtype, amp, scaler), task, {"train": Loader(dtype)},
                  optimizer, Schedule(None, 1, 3))
        with contextlib.suppress(Enough), SignalWatch((), False) as signals:
            train_one_epoch(run, signals, Marks(watch))
    return dict(waits=watch.waits)


@register_loss("waits")
def waits(inputs: LossInputs) -> dict[str, Tensor]:
    """Waits for the device five times."""
    likely = inputs.teacher_logits.argmax(dim=1)
    sure = inputs.teacher_logits[likely == 1].sum() + inputs.teacher_logits.amax().item() + len(likely.unique())
    ones = torch.tensor([1.0]).to(CUDA) * len(likely.nonzero())
    return {"waits": (inputs.student_logits * (sure + ones)).mean()}


def class_map() -> Tensor:
    return torch.arange(CLASSES).where(torch.arange(CLASSES) != 3, torch.tensor(-1))


several = functools.partial(teacher, count=3)
VARIANTS: dict[str, Callable[[], dict]] = {
    **{name: functools.partial(step, name) for name in list_losses()},
    "a sum": functools.partial(step, "adaptconf+rkd"),
    "classes by a map": functools.partial(step, weak=lambda name: teacher(name, class_map=class_map())),
    "classes in another order": functools.partial(
        step, weak=lambda name: teacher(name, class_map=torch.arange(CLASSES).flip(0))),
    "another normalisation": functools.partial(step, weak=lambda name: teacher(name, mean=(0.1, 0.2, 0.3))),
    "mean of teachers": functools.partial(step, weak=several),
    "--teacher-assign student": functools.partial(step, weak=several, mix=NearestTeacher),
    "agreement phase": functools.partial(step, weak=several, mix=lambda: LearnedTeacherWeights(3, 0.9)),
    "--teacher-weights learned": functools.partial(step, weak=several, mix=lambda: LearnedTeacherWeights(3, 0.0)),
    "--model-ema": functools.partial(step, ema=True),
    "--episodic": functools.partial(
        step, weak=lambda name: teacher(name, classes=None), episodes=EpisodeShape(4, 1, 3)),
    "float16": functools.partial(step, amp=torch.float16),
    "float32": functools.partial(step, amp=None),
    "bfloat16": functools.partial(step, amp=None, dtype=torch.bfloat16),
    "bfloat16, elr": functools.partial(step, "elr", amp=None, dtype=torch.bfloat16),
    "--clip-grad": functools.partial(step, clip_grad=1.0, clip_mode="norm"),
    "--clip-mode agc": functools.partial(step, clip_grad=1.0, clip_mode="agc"),
    "--opt adamw": functools.partial(step, opt="adamw"),
    "--opt muon": functools.partial(step, opt="muon"),
}

if __name__ == "__main__":
    print(json.dumps({name: variant() for name, variant in VARIANTS.items()}))
