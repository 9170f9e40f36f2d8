"""Training and evaluation: accumulation, clipping, bad steps, precision, and figures against scikit-learn."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import NativeScaler, dispatch_clip_grad
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from tests.e2e.conftest import differences
from tests.parts import (
    data_config,
    default_settings,
    refusal,
    small_model,
    train_loader,
    train_settings,
)
from train_w2s import train_one_epoch
from w2s_plugins.data import LoaderSettings, create_dataset, create_eval_loader, take_slice
from w2s_plugins.distributed.signals import SignalWatch
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.errors import UserError
from w2s_plugins.losses import DistillationLoss, create_loss
from w2s_plugins.monitor import Console
from w2s_plugins.run.position import Position, TermMeter
from w2s_plugins.teachers.stored import own_answers
from w2s_plugins.teachers.teacher import StudentInput, Teacher, TeacherModel
from w2s_plugins.training import evaluation
from w2s_plugins.training.evaluation import (
    Evaluation,
    EvaluationOptions,
    average_batch_norm,
    evaluate,
    evaluate_teacher,
)
from w2s_plugins.training.optimisation import Schedule
from w2s_plugins.training.splits import Data
from w2s_plugins.training.step import BufferUndo
from w2s_plugins.training.student import Student
from w2s_plugins.training.task import WeakToStrongTask
from w2s_plugins.training.training_run import Run

CPU = torch.device("cpu")
CONFIG = data_config(16, std=(0.25,) * 3)
NO_DATA = Data(TensorDataset(torch.empty(0)), None, None)


def make_loader(count=48, batch=8, dtype=torch.float32):
    part = take_slice(create_dataset("w2s/digits", None, "train"), f"0:{count}", 0)
    settings = train_settings("--num-classes 10 --no-aug --batch-size", batch)
    return train_loader(part, settings, CONFIG, dtype)


def make_task(loss=None, dtype=torch.float32, **kwargs) -> WeakToStrongTask:
    teacher = small_model(1).eval().to(dtype)
    return WeakToStrongTask(
        small_model(0).to(dtype), teacher, loss or create_loss("adaptconf"), verbose=False, **kwargs
    )


def sgd(task, **kwargs) -> torch.optim.Optimizer:
    return create_optimizer_v2(
        task.get_trainable_module(), opt="momentum", **{"lr": 0.1, "momentum": 0.9, **kwargs}
    )


class Callback(Console):
    """Tells a test of updates."""

    def __init__(self, run: Run, on_update):
        super().__init__(primary=False, total=0)
        self.run, self.on_update = run, on_update

    def update(self, samples):
        self.on_update((self.run.position.batch - 1) // self.run.settings.optim.grad_accum_steps)


def train(
    task,
    loader,
    optimizer=None,
    precision=None,
    position=None,
    epochs=1,
    num_epochs=1,
    on_update=lambda update: None,
    **flags,
):
    """Train for some epochs as the script does, with flags other than the default."""
    settings = default_settings(**flags)
    updates = math.ceil(len(loader) / settings.optim.grad_accum_steps)
    run = Run(
        settings=settings,
        world=World(CPU, 0, 1, False),
        precision=precision or Precision(CPU),
        task=task,
        loaders={"train": loader},
        optimizer=optimizer or sgd(task),
        schedule=Schedule(None, num_epochs, updates),
        data=NO_DATA,
        student=Student(task, {}, {}, {}),
        position=position or Position(),
    )
    for _ in range(epochs):
        with SignalWatch(()) as watch:
            terms = train_one_epoch(run, watch, Callback(run, on_update))
        run.position.next_epoch()
    return terms


def weights(task) -> torch.Tensor:
    return nn.utils.parameters_to_vector(task.student.parameters()).detach().clone()


class Sabotage(DistillationLoss):
    """Mean square of the logits, with one bad term at chosen calls."""

    def __init__(self, *calls: int, kind: str = "nan"):
        super().__init__()
        self.calls, self.kind, self.count = calls, kind, 0

    def compute(self, inputs):
        z = inputs.student_logits
        bad = self.count in self.calls
        self.count += 1
        extra = (
            {
                "nan": z.sum() * float("nan"),
                "inf": z.exp().sum() * float("inf"),
                "gradient": (z * 0).square().sum().sqrt(),
            }[self.kind]
            if bad
            else 0 * z.sum()
        )
        return {"square": z.square().mean(), "extra": extra}


# ---------------------------------------------------------------- accumulation


def test_accumulation_equals_one_large_batch():
    """In float64 to 1e-12: only the order of sums differs."""
    results = []
    for batch, accum in ((32, 1), (8, 4)):
        task = make_task(dtype=torch.float64, task_loss_weight=0.7)
        terms = train(
            task,
            make_loader(96, batch, torch.float64),
            grad_accum_steps=accum,
            epochs=2,
            num_epochs=2,
            precision=Precision(CPU, torch.float64),
            clip_grad=1.0,
        )
        results.append((weights(task), terms))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-12)
    assert results[1][1] == pytest.approx(
        results[0][1], abs=1e-7
    )  # terms are computed in float32 and wider


def test_last_shorter_group_is_averaged_over_its_own_length():
    loader = make_loader(56, 8)  # 7 batches in groups of 3, 3 and 1
    task, expected = make_task(), make_task()
    updates = []
    train(task, loader, sgd(task, momentum=0), grad_accum_steps=3, on_update=updates.append)
    assert updates == [0, 1, 2]
    optimizer = sgd(expected, momentum=0)
    batches = list(loader.epoch(0))
    for group in (batches[:3], batches[3:6], batches[6:]):
        optimizer.zero_grad()
        sum(expected(b.input, b.target)["loss"] for b in group).div(len(group)).backward()
        optimizer.step()
    torch.testing.assert_close(weights(task), weights(expected), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- clipping


@pytest.mark.parametrize("mode, value", [("norm", 0.01), ("value", 1e-4), ("agc", 1e-3)])
def test_clipping(mode, value):
    """The step is along the gradients that timm's function leaves, of which ``agc`` is not given the head's two."""
    task, expected, loader = make_task(), make_task(), make_loader(8)
    before = weights(task)
    train(task, loader, sgd(task, lr=1, momentum=0), clip_grad=value, clip_mode=mode)
    batch = next(loader.epoch(0))
    expected(batch.input, batch.target)["loss"].backward()
    parameters = list(expected.student.parameters())
    raw = torch.cat([p.grad.flatten() for p in parameters])
    dispatch_clip_grad(parameters[:-2] if mode == "agc" else parameters, value, mode=mode)
    clipped = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(before - weights(task), clipped, rtol=0, atol=1e-6)
    assert not torch.allclose(clipped, raw)


# ---------------------------------------------------------------- bad steps


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_bad_steps_are_skipped_and_counted(kind, caplog):
    """The weights are those of a run that never saw the bad batches; momentum and schedule included."""
    loader = make_loader(48)
    task = make_task(Sabotage(1, 2, 4, kind=kind), task_loss_weight=0.5)
    position, counts = Position(), []
    with caplog.at_level(logging.WARNING):
        terms = train(
            task,
            loader,
            position=position,
            nan_patience=3,
            on_update=lambda _: counts.append(position.bad_steps),
        )
    assert counts == [0, 1, 2, 0, 1, 0], "a checkpoint knows of each"
    expected = make_task(Sabotage(), task_loss_weight=0.5)
    optimizer = sgd(expected)
    losses = []
    for number, batch in enumerate(loader.epoch(0)):
        if number in (1, 2, 4):
            continue
        optimizer.zero_grad()
        losses.append(expected(batch.input, batch.target)["loss"])
        losses[-1].backward()
        optimizer.step()
    assert torch.equal(weights(task), weights(expected))
    messages = [
        r.message for r in caplog.records if r.message.startswith("step")
    ]  # others may log, too
    assert [m.split(":")[0] for m in messages] == ["step 1", "step 2", "step 4"]
    assert all("loss or gradient is not finite, learning rate 0.1" in m for m in messages)
    assert "(2 of 3 in a row)" in messages[1] and "(1 of 3 in a row)" in messages[2]
    if kind != "gradient":
        assert terms["loss"] == pytest.approx(torch.stack(losses).mean().item())
    assert all(np.isfinite(v) for v in terms.values())


class Centre(DistillationLoss):
    """A plugin's loss with a buffer that it makes anew in each step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(10))

    def compute(self, inputs):
        z = inputs.student_logits
        self.centre = 0.9 * self.centre + 0.1 * z.detach().mean(dim=0)
        return {"centred": (z - self.centre).square().mean()}


