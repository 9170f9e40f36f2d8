"""Settings of a run, by concern: what the flags come to, each with its type. Frozen.

A run works with those that `flags.resolve_train_args` returns. What fills in flags (`resolve.py`, `rules.py`) makes
some of the flags as they are so far, only to ask them something.

The sentence below a field says what it means; its flag, of the same name, says more (``--help-all``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ..cli.forms import (
    BATCH_EPISODES,
    KNN,
    LABELS_PREFIX,
    EpisodeShape,
    Tuning,
    count_episodes,
    loss_weights,
    parse_labels,
    parse_selection,
    parse_shapes,
)
from ..errors import UserError
from ..teachers.name import TeacherName, parse_teachers

AConcern = TypeVar("AConcern", bound="Concern")
Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Concern:
    """The settings of one concern."""

    @classmethod
    def take(cls: type[AConcern], flags: Mapping[str, Any]) -> AConcern:
        """Make it of all flags, by the names of its fields."""
        return cls(**{field.name: flags[field.name] for field in fields(cls)})


def label_paths(teacher: str | None) -> list[str]:
    """Return the files of labels among the names of ``--teacher``."""
    return parse_labels(teacher)[0]


def teacher_models(teacher: str | None) -> list[TeacherName]:
    """Return the models among the names of ``--teacher``."""
    return [name for name in parse_teachers(teacher) if not name.is_labels]


@dataclass(frozen=True, kw_only=True)
class DataSettings(Concern):
    """Which samples there are, how they are read and how they come in batches."""

    # Which samples there are. Images without labels and a labelled data set may stand beside each other.
    data_dir: str | None
    """Folder of the images, one folder a split; None if a data set brings its own."""
    unlabeled: str | None
    """Images without labels to train on: folders, tar files, shards, or ``NAME:SPLIT``."""
    labeled_share: float
    """Share of a batch that is labelled beside `unlabeled` images, 0 to 1."""
    # Which classes there are. Labels are numbers of them in every split, whatever order its folders are in.
    task: str
    """What a label is, by timm's name of it: ``classification`` or ``multilabel``."""
    class_names: str | None
    """Names of the classes in their order: a file, or ``A,B,C``."""
    num_classes: int | None
    """Number of classes; None takes that of the data, else the model's."""
    # Where the splits come from. A stream tells its size to nobody, so that it has to be said.
    dataset: str
    """``TYPE/NAME``; empty for folders and tar files of images."""
    train_split: str
    """Name of the training split."""
    val_split: str
    """Name of the split that is evaluated; empty for none."""
    train_labels: str | None
    """Table of the true labels of the training split; None if its images lie in class folders."""
    val_labels: str | None
    """Table of the true labels of the evaluated split."""
    train_num_samples: int | None
    """Samples in the training split of a stream."""
    val_num_samples: int | None
    """Samples in the evaluated split of a stream."""
    dataset_download: bool
    """Whether data sets may download themselves."""
    # What is read of a sample, and with which decoder; two decoders differ in single bits of a pixel.
    class_map: str
    """File that maps names of classes to numbers; empty for none."""
    class_list: str | None
    """The classes to use: a file, or the name of a list of the package."""
    input_img_mode: str | None
    """PIL mode that images are converted to; None follows the model's channels."""
    input_key: str | None
    """Column of the images, in a data set with columns."""
    target_key: str | None
    """Column of the labels, or of several ones those of the classes, ``A,B,C``."""
    target_format: str | None
    """What a column of several labels holds: ``indices`` or ``multihot``."""
    decoder: str
    """What decodes images: ``pil`` or ``fast``."""
    dataset_trust_remote_code: bool
    """Whether a data set of the Hub may run code of its repository."""
    # Which part of a split is used. All slices are of one seeded order, so that 0:100 and 100:200 share no sample.
    train_slice: str | None
    """Class-stratified part of the training split, ``A:B``, as fractions or counts."""
    epoch_slice: str | None
    """An epoch has at least as many samples as this part of the training split."""
    val_slice: str | None
    """Class-stratified part of the evaluated split, ``A:B``."""
    slice_seed: int
    """Seed of the slices."""
    select_split: float | int | None
    """Share (below 1) or count of training samples that are held out to choose the epoch."""
    # How samples come in batches.
    epoch_repeats: float
    """How often a stream comes round again in an epoch."""
    batch_size: int
    """Training samples in a batch of one process, at least 1."""
    validation_batch_size: int | None
    """Samples in a batch of an evaluation; None takes `batch_size`."""
    workers: int
    """Data worker processes of each process, from 0."""
    pin_mem: bool
    """Pin host memory without an accelerator too."""
    no_prefetcher: bool
    """Normalise images in the workers, not on the device."""
    worker_seeding: str
    """How the workers of a stream are seeded: ``all`` or ``part``."""
    # No flag: it follows from `unlabeled` and the weight of the criterion, see `composite`.
    semi_supervised: bool
    """Whether each batch has labelled samples beside those of `unlabeled`."""

    @property
    def has_no_truth(self) -> bool:
        """Whether there are only images without labels; a folder of torchvision's is not one of a labelled split."""
        downloaded = str(self.unlabeled).lower().startswith("torch/")
        return bool(self.unlabeled and not self.dataset and (downloaded or not self.data_dir))

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
class InputSettings(Concern):
    """Size and normalisation of the images that a model takes."""

    # What the model is made for.
    img_size: int | None
    """Side of square images in pixels, 1 to 16384; None takes the model's."""
    in_chans: int | None
    """Channels; None follows `input_size`."""
    input_size: Sequence[int] | None
    """Channels, height, width."""
    # How an image is prepared for it.
    crop_pct: float | None
    """Share of the side that the centre crop of an evaluation keeps, above 0."""
    mean: Sequence[float] | None
    """Mean by channel that images are normalised with."""
    std: Sequence[float] | None
    """Standard deviation by channel that images are normalised with."""
    interpolation: str
    """Interpolation of a resize; empty takes the model's."""
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
class EpisodeSettings(Concern):
    """Few-shot episodes, in training and in evaluations."""

    # Training on episodes, in place of a classifier of all classes.
    episodic: str | None
    """Shape and number of the episodes in a training batch, ``NxK[:E]``; None trains on samples."""
    queries: int
    """Images of each class of an episode that are classified, at least 1."""
    # Tests on episodes of classes that were not trained on.
    few_shot_eval: str | None
    """Shapes and number of the test episodes, ``NxK[,NxK][:E]``; None tests none."""
    few_shot_split: str
    """Split of the test episodes."""
    few_shot_class_list: str | None
    """Its classes, if the split has others too."""

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
class LabelSettings(Concern):
    """Labels of the training split that are replaced, and samples that are left out for theirs."""

    # Noise is drawn for the whole split, before anything is cut from it, so that a slice has the same in every run.
    label_noise: str | None
    """Labels of the training split in place of its own: ``KIND:RATE`` or ``labels:FILE``."""
    noise_seed: int
    """Seed of the noise, 0 to 2 ** 32 - 1."""
    # What is left out is chosen after that, by what a model says of the noisy labels.
    clean_select: str | None
    """Which training samples are kept: ``knn:K``, ``entropy:R`` or ``file:PATH``; None keeps all."""
    clean_select_model: str | None
    """Model that decides, ``NAME[=PATH]``; None is the teacher."""

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


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Concern):
    """What becomes of an image before training sees it."""

    # Geometry and colour of one image.
    no_aug: bool
    """No augmentation."""
    train_crop_mode: str | None
    """``rrc``, ``rkrc`` or ``rkrr``; None is timm's ``rrc``."""
    scale: Sequence[float]
    """Smallest and largest area of a random crop, as shares."""
    ratio: Sequence[float]
    """Smallest and largest aspect of a random crop."""
    hflip: float
    """Probability of a horizontal flip, 0 to 1."""
    vflip: float
    """Probability of a vertical flip, 0 to 1."""
    color_jitter: float
    """Strength of colour jitter."""
    color_jitter_prob: float | None
    """Probability of colour jitter, 0 to 1; None is always."""
    grayscale_prob: float | None
    """Probability of greyscale, 0 to 1."""
    gaussian_blur_prob: float | None
    """Probability of blur, 0 to 1."""
    aa: str | None
    """Policy of AutoAugment, RandAugment or AugMix."""
    # Several views of an image in one epoch or batch.
    strong_views: str | None
    """Policy, as `aa`, of a second view of each image without a label; None for no such views."""
    aug_repeats: float
    """Views of a sample in an epoch; 0 is one."""
    aug_splits: int
    """Augmentation splits of a batch, 0 or at least 2."""
    # Erasing, of images that are normalised already.
    reprob: float
    """Probability of random erasing, 0 to 1."""
    remode: str
    """What fills an erased part: ``const``, ``rand`` or ``pixel``."""
    recount: int
    """Parts that are erased."""
    resplit: bool
    """Leave the first augmentation split without erasing."""
    # Mixing two images of a batch; stored answers are mixed in the same shares.
    mixup: float
    """Alpha of mixup; 0 is none."""
    cutmix: float
    """Alpha of cutmix; 0 is none."""
    cutmix_minmax: Sequence[float] | None
    """Smallest and largest side of cutmix boxes as shares, in place of alpha."""
    mixup_prob: float
    """Probability that a batch is mixed, 0 to 1."""
    mixup_switch_prob: float
    """Share of cutmix if both are on, 0 to 1."""
    mixup_mode: str
    """What is mixed alike: ``batch``, ``pair`` or ``elem``."""
    mixup_off_epoch: int
    """No mixing from this epoch on; 0 is never."""
    # Sizes, of which each batch may have another one.
    train_interpolation: str
    """Interpolation of random crops; empty takes the model's."""
    train_img_sizes: Sequence[int] | None
    """Sides of images, of which one is drawn for each batch; None keeps one size."""
    train_batch_sizes: Sequence[int] | None
    """Batch size for each of these sides."""
    train_size_probs: Sequence[float] | None
    """Weight of each of these sides."""
    train_size_schedule: str
    """How sides are drawn: ``constant`` or ``progressive``."""
    train_size_schedule_spread: float
    """Width of the progressive window."""
    train_size_random_mix: float
    """Share of sides that are drawn uniformly."""
    train_batches_per_epoch: int | None
    """Batches in an epoch of several sides, or of episodes."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True, kw_only=True)
class WeakTeacherSettings(Concern):
    """Who labels the images, when it is asked, and what is made of its answers."""

    # Who labels.
    teacher: str | None
    """Who labels: names of models and ``labels:FILE``, separated by commas; None if nobody does."""
    teacher_checkpoint: str | None
    """Weights of the models, separated by commas: files or run folders."""
    prompts: str | None
    """Templates for zero-shot classifiers: a file, or texts separated by ``|``."""
    # How a model among them is opened.
    teacher_img_size: int | None
    """Side of the teacher's images in pixels; None is its own."""
    teacher_kwargs: Mapping[str, Any]
    """Further arguments of its constructor."""
    # When it is asked. What is stored is found again by model, data, transform and views.
    teacher_targets: str
    """When it is asked: ``online``, ``cached`` or ``cached-views:N``."""
    target_cache: str
    """Folder of stored answers and features."""
    teacher_cache_dtype: str
    """Dtype of stored logits: ``float16`` or ``float32``."""
    # What is made of the answers.
    refine_labels: bool | None
    """Refine stored answers by the student's own features."""
    teacher_assign: str
    """Of several teachers the ``mean``, the one nearest to the ``student``, or the ``posterior`` of all of them."""
    # No flags: they follow from `teacher_targets`, and from what stands behind the names of labels.
    view_epochs: int
    """The N of ``cached-views:N``, 0 for other kinds; features of the student are stored alike."""
    labels_missing: str | None
    """What becomes of a sample without a label: ``skip`` or ``error``."""
    labels_combine: str | None
    """How answers of several people become one."""
    labels_confidence: float | None
    """Probability of the class in a table of classes; None is 1."""
    labels_unlisted: str | None
    """Of several labels an image, what a list says of the classes that it does not name: ``no`` or ``unknown``."""
    labels_delimiter: str | None
    """What stands between the labels of a cell, a name or key of `cli.forms.DELIMITERS`; None finds it out."""

    @property
    def names(self) -> tuple[TeacherName, ...]:
        """All names of `teacher`."""
        return parse_teachers(self.teacher)

    @property
    def models(self) -> list[TeacherName]:
        """The models among the names."""
        return teacher_models(self.teacher)

    @property
    def label_paths(self) -> list[str]:
        """The files of labels among the names."""
        return label_paths(self.teacher)

    @property
    def shown(self) -> str:
        """The names as records show them: of files and folders of labels the last part of the path alone."""
        return ",".join(
            LABELS_PREFIX + Path(name.rest).name if name.is_labels else name.text
            for name in self.names
        )

    @property
    def has_labels(self) -> bool:
        """Whether a name is that of labels, not of a model."""
        return any(name.is_labels for name in self.names)

    @property
    def has_labels_alone(self) -> bool:
        """Whether all names are those of labels."""
        return self.has_labels and not self.models

    @property
    def stores_targets(self) -> bool:
        """Whether the teacher is asked before training, or labels are read."""
        return bool(self.teacher and self.teacher_targets != "online")

    @property
    def weighs_evidence(self) -> bool:
        """Whether several teachers are evidence for a posterior."""
        return self.teacher_assign.partition(":")[0] == "posterior"

    @property
    def last_is_right(self) -> float | None:
        """The N of ``posterior:N``, how often the last teacher is right in percent; None if that is not known."""
        number = self.teacher_assign.partition(":")[2]
        return float(number) if number else None

    def in_order(self, models: Iterable[Part], labels: Iterable[Part]) -> list[Part]:
        """Return what there is for each name, in their order: of its models, and of its labels. What all names of
        labels have in common stands at the first of them.
        """
        of_models, of_labels = iter(models), iter(labels)
        parts = [next(of_labels if name.is_labels else of_models, None) for name in self.names]
        return [part for part in parts if part is not None]


