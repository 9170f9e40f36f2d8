"""Values that are not finite are kept out of statistics and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler
from torch import nn

from tests.e2e.conftest import TINY, Done, here, read_run, weak  # noqa: F401  (fixtures)
from tests.engine.test_step import CPU, make_loader, make_task, train
from tests.parts import small_model
from w2s_plugins.distributed.world import Precision
from w2s_plugins.engine.step import BufferUndo, weights_are_finite
from w2s_plugins.losses import create_loss

Run = Callable[..., Done]


def test_statistics_of_a_skipped_step_are_put_back():
    model = small_model(name="test_resnet")
    statistics, before = BufferUndo(model), {k: v.clone() for k, v in model.named_buffers()}
    statistics.keep()
    model.train()(torch.full((4, 3, 32, 32), float("nan")))
    assert not weights_are_finite(model)
    statistics.put_back()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers()) and weights_are_finite(model)
    model(torch.ones(4, 3, 32, 32))
    assert any(not torch.equal(v, before[k]) for k, v in model.named_buffers())


class Poisoned:
    """A loader with an image of NaN in its batch number 2."""

    def __init__(self, loader):
        self.loader, self.average_batch_size = loader, loader.average_batch_size

    def __len__(self):
        return len(self.loader)

    def epoch(self, *where):
        for number, batch in enumerate(self.loader.epoch(*where)):
            if number == 2:
                batch.input[0] = float("nan")
            yield batch


def test_an_image_of_nan_costs_its_step_and_nothing_else(caplog):
    task = ClassificationTask(small_model(name="test_resnet"), nn.CrossEntropyLoss(), verbose=False)
    train(task, Poisoned(make_loader(48)), nan_patience=2)
    assert "the step is skipped (1 of 2" in caplog.text
    assert weights_are_finite(task.get_trainable_module())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("loss", ["elr", "balanced_elr", "temporal", "sop"])
def test_an_image_of_nan_leaves_the_memory_of_a_loss_alone(loss, accum, dtype):
    precision = Precision(CPU)
    if dtype == "float16":
        scaler = NativeScaler(device="cpu")
        scaler._scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # with 65,536 the first steps are too large
        precision = Precision(CPU, amp_dtype=torch.float16, scaler=scaler)
    task = make_task(create_loss(loss), num_samples=48)
    states = []
    train(task, Poisoned(make_loader(48)), grad_accum_steps=accum, precision=precision, nan_patience=2, on_update=(
        lambda *_: states.append({k: v.clone() for k, v in task.get_task_state().items()})))
    changed = [any(not torch.equal(v, states[i][k]) for k, v in states[i + 1].items()) for i in range(len(states) - 1)]
    assert changed == ([True, False, True, True, True] if accum == 1 else [False, True])
    assert all(v.isfinite().all() for v in states[-1].values())


PLUGIN = '''
import torch
from w2s_plugins.losses import register_loss
calls = 0

@register_loss("steep_{at}", summary="an infinite step at one call")
def steep(inputs):
    global calls
    calls += 1
    z = inputs.student_logits
    return {{"z": z.square().mean() * (1e38 if calls == {at} else 1.0)}}
'''


def test_broken_weights_never_go_over_a_good_checkpoint(here: Run, weak: Path, tmp_path: Path) -> None:  # noqa: F811
    """The last step of the second epoch is finite in loss and gradient, and takes the weights out of range."""
    (tmp_path / "steep.py").write_text(PLUGIN.format(at=8))
    done = here(*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak,
                "--no-teacher-eval", "--plugins", "steep.py", "--loss", "steep_8", "--task-loss-weight", 0,
                "--opt", "sgd", "--lr", 1e4,
                "--recovery-interval", 1, "--experiment", "run", "--epochs", 3, "--sched", "none", "--clip-grad", 1e35,
                "--weight-decay", 0, "--nan-patience", 3)
    assert done.code == 2 and "not finite" in done.error, done.err
    for saved in (tmp_path / "output" / "train" / "run").glob("*.pth.tar"):
        state = read_run(saved.parent, saved.name)["state_dict"]
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point()), saved
