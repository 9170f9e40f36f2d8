"""What the answers about some images say of all of them: how often each opinion is right, and which one most often."""

from typing import NamedTuple

import numpy as np

from .draw import Opinions, differing_share, find_strata

DRAWS = 20_000  # of the posterior
OUTSIDE = 0.05  # of the posterior, of a 95 % interval
MARGIN = 1.43  # times half of its width: so far from 0 such an interval is beyond 0 in four of five cases
PRIOR = 0.5  # pseudo-answers for each outcome, Jeffreys' parameter of a Dirichlet distribution


class Evidence(NamedTuple):
    """What a person said of n images, and how likely these were to be asked about.

    Args:
        opinions: K of N images.
        rows: (n,) of the images.
        truth: (n,) classes.
        chance: (n,) how likely each was to be drawn.
        groups: (N,) from `draw.group_images`.
    """

    opinions: Opinions
    rows: np.ndarray
    truth: np.ndarray
    chance: np.ndarray
    groups: np.ndarray


class Answers(NamedTuple):
    """What a person said of n images, and of how many others each answer speaks.

    Args:
        right: (n, K) which opinions are right.
        truth: (n,) classes.
        groups: (n,) of the images.
        others: (n,) of how many images without an answer it speaks.
        images: (groups,) how many there are.
        rest: (groups,) how many have no answer.
        agreeing: how many groups, the first ones, are of images where all agree.
    """

    right: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    others: np.ndarray
    images: np.ndarray
    rest: np.ndarray
    agreeing: int = 1


class Estimate(NamedTuple):
    """Accuracies of K opinions over all images, from 0 to 1, and the differences of each pair, of a row above a column.

    Args:
        accuracy: (K,) by inverse probability.
        low: (K,) lower end of the 95 % interval of each.
        high: (K,) upper end.
        difference: (K, K).
        lowest: (K, K) lower end of the interval of each, which hold all together in 95 %.
        highest: (K, K) upper end.
        is_best: (K,) how probably each is the best one; equal ones share.
        needed: (K, K) about how many drawn images decide which of two is better, if the difference is as estimated.
    """

    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    difference: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    is_best: np.ndarray
    needed: np.ndarray


def expected_outcomes(opinions: Opinions) -> tuple[np.ndarray, np.ndarray]:
    """Return what may come out about an image, who is right, as sums of 2^k of those that are, and the pseudo-answers
    for each: on average over the images `PRIOR` for each class that somebody says, and for any other class.
    """
    outcomes, often = np.unique(np.concatenate(opinions.outcomes()), return_counts=True)
    return outcomes, PRIOR * often / max(1, len(opinions.says))


def estimate(
    opinions: Opinions,
    rows: np.ndarray,
    truth: np.ndarray,
    chance: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
) -> Estimate:
    """Estimate accuracies from the answers about images that were drawn with known chances.

    Intervals are those of the posterior, in which images without an answer have the outcomes of their group. So nothing
    is open where all images have an answer. Those of the differences are simultaneous ones, see `simultaneous`.

    Args:
        opinions: K of N images.
        rows: (n,) the images that a person has said the class of.
        truth: (n,) these classes.
        chance: (n,) how likely each was to be drawn.
        groups: (N,) from `draw.group_images`.
        seed: of the draws from the posterior.
    """
    answers = weigh(opinions, rows, truth, chance, groups)
    rng = np.random.default_rng(seed)
    agree, drawn_agree = _where_all_agree(answers, rng)
    count = opinions.says.shape[1]
    right, drawn = np.full(count, agree), np.repeat(drawn_agree[:, None], count, axis=1)
    for group in range(1, len(answers.images)):
        if answers.images[group]:
            own, drawn_own = _where_some_differ(opinions.at(groups == group), answers, group, rng)
            right, drawn = right + own, drawn + drawn_own
    accuracy, drawn = right / len(opinions.says), drawn / len(opinions.says)

    # of each opinion alone, and of all pairs together
    low, high = np.quantile(drawn, (OUTSIDE / 2, 1 - OUTSIDE / 2), axis=0)
    one, other = np.triu_indices(count, 1)
    difference = accuracy[:, None] - accuracy
    lowest, highest = np.zeros((count, count)), np.zeros((count, count))
    if len(one):
        ends = simultaneous(drawn[:, one] - drawn[:, other])
        lowest[one, other] = np.minimum(ends[0], difference[one, other])
        highest[one, other] = np.maximum(ends[1], difference[one, other])
        lowest[other, one], highest[other, one] = -highest[one, other], -lowest[one, other]
    is_first = drawn >= drawn.max(axis=1, keepdims=True) - 1e-12
    return Estimate(
        accuracy,
        np.minimum(low, accuracy),
        np.maximum(high, accuracy),
        difference,
        lowest,
        highest,
        (is_first / is_first.sum(axis=1, keepdims=True)).mean(axis=0),
        _needed(difference, highest - lowest, answers),
    )


