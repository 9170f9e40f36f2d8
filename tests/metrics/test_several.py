"""Figures of several classes an image: equal to timm's and scikit-learn's, and what unknown labels change."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from timm.task.evaluator import MultiLabelClassificationEvaluator

from tests.losses.common import on_two_ranks
from w2s_plugins.distributed.world import Precision
from w2s_plugins.metrics.evaluator import SeveralEvaluator, truth_remark
from w2s_plugins.metrics.resampling import drawn_counts
from w2s_plugins.metrics.several import (
    average_precision,
    best_thresholds,
    class_rows,
    decide,
    f1_figures,
    map_by_image,
    resampled_f1,
    resampled_map,
)
from w2s_plugins.study.folds import _headline_of_all, _Part, truth_columns
from w2s_plugins.target_kind import ONE_CLASS, SEVERAL_CLASSES
from w2s_plugins.training.evaluation import (
    EvaluationOptions,
    evaluate,
    evaluate_teacher,
    f1_at_chosen,
)

NAN = float("nan")


def made(
    count: int = 200, classes: int = 7, unknown: float = 0.0, seed: int = 0, share: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores with ties, and truth, (N, C)."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, classes)) < share).astype(float)
    scores = np.round(truth + rng.normal(0, 1.2, truth.shape), 1)
    truth[rng.random(truth.shape) < unknown] = np.nan
    return scores, truth


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array).float() for array in arrays]


# ---------------------------------------------------------------- the evaluator


@pytest.mark.parametrize("sizes", [(200,), (64, 64, 64, 64), (1, 150, 70)])
def test_equal_to_timm_to_the_last_bit(sizes: tuple[int, ...]) -> None:
    """In batches, with padding at the end that counts nowhere."""
    output, target = tensors(*made(300, 80, seed=1))
    ours = SeveralEvaluator("cpu", max_samples=200, threshold=0.6)
    timms = MultiLabelClassificationEvaluator("cpu", max_samples=200, threshold=0.6)
    for logits, truth in zip(
        output.split([*sizes, 300 - sum(sizes)]), target.split([*sizes, 300 - sum(sizes)])
    ):
        ours.update(logits, truth)
        timms.update(logits, truth)
    assert dict(ours.compute()) == dict(timms.compute())
    assert ours.logits.equal(output[:200])


def test_without_samples_as_timm() -> None:
    assert SeveralEvaluator().compute() == MultiLabelClassificationEvaluator().compute()


def test_unknown_counts_nowhere() -> None:
    """Against scikit-learn and torch, class by class over what is known."""
    scores, truth = made(120, 5, unknown=0.4)
    known = ~np.isnan(truth)
    output, target = tensors(scores, truth)
    evaluator = SeveralEvaluator()
    for logits, labels in zip(output.split(50), target.split(50)):
        evaluator.update(logits, labels)
    found = evaluator.compute()

    pairs = [(truth[k, i], scores[k, i]) for i, k in enumerate(known.T)]
    aps = [average_precision_score(true, score) for true, score in pairs]
    assert found["map"] == pytest.approx(100 * np.mean(aps))
    f1 = [f1_score(true, score >= 0) for true, score in pairs]
    assert found["macro_f1"] == pytest.approx(100 * np.mean(f1))
    micro = f1_score(truth[known], scores[known] >= 0)
    assert found["micro_f1"] == pytest.approx(100 * micro)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        output[torch.from_numpy(known)].double(), target[torch.from_numpy(known)].double()
    )
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_what_a_teacher_says_nothing_of() -> None:
    """It ranks last and is decided to be none; the loss is that of the rest."""
    output = torch.tensor([[2.0, NAN], [-1.0, 3.0], [1.0, -2.0]])
    target = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    evaluator = SeveralEvaluator()
    evaluator.update(output, target)
    found = evaluator.compute()
    said = ~output.isnan()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output[said], target[said])
    assert found["loss"] == pytest.approx(loss.item())
    assert found["map"] == pytest.approx(100 * (1 + (1 + 2 / 3) / 2) / 2)
    assert found["micro_f1"] == pytest.approx(100 * 4 / 6)


def test_a_model_that_has_diverged() -> None:
    """Its loss is not that of nothing."""
    evaluator = SeveralEvaluator()
    evaluator.update(torch.full((2, 3), NAN), torch.ones(2, 3))
    assert np.isnan(evaluator.compute()["loss"])


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="matching"):
        SeveralEvaluator().update(torch.zeros(2, 3), torch.zeros(2))


def test_few_positives_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    assert truth_remark([5, 6], [1, 1]) is None
    assert truth_remark([0, 0, 4, 9, 7], [9, 0, 5, 1, 0]) == (
        "of 5 classes 2 have no positive image and leave the mAP, and 1 have no negative image and leave mAP and F1, and "
        "1 have fewer than 5 positives, whose AP is uncertain"
    )
    assert truth_remark([0, 4], [9, 0]) == (
        "of 2 classes 1 have no positive image and leave the mAP, and 1 have no negative image and leave mAP and F1; none "
        "is left, so there is no mAP"
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            evaluator = SeveralEvaluator()
            evaluator.update(torch.randn(9, 4), torch.eye(9)[:, :4])
            evaluator.compute()
    assert [m for m in caplog.messages if "of 4 classes" in m] == [
        "WARNING: of 4 classes 4 have fewer than 5 positives, whose AP is uncertain"
    ]


def test_classes_whose_truth_is_one_sided_leave() -> None:
    """A class that is only ever said to be there is no easy 100, and one that never is no 0; evaluation, table of the
    classes, thresholds and intervals agree. Without any class left there is no figure.
    """
    scores, truth = made(60, 5, unknown=0.2)
    truth[truth[:, 3] == 0, 3] = NAN  # columns of 1 and nothing
    truth[truth[:, 4] == 1, 4] = NAN
    wanted = average_precision(scores[:, :3], truth[:, :3])
    of_f1 = f1_figures(decide(np.delete(scores, 3, axis=1), 0), np.delete(truth, 3, axis=1))
    evaluator = SeveralEvaluator()
    evaluator.update(*tensors(scores, truth))
    found = evaluator.compute()
    assert found["map"] == pytest.approx(100 * wanted.mean())
    assert average_precision(scores, truth) == pytest.approx([*wanted, NAN, NAN], nan_ok=True)
    assert map_by_image(scores, truth).mean() == pytest.approx(wanted.mean())
    draws = [resampled_map({"a": scores[:, :k]}, truth[:, :k], 50)["a"] for k in (3, 5)]
    assert draws[0] == pytest.approx(draws[1])
    assert f1_figures(decide(scores, 0), truth)[:3] == pytest.approx(of_f1[:3])
    assert [found[name] for name in ("micro_f1", "macro_f1", "sample_f1")] == pytest.approx(
        [100 * value for value in f1_figures(decide(scores, 0), truth)[:3]]
    )
    rows = class_rows([*"abcde"], scores, truth)
    assert [row["AP"] is None for row in rows] == [False, False, False, True, True]
    assert [row["F1"] is None for row in rows] == [False, False, False, True, False]
    assert (best_thresholds(scores, truth, 1)[3:] == 0.5).all()

    never_no = np.where(truth == 0, NAN, truth)
    evaluator = SeveralEvaluator()
    evaluator.update(*tensors(scores, never_no))
    assert [*evaluator.compute()] == ["loss"]
    assert np.isnan(resampled_map({"a": scores}, never_no, 9)["a"]).all()
    assert np.isnan(map_by_image(scores, never_no)).all()
    pairs = torch.stack(tensors(scores, never_no), dim=1)
    assert f1_at_chosen(pairs, pairs) == ([0.5] * 5, {})


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_two_ranks(unknown: float, tmp_path: Path) -> None:
    """Equal to one process, and to timm's on as many ranks to the last bit."""
    output, target = tensors(*made(101, 6, unknown=unknown))

    def measure(rank: int) -> list[dict[str, float]]:
        kinds = (
            [SeveralEvaluator] if unknown else [SeveralEvaluator, MultiLabelClassificationEvaluator]
        )
        evaluators = [kind("cpu") for kind in kinds]
        for evaluator in evaluators:
            evaluator.update(output[rank::2], target[rank::2])
        return [dict(evaluator.compute(distributed=True)) for evaluator in evaluators]

    alone = SeveralEvaluator()
    alone.update(output, target)
    of_ranks = on_two_ranks(measure, tmp_path)
    assert of_ranks[0] == of_ranks[1]
    found, *timms = of_ranks[0]
    assert found == pytest.approx(dict(alone.compute()))
    assert all(figures == found for figures in timms)


