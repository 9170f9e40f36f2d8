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
    # each model once, or with each strength that it may have
    candidates = [
        Crowd(name, strength) for name in models for strength in STRENGTHS.get(name, (0.0,))
    ]
    size = max(votes.shape[0] for votes in crowds)
    scores = {crowd: (np.zeros(size), np.zeros(size)) for crowd in candidates}
    for votes in crowds:
        # the same parts each time, so that models are compared by the same answers
        part = np.random.default_rng(0).integers(_PARTS, size=len(votes.samples))
        has_others = votes.answers[votes.samples] > 1
        for number in range(_ROUNDS):
            is_out = (part == number) & has_others
            if not is_out.any() or is_out.all():
                continue
            kept, held_out = votes.take(~is_out), votes.take(is_out)
            for crowd, (sums, counts) in scores.items():
                # fitted without the answers that it is to foretell
                posterior = fit_crowd(kept, crowd, _STEPS, _TOLERANCE).posterior
                likely = forecast(kept, posterior, held_out)
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
    # nothing to choose
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
    """Yield a table of how well models forecast held-out answers, the best one first, and which to take.

    Beside each other one is the 95 % interval, over samples, of how far it is from the first.
    """
    from pandas import DataFrame

    scores = compare(crowds)
    means = _means(scores)
    ranked = _best_of_each(means)
    # compared sample by sample, because all ways are right on the same easy ones
    best, counts = scores[ranked[0]]
    rows: list[dict[str, object]] = []
    for crowd in ranked:
        row: dict[str, object] = {"combine": crowd.name, "log-likelihood": f"{means[crowd]:.4f}"}
        if crowd != ranked[0]:
            low, high = _interval(scores[crowd][0] - best, counts)
            row["from the first"] = f"{low:.4f} to {high:.4f}"
        rows.append(row)
    yield f"how well each way to combine answers forecasts {int(counts.sum())} of them that were held out:"
    yield from DataFrame(rows).fillna("").to_string(index=False).split("\n")
    yield f"to train on them take ?combine={ranked[0].name}, or auto, which compares them anew"


def _means(scores: Mapping[Crowd, tuple[np.ndarray, np.ndarray]]) -> dict[Crowd, float]:
    return {
        crowd: float(sums.sum() / max(counts.sum(), 1)) for crowd, (sums, counts) in scores.items()
    }


def _best_of_each(means: Mapping[Crowd, float]) -> list[Crowd]:
    """Return each model with the strength that suits it, the best one first; of equals the simpler one."""
    # sorting keeps the order of equals, in which the simpler model comes first
    best: dict[str, Crowd] = {}
    for crowd in sorted(means, key=lambda crowd: -means[crowd]):
        best.setdefault(crowd.name, crowd)
    return [*best.values()]


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a mean over answers, whose samples are drawn again."""
    # answers about a sample are not independent, so samples are drawn again, with all their answers
    drawn = np.concatenate(
        [
            times @ sums / np.maximum(times @ counts, 1)
            for _, times in drawn_counts(len(sums), _RESAMPLES, 0)
        ]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
