"""Labels read from a folder, by the positions of samples in whatever dataset asks."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.keys import SampleKeys
from ..errors import UserError, one_line
from ..files import file_sha256, read_text
from .format import KEYS, REMEDY, Manifest, read_manifest, read_part
from .writer import check_content


class LabelReader:
    """Reads the labels of a folder.

    The files are mapped into memory, not read: only the rows that are asked for are. The parts of a view are checked
    when it is used for the first time. Positions stay on the CPU, so that reading never waits for a device.

    Args:
        folder: a complete folder of labels.
        keys: of the samples that positions count, which may be others than those with a label, in any order; None where
            they count the rows.
        expected: what the folder has to hold; None for whatever its manifest says.
        confidence: see `Manifest.decode`.
        partial: there may be no label of any of these samples.

    Raises:
        UserError: it holds something else, no label of these samples, or is damaged.
    """

    def __init__(self, folder: Path, keys: SampleKeys | None = None, expected: Manifest | None = None,
                 confidence: float = 1.0, partial: bool = False):
        if expected is not None:
            check_content(folder, expected)
        self.folder, self.confidence = folder, confidence
        self.manifest = read_manifest(folder) if expected is None else expected
        self.keys, self.partial = keys, partial
        self.rows = None if keys is None else self._rows_of(keys)
        self.parts: list[dict[str, Tensor]] = []
        self.missing = torch.tensor([], dtype=torch.long)  # rows that nobody could be asked about
        self.errors: dict[int, tuple[float, float]] = {}  # of the views that were checked
        self.set_view(0)

    def _rows_of(self, keys: SampleKeys) -> Tensor | None:
        """Return the row of each key, -1 for none; None where keys and rows are the same."""
        manifest = self.manifest
        if keys.by != manifest.keyed_by:
            raise UserError(f"{self.folder}: its labels are known by {manifest.keyed_by}, the samples of the data by "
                            f"{keys.by}")
        if keys.sha256 == manifest.keys_sha256 and len(keys.values) == manifest.num_samples:
            return None
        own = read_keys(self.folder, manifest)
        places = {key: row for row, key in enumerate(own)}
        rows = torch.tensor([places.get(key, -1) for key in keys.values])
        if (rows < 0).all() and not self.partial:
            raise UserError(f"{self.folder}: has no label of any of the {len(rows)} samples, such as "
                            f"{keys.values[0]}; its {len(own)} labels are of others, such as {own[0]}")
        return rows

    def set_view(self, view: int) -> None:
        """Choose the view that is read."""
        check = view not in self.errors
        opened = [read_part(self.folder, self.manifest, part, check) for part in self.manifest.parts(view)]
        self.parts = [tensors for tensors, _ in opened]
        self.view, self.missing = view, torch.tensor(
            [index for _, about in opened for index in about.get("missing", ())], dtype=torch.long)
        self.complete = not len(self.missing) and (self.rows is None or bool((self.rows >= 0).all()))
        self.errors[view] = (
            max(about["max_error"] for _, about in opened),
            sum(about["mean_error"] * len(next(iter(tensors.values()))) for tensors, about in opened)
            / self.manifest.num_samples)

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        rows = index if self.rows is None else self.rows[index]
        return (rows >= 0) & ~torch.isin(rows, self.missing)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        if not self.complete:
            self._refuse_absent(index)
        rows, order = (index if self.rows is None else self.rows[index]).sort()
        pieces = rows.split(torch.bincount(rows // self.manifest.rows, minlength=len(self.parts)).tolist())
        found = {}
        for name, (shape, dtype) in self.manifest.layout.items():
            table = torch.empty(len(index), *shape, dtype=dtype, pin_memory=device.type == "cuda")
            table[order] = torch.cat([table[:0], *(  # which makes no sample a batch, too
                part[name][piece - number * self.manifest.rows]
                for number, (part, piece) in enumerate(zip(self.parts, pieces)) if len(piece))])
            found[name] = table.to(device, non_blocking=True)
        return self.manifest.decode(found, self.confidence)

    def _refuse_absent(self, index: Tensor) -> None:
        absent = index[~self.has(index)].tolist()
        if not absent:
            return
        row = absent[0] if self.rows is None else int(self.rows[absent[0]])
        if row < 0:
            raise UserError(f"{self.folder}: has no label of {self.keys.values[absent[0]]}")
        part = next(part for part in self.manifest.parts(self.view) if part.first <= row < part.stop)
        raise UserError(f"{self.folder / part.file}: has no {self.manifest.title.split()[1]} of sample {absent[0]}, "
                        f"which could not be read when they were made and now can; {REMEDY}")


def read_keys(folder: Path, manifest: Manifest) -> Sequence[str] | Sequence[int]:
    """Return the keys of the samples of a folder of labels.

    Raises:
        UserError: the file is absent or damaged, or names a sample twice.
    """
    if manifest.keys_sha256 is None:
        return range(manifest.num_samples)
    path, kind = folder / KEYS, str if manifest.keyed_by == "filename" else int
    try:
        keys = json.loads(read_text(path))
        if file_sha256(path) != manifest.keys_sha256:
            raise ValueError("its checksum is not that of its content")
        if not isinstance(keys, list) or not all(type(key) is kind for key in keys):
            raise ValueError(f"no list of {'names' if kind is str else 'numbers'}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); take another copy of the file") from error
    if not len(set(keys)) == len(keys) == manifest.num_samples:
        raise UserError(f"{path}: {len(keys)} keys, {len(set(keys))} of them different, of {manifest.num_samples} "
                        "samples")
    return keys
