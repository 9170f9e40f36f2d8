"""What a run writes: whole files or none, in timm's format, and read back to the last bit."""

import copy
import os
import posix
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import resume_task_checkpoint
from timm.utils import NativeScaler
from torch import nn

from tests.e2e.conftest import differences
from tests.parts import random_images, small_model
from w2s_plugins.errors import UserError
from w2s_plugins.files import atomic_write, link_or_copy, write_text
from w2s_plugins.losses import DistillationLoss
from w2s_plugins.models.loading import read_checkpoint
from w2s_plugins.run import saver
from w2s_plugins.run.args_file import read_run_args, write_args
from w2s_plugins.run.checkpoint import Checkpoint, fitting
from w2s_plugins.run.find import LAST, find_resume
from w2s_plugins.run.history import History
from w2s_plugins.run.position import Position
from w2s_plugins.run.restore import restore as restored
from w2s_plugins.training.task import WeakToStrongTask

TARGET = torch.arange(8) % 10


class Momentum(DistillationLoss):
    """A loss with a parameter and memory."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(10))

    def compute(self, inputs):
        self.mean.lerp_(inputs.student_logits.detach().mean(0), 0.1)
        return {"square": self.scale.square() * (inputs.student_logits - self.mean).square().mean()}


class Parts:
    """The parts of a run that a checkpoint holds."""

    def __init__(self, folder, seed=0, **kwargs):
        self.folder, self.position = folder, Position()
        self.task = WeakToStrongTask(
            small_model(seed, "w2s_cnn5"), small_model(9), Momentum(), verbose=False
        )
        self.optimizer = create_optimizer_v2(self.task.get_trainable_module(), opt="adamw", lr=1e-3)
        self.scheduler, _ = create_scheduler_v2(self.optimizer, num_epochs=5, warmup_epochs=0)
        self.scaler = NativeScaler(device="cpu")
        self.task.setup_ema(decay=0.9)
        self.flags = dict(
            model="w2s_cnn5",
            num_classes=10,
            opt="adamw",
            mean=[0.5],
            loss_kwargs={"a": 1},
            teacher="w2s_cnn2",
            workers=4,
            no_resume_opt=False,
            start_epoch=None,
        )
        self.saver = saver.Saver(
            folder,
            task=self.task,
            optimizer=self.optimizer,
            scaler=self.scaler,
            scheduler=self.scheduler,
            position=self.position,
            flags=self.flags,
            files=lambda: {"history": "a line\n"},
            **kwargs,
        )

    def step(self, number: int) -> None:
        self.task.train()
        self.optimizer.zero_grad()
        result = self.task(random_images(seed=number), TARGET)
        self.scaler(result["loss"], self.optimizer)  # counts its good steps
        self.position.meter.update(result, 8)
        self.position.batch += 1
        self.task.update_ema(step=number + 1)

    def state(self) -> dict:
        """Everything that decides how training goes on, as nested mappings."""
        return copy.deepcopy(
            {
                **self.task.get_checkpoint_state(),
                **self.task.get_checkpoint_state(ema=True),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "meter": self.position.meter.state_dict(),
                "position": [self.position.epoch, self.position.batch, self.position.bad_steps],
            }
        )


def restore(parts: Parts, path) -> None:
    parts.position = restored(
        Checkpoint.from_content(path, read_checkpoint(path, "--resume")),
        parts.task,
        parts.optimizer,
        parts.scaler,
        parts.scheduler,
    )


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- atomic files


@pytest.mark.parametrize(
    "error, raised", [(OSError(28, "No space left"), UserError), (KeyError("a bug"), KeyError)]
)
def test_a_failure_while_writing_leaves_the_earlier_file(tmp_path, error, raised):
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with pytest.raises(raised), atomic_write(path) as temporary:
        temporary.write_text("aft")
        raise error
    assert path.read_text() == "before" and names(tmp_path) == ["file.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut leaves the earlier file or the whole of the new one."""
    steps, rename = [], os.replace

    def fsync(file: int) -> None:
        posix.fsync(file)  # of os it is switched off for the tests
        steps.append(("on the disk", os.fstat(file).st_ino, os.fstat(file).st_size))

    def replace(source: os.PathLike, target: os.PathLike) -> None:
        steps.append(("renamed", os.stat(source).st_ino, os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "file.txt", "text")
    written = (tmp_path / "file.txt").stat()
    assert steps == [(step, written.st_ino, len("text")) for step in ("on the disk", "renamed")]

    # and so is all that a run saves: last, and its two other names
    steps.clear()
    folder = tmp_path / "run"
    folder.mkdir()
    Parts(folder).saver.save_checkpoint(0, metric=1.0)
    saved = (folder / LAST).stat()
    assert steps == [(step, saved.st_ino, saved.st_size) for step in 3 * ("on the disk", "renamed")]


def test_two_processes_write_one_file(tmp_path):
    """Each has the whole of what it wrote under a name of its own until it is renamed."""
    path = tmp_path / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("ours")
        pid = os.fork()
        if pid == 0:
            write_text(path, "theirs")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0 and path.read_text() == "theirs"
    assert path.read_text() == "ours" and names(tmp_path) == ["file.txt"]


def test_a_second_name_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_text(tmp_path / "one", "text")
    link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "text" and names(tmp_path) == ["one", "two"]


# ---------------------------------------------------------------- timm's format


@pytest.fixture
def trained(tmp_path):
    """The parts of a run after three steps, which have been saved."""
    parts = Parts(tmp_path)
    for number in range(3):
        parts.step(number)
    parts.saver.save_checkpoint(4, metric=70.0)
    return parts


def test_timm_resumes_what_is_written(trained, tmp_path):
    other, path = Parts(tmp_path / "other", seed=1), str(tmp_path / LAST)
    epoch = resume_task_checkpoint(other.task, path, other.optimizer, other.scaler, log_info=False)
    assert epoch == 5
    sections = ("state_dict", "task_state", "optimizer", "scaler")
    ours, theirs = ({name: parts.state()[name] for name in sections} for parts in (trained, other))
    assert all(ours.values()) and differences(ours, theirs) == []


@pytest.mark.parametrize("use_ema, key", [(False, "state_dict"), (True, "state_dict_ema")])
def test_timm_loads_what_is_written(trained, tmp_path, use_ema, key):
    model = timm.create_model("w2s_cnn5", num_classes=10)
    load_checkpoint(model, str(tmp_path / LAST), use_ema=use_ema)
    expected = trained.task.get_checkpoint_state(ema=use_ema)[key]
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_timm_finds_what_is_written_by_its_names(trained, tmp_path):
    content = torch.load(tmp_path / LAST, weights_only=False)
    expected = {"arch": "w2s_cnn5", "epoch": 4, "metric": 70.0, "version": 2}
    assert {name: content[name] for name in expected} == expected
    assert vars(content["args"]) == trained.flags


@pytest.mark.parametrize("decreasing", [False, True])
def test_history_and_best(tmp_path, decreasing):
    parts = Parts(tmp_path, max_history=2, decreasing=decreasing)
    for epoch, metric in enumerate([10.0, 30.0, 20.0, 30.0, 5.0]):
        parts.saver.save_checkpoint(epoch, metric=-metric if decreasing else metric)
    epochs = {path.name: read_checkpoint(path, "x")["epoch"] for path in tmp_path.iterdir()}
    kept = {"checkpoint-1": 1, "checkpoint-3": 3, "last": 4, "model_best": 1}
    assert epochs == {f"{name}.pth.tar": epoch for name, epoch in kept.items()}
    assert os.path.samefile(tmp_path / "checkpoint-1.pth.tar", tmp_path / "model_best.pth.tar")


def test_chosen_epochs_are_kept_however_bad_they_are(tmp_path: Path) -> None:
    """timm's --save-epochs: by the number of epochs that are done, a link to the checkpoint of that epoch."""
    saver = Parts(tmp_path, max_history=1, milestones=[1, 3]).saver
    for epoch, metric in enumerate([10.0, 30.0, 20.0]):
        saver.save_checkpoint(epoch, metric)
    assert os.path.samefile(tmp_path / "milestone-3.pth.tar", tmp_path / "last.pth.tar")
    saver.save_checkpoint(3, 5.0)
    epochs = {path.name: read_checkpoint(path, "x")["epoch"] for path in tmp_path.iterdir()}
    kept = {"checkpoint-1": 1, "last": 3, "milestone-1": 0, "milestone-3": 2, "model_best": 1}
    assert epochs == {f"{name}.pth.tar": epoch for name, epoch in kept.items()}


# ---------------------------------------------------------------- going on


def test_restored_inside_an_epoch(tmp_path):
    """Student, average, loss, optimizer, scaler, schedule, meter and position are the same, to the last bit."""
    parts = Parts(tmp_path)
    parts.position.epoch, parts.position.bad_steps = 2, 1
    for number in range(3):
        parts.step(number)
    parts.scheduler.step(2)
    parts.saver.save_recovery(2, 2)
    other = Parts(tmp_path, seed=1)
    other.step(7)
    restore(other, tmp_path / "recovery-2-2.pth.tar")
    assert differences(other.state(), parts.state()) == []
    assert other.position.batch == 3
    assert read_checkpoint(tmp_path / "recovery-2-2.pth.tar", "x")["w2s"]["history"] == "a line\n"
    for run in (parts, other):
        run.step(3)
    assert differences(other.state(), parts.state()) == []


def test_an_average_begins_with_the_weights_of_a_run_without(tmp_path):
    parts, other = Parts(tmp_path), Parts(tmp_path, seed=1)
    parts.step(0)
    content = dict(parts.task.get_checkpoint_state(), epoch=0)
    checkpoint = Checkpoint.from_content(tmp_path / LAST, content)
    restored(checkpoint, other.task, None, None, None)
    averaged = other.task.get_checkpoint_state(ema=True)["state_dict_ema"]
    assert all(
        torch.equal(averaged[name], value)
        for name, value in parts.task.student.state_dict().items()
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda content: content.update(state_dict=small_model(0, "w2s_cnn2").state_dict()),
            "RuntimeError",
        ),
        (lambda content: content.update(optimizer={}), "KeyError"),
        (lambda content: content.update(epoch="evil"), "ValueError"),
        (lambda content: content["w2s"].update(changes=["evil"]), "ValueError"),
    ],
)
def test_a_checkpoint_with_parts_of_another_kind(tmp_path, spoil, message):
    parts, other = Parts(tmp_path), Parts(tmp_path, seed=1)
    parts.step(0)
    parts.saver.save_recovery(0, 0)
    (path,) = tmp_path.glob("recovery-*")
    content = read_checkpoint(path, "--resume")
    spoil(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=r"--resume .*: does not fit this run") as error:
        restore(other, path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), UserError("--resume x: gone")]
)
def test_what_is_no_fault_of_the_checkpoint_is_passed_on(tmp_path, error):
    with pytest.raises(type(error)) as raised, fitting(tmp_path / LAST):
        raise error
    assert raised.value is error


