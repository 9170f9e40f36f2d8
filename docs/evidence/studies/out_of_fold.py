"""Does a discriminant of frozen features explain the weak labels, where refining with it helps?

    python docs/evidence/studies/out_of_fold.py output/nine_sets out_of_fold.csv

For each set and seed of nine_sets.py: the discriminant of `--refine-labels` is fitted to the teacher's answers of four
fifths of the images, and says what is on the other fifth. ``agrees`` is how often its class is the teacher's, in percent,
``sure`` the teacher's mean confidence, ``explained`` the share of the information in the teacher's answers (their
divergence from the mean answer) that it knows beforehand. None of these needs a true label.
"""

import argparse
import json
from pathlib import Path

import torch
from forked import add_rows
from nine_sets import SETS

from w2s_plugins.labels.store import LabelReader
from w2s_plugins.students.discriminant import fit_discriminant

FOLDS = 5
FEATURES = 1280  # of tf_efficientnet_lite0


def read_stored(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) and the teacher's probabilities (N, C) of the images without labels."""
    stored: dict[bool, torch.Tensor] = {}
    for keys in (folder / "cache").glob("*/keys.json"):
        names = json.loads(keys.read_text())
        # those of the test images are named by their classes
        if "/" not in names[0]:
            values = LabelReader(keys.parent)(torch.arange(len(names)), torch.device("cpu"))
            # some students have learned from half of the images
            is_features = values.shape[1] == FEATURES
            if len(values) > len(stored.get(is_features, ())):
                stored[is_features] = values
    return stored[True], stored[False].softmax(dim=1)


def divergence(answers: torch.Tensor, log_shares: torch.Tensor) -> float:
    """Return the mean KL divergence of answers (N, C) from what is expected, logarithms (N, C) or (C,)."""
    return float((answers * (answers.clamp(min=1e-9).log() - log_shares)).sum(dim=1).mean())


def measure(folder: Path) -> dict[str, str]:
    """Return the figures of a set and seed."""
    features, answers = read_stored(folder)
    fold = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0)) % FOLDS
    says = torch.zeros_like(answers)
    for number in range(FOLDS):
        rest, part = fold != number, fold == number
        head = fit_discriminant(lambda rest=rest: iter([(features[rest], answers[rest])]))
        says[part] = head(features[part])
    of_mean = divergence(answers, answers.mean(dim=0).log())
    known = 1 - divergence(answers, says.log_softmax(dim=1)) / of_mean
    agrees = (says.argmax(dim=1) == answers.argmax(dim=1)).float().mean()
    return {
        "agrees": f"{100 * agrees:.1f}",
        "sure": f"{100 * answers.amax(dim=1).mean():.1f}",
        "explained": f"{known:.3f}",
    }


def main() -> None:
    """Add a row for each set and seed that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="output folder of nine_sets.py")
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    rows = []
    for name, (folder, *_) in SETS.items():
        for place in sorted((args.runs / folder).glob("seed*")):
            if (place / "last-third" / "seconds.json").exists():
                seed = place.name.removeprefix("seed")
                rows.append({"set": name, "seed": seed, **measure(place)})
    add_rows(args.rows, rows, ["set", "seed", "agrees", "sure", "explained"], ["set", "seed"])


if __name__ == "__main__":
    main()