def weigh(
    opinions: Opinions, rows: np.ndarray, truth: np.ndarray, chance: np.ndarray, groups: np.ndarray
) -> "Answers":
    """Return of how many images each answer (n,) speaks, see `estimate` for the arguments: for itself, and for as many
    others as the chance of its image says, which are those of its stratum and group together.
    """
    cells = groups * opinions.strata + find_strata(opinions)
    own = cells[rows]
    images, answered = (np.bincount(one, minlength=cells.max() + 1) for one in (cells, own))
    others = 1 / chance - 1
    # a person could not tell of some, where each was sure to be drawn
    others = np.where(np.bincount(own, others)[own], others, 1)
    others *= (images - answered)[own] / np.bincount(own, others)[own]
    of_group = np.bincount(groups)
    rest = of_group - np.bincount(groups[rows], minlength=len(of_group))
    right = opinions.says[rows] == truth[:, None]
    return Answers(right, truth, groups[rows], others, of_group, rest, opinions.agreeing)


def _where_all_agree(answers: "Answers", rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return how many images of those where all agree all are right about, and draws (S,) from its posterior."""
    agree = answers.groups == 0
    return _count(answers.right[agree, 0], answers.others[agree], answers.rest[0], rng)


def _count(
    is_so: np.ndarray, speaks_for: np.ndarray, rest: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Return of how many images something is so, and draws (S,) from the posterior of that.

    Args:
        is_so: (n,) of which images with an answer.
        speaks_for: (n,) of how many others each of these speaks.
        rest: how many have no answer.
        rng: of the draws.
    """
    share = _mean(is_so, speaks_for) if len(is_so) else 0.5
    size = effective_number(speaks_for)
    shares = rng.beta(share * size + PRIOR, (1 - share) * size + PRIOR, DRAWS)
    return is_so.sum() + rest * share, is_so.sum() + rng.binomial(rest, shares)


def _where_some_differ(
    opinions: Opinions, answers: "Answers", group: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images of a group where some differ each opinion (K,) is right about, and draws (S, K).

    Args:
        opinions: K of the M images of the group.
        answers: about all images.
        group: its number.
        rng: of the draws.
    """
    # the posterior of the outcomes, whose prior is what is said
    own = answers.groups == group
    right, speaks_for = answers.right[own], answers.others[own]
    bits = 1 << np.arange(right.shape[1])
    outcomes, pseudo = expected_outcomes(opinions)
    weights, size = pseudo, 0.0
    if speaks_for.any():
        place = np.searchsorted(outcomes, right @ bits)
        weights = np.bincount(place, speaks_for, len(outcomes))
        size = effective_number(speaks_for)
    mean = weights / weights.sum()
    gammas = rng.standard_gamma(mean * size + pseudo, (DRAWS, len(outcomes)))
    shares = gammas / np.maximum(gammas.sum(axis=1, keepdims=True), 1e-300)

    # the images without an answer are drawn from it
    rest = answers.rest[group]
    is_right = (outcomes[:, None] & bits) > 0
    unseen = rng.multinomial(rest, shares)
    known = right.sum(axis=0)
    return known + rest * mean @ is_right, known + unseen @ is_right


def simultaneous(drawn: np.ndarray) -> np.ndarray:
    """Return the ends (2, P) of intervals that hold all P numbers of a draw together in 95 % of the draws: each as many
    of its standard deviations wide, by the greatest deviation within a draw (Westfall and Young, 1993).

    Args:
        drawn: (S, P) draws from their common distribution.
    """
    mean, spread = drawn.mean(axis=0), drawn.std(axis=0)
    deviations = np.abs(drawn - mean) / np.maximum(spread, 1e-12)
    far = np.quantile(deviations.max(axis=1), 1 - OUTSIDE)
    return np.stack([mean - far * spread, mean + far * spread])


def count_yes(
    opinions: Opinions,
    rows: np.ndarray,
    truth: np.ndarray,
    chance: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall (K, 3) of the yes of opinions about questions, each with a 95 % interval; NaN where
    there is no yes. Arguments as of `estimate`.

    How often an opinion says yes is known of all questions; how many of these are right, and how many of its no are
    not, the answers say.
    """
    answers = weigh(opinions, rows, truth, chance, groups)
    rng = np.random.default_rng(seed)
    of_opinions: list[list[list[float]]] = []
    for says in opinions.says.T:
        # of what it says no and yes to, by group, since questions of a group are more alike
        there, drawn = [0.0, 0.0], np.zeros((2, DRAWS))
        for cell in np.unique(2 * groups + says):
            is_in = 2 * groups[rows] + says[rows] == cell
            rest = int((2 * groups + says == cell).sum() - is_in.sum())
            yes, of_draws = _count(truth[is_in] == 1, answers.others[is_in], rest, rng)
            there[cell % 2] += yes
            drawn[cell % 2] += of_draws
        missed, hits = there
        of_opinions.append(
            [
                _share(hits, drawn[1], says.sum(), says.sum()),
                _share(hits, drawn[1], hits + missed, drawn.sum(axis=0)),
            ]
        )
    precision, recall = np.array(of_opinions).transpose(1, 0, 2)
    return precision, recall


def _share(
    part: float, drawn: np.ndarray, whole: float, drawn_whole: np.ndarray | float
) -> list[float]:
    """Return a share and its 95 % interval by the draws (S,) of its part and of the whole."""
    if not whole:
        return [float("nan")] * 3
    low, high = np.quantile(
        drawn / np.maximum(drawn_whole, 1e-9), (OUTSIDE / 2, 1 - OUTSIDE / 2)
    ).tolist()
    value = part / whole
    return [value, min(low, value), max(high, value)]


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean, the plain one where nothing has any weight."""
    return float(np.average(values, weights=weights if weights.any() else None))


def effective_number(weights: np.ndarray) -> float:
    """Return how many answers of one weight tell as much as these (Kish, 1965)."""
    square = (weights**2).sum()
    return float(weights.sum() ** 2 / square) if square else float(len(weights))


def _needed(difference: np.ndarray, width: np.ndarray, answers: Answers) -> np.ndarray:
    """Return about how many drawn images (K, K) make the interval of each pair so narrow that it decides."""
    # answers where some differ; the square of the width goes with 1/n - 1/N
    first = answers.agreeing
    agreeing, differing = answers.images[:first].sum(), max(1, answers.images[first:].sum())
    seen = max(1, (answers.groups >= first).sum())
    narrower = (2 * difference / (MARGIN * np.maximum(width, 1e-9))) ** 2
    most = np.ceil(1 / (narrower * (1 / seen - 1 / differing) + 1 / differing))
    share = max(differing_share(len(difference)), differing / answers.images.sum())
    return np.minimum(np.ceil(most / share), most + agreeing).astype(int)
