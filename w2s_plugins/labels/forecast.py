"""Which model of a crowd suits it: the one that forecasts best the answers that were held out of it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import logger
from ..metrics.resampling import drawn_counts
from .annotators import Crowd, Votes, fit_crowd, forecast

# how strongly annotators may be drawn together
STRENGTHS = {"one-coin": (1.0, 4.0, 16.0), "dawid-skene-pooled": (3.0, 10.0, 30.0, 100.0)}
MODELS = ("majority", "one-coin", "dawid-skene", "dawid-skene-pooled")
_PARTS, _ROUNDS = 5, 3  # of the answers, and how many of these parts are held out in turn
_STEPS, _TOLERANCE = 50, 1e-4  # of a fit that is only compared
_UNSEEN = 0.01  # share of a forecast that is spread evenly, as an answer that was never seen is not impossible
_RESAMPLES = 1000


def compare(
    crowds: Sequence[Votes], models: Sequence[str] = MODELS
) -> dict[Crowd, tuple[np.ndarray, np.ndarray]]:
    """Return how well models forecast held-out answers: a sum of log-likelihoods and a count by sample, (N,) each.

    A fifth of the answers is held out at a time, three times, and only where others are left about the sample.

    Args:
        crowds: answers about the same samples; of several classes an image those of yes and no about each class.
        models: names of `MODELS`; those with a strength are there with each.
    """
    candidates = [
        Crowd(name, strength) for name in models for strength in STRENGTHS.get(name, (0.0,))
    ]
    size = max(votes.shape[0] for votes in crowds)
    scores = {crowd: (np.zeros(size), np.zeros(size)) for crowd in candidates}
    for votes in crowds:
        part = np.random.default_rng(0).integers(_PARTS, size=len(votes.samples))
        has_others = votes.answers[votes.samples] > 1
        for number in range(_ROUNDS):
            is_out = (part == number) & has_others
            if not is_out.any() or is_out.all():
                continue
            kept, held_out = votes.take(~is_out), votes.take(is_out)
            for crowd, (sums, counts) in scores.items():
                likely = forecast(fit_crowd(kept, crowd, _STEPS, _TOLERANCE), held_out)
                logs = np.log((1 - _UNSEEN) * likely + _UNSEEN / votes.shape[2])
                sums += np.bincount(held_out.samples, logs, minlength=size)
                counts += np.bincount(held_out.samples, minlength=size)
    return scores


def settle(how: str, crowds: Sequence[Votes], flag: str = "") -> Crowd:
    """Return the model of a crowd, with its strength, that ``how`` names; of ``auto`` the best one, which is logged.

    Args:
        how: as of `combine.combine_annotators`.
        crowds: as of `compare`.
        flag: begins the message.
    """
    if how != "auto" and how not in STRENGTHS:
        return Crowd(how)
    means = _means(compare(crowds, MODELS if how == "auto" else [how]))
    best = max(means, key=lambda crowd: means[crowd])
    if how == "auto":
        of_others = _best_of_each(means)
        listed = ", ".join(f"{crowd.name} {means[crowd]:.4f}" for crowd in of_others)
        logger.info(
            f"{flag}: combine=auto takes {best.name}: log-likelihood of a held-out answer {listed}"
        )
    return best


def advise(crowds: Sequence[Votes]) -> Iterator[str]:
    """Yield a table of how well models forecast held-out answers, with 95 % intervals over samples, and which to take."""
    from pandas import DataFrame

    scores = compare(crowds)
    means = _means(scores)
    rows: list[dict[str, object]] = []
    for crowd in _best_of_each(means):
        low, high = _interval(*scores[crowd])
        rows.append(
            dict(combine=crowd.name, strength=crowd.strength or "", mean=means[crowd], low=low, high=high)
        )
    count = int(next(iter(scores.values()))[1].sum())
    yield f"log-likelihood of a held-out answer, over {count}, by how they are combined; 95 % intervals over samples:"
    yield from DataFrame(rows).round(4).to_string(index=False).split("\n")
    yield f"to train on them take ?combine={rows[0]['combine']}: it forecasts held-out answers best"


def _means(scores: Mapping[Crowd, tuple[np.ndarray, np.ndarray]]) -> dict[Crowd, float]:
    return {
        crowd: float(sums.sum() / max(counts.sum(), 1)) for crowd, (sums, counts) in scores.items()
    }


def _best_of_each(means: Mapping[Crowd, float]) -> list[Crowd]:
    """Return each model with the strength that suits it, the best one first; of equals the simpler one."""
    ranked = sorted(means, key=lambda crowd: -means[crowd])
    return [*{crowd.name: crowd for crowd in reversed(ranked)}.values()][::-1]


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a mean over answers, whose samples are drawn again."""
    drawn = np.concatenate(
        [times @ sums / np.maximum(times @ counts, 1) for _, times in drawn_counts(len(sums), _RESAMPLES, 0)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