def everything(task, optimizer) -> dict[str, object]:
    """Copy all that a step changes: weights, statistics, memory, average and the optimizer."""
    return copy.deepcopy(
        dict(
            now=task.get_trainable_module().state_dict(),
            average=task.get_trainable_module(ema=True).state_dict(),
            loss=task.get_task_state(),
            optimizer=optimizer.state_dict(),
        )
    )


@pytest.mark.parametrize(
    "opt, loss, accum, half",
    [
        ("momentum", "elr", 1, False),
        ("momentum", "elr", 2, True),
        ("adamw", "temporal", 2, False),
        ("adamw", "sop", 1, False),
        ("lion", "sop", 2, False),
        ("lamb", "balanced_elr", 1, False),
        ("adopt", "kd", 1, False),
        ("muon", "centre", 2, False),
        ("lookahead_momentum", "centre", 1, False),
        ("lookahead_adamw", "kd", 1, False),
    ],
)
def test_a_bad_step_changes_nothing(opt, loss, accum, half, monkeypatch):
    """A batch with an image of NaN: what is there afterwards is, to the last bit, what was there before."""
    student = small_model(0, name="test_resnet")
    task = WeakToStrongTask(
        student,
        small_model(1).eval(),
        Centre() if loss == "centre" else create_loss(loss),
        verbose=False,
        num_samples=80,
    )
    task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(
        task.get_trainable_module(), opt=opt, lr=0.01, weight_decay=0.1, momentum=0.9
    )
    loader = make_loader(80)
    batches = loader.epoch

    def epoch(*where):
        for number, batch in enumerate(batches(*where)):
            if number == 7:  # the second of a group, and after a step of lookahead's slow weights
                batch.input[0] = float("nan")
            yield batch

    monkeypatch.setattr(loader, "epoch", epoch)
    states = []
    precision = (
        Precision(CPU, amp_dtype=torch.float16, scaler=NativeScaler(device="cpu"))
        if half
        else Precision(CPU)
    )
    train(
        task,
        loader,
        optimizer,
        precision,
        grad_accum_steps=accum,
        clip_grad=1.0,
        clip_mode="value",
        on_update=lambda _: states.append(everything(task, optimizer)),
    )
    bad = 7 // accum
    assert differences(states[bad], states[bad - 1]) == []
    kinds = {path.split("/")[1] for path in differences(states[bad + 1], states[bad])}
    assert kinds >= {"now", "average", "optimizer"} | ({"loss"} if loss != "kd" else set()), (
        "a good step changes them"
    )
    assert all(v.isfinite().all() for v in tree_leaves(states[-1]) if isinstance(v, torch.Tensor))