@dataclass(frozen=True, kw_only=True)
class StudentSettings(Concern):
    """The model that is trained: how it begins, which part of it is trained, its regularisation."""

    # Where it begins: of several starts the last of these counts.
    model: str
    """timm's name of the model, or ``hf-hub:ORG/NAME``."""
    pretrained: bool
    """Start from the model's pretrained weights."""
    pretrained_path: str | None
    """File in place of these weights."""
    initial_checkpoint: str
    """Checkpoint to start from; empty for none."""
    finetune: str
    """Checkpoint of which the head may differ; empty for none."""
    # Which part of it is trained.
    linear_probe: bool
    """Train the last layer alone, on stored features."""
    tune: Tuning
    """Which part is trained: ``all``, ``head``, ``norm``, ``bias``, ``last:N`` or ``lora``."""
    # How it is built.
    gp: str | None
    """Global pooling; None is the model's."""
    model_kwargs: Mapping[str, Any]
    """Further arguments of the model's constructor."""
    # How its head begins: a new head of zeros keeps pretrained features from being spoiled in the first steps.
    head_init_scale: float | None
    """Factor on the weights that the head begins with; None follows the start."""
    head_init_bias: float | None
    """Bias that the head begins with; None leaves it."""
    # Regularisation, and memory for time.
    drop: float
    """Rate of dropout, 0 to 1."""
    drop_connect: float | None
    """Old name of `drop_path`, which wins."""
    drop_path: float | None
    """Rate of stochastic depth, 0 to 1."""
    drop_block: float | None
    """Rate of drop block, 0 to 1."""
    grad_checkpointing: bool
    """Compute activations again in the backward pass."""
    # Batch norm, whose statistics are those of a process unless it is synchronised.
    bn_momentum: float | None
    """Momentum of batch norm."""
    bn_eps: float | None
    """Epsilon of batch norm."""
    sync_bn: bool
    """Synchronise batch norm over the processes."""
    dist_bn: str
    """How its statistics are shared after an epoch: ``reduce``, ``broadcast``, or not at all."""
    split_bn: bool
    """A batch norm for each augmentation split."""