def test_a_pass_over_a_split() -> None:
    """Figures, decisions and the logits that they are of; without ground truth neither mAP nor logits."""
    output, target = tensors(*made(40, 5, unknown=0.2))
    output[3:9, 1] = NAN
    loader = [*zip(output.split(16), target.split(16))]
    settings = EvaluationOptions(target_kind=SEVERAL_CLASSES)
    teacher = evaluate_teacher(lambda rows: rows, loader, Precision(torch.device("cpu")), settings)
    assert teacher.logits is not None and torch.equal(teacher.logits.isnan(), output.isnan())
    assert teacher.predictions[3:9, 1].eq(-1).all()
    alone = SeveralEvaluator()
    alone.update(output, target)
    assert teacher.metrics == pytest.approx(dict(alone.compute()))
    blind = EvaluationOptions(target_kind=SEVERAL_CLASSES, has_truth=False)
    found = evaluate(lambda rows: rows, loader, Precision(torch.device("cpu")), blind)
    assert found.logits is None and "map" not in found.metrics


def test_all_folds_together() -> None:
    output, target = tensors(*made(60, 5))
    parts = [_Part(SEVERAL_CLASSES, *pair) for pair in zip(output.split(25), target.split(25))]
    wanted = 100 * average_precision(output.numpy(), target.numpy()).mean()
    assert _headline_of_all(parts) == pytest.approx(wanted)
    classes = [_Part(ONE_CLASS, rows, rows.argmax(dim=1)) for rows in output.split(25)]
    assert _headline_of_all(classes) == 100
    truth = torch.tensor([[1.0, NAN], [0.0, 0.0]])
    columns = truth_columns(SEVERAL_CLASSES, truth, ["dog", "cat"])
    assert columns == {"truth": ["dog", "[]"], "truth_unknown": ["cat", "[]"]}  # which is not no
    assert truth_columns(ONE_CLASS, torch.tensor([1]), ["dog", "cat"]) == {"truth": ["cat"]}