def test_a_buffer_that_a_bad_step_has_replaced_is_put_back_each_time():
    """Also where the next bad step changes in place what the first one has left."""
    loss = Centre()
    before, undo = loss.centre.clone(), BufferUndo(loss)
    undo.keep()
    loss.centre = torch.ones(20)
    undo.put_back()
    assert torch.equal(loss.centre, before)
    for _ in range(2):
        undo.keep()
        loss.centre += float("nan")
        undo.put_back()
        assert torch.equal(loss.centre, before)


# ---------------------------------------------------------------- precision


def test_float16_with_a_scaler_on_a_cpu():
    task, plain = make_task(), make_task()
    scaler = NativeScaler(device="cpu")
    precision = Precision(CPU, amp_dtype=torch.float16, scaler=scaler)
    loader = make_loader(48)
    terms = train(task, loader, precision=precision, clip_grad=1.0)
    reference = train(plain, loader, clip_grad=1.0)
    assert terms == pytest.approx(reference, rel=2e-2)
    torch.testing.assert_close(weights(task), weights(plain), rtol=0, atol=2e-2)
    assert scaler.state_dict()["scale"] == 65536


@pytest.mark.parametrize("accum", [1, 2])
def test_scaler_skips_bad_steps(accum, caplog):
    """A bad batch anywhere in a group is counted, also the first one."""
    task = make_task(Sabotage(2))
    scaler = NativeScaler(device="cpu")
    precision = Precision(CPU, amp_dtype=torch.float16, scaler=scaler)
    with caplog.at_level(logging.WARNING):
        train(task, make_loader(48), precision=precision, grad_accum_steps=accum)
    assert scaler.state_dict()["scale"] == 32768
    assert weights(task).isfinite().all()
    assert [r.message.split(":")[0] for r in caplog.records] == [f"step {2 // accum}"]
    with pytest.raises(UserError, match="stopped after 2 bad steps"):
        train(
            make_task(Sabotage(0, 2)),
            make_loader(48),
            grad_accum_steps=2,
            nan_patience=2,
            precision=Precision(CPU, amp_dtype=torch.float16, scaler=NativeScaler(device="cpu")),
        )


