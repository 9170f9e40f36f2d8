"""The weak-to-strong task, inside a plain timm loop and on its own."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

from tests.parts import random_images, small_model, store_targets
from w2s_plugins.losses import DistillationLoss, LossInputs, create_loss
from w2s_plugins.training.task import WeakToStrongTask

TARGET = torch.arange(8) % 10


class Recorder(DistillationLoss):
    """A loss with a parameter and memory by sample, which keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def setup(self, context):
        self.context = context
        self.register_buffer("memory", torch.zeros(context.num_samples or 1, context.num_classes))

    def compute(self, inputs: LossInputs) -> dict[str, torch.Tensor]:
        self.seen.append(inputs)
        if inputs.index is not None:
            self.memory[inputs.index] += inputs.student_logits.detach().softmax(1)
        return {
            "first": self.scale * inputs.student_logits.square().mean(),
            "second": 2 * self.scale,
        }


def make(loss="adaptconf", model="w2s_cnn5", **kwargs) -> WeakToStrongTask:
    loss = create_loss(loss) if isinstance(loss, str) else loss
    return WeakToStrongTask(
        small_model(0, model), small_model(1).eval(), loss, verbose=False, **kwargs
    )


# ---------------------------------------------------------------- terms and total


@pytest.mark.parametrize("cached", [False, True])
def test_ground_truth_and_teacher_each_have_their_part_of_a_batch(tmp_path, cached):
    images, index, target = (
        random_images(),
        torch.tensor([16, 17, 3, 1, 4, 0, 5, 9]),
        TARGET.clone(),
    )
    target[2:] = -1
    teacher, stored = small_model(1).eval(), torch.zeros(16, 10)
    logits = teacher(images).detach()
    stored[index[2:]] = logits[2:]
    task = WeakToStrongTask(
        small_model(0, "w2s_cnn5"),
        store_targets(tmp_path, stored[None]) if cached else teacher,
        create_loss("elr"),
        task_loss_weight=0.3,
        distill_loss_weight=0.7,
        num_samples=16,
        labelled=2,
        cached=cached,
        verbose=False,
    )
    result = task(images, target, index)
    student = copy.deepcopy(task.student)(images)
    torch.testing.assert_close(result["output"], student)
    torch.testing.assert_close(result["task"], F.cross_entropy(student[:2], target[:2]))
    alone = make("elr", task_loss_weight=0.0, num_samples=16)
    terms = alone.loss(LossInputs(student[2:], logits[2:], index=index[2:]))
    for name, term in terms.items():
        torch.testing.assert_close(result[name], term)
    torch.testing.assert_close(result["loss"], 0.3 * result["task"] + 0.7 * sum(terms.values()))
    for (name, a), b in zip(task.loss.named_buffers(), alone.loss.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)  # memory is of those without labels
    assert task.teacher_forward(images, index).logits.shape == (6, 10)


@pytest.mark.parametrize("labelled", [0, 2])
def test_of_a_strong_view_the_student_learns_what_it_says_of_the_first(labelled):
    """Neither the teacher nor the true labels have a say in them, and no gradient goes through the first view."""
    images = random_images()  # eight: some with labels, then as many first as strong views
    count = (8 + labelled) // 2
    target, index = TARGET.clone(), torch.arange(8)
    target[labelled:] = TARGET[labelled:] if labelled == 0 else -1
    asked = []

    def teacher(query):
        asked.append(query)
        return small_model(1).eval()(query).detach()

    task = WeakToStrongTask(
        small_model(0, "w2s_cnn5").eval(),
        teacher,
        create_loss("kd"),
        labelled=labelled,
        strong_views=True,
        num_samples=8,
        verbose=False,
    )
    result = task(images, target, index)
    assert torch.equal(asked[0], images[labelled:count])
    logits = task.student(images)
    torch.testing.assert_close(result["output"], logits[:count])
    expected = F.cross_entropy(logits[count:], logits[labelled:count].argmax(dim=1))
    torch.testing.assert_close(result["strong"], expected)
    known = labelled or count
    torch.testing.assert_close(result["task"], F.cross_entropy(logits[:known], target[:known]))
    plain = make("kd", labelled=labelled)
    terms = plain.loss(LossInputs(logits[labelled:count], teacher(images[labelled:count])))
    total = result["task"] + result["strong"] + sum(terms.values())
    torch.testing.assert_close(result["loss"], total)
    # the class of the first view is a target, not something that is trained
    ours = torch.autograd.grad(result["strong"], [*task.student.parameters()], allow_unused=True)
    alone = torch.autograd.grad(expected, [*task.student.parameters()], allow_unused=True)
    for a, b in zip(ours, alone):
        torch.testing.assert_close(a, b)


