"""Several teachers: the nearest one for each sample, learned weights."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.parts import store_targets
from w2s_plugins.engine.task import WeakToStrongTask
from w2s_plugins.losses import create_loss
from w2s_plugins.teachers.mix import LearnedTeacherWeights, NearestTeacher
from w2s_plugins.teachers.teacher import combine


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_sample_gets_the_teacher_with_the_smallest_divergence() -> None:
    teachers, student = logits(3, 8, 5), logits(8, 5, seed=1)
    mixed = NearestTeacher()(teachers, student, 0.0)
    counts = [0, 0, 0]
    for i in range(8):
        divergences = []
        for m in range(3):
            q, p = teachers[m, i].softmax(0), student[i].softmax(0)
            divergences.append(sum(float(a * (a / b).log()) for a, b in zip(q, p)))
        nearest = divergences.index(min(divergences))
        counts[nearest] += 1
        assert torch.equal(mixed.logits[i], teachers[nearest, i])
    assert [float(mixed.figures[f"teacher{m}_share"]) for m in range(3)] == [c / 8 for c in counts]
    assert mixed.keep is None


def test_learned_weights_start_with_the_mean_and_take_steps_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd of the loss with a normalised target; the second step would leave the simplex."""
    teachers, student = logits(3, 8, 5), logits(8, 5, seed=1)
    mix = LearnedTeacherWeights(3, agreement_share=0.0)
    torch.testing.assert_close(mix(teachers, student, 0.5).logits.softmax(1), combine(list(teachers)).softmax(1))
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    mix.weights.fill_(1 / 3)
    for rate in (1e-3, 100.0):
        monkeypatch.setattr(mix, "RATE", rate)
        mixed = mix(teachers, student, 0.5)
        weights.requires_grad_()
        loss = 0.0
        for i in range(8):
            target = sum(weights[m] * teachers[m, i].double().softmax(0) for m in range(3))
            loss = loss - (target / target.sum() * student[i].double().log_softmax(0)).sum() / 8
        (gradient,) = torch.autograd.grad(loss, weights)
        assert [float(mixed.figures[f"teacher{m}_weight"]) for m in range(3)] == pytest.approx(weights.tolist())
        weights = (weights.detach() - rate * gradient).clamp(min=1e-6)
        weights /= weights.sum()
        torch.testing.assert_close(mix.weights.double(), weights, rtol=1e-5, atol=1e-7)
    assert weights.min() < 1e-5
    mix.eval()(teachers, student, 0.5)
    torch.testing.assert_close(mix.weights.double(), weights, rtol=1e-5, atol=1e-7)


def test_only_samples_of_agreement_at_first() -> None:
    teachers, student = logits(2, 16, 3), logits(16, 3, seed=1)
    mix = LearnedTeacherWeights(2, agreement_share=0.3)
    agree = teachers[0].argmax(1) == teachers[1].argmax(1)
    assert 0 < agree.sum() < 16
    early, late = mix(teachers, student, 0.29), mix(teachers, student, 0.3)
    assert early.keep.tolist() == agree.nonzero().flatten().tolist() and late.keep is None
    assert early.figures["trained_share"] == agree.float().mean() and late.figures["trained_share"] == 1
    alone, before = LearnedTeacherWeights(2, agreement_share=0.3), mix.weights.fill_(0.5).clone()
    mix(teachers, student, 0.29)
    alone(teachers[:, agree], student[agree], 0.5)
    assert torch.equal(mix.weights, alone.weights) and not torch.equal(mix.weights, before)


def make_task(mix: nn.Module, teachers: torch.Tensor, folder: Path) -> WeakToStrongTask:
    torch.manual_seed(0)
    student = timm.create_model("w2s_cnn2", num_classes=teachers.shape[2])
    return WeakToStrongTask(
        student, store_targets(folder, teachers), create_loss("kd"), task_loss_weight=0.0, cached=True, mix=mix)


def test_in_the_task_weights_are_moved_saved_and_restored(tmp_path: Path) -> None:
    teachers, images, index = logits(2, 20, 4), torch.randn(6, 3, 16, 16), torch.arange(6)
    task = make_task(LearnedTeacherWeights(2, 0.0), teachers, tmp_path / "a")
    result = task(images, None, index=index)
    state = task.get_task_state()
    assert state["mix.weights"][0] != 0.5
    again = make_task(LearnedTeacherWeights(2, 0.0), teachers, tmp_path / "b")
    again.load_task_state(state)
    assert torch.equal(again.get_task_state()["mix.weights"], state["mix.weights"])
    assert {"kd", "teacher0_weight", "teacher1_weight"} <= set(result)
    assert result["loss"].item() == pytest.approx(result["kd"].item())  # figures are no part of the loss


def test_a_batch_without_agreement_still_reaches_every_parameter(tmp_path: Path) -> None:
    teachers = torch.zeros(2, 6, 4)
    teachers[0, :, 0], teachers[1, :, 1] = 5.0, 5.0
    task = make_task(LearnedTeacherWeights(2, 1.0), teachers, tmp_path)
    result = task(torch.randn(6, 3, 16, 16), None, index=torch.arange(6))
    assert result["loss"] == result["kd"] == 0.0  # the terms of other batches, and of other ranks
    result["loss"].backward()
    gradients = [p.grad for p in task.get_trainable_module().parameters()]
    assert all(g is not None for g in gradients)
    assert all(g.abs().sum() == 0 for n, g in zip(dict(task.student.named_parameters()), gradients))
