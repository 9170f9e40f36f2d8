"""How many answers name the best of several students: an audit beside uniform drawing, drawing where they differ, CODA.

    python docs/evidence/studies/audit_several.py audit_several.csv groceries.npz cifar10.npz

It adds rows to the CSV file, of which tables.py makes the tables. The files are those of audit_students.py. Each case
has some of the students and four fifths of the images, by chance, and the truly best student is the one that is best on
these images. The rules:

    audit   as `w2s-labels audit` draws, in rounds: after 50 answers, and 50 more, it goes on with those that may be best.
    audit at once   without rounds.
    differing   uniformly among the images where some differ.
    uniform   among all.
    CODA   one image after another, as the public code does it; once a case, as it leaves little to chance.
    CODA, whole answers   where an answer adds 1 to a parameter, and not 0.01.

A person who is right on ``--person`` of the images says any other class on the rest, or with ``--second`` the class that
the students find the most probable of the others.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
from audit_coda import ANSWER, Coda

from w2s_plugins.audit import estimate as estimates
from w2s_plugins.audit.draw import Opinions, Step, chances, drawing_order, group_images
from w2s_plugins.audit.estimate import Estimate, Evidence, estimate
from w2s_plugins.audit.report import least_likely
from w2s_plugins.audit.run import ENOUGH, MAY_BE_BEST, MORE

IMAGES = 0.8  # of all, in an audit
ANSWERS = 25, 50, 75, 100, 150, 200
SHOWN = 25, 50, 100, 200
ROUNDS = range(ENOUGH, ANSWERS[-1], MORE)
CODA = {"CODA": ANSWER, "CODA, whole answers": 1.0}  # what an answer adds to a parameter
RULES = "audit", "audit at once", "differing", "uniform", *CODA


class Case(NamedTuple):
    """Students and images of an audit.

    Args:
        opinions: (N, K) what the students say.
        probabilities: (N, K, C) of the classes.
        truth: (N,) the true classes.
        answers: (N,) what the person says.
    """

    opinions: Opinions
    probabilities: np.ndarray
    truth: np.ndarray
    answers: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """How often each student (K,) is right."""
        return (self.opinions.says == self.truth[:, None]).mean(axis=0)


class Found(NamedTuple):
    """What an audit says after some answers.

    Args:
        named: the student that it takes for the best one.
        is_decided: whether the intervals say that this one is above all others; NaN if they were not computed.
        is_sure: whether it is the best one as probably as an audit says it; NaN likewise.
        holds: whether all intervals of differences hold the truth; NaN likewise.
        holds_accuracy: share of the intervals of accuracies that do.
        width: half of the width of the intervals of differences, on average.
    """

    named: int
    is_decided: float = np.nan
    is_sure: float = np.nan
    holds: float = np.nan
    holds_accuracy: float = np.nan
    width: float = np.nan


def make_cases(file: Path, students: int, args: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of a set."""
    rng, stored = np.random.default_rng(0), np.load(file)
    truth, says, probabilities = (stored[name] for name in ("truth", "says", "probabilities"))
    groups = list(itertools.combinations(range(says.shape[1]), students))
    rng.shuffle(groups)
    for number in range(args.cases):
        rows = rng.permutation(len(truth))[: int(IMAGES * len(truth))]
        columns = list(groups[number % len(groups)])
        own = probabilities[rows][:, columns]
        opinions = Opinions(says[rows][:, columns], own.max(axis=2).astype(float))
        answers = answer(truth[rows], own.mean(axis=1), args.person, args.second, rng)
        yield Case(opinions, own, truth[rows], answers)


def answer(
    truth: np.ndarray, shares: np.ndarray, right: float, second: bool, rng: np.random.Generator
) -> np.ndarray:
    """Return what a person says (N,) who is right so often; ``shares`` (N, C) are the mean of the students."""
    others = shares if second else rng.random(shares.shape)
    others = np.where(np.arange(shares.shape[1]) == truth[:, None], -1, others)
    return np.where(rng.random(len(truth)) < right, truth, others.argmax(axis=1))


def draw(rule: str, case: Case, images: int, lots: np.ndarray, steps: Sequence[Step]) -> Evidence:
    """Return what a person says of the images that a rule draws."""
    opinions = case.opinions
    of_steps = [opinions]
    if rule.startswith("audit"):
        rows = drawing_order(opinions, lots, steps)[:images]
        chance = chances(opinions, lots, steps, rows)
        of_steps = [opinions.of(step.columns) for step in steps]
    else:
        differ = opinions.differ
        among = differ if rule == "differing" and differ.any() else np.ones(len(lots), dtype=bool)
        rows = np.argsort(lots + ~among)[: min(images, among.sum())]
        chance = np.full(len(rows), len(rows) / among.sum())
    groups = group_images(opinions, of_steps)
    return Evidence(opinions, rows, case.answers[rows], chance, groups)


def may_be_best(evidence: Evidence) -> list[int]:
    """Return the students that an audit goes on with after some answers."""
    is_best = estimate(*evidence).is_best
    least = min(MAY_BE_BEST, np.sort(is_best)[-2])
    return (is_best >= least).nonzero()[0].tolist()


