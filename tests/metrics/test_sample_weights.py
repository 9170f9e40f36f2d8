"""Histograms of what a loss weighs samples with: against a count by hand, over ranks and restarts, and in a run."""

from collections.abc import Callable

import pytest
import torch

from tests.parts import student_and_teacher
from w2s_plugins.engine.task import WeakToStrongTask
from w2s_plugins.losses import LossInputs, create_loss
from w2s_plugins.losses.confidence import adaptive_weight
from w2s_plugins.metrics.sample_weights import BINS, KINDS, WeightMeter

CPU = torch.device("cpu")


def batch(seed: int, count: int = 40) -> tuple[dict, torch.Tensor]:
    """What a task returns for random answers among three classes, and labels of which some are missing."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator)
    weights[:3] = torch.tensor([0.0, 1.0, torch.nan])
    output = torch.randn(count, 3, generator=generator)
    teacher, target = torch.randint(0, 3, (2, count), generator=generator)
    target[-4:] = -1
    return {"output": output, "sample_weights": {"weights": {"beta": weights}, "teacher": teacher}}, target


def by_hand(batches: list[tuple[dict, torch.Tensor]]) -> dict[str, list[float]]:
    """The weights of each kind, one by one."""
    found: dict[str, list[float]] = {}
    for result, target in batches:
        rows = zip(result["output"].argmax(1).tolist(), result["sample_weights"]["teacher"].tolist(), target.tolist(),
                   result["sample_weights"]["weights"]["beta"].tolist())
        for student, teacher, label, weight in rows:
            if label < 0:
                kind = "agree" if student == teacher else "disagree"
            elif student == teacher:
                kind = "agree_right" if teacher == label else "agree_wrong"
            else:
                kind = "teacher_right" if teacher == label else "student_right" if student == label else "both_wrong"
            if weight == weight:
                found.setdefault(kind, []).append(weight)
    return found


def test_against_a_count_by_hand() -> None:
    batches = [batch(seed) for seed in range(3)]
    meter = WeightMeter()
    for number, (result, target) in enumerate(batches):
        soft = target.clamp(min=0)[:, None] == torch.arange(3)
        meter.update(result, soft.float() if number == 0 else target)
    batches[0] = (batches[0][0], batches[0][1].clamp(min=0))
    expected, found = by_hand(batches), meter.record()["beta"]
    assert found.keys() == expected.keys() == set(KINDS)
    for kind, weights in expected.items():
        counts = [0] * BINS
        for weight in weights:
            counts[min(int(weight * BINS), BINS - 1)] += 1
        assert found[kind]["counts"] == counts
        assert found[kind]["mean"] == pytest.approx(sum(weights) / len(weights), abs=1e-6)


def test_any_split_gives_the_same() -> None:
    """In one piece, in two that are added, or interrupted: to the last bit."""
    whole, parts = WeightMeter(), [WeightMeter(), WeightMeter()]
    for seed in range(4):
        result = batch(seed)
        whole.update(*result)
        parts[seed % 2].update(*result)
    again = WeightMeter()
    again.load_state_dict(parts[0].state_dict(), CPU)
    for seed in (1, 3):
        again.update(*batch(seed))
    assert again.record() == whole.record()
    assert torch.equal(parts[0].counts["beta"] + parts[1].counts["beta"], whole.counts["beta"])


def inputs() -> LossInputs:
    generator = torch.Generator().manual_seed(0)
    return LossInputs(*(3 * torch.randn(2, 16, 5, generator=generator)), progress=0.1)


@pytest.mark.parametrize(("name", "kwargs", "expected"), [
    ("adaptconf", dict(temperature=2.0, kd_temperature=3.0, ramp=0.4),
     {"beta": lambda x: 0.25 * adaptive_weight(x.student_logits, x.teacher_logits, 2.0)}),
    ("conf_weighted", {}, {"confidence": lambda x: x.teacher_logits.softmax(1).amax(1)}),
    ("confidence_mask", dict(threshold=0.9, source="teacher"),
     {"sure": lambda x: (x.teacher_logits.softmax(1).amax(1) >= 0.9).float()}),
    ("kd+adaptconf", {"adaptconf.temperature": 1.5, "adaptconf.weight": 3.0},
     {"adaptconf.beta": lambda x: adaptive_weight(x.student_logits, x.teacher_logits, 1.5)}),
    ("kd", {}, {}),
])
def test_weights_of_losses(name: str, kwargs: dict, expected: dict[str, Callable]) -> None:
    found = create_loss(name, **kwargs).sample_weights(inputs())
    assert found.keys() == expected.keys()
    for key, weights in found.items():
        torch.testing.assert_close(weights, expected[key](inputs()))
        assert not weights.requires_grad and ((weights >= 0) & (weights <= 1)).all()


def test_task_returns_them_only_when_asked() -> None:
    student, teacher, images, target = student_and_teacher()
    plain, logging = (
        WeakToStrongTask(student, teacher, create_loss("adaptconf"), log_weights=wanted, device=CPU, verbose=False)
        for wanted in (False, True))
    result = logging(images, target)
    assert "sample_weights" not in plain(images, target)
    assert torch.equal(result["loss"], plain(images, target)["loss"])
    expected = adaptive_weight(result["output"].detach(), teacher(images), 0.5)
    torch.testing.assert_close(result["sample_weights"]["weights"]["beta"], expected)
    assert torch.equal(result["sample_weights"]["teacher"], teacher(images).argmax(1))
