"""True labels in a table: a split like any other of images that lie in no class folders.

What a row means, and how it finds its image, is as of weak labels. But of one class an image true labels are just that:
a label that is no class, or a tie, is an error however rare it is. Of several classes each is true, false or unknown.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from timm.utils.misc import natural_key
from torch import Tensor

from ..data.datasets import TABLE_OF, DatasetOptions
from ..data.decoding import FileDataset
from ..data.keys import SampleKeys
from ..data.readers import LocationReader
from ..data.unlabeled import images_of_split
from ..errors import UserError, logger
from ..no_label import NO_LABEL
from ..target_kind import ONE_CLASS, TargetKind
from .ahead import open_truth
from .given import ROWS
from .samples import SampleLabels, check_gaps, labels_of_samples, told_once
from .several import ListForm, are_several
from .table import Names

if TYPE_CHECKING:
    from typing_extensions import Unpack


def open_with_table(
    text: str,
    class_names: Names,
    root: str | None,
    split: str,
    *,
    flag: str,
    target_kind: TargetKind = ONE_CLASS,
    **how: "Unpack[DatasetOptions]",
) -> FileDataset:
    """Open the images of a split that a table names. Its classes are those of these images, in the order in which class
    folders would be. Of several classes an image they are all that the table has, or ``class_names``, in their order; the
    label of an image is then 1, 0 or NaN for each of them, a tensor (C,) in float32.

    Args:
        text: the table, with the column and settings behind its name.
        class_names: names of the classes that a label may be, None for those of the table.
        root: folder or tar file of the data.
        split: name of the split.
        flag: that named the split.
        target_kind: what a label is.
        **how: how images are read.

    Raises:
        UserError: no such split or table, the table is not about its images, or does not say one class of each.
    """
    table_flag = TABLE_OF[flag]
    where = f"{table_flag} {text:.80}"
    if how.get("class_map"):
        raise UserError(
            f"{where}: --class-map is about class folders; name the classes in the table, and leave the flag out"
        )
    # rows find their images as those of weak labels do; whoever evaluates a model cannot add classes to it
    file, settings = open_truth(text, table_flag, root, may_name=flag != "--split")
    missing = settings["missing"]
    with told_once(where, [file.path]):
        table = file.labels(
            class_names, missing or "error", target_kind=target_kind, lists=ListForm.of(settings)
        )
        place, images = images_of_split(root, split, flag)
        keys = SampleKeys("filename", list(images), range(len(images)))
        labels = labels_of_samples(
            table,
            keys,
            table.names,
            settings["combine"],
            where,
            target_kind=target_kind,
            is_true=True,
        )
    several, hard = are_several(target_kind), torch.empty(0)
    if several:
        hard = torch.from_numpy(labels.classes())
        hard = hard.masked_fill(labels.ties, NO_LABEL)  # a tie is no truth
        known = (hard != NO_LABEL).any(dim=1)
    else:
        known = labels.known & ~_ties(labels, missing, where)
    # a folder of all images, of which the table names those of the split, is nothing to warn of
    if missing == "skip" and known.any():
        left_out = int((~known).sum())
        logger.info(f"{where}: {left_out} of {len(known)} images have no label, and are left out")
    else:
        check_gaps(known, keys, missing, where, f"'{split}'")

    # from here on it is as if they lay in folders of these names
    files = [name for name, is_known in zip(images, known.tolist()) if is_known]
    targets: Sequence[int] | Tensor
    if several:
        numbers = {name: number for number, name in enumerate(table.names)}
        targets = hard[known].float().masked_fill(hard[known] == NO_LABEL, torch.nan)
    else:
        said = [table.names[int(number)] for number in labels.classes()[known.numpy()]]
        present = sorted({*said}, key=lambda name: (natural_key(name), name))
        numbers = {name: number for number, name in enumerate(present)}
        targets = [numbers[name] for name in said]
    reader = LocationReader(place, files, [images[name] for name in files], targets, numbers)
    return FileDataset(
        place,
        reader=reader,
        load_bytes=how.get("load_bytes", False),
        input_img_mode=how.get("input_img_mode", "RGB"),
    )


def _ties(labels: SampleLabels, missing: str | None, where: str) -> Tensor:
    """Return of which samples (N,) several classes are as likely. Raises `UserError` for one, unless these may be
    ``missing``.
    """
    tied = torch.zeros_like(labels.known)
    if labels.answers.ndim == 1:
        return tied
    # some rows at a time, as of weak labels
    for rows in labels.known.nonzero().flatten().split(ROWS):
        tied[rows] = labels.best(rows).sum(dim=1) > 1
    count = int(tied.sum())
    if not count:
        return tied
    first = labels.keys.values[int(tied.nonzero()[0])]
    text = f"{where}: of {count} images several classes are as likely, such as of {first}"
    if missing != "skip":
        raise UserError(
            f"{text}; expected one true class each: settle them, or leave them out by ?missing=skip after the name "
            "of the file"
        )
    logger.warning(f"WARNING: {text}; they are left out")
    return tied
