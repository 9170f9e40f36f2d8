"""Which images to label next: rules beside random drawing, from 50 to 400 answers. docs/evidence/next-images.md.

The stages of ``weak-labels-plus-few-true`` are replayed on stored features of a frozen student, of which only a linear
head is trained: ``direct`` on the answers alone; the student with half of its loss on the answers, and half, by
``elr``, on the mean of the weak labels and of what direct says of all images. The features and the weak labels are
those that photographs.py has stored in its folder for its row "probe, elr".

    python docs/evidence/studies/photographs/photographs.py DATA lite0.safetensors output/photographs \\
        --what "probe, elr"
    python docs/evidence/studies/next_images.py output/photographs next_images.csv
    python docs/evidence/studies/next_images.py next_images.csv --figure next-images.svg

tables.py makes the tables of the rows.
"""

import argparse
import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from w2s_plugins.audit.next_images import order_to_ask  # noqa: E402
from w2s_plugins.labels.store import LabelReader  # noqa: E402
from w2s_plugins.losses import create_loss  # noqa: E402
from w2s_plugins.losses.base import LossContext, LossInputs  # noqa: E402
from w2s_plugins.study.statistics import t_interval  # noqa: E402

SETS = {
    "cifar10": "CIFAR-10",
    "grocery": "groceries",
    "gtsrb": "traffic signs",
    "paintings": "paintings",
    "fashion": "Fashion-MNIST",
}
ROUNDS = 50, 100, 200, 400
TAUGHT = "taught"  # the student of the weak labels alone, without answers
DRAWS = 3  # of random images for each seed, whose mean is taken
BATCH = 256
WIDTH = 1280  # of the features


@dataclass
class State:
    """What a rule may know.

    Args:
        pool: the images.
        says: (N, C) probabilities that the student gives.
        labels: (N,) classes that it was taught.
        rows: (A,) of the images with an answer.
        rng: of what is drawn.
    """

    pool: "Pool"
    says: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    rng: np.random.Generator

    def random(self) -> np.ndarray:
        """Return the rows of all images without an answer, in random order."""
        return self.rng.permutation(np.setdiff1d(np.arange(len(self.says)), self.rows))


Rule = Callable[[State, int], np.ndarray]  # gives the rows to ask about


class Pool:
    """The images of one seed of a set: features, weak labels, and the truth about them and the test images.

    Args:
        folder: of photographs.py.
    """

    def __init__(self, folder: Path):
        # the same photographs lie in two tar files, without and with their classes
        with (
            tarfile.open(folder / "photos.tar") as photos,
            tarfile.open(folder / "rest.tar") as rest,
        ):
            truth = dict(
                zip(photos.getnames(), (Path(name).parent.name for name in rest.getnames()))
            )
        stored: dict[tuple[bool, bool], dict[str, np.ndarray]] = {}
        for file in (folder / "cache").glob("*/keys.json"):
            names = json.loads(file.read_text())
            values = LabelReader(file.parent)(torch.arange(len(names)), torch.device("cpu")).numpy()
            stored[names[0] in truth, values.shape[1] == WIDTH] = dict(zip(names, values))
        classes = (folder / "classes.txt").read_text().split()
        number = {name: n for n, name in enumerate(classes)}
        names, test = sorted(stored[True, True]), sorted(stored[False, True])
        self.features = np.stack([stored[True, True][name] for name in names])
        mean, deviation = self.features.mean(axis=0), self.features.std(axis=0) + 1e-3
        of_test = np.stack([stored[False, True][name] for name in test])
        self.x = torch.tensor((self.features - mean) / deviation)
        self.test = torch.tensor((of_test - mean) / deviation)
        self.weak = torch.tensor(np.stack([stored[True, False][name] for name in names])).softmax(1)
        self.truth = torch.tensor([number[truth[name]] for name in names])
        self.target = torch.tensor([number[Path(name).parent.name] for name in test])

    def says(self, head: tuple[Tensor, Tensor]) -> Tensor:
        """Return the probabilities (N, C) that a head gives the images."""
        return F.linear(self.x, *head).softmax(dim=1)

    def right(self, head: tuple[Tensor, Tensor]) -> float:
        """Return on how many percent of the test images a head is right."""
        return 100 * float((F.linear(self.test, *head).argmax(1) == self.target).float().mean())


# ---------------------------------------------------------------- the replayed stages


