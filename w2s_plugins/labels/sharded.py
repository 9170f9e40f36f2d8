"""The labels of shards: a folder of labels for each, found by the number of a sample in all of them."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.keys import positions_in_split
from ..data.shards import Opened, shard_reader
from ..errors import UserError
from .store import MANIFEST, LabelReader, Manifest, read_manifest


class ShardedLabels:
    """Reads labels as `LabelReader` does; those of a few shards are mapped into memory at a time.

    The labels of a shard are checked when they are opened: their checksums, that they are of its samples, and that
    they are of the same kind and by the same model as those of the first.

    Args:
        folder: has a folder of labels for each shard, of its name.
        dataset: of shards, or a part of one.
        confidence: see `Manifest.decode`.

    Raises:
        UserError: a shard has no labels.
    """

    complete = False  # images that could not be read have none

    def __init__(self, folder: Path, dataset: Dataset, confidence: float = 1.0):
        reader = shard_reader(dataset)
        self.folder, self.confidence = folder, confidence
        self.names, self.keys = [shard.name for shard in reader.shards], reader.keys
        self.bounds, self.positions = torch.tensor(reader.bounds), positions_in_split(dataset)
        absent = [name for name in self.names if not (folder / name / MANIFEST).is_file()]
        if absent:
            raise UserError(f"--teacher labels:{folder}: {len(absent)} of {len(self.names)} shards have no labels there"
                            f", such as {absent[0]}; python -m w2s_plugins.predictions labels what is missing")
        self.first = read_manifest(folder / self.names[0])
        self.manifest: Manifest = dataclasses.replace(
            self.first, num_samples=len(reader), seen={**self.first.seen, "shards": hashlib.sha256(
                " ".join(self.keys).encode()).hexdigest()})
        self.readers = Opened(self._open)

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        found = torch.zeros(len(index), dtype=torch.bool)
        for where, labels, rows in self._by_shard(index):
            found[where] = labels.has(rows)
        return found

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU. Raises `UserError`.
        """
        logits = torch.empty(len(index), self.manifest.num_classes, device=device)
        for where, labels, rows in self._by_shard(index):
            logits[where.to(device)] = labels(rows, device)
        return logits

    def _by_shard(self, index: Tensor) -> Iterator[tuple[Tensor, LabelReader, Tensor]]:
        """Yield for each shard which of the samples are in it, its labels, and their rows there."""
        index = torch.tensor([self.positions[i] for i in index.tolist()])
        shards = torch.searchsorted(self.bounds, index, right=True) - 1
        for number in shards.unique().tolist():
            where = (shards == number).nonzero().flatten()
            yield where, self.readers[number], index[where] - self.bounds[number]

    def _open(self, number: int) -> LabelReader:
        folder = self.folder / self.names[number]
        labels = LabelReader(folder, confidence=self.confidence)
        own, first = labels.manifest.content, self.first.content
        if labels.manifest.keys_sha256 != self.keys[number]:
            raise UserError(f"{folder}: its labels are of other samples than those of the shard; delete it, and python "
                            "-m w2s_plugins.predictions makes it anew")
        if any(own[name] != first[name] for name in ("kind", "classes", "class_names", "who")):
            raise UserError(f"{folder}: its labels are of another kind, or by another model, than those of "
                            f"{self.names[0]}; delete one of them, and python -m w2s_plugins.predictions makes it anew")
        return labels


def manifest_at(folder: Path) -> Manifest | None:
    """Return the manifest of a folder of labels, or of the first folder of labels in it, None where there is none."""
    found = next(iter(sorted(folder.glob(MANIFEST)) or folder.rglob(MANIFEST)), None)
    return None if found is None else read_manifest(found.parent)
