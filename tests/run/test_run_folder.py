"""Where a run lives, and from which checkpoint and learning rate it goes on."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import TensorDataset

from tests.parts import assert_refused, random_images, small_model, train_settings
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.losses import create_loss
from w2s_plugins.models.loading import read_checkpoint
from w2s_plugins.resolve.fill_in import locate_run
from w2s_plugins.run import folder as run_folder
from w2s_plugins.run.checkpoint import Checkpoint
from w2s_plugins.run.history import History
from w2s_plugins.run.position import Position
from w2s_plugins.run.saver import Saver
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.training.optimisation import Schedule
from w2s_plugins.training.run_files import new_folder_name, open_run_files, resume
from w2s_plugins.training.splits import Data
from w2s_plugins.training.student import Student
from w2s_plugins.training.task import WeakToStrongTask
from w2s_plugins.training.training_run import Run

CPU = torch.device("cpu")
WORLD = World(CPU, rank=0, size=1, distributed=False)
UPDATES = 10


def flags(*argv: str) -> TrainSettings:
    return train_settings("--model w2s_cnn2 --num-classes 10 --opt momentum", *argv)


class Parts:
    """What a run resumes: task, optimizer and schedule."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.task = WeakToStrongTask(
            small_model(0), small_model(1), create_loss("kd"), verbose=False
        )
        self.optimizer = create_optimizer_v2(
            self.task.get_trainable_module(), opt="momentum", lr=1.0, momentum=0.9
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=4,
            warmup_epochs=0,
            step_on_epochs=not settings.optim.sched_on_updates,
            updates_per_epoch=UPDATES,
        )

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def resume(self, path=None) -> tuple[Run, Checkpoint | None]:
        schedule = Schedule(self.scheduler, 4, UPDATES)
        run = Run(
            settings=self.settings,
            world=WORLD,
            precision=Precision(CPU),
            task=self.task,
            loaders={},
            optimizer=self.optimizer,
            schedule=schedule,
            data=Data(TensorDataset(torch.empty(0)), None, None),
            student=Student(self.task, {}, {}, {}),
            folder=path.parent if path else Path(),
        )
        checkpoint = None
        if path:
            checkpoint = Checkpoint.from_content(path, read_checkpoint(path, "--resume"))
        resume(run, dict(self.settings.flags), checkpoint)
        return run, checkpoint


@pytest.fixture
def run(tmp_path, request):
    """A run folder with checkpoints of the first two epochs and a recovery one inside the third."""
    folder = tmp_path / "run"
    folder.mkdir()
    parts = Parts(flags(*getattr(request, "param", ())))
    position, history = Position(), History(folder)
    saver = Saver(
        folder,
        task=parts.task,
        optimizer=parts.optimizer,
        scaler=None,
        scheduler=parts.scheduler,
        position=position,
        flags=parts.settings.flags,
        files=lambda: {"history": history.text},
    )
    (folder / "args.yaml").write_text("model: w2s_cnn2\n")
    history.save()
    for epoch in range(2):
        result = parts.task(random_images(), torch.arange(8))
        result["loss"].backward()
        parts.optimizer.step()
        parts.scheduler.step(epoch + 1)
        position.epoch, position.batch = epoch + 1, 0
        history.write("eval", epoch=epoch, train={"loss": 1.0}, lr=0.1)
        saver.save_checkpoint(epoch, metric=float(epoch))
    position.batch = 4
    position.meter.update(result, 8)
    saver.save_recovery(2, 3)
    return folder, parts


def find(settings: TrainSettings) -> Path | None:
    checkpoint = run_folder.lock_existing_run(locate_run(settings.run), WORLD)
    if checkpoint is None:
        return None
    assert checkpoint.position.epoch == 2
    return checkpoint.path


RECOVERY = "run/recovery-2-3.pth.tar"


