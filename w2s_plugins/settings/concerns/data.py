"""The samples, their true labels, the input of a model, and episodes of few classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...errors import UserError
from .. import terms
from ..field import (
    Concern,
    Count,
    NonNegative,
    Pixels,
    Positive,
    Processes,
    Range,
    Role,
    Seed,
    Share,
    flag,
)
from ..forms import (
    BATCH_EPISODES,
    KNN,
    EpisodeShape,
    count_episodes,
    parse_selection,
    parse_shapes,
    share_or_count,
)


def has_no_truth(unlabeled: str | None, dataset: str, data_dir: str | None) -> bool:
    """Return whether there are only images without labels; a folder of torchvision's is not one of a labelled split."""
    downloaded = str(unlabeled).lower().startswith("torch/")
    return bool(unlabeled and not dataset and (downloaded or not data_dir))


@dataclass(frozen=True, kw_only=True)
class DataSettings(Concern, role=Role.DATA):
    """Which samples there are, how they are read and how they come in batches."""

    # where the images are
    data_dir: str | None = flag(
        None,
        "folder of the data (default: the one that IMAGENET_DIR names)",
        role=Role.WHERE | Role.DATA | Role.PLACE,
        metavar="DIR",
        idle=terms.OWN_IMAGES,
        evaluation="data_dir",
    )
    # images without labels, and the classes that they are to have
    unlabeled: str | None = flag(
        None,
        "train on images without labels: a folder, at any depth, a tar file, or several; shards "
        "as wds/PATH or hfids/ORG/NAME; or a split whose labels are not looked at, "
        "torch/stl10:unlabeled; needs a --teacher, and sets --task-loss-weight 0, if that is not "
        "given; --data-dir or --dataset beside it give the validation split and, with "
        "--task-loss-weight, labelled samples for each batch",
        role=Role.WHERE | Role.DATA | Role.PLACE,
        metavar="PATH[,PATH]",
    )
    # a part of each batch with true labels
    labeled_share: Share = flag(
        0.25,
        "share of each batch that is labelled, with --unlabeled and --task-loss-weight: at least "
        "one sample, and not all",
        role=Role.DATA | Role.TUNING,
        needs=("task_loss_weight", "gt_loss_weight"),
    )
    class_names: str | None = flag(
        None,
        "names of the classes in their order: a text file with one a line, a json list, or the "
        "names themselves (default: those of the data; for --unlabeled those of the teacher, else "
        "of a labelled split)",
        role=Role.DATA | Role.PLACE,
        metavar="FILE|A,B,C",
    )
    # a data set by its name, and its splits
    dataset: str = flag(
        "",
        "TYPE/NAME, e.g. torch/cifar100, hfds/ORG/NAME, wds/..., w2s/digits; inat2018 or "
        "inat2021: json lists; empty: image folders or tar files",
        role=Role.DATA | Role.PLACE,
        names=("--dataset", "-d"),
        evaluation="dataset",
    )
    train_split: str = flag("train", "training split", role=Role.DATA | Role.PLACE)
    val_split: str = flag(
        "validation",
        "validation split; empty: no evaluation",
        role=Role.DATA | Role.PLACE,
        evaluation="split",
    )
    # what a label is
    task: Literal["classification", "multilabel"] = flag(
        "classification",
        "one class an image, or several: a table says which (--train-labels, --val-labels, "
        "--teacher labels:FILE)",
        evaluation="task",
    )
    # their true labels, for a folder or a tar file without class folders
    train_labels: str | None = flag(
        None,
        "table of the true labels of the training split, whose images then need no class folders "
        "(docs/labels.md)",
        role=Role.WHERE | Role.DATA | Role.PLACE,
        metavar="FILE[#COLUMN]",
        idle=terms.WEAK_LABELS_ALONE,
    )
    val_labels: str | None = flag(
        None,
        "table of the true labels of the validation split, whose images then need no class folders",
        role=Role.WHERE | Role.DATA | Role.PLACE,
        metavar="FILE[#COLUMN]",
        evaluation="val_labels",
    )
    # of iterable data sets, whose length is not known
    train_num_samples: Count | None = flag(
        None, "size of the training split of an iterable dataset"
    )
    val_num_samples: Count | None = flag(
        None, "size of the validation split of an iterable dataset", evaluation="num_samples"
    )
    dataset_download: bool = flag(
        False, "allow torch/ and tfds/ datasets to download themselves", role=Role.WHERE
    )
    # names of the classes
    class_map: str = flag(
        "",
        "file that maps class names to indices",
        role=Role.DATA | Role.PLACE,
        metavar="FILE",
        evaluation="class_map",
    )
    class_list: str | None = flag(
        None,
        "use these classes only: a file with one name a line, or a list of the package such as "
        "miniimagenet/base",
        role=Role.DATA | Role.PLACE,
        evaluation="class_list",
    )
    # of one sample: where its image is, and how it is decoded
    input_img_mode: (
        Literal[
            "1",
            "CMYK",
            "F",
            "HSV",
            "I",
            "I;16",
            "I;16B",
            "I;16L",
            "I;16N",
            "L",
            "LA",
            "LAB",
            "La",
            "P",
            "PA",
            "RGB",
            "RGBA",
            "RGBX",
            "RGBa",
            "YCbCr",
        ]
        | None
    ) = flag(
        None, "PIL mode that images are converted to", metavar="MODE", evaluation="input_img_mode"
    )
    input_key: str | None = flag(None, "column of the images", evaluation="input_key")
    # columns of a table with images in it
    target_key: str | None = flag(
        None,
        "column of the labels; with --task multilabel also the columns of classes, A,B,C",
        evaluation="target_key",
    )
    target_format: Literal["indices", "multihot"] | None = flag(
        None,
        "what a column of labels holds with --task multilabel (default: indices)",
        needs="task",
        evaluation="target_format",
    )
    decoder: Literal["pil", "fast"] = flag(
        "fast",
        "what decodes images and makes the first crop or resize; fast: JPEG files no larger than "
        "the network needs, whose pixels differ by half a level; pil: Pillow, as timm",
        evaluation="decoder",
    )
    # code of others is never run
    dataset_trust_remote_code: bool = flag(
        False, "let a Hub dataset run code from its repository", role=Role.WHERE
    )
    # the head
    num_classes: Count | None = flag(
        None,
        "number of classes (default: that of the data, else the model's)",
        role=Role.MODEL | Role.SHAPE,
        evaluation="num_classes",
    )
    # batches
    batch_size: Count = flag(
        128,
        "training batch size per process",
        role=Role.PER_PROCESS | Role.TRAINING,
        names=("-b", "--batch-size"),
        evaluation="batch_size",
    )
    validation_batch_size: Count | None = flag(
        None,
        "validation batch size (default: the same)",
        role=Role.REPORT,
        names=("-vb", "--validation-batch-size"),
        evaluation="batch_size",
    )
    # which samples are trained on and measured
    train_slice: str | None = flag(
        None,
        "class-stratified part of the training split: fractions (0:0.3, 0.3:1.0) or counts (0:40, "
        "40:), or several, separated by commas; slices that do not overlap are disjoint",
        role=Role.SLICE,
        metavar="A:B",
    )
    epoch_slice: str | None = flag(
        None,
        "an epoch has at least as many samples as this part of the training split: those of a "
        "smaller --train-slice come round again, so that few samples get as many updates",
        role=Role.TRAINING,
        metavar="A:B",
    )
    val_slice: str | None = flag(
        None,
        "evaluate on this part of the split only, cut as --train-slice cuts: of one split, "
        "0:40000 can be trained on and 40000: evaluated on",
        role=Role.SLICE,
        metavar="A:B",
        evaluation="val_slice",
    )
    slice_seed: Seed = flag(
        0, "seed of the slices, the same for teacher and student", evaluation="slice_seed"
    )
    # held out of training, for the choice of an epoch
    select_split: float | int | None = flag(
        None,
        "hold out this share (0.1) or count (500) of the training slice and let it, not the "
        "validation split, choose the best epoch",
        role=Role.SELECTION,
        read=share_or_count,
        needs="select",
    )
    # the order of an epoch, and who reads it
    epoch_repeats: NonNegative = flag(
        0.0, "repeats of an iterable dataset in an epoch", role=Role.SCHEDULE, in_study="epochs"
    )
    worker_seeding: Literal["all", "part"] = flag(
        "all", "seeding of the workers of iterable datasets", role=Role.TRAINING
    )
    workers: Processes = flag(
        4,
        "data worker processes of each process (on CUDA as many as it has cores, from 4 to 16, "
        "unless given)",
        role=Role.WHERE,
        names=("-j", "--workers"),
        evaluation="workers",
    )
    # how batches reach the device
    pin_mem: bool = flag(False, "pin host memory (on CUDA always so)", role=Role.WHERE)
    no_prefetcher: bool = flag(False, "normalise images in the workers", role=Role.TRAINING)
    # no flags: what follows from several
    semi_supervised: bool
    """Whether each batch has labelled samples beside those of `unlabeled`."""

    @property
    def has_no_truth(self) -> bool:
        """Whether there are only images without labels."""
        return has_no_truth(self.unlabeled, self.dataset, self.data_dir)

    @property
    def learns_weak_labels_alone(self) -> bool:
        """Whether no training sample has a true label that is looked at."""
        return bool(self.unlabeled) and not self.semi_supervised

    @property
    def tables(self) -> dict[str, str]:
        """The tables of true labels that are read, by their flags."""
        tables = {}
        if self.train_labels and not self.learns_weak_labels_alone:
            tables["--train-labels"] = self.train_labels
        if self.val_labels and self.val_split:
            tables["--val-labels"] = self.val_labels
        return tables

    @property
    def labelled_in_batch(self) -> int:
        """How many samples of a batch are of the labelled set; 0 if there is none beside images without labels."""
        if not self.semi_supervised:
            return 0
        return min(max(1, round(self.labeled_share * self.batch_size)), self.batch_size - 1)

    def split_name(self, role: str) -> str:
        """Return the name of the split in a role of `training.data.open_splits`."""
        return self.val_split if role == "val" else self.train_split

    def shown_split(self, role: str) -> str:
        """Return what a split is called in records, which others may read: of a whole path the last part."""
        place = Path(self.split_name(role))
        return place.name if place.is_absolute() else self.split_name(role)

    def table(self, role: str) -> str | None:
        """Return the table of the true labels of this split; None if these are not in one."""
        return self.val_labels if role == "val" else self.train_labels