def test_which_checkpoint_is_furthest(tmp_path):
    assert find_resume(tmp_path) is None
    assert find_resume(tmp_path / "absent") is None
    parts = Parts(tmp_path)

    def furthest() -> str:
        return find_resume(tmp_path).path.name

    parts.saver.save_recovery(0, 4)
    assert furthest() == "recovery-0-4.pth.tar"
    parts.saver.save_recovery(0, 10)
    assert furthest() == "recovery-0-10.pth.tar"  # by number, not by letter
    parts.saver.save_checkpoint(0, metric=1.0)
    assert furthest() == "last.pth.tar"
    parts.saver.save_recovery(1, 2)
    assert furthest() == "recovery-1-2.pth.tar"
    parts.saver.save_checkpoint(2, metric=1.0)
    assert furthest() == "last.pth.tar"
    (tmp_path / "recovery-7-x.pth.tar").touch()
    (tmp_path / ".recovery-9-9.pth.tar.tmp").touch()
    assert furthest() == "last.pth.tar"


def test_a_run_goes_on_from_a_chosen_epoch(tmp_path: Path) -> None:
    """Where nothing else is whole, or because it was named; a later one of the course that is left is set aside."""
    for epoch in range(3):
        Parts(tmp_path, milestones=[1, 2, 3]).saver.save_checkpoint(epoch, metric=float(epoch))
    for name in names(tmp_path):
        if not name.startswith("milestone"):
            (tmp_path / name).unlink()
    assert find_resume(tmp_path).path.name == "milestone-3.pth.tar"
    path = tmp_path / "milestone-2.pth.tar"
    checkpoint = Checkpoint.from_content(path, read_checkpoint(path, "--resume"))
    Parts(tmp_path, milestones=[1, 2]).saver.resume_from(checkpoint)
    assert {"milestone-1.pth.tar", "milestone-2.pth.tar", "milestone-3.pth.tar.set-aside"} < set(
        names(tmp_path)
    )
    assert find_resume(tmp_path).position.epoch == 2


