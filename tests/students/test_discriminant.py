"""The linear discriminant in closed form: equal to scikit-learn's, for soft labels too."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from w2s_plugins.students.discriminant import fit_discriminant
from w2s_plugins.target_kind import TINY


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


def in_batches(features: Tensor, labels: Tensor, size: int = 100):
    return lambda: zip(features.split(size), labels.split(size))


def test_it_is_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    """But for the shares of the classes and the scale of the logits, which are ours."""
    features, labels = digits
    found = fit_discriminant(in_batches(features, one_hot(labels, 10)))
    varies = features.std(0) > 0
    rows = ((features - features.mean(0)) / features.std(0, correction=0))[:, varies].double()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(
        rows.numpy(), labels.numpy()
    )
    # the covariance of columns that never change is 0 in ours, which takes part in the mean of the variances
    plain = fit_discriminant(in_batches(rows.float(), one_hot(labels, 10)))
    expected = torch.tensor(theirs.decision_function(rows.numpy()) - theirs.intercept_)
    expected += torch.tensor(theirs.intercept_ - torch.tensor(theirs.priors_).log().numpy())
    logits = plain(rows).double()
    scale = (logits * expected).sum() / (expected * expected).sum()
    assert torch.allclose(
        logits, scale * expected, rtol=1e-4, atol=1e-4 * logits.abs().max().item()
    )
    assert (found(features).argmax(1) == labels).float().mean() > 0.93


def test_a_soft_label_is_so_many_samples(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:300], digits[1][:300]
    other = (labels + 1) % 10
    soft = 0.7 * one_hot(labels, 10) + 0.3 * one_hot(other, 10)
    found = fit_discriminant(in_batches(features, soft))
    many = torch.cat([labels.repeat(7), other.repeat(3)])
    expected = fit_discriminant(in_batches(features.repeat(10, 1), one_hot(many, 10)))
    assert torch.allclose(found(features), expected(features), rtol=1e-4, atol=1e-4)
    whole = fit_discriminant(in_batches(features, soft, 300))
    assert torch.allclose(found(features), whole(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_no_other_scale_of_the_logits_has_a_lower_cross_entropy(
    digits: tuple[Tensor, Tensor], share: float
) -> None:
    """Of labels that are sure, and of such that are not."""
    features, classes = digits
    labels = share * one_hot(classes, 10).double() + (1 - share) * one_hot((classes + 1) % 10, 10)
    logits = fit_discriminant(in_batches(features, labels))(features).double()
    at, smaller, larger = (cross_entropy(scale * logits, labels) for scale in (1, 0.99, 1.01))
    assert at < min(smaller, larger)


@pytest.mark.parametrize("least", [0, TINY])  # as they are stored
def test_classes_that_no_label_has_and_features_that_do_not_change(
    digits: tuple[Tensor, Tensor], least: float
) -> None:
    features, labels = digits
    few = labels < 3
    found = fit_discriminant(
        in_batches(features[few], one_hot(labels[few], 10).float().clamp(min=least))
    )
    logits = found(features)
    without = fit_discriminant(in_batches(features[few], one_hot(labels[few], 3)))
    torch.testing.assert_close(logits[:, :3], without(features))
    assert logits.isfinite().all() and logits.half().isfinite().all() and logits.argmax(1).max() < 3
    same = fit_discriminant(in_batches(torch.ones(20, 4), one_hot(torch.arange(20) % 2, 2)))
    assert same(torch.ones(3, 4)).isfinite().all()