def test_ground_truth_does_not_reach_a_loss_at_weight_zero():
    loss = Recorder()
    make(loss, task_loss_weight=0.0)(random_images(), TARGET)
    assert loss.seen[-1].target is None
    loss = Recorder()
    make(loss)(random_images(), TARGET)
    assert torch.equal(loss.seen[-1].target, TARGET)


def test_what_a_loss_is_given():
    loss = Recorder()
    task = make(loss, num_samples=20)
    assert (loss.context.num_classes, loss.context.num_samples) == (10, 20)
    task.set_progress(0.25)
    images, index = random_images(), torch.tensor([3, 5, 19, 0, 1, 2, 7, 8])
    task(images, TARGET, index=index)
    seen = loss.seen[-1]
    assert torch.equal(seen.index, index)
    assert seen.progress == 0.25
    assert seen.student_logits.requires_grad and not seen.teacher_logits.requires_grad
    assert torch.equal(seen.teacher_logits, task.teacher(images))
    assert loss.memory[index].sum() == pytest.approx(8) and loss.memory.sum() == pytest.approx(8)
    task(images, TARGET)
    assert loss.seen[-1].index is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_are_computed_in_float32_under_autocast(dtype):
    loss = Recorder()
    task = make(loss).eval()
    with torch.autocast("cpu", dtype=dtype):
        result = task(random_images(), TARGET)
    assert result["output"].dtype == dtype
    assert loss.seen[-1].student_logits.dtype == loss.seen[-1].teacher_logits.dtype == torch.float32
    terms = {name: result[name].dtype for name in ("loss", "first", "second", "task")}
    assert terms == dict.fromkeys(terms, torch.float32)


# ---------------------------------------------------------------- parameters, clipping, compile


def test_parameters_of_the_loss_are_trained_with_those_of_the_student():
    loss = Recorder()
    task = make(loss)
    trained = {id(p) for p in task.get_trainable_module().parameters()}
    assert trained == {id(p) for p in [*task.student.parameters(), loss.scale]}
    assert {id(p) for p in task.get_clip_parameters()} == trained
    head = {id(p) for p in task.student.get_classifier().parameters()}
    assert {id(p) for p in task.get_clip_parameters(exclude_head=True)} == trained - head


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "w2s_cnn5"])
def test_groups_of_layer_decay_and_weight_decay_are_those_of_the_student_alone(name):
    """Each of the student's parameters gets the rate and decay it would get without the task around it."""
    student = timm.create_model(name, num_classes=10)
    loss = Recorder()
    task = WeakToStrongTask(student, small_model(1), loss, verbose=False)
    kwargs = dict(opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)

    def groups(module):
        optimizer = create_optimizer_v2(module, **kwargs)
        return {
            id(p): (g["lr_scale"], g["weight_decay"])
            for g in optimizer.param_groups
            for p in g["params"]
        }

    alone, together = groups(student), groups(task.get_trainable_module())
    assert {k: v for k, v in together.items() if k in alone} == alone
    assert len({scale for scale, _ in alone.values()}) > 2
    assert together.keys() - alone.keys() == {id(loss.scale)}
    assert together[id(loss.scale)] == (1.0, 0.0)
    assert any(decay == 0 for _, decay in alone.values()) and any(
        decay > 0 for _, decay in alone.values()
    )


def test_compiled_in_the_mode_that_was_asked_for():
    """The step of training and the evaluation, which are compiled by themselves."""
    modes = []

    def compiler(graph, inputs, mode=None):
        modes.append(mode)
        return graph.forward

    task, images = make(), random_images()
    task.compile(backend=compiler, mode="max-autotune")
    task(images, TARGET)
    of_training = len(modes)
    task.eval().get_eval_model()(images)
    assert 0 < of_training < len(modes) and {*modes} == {"max-autotune"}


def test_compiled():
    plain, compiled = make(), make()
    compiled.compile(backend="aot_eager")
    images = random_images()
    results = [task(images, TARGET) for task in (plain, compiled)]
    for result in results:
        result["loss"].backward()
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(plain.student.parameters(), compiled.student.parameters()):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    assert (
        plain.get_checkpoint_state()["state_dict"].keys()
        == compiled.get_checkpoint_state()["state_dict"].keys()
    )
    torch.testing.assert_close(
        compiled.eval().get_eval_model()(images),
        plain.eval().get_eval_model()(images),
        rtol=1e-4,
        atol=1e-5,
    )
