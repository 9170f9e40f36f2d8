"""How far a teacher can be trusted, learned from samples whose class is known (``--clean-select trust:R:FILE``)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, nearest
from .table import read_columns, read_label_table

TRUTH = "truth"  # the column of the true class, beside that of the label
BEST = 5  # so many of the largest probabilities are looked at
LEAST = 1e-6  # smaller probabilities are taken for this one
FOLDS = 5  # in which is looked how well it does
WIDTH, STEPS, RATE, DECAY = 64, 300, 1e-2, 10.0  # without much decay it learns a few hundred samples by heart


def read_known(file: str, class_names: Sequence[str] | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return what was said of samples whose class is known, probabilities (N, C), and whether it was right (N,).

    Args:
        file: a table of labels with the probability of each class and a column ``truth``, as ``--folds`` writes it.
        class_names: names of the classes, in the order of the columns that are returned.
        num_classes: C.

    Raises:
        UserError: not such a table, or all of it is right, or none.
    """
    flag = f"--clean-select trust: {file}"
    columns = read_columns(Path(file), flag)
    if not {"label", TRUTH} <= columns.keys():
        raise UserError(f"{flag}: expected the columns label and {TRUTH}, as in the table that --folds writes; it has "
                        f"{', '.join(list(columns)[:8])}")
    said = {name: column for name, column in columns.items() if name != TRUTH}
    table = read_label_table(Path(file), class_names, flag, said)
    if table.kind == "hard":
        raise UserError(f"{flag}: has classes alone; expected the probability of each class")
    if table.answers.shape[1] != num_classes:
        raise UserError(f"{flag}: has {table.answers.shape[1]} classes, the data {num_classes}")
    names = class_names or table.class_names or ()
    places = {str(number): number for number in range(num_classes)} | {name: n for n, name in enumerate(names)}
    labels, truth = ([str(value).strip() for value in columns[name]] for name in ("label", TRUTH))
    odd = next((row for row, true in enumerate(truth) if true not in places), None)
    if odd is not None:
        raise UserError(f"{flag}: row {odd + 1}: {TRUTH} '{truth[odd]}' is no class{nearest(truth[odd], names)}")
    answers, right = torch.from_numpy(table.answers), torch.tensor(
        [places.get(label) == places[true] for label, true in zip(labels, truth)])
    if right.all() or not right.any():
        raise UserError(f"{flag}: {'all' if right.all() else 'none'} of its {len(right)} labels are right: there is "
                        "nothing to learn about which are")
    return (answers if table.kind == "probabilities" else answers.softmax(dim=1)), right


def held_out_auc(known: Tensor, right: Tensor) -> tuple[float, float, float] | None:
    """Return how well `trust_in` ranks samples that it has not learned: the area under the ROC curve, and the ends of
    its 95 % interval.

    Of `FOLDS` parts each is judged by a network that has learned the others. The interval is that of the mean over
    parts by the normal distribution, with the variance of DeLong et al. (1988, Biometrics 44).

    Args:
        known: as of `trust_in`.
        right: as of `trust_in`.

    Returns:
        None where there are fewer than two of one kind in each part.
    """
    from scipy.stats import rankdata  # takes most of a second, in every run

    if min(counts := (int(right.sum()), int((~right).sum()))) < 2 * FOLDS:
        return None
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    fold = torch.empty(len(right), dtype=torch.long)
    for kind, count in zip((right, ~right), counts):  # as many of each kind in every part
        fold[order[kind[order]]] = torch.arange(count) % FOLDS
    areas, variances = [], []
    for part in range(FOLDS):
        own = fold == part
        trust, good = trust_in(known[own], known[~own], right[~own]).numpy(), right[own].numpy()
        ranks = rankdata(trust)
        below, above = ((ranks[kind] - rankdata(trust[kind])) / (~kind).sum() for kind in (good, ~good))
        areas.append(float(below.mean()))  # the share of wrong ones below a right one
        variances.append(float(below.var(ddof=1) / len(below) + above.var(ddof=1) / len(above)))
    area, half = sum(areas) / FOLDS, 1.96 * sum(variances) ** 0.5 / FOLDS
    return area, area - half, area + half


def trust_in(shares: Tensor, known: Tensor, right: Tensor) -> Tensor:
    """Return for each sample the logit (N,) of the probability that the likeliest class is right.

    A network of one hidden layer learns it from the class and the largest probabilities, by cross-entropy with both
    outcomes weighted alike (after Trust Functions, 2026, arXiv 2606.01000, where it sees the teacher's hidden state,
    which the models of ``--folds`` have no common one of).

    Args:
        shares: (N, C) probabilities of the samples.
        known: (M, C) probabilities of samples whose class is known, by models that have not learned it.
        right: (M,) whether the likeliest class was right, of both kinds.
    """
    inputs, wanted = traits(known), right.float()
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0) + 1e-3  # a class that is never said has no spread
    weight = torch.where(right, 0.5 / wanted.mean(), 0.5 / (1 - wanted.mean()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(inputs.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        said = network((inputs - mean) / scale).squeeze(1)
        F.binary_cross_entropy_with_logits(said, wanted, weight).backward()
        optimizer.step()
    with torch.no_grad():
        return network((traits(shares) - mean) / scale).squeeze(1)


def traits(shares: Tensor) -> Tensor:
    """Return what of probabilities (N, C) is looked at, (N, D): which class is the likeliest, and how much so."""
    best = shares.topk(min(BEST, shares.shape[1]), dim=1)
    return torch.cat([best.values.clamp(min=LEAST).log(), F.one_hot(best.indices[:, 0], shares.shape[1])], dim=1)
