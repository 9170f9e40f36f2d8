"""Several teachers as evidence: matrices that are found, opinions that are calibrated, files that say nothing of some."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from w2s_plugins.errors import UserError
from w2s_plugins.labels.combine import combine_annotators
from w2s_plugins.target_kind import ONE_CLASS, UNMAPPED_LOGIT
from w2s_plugins.teachers.posterior import PosteriorTargets
from w2s_plugins.teachers.stored import CachedTargets

CPU = torch.device("cpu")
CLASSES, COUNT = 4, 6000
TRUTH = torch.arange(COUNT) % CLASSES


class Answers:
    """What somebody has said of some images, as stored answers are read.

    Args:
        probabilities: (N, C).
        known: (N,) of which images.
    """

    folder = None

    def __init__(self, probabilities: Tensor, known: Tensor | None = None):
        self.logits = probabilities.clamp(min=1e-12).log()
        self.known = torch.ones(len(probabilities), dtype=torch.bool) if known is None else known
        self.complete = bool(self.known.all())
        self.manifest = type("Manifest", (), {"num_classes": probabilities.shape[1], "views": 1})

    def has(self, index: Tensor) -> Tensor:
        return self.known[index]

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        assert self.has(index).all()
        return self.logits[index]


def noisy(matrix: Tensor, seed: int) -> Tensor:
    """Return one-hot answers (N, C) of somebody who confuses the classes like this."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.multinomial(matrix[TRUTH], 1, generator=generator)[:, 0]
    return torch.nn.functional.one_hot(said, CLASSES).float()


def right_on(share: float) -> Tensor:
    """Return the matrix of somebody who is right so often, whatever the class."""
    return torch.full((CLASSES, CLASSES), (1 - share) / (CLASSES - 1)).fill_diagonal_(share)


def opinion(share: float, sharpness: float = 1.0, seed: int = 7) -> Tensor:
    """Return calibrated probabilities (N, C) that are right so often, made more extreme."""
    said = noisy(right_on(share), seed).argmax(dim=1)
    calibrated = right_on(share)[said]
    return (calibrated.log() * sharpness).softmax(dim=1)


def posterior(*probabilities: Tensor, right: float | None = None) -> PosteriorTargets:
    targets = CachedTargets([Answers(each) for each in probabilities], CPU, ONE_CLASS)
    return PosteriorTargets(targets, COUNT, right)


def accuracy(logits: Tensor) -> float:
    return float((logits.argmax(dim=1) == TRUTH).float().mean())


def test_matrices_are_those_by_which_answers_were_made() -> None:
    """A teacher that swaps classes is read, and one that says anything is ignored."""
    swaps = torch.tensor(
        [[0.1, 0.8, 0.1, 0.0], [0.7, 0.2, 0.0, 0.1], [0.0, 0.0, 1.0, 0.0], [0.1, 0.1, 0.3, 0.5]]
    )
    useless = torch.full((CLASSES, CLASSES), 1 / CLASSES)
    prior = opinion(0.7)
    targets = posterior(noisy(swaps, 1), noisy(useless, 2), prior)
    torch.testing.assert_close(targets.matrices[0], swaps, atol=0.05, rtol=0)
    torch.testing.assert_close(targets.matrices[1], useless, atol=0.05, rtol=0)
    # as good as Bayes' rule with the true matrices, and better than either alone
    said = noisy(swaps, 1).argmax(dim=1)
    best = accuracy(prior.log() + swaps.clamp(min=1e-6).log()[:, said].T)
    found = accuracy(targets(torch.arange(COUNT)))
    assert found == pytest.approx(best, abs=0.01) and found > accuracy(prior) + 0.1


