"""Few-shot episodes: accuracies against plain loops, intervals against scipy, and the task that trains on episodes."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from tests.parts import data_config, random_images, small_model, train_loader, train_settings
from w2s_plugins.data import create_dataset, draw_episodes
from w2s_plugins.distributed.world import Precision
from w2s_plugins.losses import LossInputs, create_loss
from w2s_plugins.metrics.figures import format_figures
from w2s_plugins.models.feature_extraction import pooled_features
from w2s_plugins.settings.forms import EpisodeShape
from w2s_plugins.teachers.teacher import StudentInput, Teacher, TeacherModel
from w2s_plugins.training import few_shot
from w2s_plugins.training.evaluation import extract_features
from w2s_plugins.training.few_shot import (
    SCALE,
    FewShotTest,
    create_episodic_task,
    episode_accuracies,
    mean_and_interval,
)
from w2s_plugins.training.task import WeakToStrongTask

LABELS = [c for c in range(7) for _ in range(12)]
SHAPE = EpisodeShape(ways=4, shots=2, queries=3)


@pytest.fixture
def features() -> torch.Tensor:
    """Features of 84 samples that their class shows in, but not clearly."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 16, generator=generator)
    return centres[torch.tensor(LABELS)] + 1.5 * torch.randn(84, 16, generator=generator)


def by_loops(features: torch.Tensor, episodes: torch.Tensor, shots: int) -> list[float]:
    """Accuracy of each episode, one query and one class at a time."""
    accuracies = []
    for episode in episodes.tolist():
        hits = []
        for way, positions in enumerate(episode):
            for query in positions[shots:]:
                cosines = [
                    F.cosine_similarity(features[query], features[other[:shots]].mean(0), dim=0)
                    for other in episode
                ]
                hits.append(int(np.argmax(cosines)) == way)
        accuracies.append(np.mean(hits))
    return accuracies


def test_accuracies_are_those_of_a_loop(features, monkeypatch):
    drawn = draw_episodes(LABELS, SHAPE, 40, seed=0)
    monkeypatch.setattr(
        few_shot, "_CHUNK", 3 * SHAPE.size * 16
    )  # three episodes at once, so that several chunks
    found = episode_accuracies(features, drawn, SHAPE.shots)
    assert found.tolist() == pytest.approx(by_loops(features, drawn, SHAPE.shots), abs=1e-6)
    assert 0.3 < found.mean() < 0.99  # neither chance nor all right: a mistake would show


def test_interval_is_that_of_scipy():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    mean, half = mean_and_interval(values)
    low, high = scipy.stats.t.interval(
        0.95, 49, loc=np.mean(values.numpy()), scale=scipy.stats.sem(values.numpy())
    )
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6)
    assert math.isnan(mean_and_interval(values[:1])[1])


def test_measure_reports_each_shape_in_percent(features):
    shapes = [SHAPE, EpisodeShape(4, 5, 3)]
    figures = FewShotTest(
        shapes, [draw_episodes(LABELS, shape, 60, 1) for shape in shapes]
    ).measure(features)
    assert list(figures) == ["4x2", "4x2_ci95", "4x5", "4x5_ci95"]
    expected = 100 * episode_accuracies(features, draw_episodes(LABELS, shapes[1], 60, 1), 5)
    assert figures["4x5"] == pytest.approx(expected.mean().item())
    assert figures["4x5"] > figures["4x2"]
    assert format_figures({"5x1": 61.5, "5x1_ci95": 0.421}) == {"5x1": "61.50 ± 0.42"}


def test_features_come_in_the_order_of_the_data():
    model, images = small_model().eval(), random_images(10)
    loader = [
        (images[:4], torch.zeros(4)),
        (images[4:8], torch.zeros(4)),
        (images[8:], torch.zeros(2)),
    ]
    found = extract_features(
        lambda x: pooled_features(model, x),
        loader,
        Precision(torch.device("cpu"), layout=torch.channels_last),
    )
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.get_classifier()(found), model(images))
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- training


def teacher(*models: torch.nn.Module) -> Teacher:
    config = dict(mean=(0.0,) * 3, std=(1.0,) * 3, input_size=(3, 32, 32))
    return Teacher(
        [TeacherModel(m, config, StudentInput((0.0,) * 3, (1.0,) * 3, 3, None)) for m in models]
    ).eval()


def logits_by_hand(
    model: torch.nn.Module, images: torch.Tensor, scale: torch.Tensor | float
) -> torch.Tensor:
    """Logits of the queries, episode by episode and query by query."""
    features, rows = pooled_features(model, images), []
    for episode in features.split(SHAPE.size):
        groups = episode.split(SHAPE.per_class)
        for group in groups:
            for query in group[SHAPE.shots :]:
                cosines = [
                    F.cosine_similarity(query, other[: SHAPE.shots].mean(0), dim=0)
                    for other in groups
                ]
                rows.append(scale * torch.stack(cosines))
    return torch.stack(rows)


LABELS_OF_TWO = torch.tensor([way for _ in range(2) for way in range(4) for _ in range(3)])


def make(**kwargs) -> WeakToStrongTask:
    return create_episodic_task(
        small_model(0),
        teacher(small_model(1)),
        create_loss("adaptconf"),
        None,
        SHAPE,
        verbose=False,
        **kwargs,
    )


def test_loss_is_that_of_the_queries_by_hand():
    task, images = (
        make(task_loss_weight=0.5, distill_loss_weight=2.0).eval(),
        random_images(2 * SHAPE.size),
    )
    result = task(images, LABELS_OF_TWO)
    with torch.no_grad():
        student = logits_by_hand(task.student, images, 10.0)
        weak = logits_by_hand(small_model(1).eval(), images, SCALE)
        terms = task.loss(LossInputs(student, weak, LABELS_OF_TWO))
    torch.testing.assert_close(result["output"], student, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result["task"], F.cross_entropy(student, LABELS_OF_TWO))
    torch.testing.assert_close(result["kd"], terms["kd"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        result["loss"], 2 * sum(terms.values()) + 0.5 * result["task"], rtol=1e-4, atol=1e-4
    )


def test_encoder_and_scale_learn_and_the_classifier_stays():
    task = make().train()
    task(random_images(2 * SHAPE.size), LABELS_OF_TWO)["loss"].backward()
    gradients = {name: p.grad for name, p in task.get_trainable_module().named_parameters()}
    assert {name for name, grad in gradients.items() if grad is None} == {
        "student.fc.weight",
        "student.fc.bias",
    }
    assert gradients["extractor.scale"].abs() > 0
    assert not any(p.requires_grad for p in task.student.get_classifier().parameters())


def test_targets_are_places_in_the_episode():
    settings = train_settings(
        "--num-classes 10 --no-aug --episodic 4x2:2 --queries 3",
        "--train-batches-per-epoch 1",
        "--val-split",
        "",
    )
    (batch,) = train_loader(
        create_dataset("w2s/digits", None, "train"), settings, data_config(8)
    ).epoch(0)
    assert len(batch.input) == 2 * SHAPE.size and torch.equal(batch.target, LABELS_OF_TWO)