@dataclass(frozen=True, kw_only=True)
class InputSettings(Concern, role=Role.INPUT):
    """Size and normalisation of the images that a model takes."""

    # size, which the weights may depend on
    img_size: Pixels | None = flag(
        None,
        "image size (default: the model's); also resizes ViTs",
        role=Role.INPUT | Role.SHAPE,
        evaluation="img_size",
        for_teacher="teacher_img_size",
    )
    in_chans: Count | None = flag(
        None, "input channels", role=Role.INPUT | Role.SHAPE, evaluation="in_chans"
    )
    input_size: Sequence[Pixels] | None = flag(
        None,
        "channels, height, width",
        role=Role.INPUT | Role.SHAPE,
        nargs=3,
        evaluation="input_size",
    )
    # crop and normalisation, the model's own unless given
    crop_pct: Annotated[float, Range(0.01, 10)] | None = flag(
        None, "centre crop of validation images", evaluation="crop_pct"
    )
    mean: Sequence[float] | None = flag(
        None, "mean that images are normalised with", evaluation="mean"
    )
    std: Sequence[Positive] | None = flag(
        None, "standard deviation that images are normalised with", evaluation="std"
    )
    interpolation: Literal["", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = (
        flag("", "interpolation when resizing", metavar="NAME", evaluation="interpolation")
    )
    # no flags: what follows from several
    crop_mode: str | None
    """``center``, ``squash`` or ``border``, for ``validate.py``; None is the model's."""

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.in_chans or (self.input_size[0] if self.input_size else 3)

    @property
    def of_model(self) -> dict[str, object]:
        """What a model is made for; all else is about how its images are prepared."""
        return dict(img_size=self.img_size, input_size=self.input_size, in_chans=self.in_chans)


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(Concern, role=Role.EVALUATION | Role.EPISODES):
    """Few-shot episodes, in training and in evaluations."""

    # in every evaluation
    few_shot_eval: str | None = flag(
        None,
        "in every evaluation, test the frozen encoder on E (2000) episodes of N classes with K "
        "labelled images each, e.g. 5x1,5x5",
        metavar="NxK[,NxK][:E]",
        form="NxK",
    )
    few_shot_split: str = flag(
        "novel",
        "split of the classes of these episodes",
        role=Role.EVALUATION | Role.EPISODES | Role.PLACE,
        needs="few_shot_eval",
        evaluation="split",
    )
    few_shot_class_list: str | None = flag(
        None,
        "its classes, where the split has others too (as --class-list)",
        role=Role.EVALUATION | Role.EPISODES | Role.PLACE,
        needs="few_shot_eval",
        evaluation="class_list",
    )
    queries: Count = flag(
        15,
        "images of each class of an episode to be classified",
        needs=("few_shot_eval", "episodic", "few_shot"),
        evaluation="queries",
    )
    # in training
    episodic: str | None = flag(
        None,
        "train on E (4) episodes a batch, per process, of N classes with K labelled images each: "
        "a cosine classifier with a learnt scale, distillation on the logits of the queries "
        "(--train-batches-per-epoch: batches in an epoch, 200)",
        role=Role.TRAINING,
        metavar="NxK[:E]",
        form="NxK",
    )

    @property
    def in_batch(self) -> tuple[EpisodeShape, int] | None:
        """The shape and the number of the episodes in a training batch; None without `episodic`."""
        if not self.episodic:
            return None
        shapes = parse_shapes(self.episodic, self.queries, "--episodic")
        if len(shapes) > 1:
            raise UserError(
                f"--episodic {self.episodic}: training has episodes of one shape, such as {shapes[0]}"
            )
        return shapes[0], count_episodes(self.episodic, "--episodic", BATCH_EPISODES, 1)


@dataclass(frozen=True, kw_only=True)
class LabelSettings(Concern, role=Role.NOISE):
    """Labels of the training split that are replaced, and samples that are left out for theirs."""

    # other labels in place of the true ones
    label_noise: str | None = flag(
        None,
        "labels of the training split: symmetric:0.2, asymmetric:0.4 (of CIFAR-10 and CIFAR-100), "
        "pairflip:0.45, or labels:FILE[#COLUMN], those of a table; the validation split keeps its "
        "own",
    )
    noise_seed: Seed = flag(
        0, "seed of the label noise, the same for teacher and student whatever their --seed"
    )
    # samples whose label is likely right, for the student alone
    clean_select: str | None = flag(
        None,
        "train on the samples whose label is likely right: knn:K (it is that of most of the K "
        "nearest neighbours); or of which a model is sure: entropy:R (the share R with the lowest "
        "entropy); or file:PATH (those that an earlier run selected)",
        role=Role.STUDENT,
    )
    clean_select_model: str | None = flag(
        None,
        "model whose features or answers decide: timm name, hf-hub:ORG/NAME, local-dir:PATH or a "
        "run folder (default: the teacher); PATH has its weights, a file or a run folder",
        role=Role.STUDENT,
        metavar="NAME[=PATH]",
        needs="clean_select",
        idle=terms.SELECTION_OF_FILE,
    )

    @property
    def selection_rule(self) -> str | None:
        """The rule of `clean_select`."""
        return parse_selection(self.clean_select)[0] if self.clean_select else None

    @property
    def selects_by_labels(self) -> bool:
        """Whether a sample is kept for what its neighbours are labelled."""
        return self.selection_rule == KNN

    @property
    def asks_the_teacher(self) -> bool:
        """Whether the teacher decides which samples are kept."""
        return self.selection_rule not in (None, "file") and not self.clean_select_model