# ---------------------------------------------------------------- by class


@pytest.mark.parametrize("unknown", [0.0, 0.5])
def test_average_precision_is_scikit_learns(unknown: float) -> None:
    scores, truth = made(150, 9, unknown)
    truth[:, 3] = 0  # no positive
    found = average_precision(scores, truth)
    for i in range(9):
        known = ~np.isnan(truth[:, i])
        if i == 3:
            assert np.isnan(found[i])
        else:
            wanted = average_precision_score(truth[known, i], scores[known, i])
            assert found[i] == pytest.approx(wanted)


def test_f1_is_scikit_learns() -> None:
    scores, truth = made(150, 9)
    found = f1_figures(decide(scores, 0.4), truth)
    says = scores >= 0.4
    assert found.micro == pytest.approx(f1_score(truth, says, average="micro"))
    assert found.macro == pytest.approx(f1_score(truth, says, average="macro"))
    assert found.sample == pytest.approx(f1_score(truth, says, average="samples", zero_division=0))
    assert found.by_class == pytest.approx(f1_score(truth, says, average=None))


def test_best_thresholds() -> None:
    """No other threshold has a higher F1; few positives or no negative keep 0.5, and what is not said is none."""
    scores, truth = made(200, 4, unknown=0.2)
    scores = 1 / (1 + np.exp(-scores))
    truth[:, 3] = np.where(np.arange(200) < 9, 1, 0)
    scores[::7, 0] = np.nan
    found = best_thresholds(scores, truth)
    assert found[3] == 0.5 and (found[:3] != 0.5).all()
    reached = f1_figures(decide(scores, found), truth).by_class
    for threshold in np.linspace(0, 1, 301):
        assert (
            f1_figures(decide(scores, threshold), truth).by_class[:3] <= reached[:3] + 1e-12
        ).all()
    (halfway,) = best_thresholds(
        np.array([[0.9], [0.8], [0.2], [0.1]]), np.array([[1.0], [1], [0], [0]]), 2
    )
    assert halfway == pytest.approx(0.5)
    (every,) = best_thresholds(np.array([[0.9], [0.2]]), np.array([[1.0], [1]]), 2)
    assert every == 0.5