# ---------------------------------------------------------------- order of things


def test_progress_and_index_reach_the_loss():
    seen = []

    class Watch(DistillationLoss):
        def compute(self, inputs):
            seen.append((inputs.progress, inputs.index))
            return {"square": inputs.student_logits.square().mean()}

    loader = make_loader(24)
    train(make_task(Watch()), loader, epochs=2, num_epochs=4)
    assert [p for p, _ in seen] == pytest.approx([i / 12 for i in range(6)])
    assert sorted(torch.cat([i for _, i in seen[:3]]).tolist()) == list(range(24))


def test_average_of_the_weights_follows_the_updates():
    task = make_task()
    task.setup_ema(decay=0.9, use_warmup=True)
    expected = ModelEmaV3(task.student, decay=0.9, use_warmup=True)
    train(
        task,
        make_loader(24),
        on_update=lambda update: expected.update(task.student, step=update + 1),
    )
    found = task.get_eval_model(ema=True).module.state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in expected.module.state_dict().items()
    )


@pytest.mark.parametrize(
    ("epoch", "averages"), [(1, [False, True]), (0, [False])], ids=["evaluated", "not evaluated"]
)
def test_statistics_are_shared_of_the_average_too_where_it_is_evaluated(
    epoch, averages, monkeypatch
):
    """An evaluation follows the second epoch."""
    shared, task = [], make_task()
    task.setup_ema(decay=0.5)
    monkeypatch.setattr(evaluation, "distribute_bn", lambda *of_module: shared.append(of_module))
    run = Run(
        settings=default_settings(dist_bn="reduce", val_interval=2),
        world=World(CPU, 0, 2, True),
        precision=Precision(CPU),
        task=task,
        loaders={},
        optimizer=sgd(task),
        schedule=Schedule(None, 4, 1),
        data=NO_DATA,
        student=Student(task, {}, {}, {}),
        position=Position(epoch),
    )
    average_batch_norm(run)
    average_batch_norm(run)  # once an epoch
    assert shared == [(task.get_trainable_module(ema=average), 2, True) for average in averages]


