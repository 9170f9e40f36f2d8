"""The splits of a run."""

from dataclasses import dataclass, field
from logging import LogRecord

from torch.utils.data import IterableDataset

from ..data.map_style import AnyDataset, MapDataset
from ..data.slices import Subset
from ..labels.given import GivenLabels
from ..labels.noise import LabelNoise
from ..labels.selection import Selection
from ..made_of import Ingredient
from ..metrics.long_tail import ShotGroups
from ..target_kind import ONE_CLASS, TargetKind


@dataclass
class Data:
    """The splits of a run.

    Args:
        train: the training set.
        val: the validation split.
        select: held out of the training slice where a part of it chooses the checkpoint.
        num_classes: classes of the training set, None where only the model can say.
        few_shot: has classes of its own, on which the encoder is tested by episodes.
        split_size: samples in the whole training split, 0 for a stream.
        noise: the labels that the training split was given in place of its own.
        given_labels: labels that were given in place of a teacher.
        selection: the samples that ``--clean-select`` has left in the training set.
        groups: the classes by their number of samples in the whole training split, where accuracy is measured by them.
        class_names: of all classes, None where they have none.
        labelled_set: samples that are trained on beside a training set without labels.
        epoch_size: samples in an epoch, where that is more than there are and they come round again.
        warnings: what was warned of while it was made.
        sources: the whole splits and files of labels that the run was made of, from `training.data.sources_of`.
        target_kind: what a label is.
    """

    train: AnyDataset
    val: AnyDataset | None
    select: MapDataset | None
    num_classes: int | None = None
    few_shot: AnyDataset | None = None
    split_size: int = 0
    noise: LabelNoise | None = None
    given_labels: list[GivenLabels] = field(default_factory=list)
    selection: Selection | None = None
    groups: ShotGroups | None = None
    class_names: list[str] | None = None
    labelled_set: MapDataset | None = None
    epoch_size: int = 0
    warnings: list[LogRecord] = field(default_factory=list)
    sources: list[Ingredient] = field(default_factory=list)
    target_kind: TargetKind = ONE_CLASS

    def count_classes(self) -> int:
        """Return the number of classes, which is known once the model has said it."""
        if self.num_classes is None:
            raise TypeError("neither data nor model have said how many classes there are")
        return self.num_classes

    @property
    def samples(self) -> MapDataset:
        """The training set where samples are asked for by position, which the rules of the flags refuse of a stream."""
        if isinstance(self.train, IterableDataset):
            raise TypeError("a stream has no positions")
        return self.train

    @property
    def candidates(self) -> AnyDataset:
        """The training set before the selection."""
        if self.selection is not None and isinstance(self.train, Subset):
            return self.train.dataset
        return self.train