def read(found: Estimate, case: Case) -> Found:
    """Return what an estimate says, and whether it is true."""
    accuracy, named = case.accuracy, int(found.accuracy.argmax())
    difference = accuracy[:, None] - accuracy
    inside = (found.lowest <= difference + 1e-9) & (difference <= found.highest + 1e-9)
    own = (found.low <= accuracy + 1e-9) & (accuracy <= found.high + 1e-9)
    pairs = np.triu_indices(len(accuracy), 1)
    return Found(
        named,
        float((np.delete(found.lowest[named], named) > 0).all()),
        float(found.is_best[named] >= least_likely(len(accuracy))),
        float(inside.all()),
        float(own.mean()),
        50 * (found.highest - found.lowest)[pairs].mean(),
    )


def audit(rule: str, case: Case, seed: int, draws: int) -> list[Found]:
    """Return what is found after so many answers each."""
    found = []
    lots = np.random.default_rng(seed).random(len(case.truth))
    count = case.opinions.says.shape[1]
    steps = [Step(range(count), ANSWERS[-1])]
    for images in ANSWERS:
        evidence = draw(rule, case, images, lots, steps)
        # without intervals few draws of the posterior do
        estimates.DRAWS = draws if images in SHOWN else 2
        found.append(read(estimate(*evidence), case))
        # in rounds: more images are drawn for those that may still be the best one
        if rule == "audit" and count > 2 and images in ROUNDS:
            estimates.DRAWS = draws
            steps[-1] = steps[-1]._replace(drawn=images)
            steps.append(Step(may_be_best(evidence), ANSWERS[-1]))
    return found


def ask_coda(case: Case, weight: float) -> list[Found]:
    """Return what CODA finds, if an answer adds so much to its parameters."""
    coda, rng, found = Coda(case.probabilities, weight), np.random.default_rng(0), []
    for number in range(1, ANSWERS[-1] + 1):
        if len(coda.open):
            image = coda.ask(rng)
            coda.answer(image, int(case.answers[image]))
        if number in ANSWERS:
            best = coda.is_best()
            found.append(
                Found(int(best.argmax()), is_sure=float(best.max() >= least_likely(len(best))))
            )
    return found


def summarise(audits: Sequence[tuple[Case, list[Found]]]) -> Iterator[dict[str, float]]:
    """Yield a row for each number of answers; shares are in percent, and empty where they were not computed."""
    best = np.array([case.accuracy.argmax() for case, _ in audits])
    # by audit and number of answers
    named, decided, sure, holds, of_accuracy, width = np.moveaxis(
        np.array([found for _, found in audits], float), 2, 0
    )
    accuracies = [100 * case.accuracy for case, _ in audits]
    lost = np.array([of.max() - of[row] for of, row in zip(accuracies, named.astype(int))])
    right = named == best[:, None]
    # from which number of answers on it is always named
    for_good = np.flip(np.logical_and.accumulate(np.flip(right, 1), axis=1), 1)
    first = np.where(for_good[:, -1], np.array(ANSWERS)[for_good.argmax(axis=1)], np.inf)
    half, most = np.quantile(first, (0.5, 0.8), method="inverted_cdf")
    for number in SHOWN:
        column = ANSWERS.index(number)
        yield dict(
            answers=number,
            audits=len(audits),
            named=100 * right[:, column].mean(),
            lost=lost[:, column].mean(),
            decided=100 * decided[:, column].mean(),
            decided_wrongly=100 * (decided * ~right)[:, column].mean(),
            likely=100 * sure[:, column].mean(),
            likely_wrongly=100 * (sure * ~right)[:, column].mean(),
            differences_held=100 * holds[:, column].mean(),
            accuracies_held=100 * of_accuracy[:, column].mean(),
            half_width=width[:, column].mean(),
            half_for_good=half,
            most_for_good=most,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Add rows to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="CSV file of the rows")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--students", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--cases", type=int, default=14, help="students and images")
    parser.add_argument("--audits", type=int, default=5, help="of each case")
    parser.add_argument("--person", type=float, default=1.0, help="share that she is right on")
    parser.add_argument("--second", action="store_true", help="her mistakes are plausible")
    parser.add_argument("--draws", type=int, default=1000, help="of a posterior")
    args = parser.parse_args(argv)
    for file, students in itertools.product(args.files, args.students):
        found: dict[str, list[tuple[Case, list[Found]]]] = defaultdict(list)
        for case in make_cases(file, students, args):
            for rule in args.rules:
                if rule in CODA:
                    found[rule].append((case, ask_coda(case, CODA[rule])))
                    continue
                for seed in range(args.audits):
                    found[rule].append((case, audit(rule, case, seed, args.draws)))
        for rule, audits in found.items():
            mistakes = "plausible" if args.second else "any"
            about = dict(
                set=file.stem, students=students, rule=rule, person=args.person, mistakes=mistakes
            )
            rows = pandas.DataFrame([about | row for row in summarise(audits)]).round(3)
            rows.to_csv(args.rows, mode="a", header=not args.rows.exists(), index=False)


if __name__ == "__main__":
    main()