@pytest.mark.parametrize(("rule", "scale"), [("linear", 0.5), ("sqrt", 0.5**0.5)])
def test_loss_scale_by_batch_size(rule, scale):
    """With scheduled image sizes the loss can be scaled by the size of a batch."""

    def step(rule: str) -> torch.Tensor:
        task, loader = make_task(), make_loader(8)
        loader.average_batch_size = 16.0
        before = weights(task)
        optimizer = sgd(task, momentum=0)
        train(task, loader, optimizer, variable_batch_loss_scale=rule, train_img_sizes=[16])
        return weights(task) - before

    assert (step(rule).norm() / step("none").norm()).item() == pytest.approx(scale, rel=1e-4)


# without those of other packages, and the one that compiles itself for a minute
OPTIMIZERS = [name for name in list_optimizers() if not name.startswith(("fused", "bnb", "kron"))]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("name", [*OPTIMIZERS, "lookahead_adam"])
def test_optimizer(name):
    """Every optimizer of timm moves the weights, second-order ones included; with accumulation and clipping."""
    task = make_task()
    before = weights(task)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt=name, lr=1e-3)
    train(task, make_loader(32), optimizer, grad_accum_steps=2, clip_grad=1.0)
    assert weights(task).isfinite().all()
    assert not torch.equal(weights(task), before)


# ---------------------------------------------------------------- averages of terms


def test_term_meter():
    """Means by sample, without the batches whose loss is not finite; half precision is summed in float64."""
    meter = TermMeter()
    assert meter.average() == {}
    batches = [
        (3, 1.0, 10.0),
        (5, 2.0, -4.0),
        (2, math.nan, 7.0),
        (2, math.inf, math.inf),
        (1, 0.5, 0.0),
    ]
    for size, loss, term in batches:
        meter.update(
            {
                "loss": torch.tensor(loss),
                "term": torch.tensor(term, dtype=torch.bfloat16),
                "output": torch.ones(size, 2),
            },
            size,
        )
    assert meter.average() == pytest.approx({"loss": 13.5 / 9, "term": 10 / 9})
    again = TermMeter()
    again.load_state_dict(meter.state_dict(), CPU)
    assert again.average() == meter.average()


# ---------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def validation():
    return take_slice(create_dataset("w2s/digits", None, "validation"), "0:103", 0)


def eval_loader(dataset, batch_size=16):
    return create_eval_loader(
        dataset, CONFIG, LoaderSettings(batch_size=batch_size, workers=0, device=CPU)
    )