@pytest.mark.parametrize(
    "argv, expected, folder",
    [
        ("--output {0} --experiment run --resume auto", RECOVERY, "run"),
        ("--output {0} --experiment new --resume auto", None, "new"),
        ("--resume {0}/run", RECOVERY, "run"),  # goes on in the same folder
        ("--resume {0}/run/last.pth.tar", "run/last.pth.tar", "run"),
        ("--resume {0}/run --experiment other --output {0}", RECOVERY, "other"),
        (
            "--resume {0}/run/last.pth.tar --experiment other --output {0}",
            "run/last.pth.tar",
            "other",
        ),
    ],
)
def test_where_to_go_on(run, tmp_path, argv, expected, folder):
    settings = flags(argv.format(tmp_path))
    assert find(settings) == (expected and tmp_path / expected)
    assert locate_run(settings.run).folder == tmp_path / folder


@pytest.mark.parametrize(
    "name, message",
    [
        ("empty", "the folder has no checkpoint"),
        ("absent.pth.tar", "no such file; expected a checkpoint, a run folder, or auto"),
    ],
)
def test_nothing_to_go_on_from(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    assert_refused(message, find, flags(f"--resume {tmp_path}/{name}"))


def test_new_folder(tmp_path):
    def make(*argv: str):
        args = flags(*argv)
        name = new_folder_name(args.student.model, 32)
        return run_folder.make_run_folder(locate_run(args.run), name, WORLD)

    folder = make(f"--output {tmp_path}/a --experiment b")
    assert folder == tmp_path / "a" / "b" and [path.name for path in folder.iterdir()] == [".lock"]
    folder = make(f"--output {tmp_path} --model w2s_cnn2")
    assert folder.name.endswith("-w2s_cnn2-32") and folder.is_dir()
    (tmp_path / "file").touch()
    message = "--output .*cannot be written to"
    assert_refused(message, make, f"--output {tmp_path}/file --experiment x")


@pytest.mark.parametrize("name, batch", [("last.pth.tar", 0), ("recovery-2-3.pth.tar", 4)])
def test_where_and_how_fast_it_goes_on(run, name, batch):
    folder, before = run
    parts = Parts(flags("--resume x"))
    position = parts.resume(folder / name)[0].position
    assert (position.epoch, position.batch) == (2, batch)
    assert set(position.meter.average()) >= ({"loss", "kd"} if batch else set())
    assert parts.lr == before.lr == pytest.approx(0.5)
    ours, theirs = (part.optimizer.state_dict()["state"] for part in (parts, before))
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", ["last.pth.tar", "recovery-2-3.pth.tar"])
@pytest.mark.parametrize("run", [(), ("--sched-on-updates",)], indirect=True)
def test_weights_only_still_have_the_learning_rate_of_their_epoch(run, name):
    by_update = run[1].settings.optim.sched_on_updates
    more = ["--sched-on-updates"] if by_update else []
    parts = Parts(flags("--resume x --no-resume-opt", *more))
    position = parts.resume(run[0] / name)[0].position
    assert not parts.optimizer.state_dict()["state"]
    done = 2 + (position.batch / UPDATES if by_update else 0)
    assert parts.lr == pytest.approx((1 + math.cos(math.pi * done / 4)) / 2)


@pytest.mark.parametrize("by_update", [(), ("--sched-on-updates",)])
@pytest.mark.parametrize("epoch, lr", [(1, (1 + 0.5**0.5) / 2), (0, 1.0)])
def test_start_epoch(by_update, epoch, lr):
    """After one of four the cosine has gone a quarter of its way."""
    parts = Parts(flags(*([f"--start-epoch {epoch}"] if epoch else []), *by_update))
    assert parts.resume()[0].position.epoch == epoch
    assert parts.lr == pytest.approx(lr)


@pytest.mark.parametrize("history", [3, "{", '{"event": "eval"}'])
def test_a_history_of_another_kind(run, history):
    folder, _ = run
    resumed, checkpoint = Parts(flags("--resume x")).resume(folder / "last.pth.tar")
    checkpoint = dataclasses.replace(checkpoint, history=history)
    message = "--resume .*last.pth.tar: does not fit this run"
    assert_refused(
        message, open_run_files, resumed, locate_run(resumed.settings.run), {}, checkpoint
    )