def test_table_of_classes() -> None:
    scores = np.array([[0.9, 0.6], [0.4, 0.7], [0.2, 0.1]])
    truth = np.array([[1.0, 0.0], [1.0, NAN], [0.0, 0.0]])
    assert class_rows(["dog", "cat"], scores, truth, np.array([0.3, 0.5])) == [
        {"class": "dog", "known": 3, "positives": 2, "AP": 100.0, "F1": 100.0, "threshold": 0.3},
        {"class": "cat", "known": 2, "positives": 0, "AP": None, "F1": 0.0, "threshold": 0.5},
    ]


# ---------------------------------------------------------------- resamples


def drawn_rows(count: int, resamples: int) -> list[np.ndarray]:
    """Return the images of each resample, as the fast way draws them."""
    rows = []
    for _, times in drawn_counts(count, resamples):
        rows += [np.repeat(np.arange(count), row.astype(int)) for row in times]
    return rows


@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_resamples_are_those_by_hand(unknown: float) -> None:
    """mAP and F1 of the images of each resample; classes that are in none of it do not count there."""
    scores, truth = made(60, 5, unknown, share=0.2)
    truth[:, 4] = 0
    truth[:2, 3], truth[2:, 3] = 1, 0  # in some resamples without a positive
    second = np.where(np.arange(60)[:, None] % 7 == 0, np.nan, scores[::-1])
    found = resampled_map({"a": scores, "b": second}, truth, 50)
    of_f1 = resampled_f1(decide(scores, 0.5), truth, 50)
    for r, rows in enumerate(drawn_rows(60, 50)):
        for name, given in dict(a=scores, b=second).items():
            aps = average_precision(given[rows], truth[rows])
            assert found[name][r] == pytest.approx(np.nanmean(aps), abs=1e-12)
        wanted = f1_figures(decide(scores[rows], 0.5), truth[rows])
        assert of_f1["micro_f1"][r] == pytest.approx(wanted.micro)
        assert of_f1["sample_f1"][r] == pytest.approx(wanted.sample)
        assert of_f1["macro_f1"][r] == pytest.approx(wanted.macro)


def test_resampling_is_fast() -> None:
    """A thousand resamples of 2,000 images and 20 classes."""
    scores, truth = made(2000, 20)
    start = time.process_time()
    resampled_map({"a": scores}, truth, 1000)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_contributions_of_images(unknown: float) -> None:
    """Their mean is the mAP, and they are its derivative by the weight of an image."""
    scores, truth = made(80, 5, unknown)
    truth[:, 2] = 0
    of_images = map_by_image(scores, truth)
    value = np.nanmean(average_precision(scores, truth))
    assert of_images.mean() == pytest.approx(value)
    # every image 1,000 times, and one of them once more
    for k in (0, 17, 79):
        rows = np.append(np.repeat(np.arange(80), 1000), np.repeat(k, 1))
        slope = (np.nanmean(average_precision(scores[rows], truth[rows])) - value) * 1000
        assert (of_images[k] - value) / 80 == pytest.approx(slope, abs=1e-4)


def test_contributions_spread_as_resamples_do() -> None:
    scores, truth = made(1000, 10)
    drawn = resampled_map({"a": scores}, truth, 1000)["a"]
    spread = map_by_image(scores, truth).std() / 1000**0.5
    assert drawn.std() == pytest.approx(spread, rel=0.1)
    assert drawn.mean() == pytest.approx(average_precision(scores, truth).mean(), abs=0.003)