@torch.no_grad()
def outputs(model, dataset) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in float64 and labels, in one batch."""
    images, target = next(iter(eval_loader(dataset, len(dataset))))
    return model.eval()(images).double().softmax(1).numpy(), target.numpy()


def expected_metrics(p: np.ndarray, target: np.ndarray) -> dict[str, float]:
    labels = range(p.shape[1])
    return {
        "loss": log_loss(target, p, labels=labels),
        "top1": 100 * accuracy_score(target, p.argmax(1)),
        "top5": 100 * top_k_accuracy_score(target, p, k=5, labels=labels),
    }


def evaluate_both(model, teacher, loader, **how) -> tuple[Evaluation, Evaluation]:
    """Evaluate a teacher, and a student beside it."""
    settings = EvaluationOptions(**how)
    weak = evaluate_teacher(teacher, loader, Precision(CPU), settings)
    return evaluate(model, loader, Precision(CPU), settings, teacher=weak.predictions), weak


@pytest.mark.parametrize("batch_size", [1, 16, 103, 200])
def test_figures_equal_those_of_scikit_learn(validation, batch_size):
    model, teacher, loader = (
        small_model(0).train(),
        small_model(1).eval(),
        eval_loader(validation, batch_size),
    )
    found, weak = evaluate_both(model, teacher, loader)
    assert not model.training
    p, target = outputs(model, validation)
    q, _ = outputs(teacher, validation)
    alike, wrong = p.argmax(1) == q.argmax(1), q.argmax(1) != target
    beside = {"agreement": 100 * alike.mean(), "copied": 100 * alike[wrong].mean()}
    assert found.metrics == pytest.approx({**expected_metrics(p, target), **beside}, rel=1e-5)
    assert weak.metrics == pytest.approx(expected_metrics(q, target), rel=1e-5)
    assert found.predictions.tolist() == p.argmax(1).tolist()
    assert weak.predictions.tolist() == q.argmax(1).tolist()
    assert found.targets.tolist() == target.tolist() == validation.targets
    assert (
        evaluate(model, loader, Precision(CPU)).metrics.keys() == expected_metrics(p, target).keys()
    )


def test_valid_labels_hold_for_the_teacher_too(validation):
    keep = [1, 3, 4, 6, 7, 9]
    dataset = type(validation)(
        validation, [i for i, t in enumerate(validation.targets) if t in keep]
    )
    # labels counted among those that are kept
    loader = [
        (x, torch.tensor([keep.index(int(t)) for t in target]))
        for x, target in eval_loader(dataset)
    ]
    nets = small_model(0), small_model(1).eval()
    for net, found in zip(nets, evaluate_both(*nets, loader, valid_labels=keep)):
        p, target = outputs(net, dataset)
        p = p[:, keep] / p[:, keep].sum(1, keepdims=True)
        expected = expected_metrics(p, np.array([keep.index(t) for t in target]))
        assert {k: found.metrics[k] for k in expected} == pytest.approx(expected, rel=1e-5)


def test_consecutive_views_of_a_sample_are_averaged(validation):
    """Each sample three times over: figures are those of the samples, for the teacher as well."""
    nets = small_model(0), small_model(1).eval()
    thrice = eval_loader(type(validation)(validation, [i for i in range(40) for _ in range(3)]), 12)
    once = eval_loader(type(validation)(validation, range(40)))
    for found, expected in zip(evaluate_both(*nets, thrice, tta=3), evaluate_both(*nets, once)):
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
        assert torch.equal(found.predictions, expected.predictions)


def ruling_out(validation, value: float) -> Evaluation:
    """Evaluate a teacher that gives most classes this logit."""

    def answer(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0, *[value] * 8]]).expand(len(images), 10)

    return evaluate_teacher(answer, eval_loader(validation), Precision(CPU), EvaluationOptions())


def test_a_teacher_may_rule_classes_out_by_finite_logits(validation):
    assert math.isfinite(ruling_out(validation, -1e9).metrics["loss"])


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_teacher_may_not_give_logits_that_are_not_finite(validation, value):
    message = refusal(ruling_out, validation, value)
    assert "not finite for 100 % of the samples" in message


def test_several_teachers_see_the_images_each_in_its_own_form(validation):
    """Their probabilities are averaged, of every sample."""
    seen_as, probabilities = StudentInput(CONFIG["mean"], CONFIG["std"], 3, 10), []
    configs = {1: CONFIG, 2: {**CONFIG, "mean": (0.1,) * 3}}
    for seed, config in configs.items():
        loader = create_eval_loader(validation, config, LoaderSettings(len(validation), 0, CPU))
        ((images, _),) = loader
        with torch.no_grad():
            probabilities.append(small_model(seed).eval()(images).double().softmax(1))
    teacher = Teacher(
        [TeacherModel(small_model(seed), config, seen_as) for seed, config in configs.items()]
    ).eval()
    found = evaluate_teacher(
        *own_answers(teacher, validation, LoaderSettings(16, 0, CPU), ()),
        Precision(CPU),
        EvaluationOptions(),
    )
    expected = sum(probabilities) / 2
    assert torch.equal(found.predictions, expected.argmax(1))
    assert found.metrics == pytest.approx(
        expected_metrics(expected.numpy(), found.targets.numpy()), rel=1e-4
    )