def test_of_a_prior_that_knows_nothing_it_is_dawid_and_skene() -> None:
    """Three people who are mostly right, and a last teacher that prefers what they say a little, as that method begins."""
    people = [noisy(right_on(share), seed) for seed, share in enumerate((0.9, 0.7, 0.6))]
    votes = torch.stack(people).mean(dim=0)
    labels = torch.stack(people, dim=1).argmax(dim=2)
    theirs = combine_annotators(
        np.repeat(np.arange(COUNT), 3),
        np.tile(np.arange(3), COUNT),
        labels.flatten().numpy(),
        CLASSES,
        "dawid-skene",
    )
    ours = posterior(*people, (votes * 0.1).softmax(dim=1))(torch.arange(COUNT)).softmax(dim=1)
    # the votes count a little once more in ours, which decides where it is close
    assert (ours.argmax(dim=1).numpy() == theirs.argmax(axis=1)).mean() > 0.98
    assert np.abs(ours.numpy() - theirs).mean() < 0.02


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_last_teacher_is_as_sure_as_it_is_right(sharpness: float) -> None:
    """By the temperature that undoes how its answers were sharpened."""
    targets = posterior(noisy(right_on(0.9), 1), opinion(0.7, sharpness), right=70)
    assert targets.temperature == pytest.approx(sharpness, rel=0.02)
    sure = opinion(0.7, sharpness).log() / targets.temperature
    assert float(ONE_CLASS.confidence(sure).mean()) == pytest.approx(0.7, abs=0.002)


def test_good_labels_are_believed_if_an_unsure_opinion_is_calibrated() -> None:
    """A student that is surer than it should be overrules labels that are better than it, unless it is calibrated."""
    labels, prior = noisy(right_on(0.95), 1), opinion(0.7, sharpness=6.0)
    as_it_is, calibrated = (posterior(labels, prior, right=right) for right in (None, 70))
    every = torch.arange(COUNT)
    assert accuracy(calibrated(every)) >= accuracy(labels.log()) - 0.005
    assert accuracy(as_it_is(every)) < accuracy(calibrated(every)) - 0.02


def test_images_of_which_somebody_says_nothing() -> None:
    """Then the others decide; of one that the last teacher could not read, the witness alone."""
    said, prior = noisy(right_on(0.9), 1), opinion(0.6)
    spoken = torch.arange(COUNT) % 3 > 0
    read = torch.arange(COUNT) % 1000 != 7
    targets = PosteriorTargets(
        CachedTargets([Answers(said, spoken), Answers(prior, read)], CPU, ONE_CLASS), COUNT, 60
    )
    said_of = (spoken | read).nonzero().flatten()
    logits = torch.zeros(COUNT, CLASSES).index_copy(0, said_of, targets(said_of))
    assert logits.isfinite().all()
    alone = ~spoken & read
    torch.testing.assert_close(
        logits[alone].softmax(dim=1),
        (prior[alone].log() / targets.temperature).softmax(dim=1),
    )
    unread = spoken & ~read
    assert torch.equal(logits[unread].argmax(dim=1), said[unread].argmax(dim=1))


def test_classes_that_the_last_teacher_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    """Of these the others are believed; about the rest, also one that swaps two classes is read as ever."""
    caplog.set_level(logging.INFO)
    swaps = torch.tensor(
        [[0.1, 0.9, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.1, 0.9]]
    )
    said, prior = noisy(swaps, 1), opinion(0.7)
    last = Answers(prior)
    last.logits[:, 3] = UNMAPPED_LOGIT
    targets = PosteriorTargets(CachedTargets([Answers(said), last], CPU, ONE_CLASS), COUNT, 60)
    logits = targets(torch.arange(COUNT))
    assert logits.isfinite().all()
    own = said[:, 3] == 1
    assert torch.equal(logits.argmax(dim=1) == 3, own)
    known = TRUTH < 3
    right = (logits.argmax(dim=1) == TRUTH)[known].float().mean()
    assert right > 0.9, "the swapped classes are found"
    assert "does not know 1 of 4 classes; of these the others are believed" in caplog.text