def test_two_recovery_checkpoints_are_kept_until_the_epoch_is_saved(tmp_path):
    parts = Parts(tmp_path)
    for batch in range(4):
        parts.saver.save_recovery(0, batch)
    assert names(tmp_path) == ["recovery-0-2.pth.tar", "recovery-0-3.pth.tar"]
    parts.saver.save_checkpoint(0, 1.0)
    assert names(tmp_path) == ["checkpoint-0.pth.tar", "last.pth.tar", "model_best.pth.tar"]
    parts.saver.save_recovery(1, 0)
    assert "recovery-1-0.pth.tar" in names(tmp_path)


def test_a_run_that_goes_back_leaves_nothing_further(tmp_path):
    """Recovery checkpoints of the course that is left go, later epochs are set aside, and half of a file goes."""
    parts = Parts(tmp_path)
    for epoch in range(3):
        parts.saver.save_checkpoint(epoch, metric=1.0)
    parts.saver.save_recovery(3, 0)
    (tmp_path / ".recovery-3-1.pth.tar.7.tmp").touch()
    path = tmp_path / "checkpoint-1.pth.tar"
    checkpoint = Checkpoint.from_content(path, read_checkpoint(path, "--resume"))
    Parts(tmp_path).saver.resume_from(checkpoint)
    assert names(tmp_path) == [
        "checkpoint-0.pth.tar",
        "checkpoint-1.pth.tar",
        "checkpoint-2.pth.tar.set-aside",
        "last.pth.tar",
        "last.pth.tar.set-aside",
        "model_best.pth.tar",
    ]
    assert find_resume(tmp_path).position.epoch == 2


