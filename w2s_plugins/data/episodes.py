"""Episodes of few-shot learning: N classes, K labelled images of each (shots) and Q to be classified (queries)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import UserError
from ..settings.forms import EpisodeShape
from .slices import positions_by_class
from .views import ViewKey, hash_seed


def check_shape(
    shape: EpisodeShape,
    labels: Sequence[int],
    flag: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Raise a `UserError` unless every class of ``labels`` has the images that episodes of this shape need."""
    # too few classes
    groups = positions_by_class(labels)
    if shape.ways > len(groups):
        raise UserError(
            f"{flag} {shape}: {shape.ways} ways are more than the {len(groups)} "
            f"classes of the split; expected at most {len(groups)}x{shape.shots}"
        )
    # too few images in the smallest class
    label, group = min(groups.items(), key=lambda item: len(item[1]))
    if len(group) < shape.per_class:
        name = class_names[label] if class_names else label
        room = len(group) - shape.shots
        hint = f"; expected --queries of at most {room}" if room > 0 else ""
        raise UserError(
            f"{flag} {shape}: class '{name}' has {len(group)} images, fewer than "
            f"{shape.shots} shot(s) + {shape.queries} queries{hint}"
        )


def draw_episode(
    groups: Sequence[Sequence[int]], shape: EpisodeShape, seed: int
) -> list[list[int]]:
    """Draw classes and images, all without repetition.

    Returns:
        For each class the positions of its shots, then of its queries.
    """
    # Python's draws, unlike NumPy's, are the same in all versions
    rng = random.Random(seed)
    classes = rng.sample(range(len(groups)), shape.ways)
    return [rng.sample(groups[c], shape.per_class) for c in classes]


def draw_episodes(
    labels: Sequence[int],
    shape: EpisodeShape,
    count: int,
    seed: int = 0,
) -> Tensor:
    """Return positions (count, ways, shots + queries) of test episodes; each is a function of seed, shape and number.

    The first episodes of a longer series are those of a shorter one.
    """
    groups = list(positions_by_class(labels).values())
    # a test set of episodes belongs to its shape
    fixed = (seed, shape.ways, shape.shots, shape.queries)
    seeds = [hash_seed(*fixed, number) for number in range(count)]
    return torch.tensor([draw_episode(groups, shape, seed) for seed in seeds])


def query_labels(ways: int, queries: int) -> Tensor:
    """Return the class in [0, ways) of each query of an episode, (ways * queries,): its place in the episode."""
    return torch.arange(ways).repeat_interleave(queries)


@dataclass(frozen=True)
class Episodes:
    """An epoch of batches of whole episodes."""

    shape: EpisodeShape
    per_batch: int
    batches: int


@dataclass(eq=False)
class EpisodeSampler(Sampler[list[ViewKey]]):
    """Batches of view keys for one rank, each of whole episodes, class by class, shots before queries.

    An episode is a function of seed, epoch and its number in the epoch. Numbers are dealt out to ranks one by one, so
    that batch k of all ranks together is batch k of a single process with the episodes of all. The number is also the
    ``repeat`` of the keys: an image has another view in every episode.

    Args:
        labels: labels of the training set.
        episodes: those of one rank in an epoch.
        seed: seed of the run.
        rank: this process.
        world_size: number of processes.
    """

    labels: Sequence[int]
    episodes: Episodes
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        shape, count = self.episodes.shape, self.episodes.per_batch
        self.groups = list(positions_by_class(self.labels).values())
        self.batch_size = count * shape.size
        # The targets of a batch, which are those of every batch: classes are numbered by their place in the episode,
        # because a class of another number each time cannot be learned by heart.
        self.targets = query_labels(shape.ways, shape.queries).repeat(count)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.episodes.batches - self.start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[ViewKey]]:
        count = self.episodes.per_batch
        shape = self.episodes.shape
        for batch in range(self.start, self.episodes.batches):
            # episodes are numbered through all ranks of an epoch
            keys: list[ViewKey] = []
            for turn in range(batch * count, (batch + 1) * count):
                number = turn * self.world_size + self.rank
                seed = hash_seed(self.seed, self.epoch, number)
                for row in draw_episode(self.groups, shape, seed):
                    keys += [ViewKey(self.epoch, index, number) for index in row]
            yield keys