def test_what_it_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    posterior(noisy(right_on(0.9), 1), noisy(right_on(0.5), 2), opinion(0.7), right=70)
    (line,) = [record.message for record in caplog.records if "posterior" in record.message]
    first, second = (
        float(number) for number in line.split("right on ")[1].split(" %")[0].split(", ")
    )
    assert first == pytest.approx(90, abs=2) and second == pytest.approx(50, abs=2)


def test_figures() -> None:
    """A teacher that has seen nothing keeps its place."""
    nothing = torch.zeros(COUNT, dtype=torch.bool)
    said = noisy(right_on(0.9), 1)
    answers = [Answers(said, nothing), Answers(said), Answers(opinion(0.7))]
    targets = PosteriorTargets(CachedTargets(answers, CPU, ONE_CLASS), COUNT, 70)
    absent, believed = targets.figures["believed"]
    assert absent is None and believed == pytest.approx(90, abs=4)
    assert targets.figures["temperature"] == pytest.approx(targets.temperature, abs=1e-4)
    assert 20 < targets.figures["differs"] < 40


def test_a_last_teacher_that_is_certain_needs_a_number() -> None:
    """Classes without a confidence: no evidence is stronger than that, so the others would be asked in vain."""
    certain, other = noisy(right_on(0.7), 1), noisy(right_on(0.9), 2)
    with pytest.raises(UserError, match=r"certain of every answer.*posterior:70"):
        posterior(other, certain)
    believed = posterior(other, certain, right=70)(torch.arange(COUNT))
    assert accuracy(believed) > accuracy(certain.log()) + 0.1


def test_an_image_of_which_nobody_says_anything_is_named() -> None:
    known = torch.arange(COUNT) != 5
    answers = [Answers(noisy(right_on(0.9), 1), known), Answers(opinion(0.7), known)]
    targets = PosteriorTargets(CachedTargets(answers, CPU, ONE_CLASS), COUNT)
    assert targets(torch.tensor([4, 6])).isfinite().all()
    with pytest.raises(
        AssertionError
    ):  # of the reader, which names the sample where it is a real one
        targets(torch.tensor([4, 5]))


def test_a_last_teacher_that_cannot_be_as_sure_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is right less often than chance, and whoever says the same of all classes is never sure."""
    flat = torch.full((COUNT, CLASSES), 1 / CLASSES)
    posterior(noisy(right_on(0.9), 1), flat, right=70)
    assert (
        "cannot be made as sure as that; its answers are taken to be right on 25.0 %" in caplog.text
    )


def test_many_classes_of_few_images() -> None:
    """Also logits of classes that a teacher does not know, and opinions rounded to half precision."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 1000, generator=generator) * 5
    logits[:, 500:] = UNMAPPED_LOGIT
    prior = Answers(torch.zeros(20, 1000))
    prior.logits = logits.clamp(min=-60000).half()
    witness = Answers(torch.nn.functional.one_hot(torch.arange(20) + 480, 1000).float())
    targets = PosteriorTargets(CachedTargets([witness, prior], CPU, ONE_CLASS), 20, 60)
    found = targets(torch.arange(20))
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(targets.matrices[0].sum(dim=1), torch.ones(1000))


@pytest.mark.parametrize("right", [0.26, 0.4, 0.7, 0.99])
def test_certain_answers_can_be_made_as_unsure_as_they_are_right(right: float) -> None:
    certain = noisy(right_on(0.7), 1)
    targets = posterior(noisy(right_on(0.9), 2), certain, right=100 * right)
    sure = ONE_CLASS.confidence(certain.clamp(min=1e-12).log() / targets.temperature).mean()
    assert float(sure) == pytest.approx(right, abs=0.002)


@pytest.mark.parametrize("right", [1, 25])
def test_of_a_last_teacher_at_chance_the_others_are_still_found(right: float) -> None:
    """Nobody can be less sure than chance, where all matrices would be as likely."""
    people = [noisy(right_on(share), seed) for seed, share in enumerate((0.9, 0.8))]
    found = posterior(*people, opinion(0.5), right=right)
    assert accuracy(found(torch.arange(COUNT))) > 0.85