def descend(
    pool: Pool, steps: int, rate: float, loss_of: Callable[[int, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a linear head, trained from zeros by AdamW with a cosine."""
    head = torch.zeros_like(pool.x[: pool.weak.shape[1]]), torch.zeros(pool.weak.shape[1])
    optimizer = torch.optim.AdamW([one.requires_grad_() for one in head], rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step, *head).backward()
        optimizer.step()
        schedule.step()
    weight, bias = (one.detach() for one in head)
    return weight, bias


def train_direct(pool: Pool, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is learned from the answers alone."""
    x, truth = pool.x[rows], pool.truth[rows]
    return descend(pool, 200, 0.001, lambda _, *head: F.cross_entropy(F.linear(x, *head), truth))


def train_student(
    pool: Pool, labels: Tensor, epochs: int, seed: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what is learned from labels (N, C) of all images by elr, and as much from the answers about some."""
    generator = torch.Generator().manual_seed(seed)
    elr = create_loss("elr")
    elr.setup(LossContext(labels.shape[1], len(labels)))
    batches = len(labels) // BATCH
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(epochs)]
    logits = labels.clamp(min=1e-8).log()

    def loss_of(step: int, *head: Tensor) -> Tensor:
        index = orders[step // batches][step % batches * BATCH :][:BATCH]
        terms = elr(LossInputs(F.linear(pool.x[index], *head), logits[index], index=index))
        loss = torch.stack([*terms.values()]).sum()
        if rows is None:
            return loss
        some = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        of_answers = F.cross_entropy(F.linear(pool.x[some], *head), pool.truth[some])
        return (loss + of_answers) / 2

    return descend(pool, epochs * batches, 0.002, loss_of)


# ---------------------------------------------------------------- the rules


def directions(pool: Pool) -> np.ndarray:
    """Return the features (N, D), seen from their mean and of length 1."""
    x = pool.features - pool.features.mean(axis=0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def shipped(state: State, images: int) -> np.ndarray:
    """Choose as ``w2s-labels next`` does."""
    return order_to_ask(state.pool.features, state.rows, images)


def doubted(state: State, images: int) -> np.ndarray:
    """Choose as it does, but let images on which student and label agree count the less, the more answers there are."""
    agree = state.says.argmax(axis=1) == state.labels
    weights = np.where(agree, 50 / (50 + len(state.rows)), 1.0)
    return order_to_ask(state.pool.features, state.rows, images, weights)


def at_random(state: State, images: int) -> np.ndarray:
    """Choose at random."""
    return state.random()[:images]


def smallest_margin(state: State, images: int) -> np.ndarray:
    """Choose where the two likeliest classes are nearest."""
    ranked = np.sort(state.says, axis=1)
    order = np.argsort(ranked[:, -1] - ranked[:, -2], kind="stable")
    return order[~np.isin(order, state.rows)][:images]


def k_centres(state: State, images: int) -> np.ndarray:
    """Choose what is farthest from all that were chosen before (core-set, arXiv 1708.00489)."""
    x = directions(state.pool)
    chosen = state.rows.tolist() or [int(state.rng.integers(len(state.says)))]
    nearest = (x @ x[chosen].T).max(axis=1)
    while len(chosen) < len(state.rows) + images:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, x @ x[chosen[-1]])
    return np.array(chosen[len(state.rows) :])


def typical(state: State, images: int) -> np.ndarray:
    """Choose the most typical image of each large cluster without an answer (TypiClust, arXiv 2202.02794)."""
    from sklearn.cluster import KMeans

    x, clusters = directions(state.pool), len(state.rows) + images
    seed = int(state.rng.integers(2**31))
    of = KMeans(clusters, max_iter=20, random_state=seed).fit_predict(x)
    typicality = np.sort(x @ x.T, axis=1)[:, -21:-1].mean(axis=1)
    typicality[state.rows] = -2
    sizes = np.bincount(of, minlength=clusters)
    has = np.bincount(of[state.rows], minlength=clusters)
    chosen: list[int] = []
    while len(chosen) < images:
        # of the clusters with an image left, the largest one of those with the fewest answers
        left = np.bincount(of[typicality > -2], minlength=clusters) > 0
        cluster = np.lexsort((-sizes, has, ~left))[0]
        best = int(np.where(of == cluster, typicality, -3).argmax())
        chosen.append(best)
        typicality[best] = -2
        has[cluster] += 1
    return np.array(chosen)


def gradients(state: State, images: int) -> np.ndarray:
    """Choose by k-means++ on the gradients of the head (BADGE, arXiv 1906.03671)."""
    x, slope = directions(state.pool), state.says.copy()
    slope[np.arange(len(state.says)), state.says.argmax(axis=1)] -= 1
    size = (slope**2).sum(axis=1)  # of a gradient, whose features have length 1
    open_rows = ~np.isin(np.arange(len(state.says)), state.rows)
    chosen, nearest = [int((size * open_rows).argmax())], np.full(len(state.says), np.inf)
    while len(chosen) < images:
        last = chosen[-1]
        product = (slope @ slope[last]) * (x @ x[last])
        nearest = np.minimum(nearest, np.maximum(size + size[last] - 2 * product, 0))
        chance = nearest * open_rows
        chance[chosen] = 0
        chosen.append(int(state.rng.choice(len(state.says), p=chance / chance.sum())))
    return np.array(chosen)


RULES: dict[str, Rule] = {
    "next": shipped,
    "doubted": doubted,
    "typical": typical,
    "k-centres": k_centres,
    "gradients": gradients,
    "margin": smallest_margin,
    "random": at_random,
}


def play(pool: Pool, rule: Rule, seed: int, draw: int = 0) -> list[tuple[int, float, float]]:
    """Return after each round the number of answers, and on how many percent direct and the student are right."""
    rng = np.random.default_rng([seed, draw])
    rows, found = np.zeros(0, dtype=np.int64), []
    labels = pool.weak
    says = pool.says(train_student(pool, labels, 4, seed))
    for answers in ROUNDS:
        state = State(pool, says.double().numpy(), labels.argmax(1).numpy(), rows, rng)
        chosen = rule(state, answers - len(rows))
        rows = np.concatenate([rows, chosen])
        if len({*rows}) != answers:
            raise ValueError(f"{rule.__name__} asks twice about an image, or about too few")
        direct = train_direct(pool, torch.tensor(rows))
        labels = (pool.weak + pool.says(direct)) / 2
        student = train_student(pool, labels, 8, seed, torch.tensor(rows))
        says = pool.says(student)
        found.append((answers, pool.right(direct), pool.right(student)))
    return found


# ---------------------------------------------------------------- rows and figure


def main(argv: Sequence[str] | None = None) -> None:
    """Play what is not in the file yet, or draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="output of photographs.py")
    parser.add_argument("rows", type=Path, help="CSV file of the rows")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--figure", type=Path, help="write the figure to this file")
    args = parser.parse_args(argv)
    if args.figure:
        draw(pandas.read_csv(args.rows), args.figure)
        return
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.sets:
            folder = args.folder / name / f"seed{seed}"
            if (folder / "probe-elr" / "seconds.json").exists():
                play_all(Pool(folder), name, seed, args.rules, args.rows)


def play_all(pool: Pool, name: str, seed: int, rules: Sequence[str], file: Path) -> None:
    """Play rules on the images of one seed, and add their rows to a file."""
    if not file.exists():
        file.write_text("set,seed,rule,answers,direct,student\n")
    done = pandas.read_csv(file)
    of_pool = done[(done["set"] == name) & (done["seed"] == seed)]
    if TAUGHT not in {*of_pool["rule"]}:
        student = pool.right(train_student(pool, pool.weak, 4, seed))
        with file.open("a") as rows:
            rows.write(f"{name},{seed},{TAUGHT},0,,{student:.2f}\n")
    for rule in rules:
        if rule in {*of_pool["rule"]}:
            continue
        draws = DRAWS if rule == "random" else 1
        found = np.mean([play(pool, RULES[rule], seed, draw) for draw in range(draws)], axis=0)
        with file.open("a") as rows:
            for answers, direct, student in found:
                rows.write(f"{name},{seed},{rule},{answers:.0f},{direct:.2f},{student:.2f}\n")
        print(name, seed, rule, *(f"{student:.1f}" for _, _, student in found), flush=True)


def of_seeds(rows: pandas.DataFrame, name: str, rule: str, answers: int, who: str) -> np.ndarray:
    """Return on how many percent direct or the student is right, (S,) by seed, in their order."""
    chosen = (rows["set"] == name) & (rows["rule"] == rule) & (rows["answers"] == answers)
    return rows.loc[chosen].sort_values(by="seed")[who].to_numpy()


def draw(rows: pandas.DataFrame, file: Path) -> None:
    """Draw the students of some rules by the number of answers, a panel for each set, with 95 % intervals."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "the same file again"
    from matplotlib import pyplot

    names = [name for name in SETS if name in {*rows["set"]}]
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(2.4 * len(names), 2.8), layout="constrained", squeeze=False
    )
    shown = {"next": "C0o-", "k-centres": "C2s-", "margin": "C1^-", "random": "C7x-"}
    for panel, name in zip(panels[0], names):
        for number, (rule, marker) in enumerate(shown.items()):
            found = [t_interval(of_seeds(rows, name, rule, n, "student")) for n in ROUNDS]
            panel.errorbar(
                np.array(ROUNDS) * 1.03 ** (number - 1.5),
                [one["value"] for one in found],
                yerr=[one["value"] - one["low"] for one in found],
                fmt=marker,
                label=rule,
                markersize=4,
                linewidth=1,
            )
        taught = of_seeds(rows, name, TAUGHT, 0, "student").mean()
        panel.axhline(taught, color="k", linewidth=0.8, linestyle=":", label="without answers")
        panel.set(xscale="log", xticks=ROUNDS, xticklabels=ROUNDS, title=SETS[name])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set(ylabel="student is right, %")
    figure.supxlabel("answers", fontsize="medium")
    panels[0][-1].legend(frameon=False, fontsize="small")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