@dataclass(frozen=True, kw_only=True)
class LossSettings(Concern):
    """What the student is compared with, and how."""

    # The loss that compares it with the teacher.
    loss: str | None
    """Distillation loss, or a sum of several; None without a teacher."""
    loss_kwargs: Mapping[str, Any]
    """Its arguments."""
    # The criterion on ground truth, where that is used.
    task_loss: str
    """Criterion on ground truth: ``ce``, ``bce``, ``asl``, ``poly``, ``jsd``, or of several labels ``twoway``, ``zlpr``."""
    task_loss_weight: float | None
    """Weight of the criterion as it was given; see `weights`."""
    distill_loss_weight: float | None
    """Weight of the distillation loss as it was given; see `weights`."""
    smoothing: float
    """Label smoothing of the criterion, from 0 to below 1."""
    # Arguments of single criteria, which timm's factory passes over for others.
    bce_sum: bool
    """Sum binary cross-entropy over the classes."""
    bce_target_thresh: float | None
    """Threshold that makes its soft targets 0 or 1."""
    bce_pos_weight: float | None
    """Its weight of positives, unless `loss_pos_weight` is given."""
    loss_pos_weight: str
    """Weight of positives: a number, one a class, a file, or ``neg_pos``."""
    loss_class_weight: str
    """Weight of each class: numbers, a file, ``inv_freq`` or ``effective_num``."""
    loss_weight_power: float
    """Exponent of ``neg_pos`` and ``inv_freq``, from 0."""
    class_stats: str
    """File with the samples of each class; empty for none."""
    asl_gamma_pos: float
    """Focus of ``asl`` on the true class, from 0."""
    asl_gamma_neg: float
    """Focus of ``asl`` on the others, from 0."""
    poly_epsilon: float
    """Coefficient of ``poly``."""
    # timm's own distillation, in place of a teacher.
    kd_model_name: str | None
    """Teacher of timm's own distillation; None uses it not."""
    kd_distill_type: str
    """timm's task: ``logit``, ``feature`` or ``token``."""
    kd_loss_type: str
    """Loss of timm's logit distillation."""
    kd_temperature: float
    """Softmax temperature of timm's distillation, above 0."""
    kd_student_feature_dim: int | None
    """Width of the student's features; None looks."""
    kd_teacher_feature_dim: int | None
    """Width of the teacher's features; None looks."""
    kd_token_distill_type: str
    """Target of the distillation token: ``soft`` or ``hard``."""

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the criterion and of the distillation loss."""
        return loss_weights(self.task_loss_weight, self.distill_loss_weight)


@dataclass(frozen=True, kw_only=True)
class OptimSettings(Concern):
    """Optimizer, schedule, and the average of the weights."""

    # The optimizer. timm's factory reads these fields by their names.
    opt: str
    """timm's name of the optimizer."""
    opt_eps: float | None
    """Its epsilon."""
    opt_betas: Sequence[float] | None
    """Its betas."""
    momentum: float
    """Its momentum."""
    weight_decay: float
    """Its weight decay."""
    # Gradients, and rates by layer.
    clip_grad: float | None
    """Value that gradients are clipped to; None does not."""
    clip_mode: str
    """How they are clipped: ``norm``, ``value`` or ``agc``."""
    layer_decay: float | None
    """Factor on the learning rate from layer to layer."""
    layer_decay_min_scale: float
    """Smallest of these factors."""
    layer_decay_no_opt_scale: float | None
    """Layers below this factor are not trained."""
    opt_kwargs: Mapping[str, Any]
    """Further arguments of the optimizer."""
    # What an update is made of.
    grad_accum_steps: int
    """Batches in an update, at least 1."""
    variable_batch_loss_scale: str
    """Weight of batches of several sizes: ``none``, ``sqrt`` or ``linear``."""
    # The schedule. timm's factory reads these fields by their names too.
    sched: str
    """timm's name of the schedule."""
    sched_on_updates: bool
    """It changes the rate by update, not by epoch."""
    lr: float | None
    """Learning rate; None or 0 until `flags.scale_learning_rate` fills it in by the batch size, as timm's script does."""
    lr_noise: Sequence[float] | None
    """Epochs with noise on the rate."""
    lr_noise_pct: float
    """Limit of this noise, as a share."""
    lr_noise_std: float
    """Standard deviation of this noise."""
    lr_cycle_mul: float
    """Factor on the length of a cycle."""
    lr_cycle_decay: float
    """Factor on the rate from cycle to cycle."""
    lr_cycle_limit: int
    """Cycles, at least 1."""
    lr_k_decay: float
    """k of k-decay."""
    lr_decay_fn: str | None
    """Shape of the decay of ``wsd`` and ``rsqrt``."""
    lr_stable_timescale: float | None
    """Time scale of ``rsqrt`` in epochs."""
    # Its ends, and its length.
    warmup_lr: float
    """Rate at the start of the warm-up."""
    min_lr: float
    """Lowest rate."""
    epochs: int
    """Epochs of the schedule, cool-down aside."""
    # Its steps.
    decay_milestones: Sequence[int]
    """Epochs at which ``multistep`` decays."""
    decay_epochs: float
    """Epochs between decays; of ``wsd`` and ``rsqrt`` those of the last one, below 1 a share."""
    warmup_epochs: int
    """Epochs of warm-up."""
    warmup_prefix: bool
    """They come on top of `epochs`."""
    cooldown_epochs: int
    """Epochs at the lowest rate, after `epochs`."""
    patience_epochs: int
    """Epochs that ``plateau`` waits."""
    decay_rate: float
    """Factor of a decay."""
    # The average of the weights is what is evaluated and exported, unless it is kept on the CPU.
    model_ema: bool
    """Keep an average of the weights."""
    model_ema_force_cpu: bool
    """Keep it on the CPU, where it is not evaluated."""
    model_ema_decay: float
    """Its decay, 0 to 1."""
    model_ema_warmup: bool
    """Its decay grows at first."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Concern):
    """When and how the student is measured, and which epoch counts."""

    # What is measured, and when.
    no_teacher_eval: bool
    """Measure nothing before the first step."""
    eval_metric: str
    """What ranks epochs: ``top1``, ``top5``, ``loss``, ``agreement`` or ``few-shot``; of several labels ``map`` or F1."""
    multilabel_threshold: float
    """Probability from which on an image has one of several classes, from above 0 to below 1."""
    long_tail: str
    """When accuracy is measured by frequency of the class: ``auto``, ``always``, ``never``, ``FEW:MANY``."""
    tta: int
    """Consecutive views of a sample whose logits are averaged; 0 is one."""
    val_interval: int
    """Epochs between evaluations, at least 1."""
    save_epochs: Sequence[int]
    """Numbers of epochs after which a checkpoint is kept, and evaluated."""
    # Which epoch counts, and what a student of ground truth reached.
    select: str
    """Which epoch is exported: ``last`` or ``best``."""
    ceiling_acc: float | None
    """Top-1 in percent of a student of ground truth."""


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Concern):
    """Device, precision, processes and compilation."""

    # Device and precision. Another one rounds otherwise, so that weights are the same on one kind of device only.
    device: str
    """torch's name of the device."""
    amp: bool
    """Mixed precision."""
    amp_dtype: str
    """Its dtype: ``float16`` or ``bfloat16``."""
    model_dtype: str | None
    """Dtype of the model; None is float32."""
    channels_last: bool | None
    """Memory layout of images and model; None is the one that is faster."""
    # Several processes, and what they wait for.
    no_ddp_bb: bool
    """Processes do not share their buffers."""
    fsdp: bool
    """Shard the student over all processes."""
    synchronize_step: bool
    """Wait for the device after each update."""
    # What is set once for the whole process.
    deterministic: bool
    """The same weights to the last bit on CUDA."""
    device_modules: Sequence[str] | None
    """Modules that register devices."""
    fuser: str
    """Fuser of TorchScript; empty for torch's."""
    fast_norm: bool
    """timm's fast norms."""
    # Compilation.
    torchcompile: str | None
    """Backend of torch.compile; None does not compile."""
    torchcompile_mode: str | None
    """Its mode."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(Concern):
    """Where a run lies, how it goes on, and what is shown and published of it."""

    # Where it lies, and where it begins.
    seed: int
    """Seed of everything that has none of its own, 0 to 2 ** 32 - 1."""
    output: str
    """Folder of runs; empty for the usual one."""
    experiment: str
    """Name of the run's folder; empty makes one up."""
    resume: str
    """What the run goes on from: a checkpoint, a run folder, ``auto``, or nothing."""
    no_resume_opt: bool
    """Take up the weights alone."""
    start_epoch: int | None
    """Number of the first epoch, in place of the checkpoint's."""
    stop_epoch: int | None
    """Epochs to train, the schedule staying that of all; None or 0 trains all."""
    # What it is made of, and what ends it.
    plugins: Sequence[str]
    """Modules or files of the user's that are imported."""
    nan_patience: int
    """Bad updates in a row that end the run, at least 1."""
    # What is shown and kept on the way.
    log_interval: int
    """Updates between lines of the log."""
    recovery_interval: int
    """Updates between checkpoints inside an epoch; 0 writes none."""
    checkpoint_hist: int
    """Checkpoints of best epochs that are kept, at least 1."""
    # Trackers.
    log_tensorboard: bool
    """Write events for TensorBoard."""
    log_wandb: bool
    """Log to Weights & Biases."""
    wandb_project: str | None
    """Its project."""
    wandb_tags: Sequence[str]
    """Its tags."""
    wandb_resume_id: str
    """Its run to continue; empty for none."""
    # What is kept beside the weights, and published.
    save_images: bool
    """Save the images of logged batches."""
    push_to_hub: str | None
    """``ORG/NAME`` that the student is published as; None keeps it here."""