# ---------------------------------------------------------------- small files


def test_summary_has_timms_columns(tmp_path):
    history = History(tmp_path)
    for epoch in range(4):
        history.write(
            "eval",
            epoch=epoch,
            train={"loss": 4.0 - epoch},
            val={"top1": 10.0 * epoch},
            lr=0.1,
            metric=1.0,
        )
    again = History(tmp_path, history.text, start_epoch=2)
    again.write(
        "eval", epoch=2, train={"loss": 9.0}, few_shot={"5-way": 3.0}, lr=0.2, metric=1.0
    )  # trained once more
    again.save()
    assert again.summary.read_text().splitlines() == [
        "epoch,train_loss,eval_top1,lr,eval_few_shot_5-way",
        "0,4.0,0.0,0.1,",
        "1,3.0,10.0,0.1,",
        "2,9.0,,0.2,3.0",
    ]


SPOILT = {
    "lost": lambda history: history.metrics.unlink(),
    "damaged": lambda history: history.metrics.write_text("{"),
    "further than the checkpoint": lambda history: history.write("train", epoch=1, loss=1.0),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_events_are_written_again_from_a_checkpoint(tmp_path, spoil):
    history = History(tmp_path)
    history.write("train", epoch=0, loss=1.5)
    history.write("eval", epoch=0, train={}, val={"top1": float("nan")}, lr=0.1)
    whole, text = history.metrics.read_bytes(), history.text
    spoil(history)
    again = History(tmp_path, text)
    again.save()
    assert history.metrics.read_bytes() == whole
    (event,) = again.evaluations
    assert event == {"event": "eval", "epoch": 0, "train": {}, "val": {"top1": None}, "lr": 0.1}


def test_args_yaml(tmp_path):
    flags = dict(model="a", mean=(0.5, 0.4), resume="auto", loss_kwargs={"t": 0.5}, teacher=None)
    write_args(tmp_path / "args.yaml", flags)
    expected = {
        "model": "a",
        "mean": [0.5, 0.4],
        "resume": "",
        "loss_kwargs": {"t": 0.5},
        "teacher": None,
    }
    assert read_run_args(tmp_path, "--checkpoint") == expected
    assert yaml.safe_load((tmp_path / "args.yaml").read_text()) == expected
