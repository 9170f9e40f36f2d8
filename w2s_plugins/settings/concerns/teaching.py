"""Who labels, and what the student learns from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from .. import terms
from ..field import Concern, Count, NonNegative, Pixels, Positive, Range, Role, Share, flag
from ..forms import LABELS_PREFIX, loss_weights, teacher_names
from ..teacher_name import TeacherName, label_paths, parse_teachers, teacher_models

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class WeakTeacherSettings(Concern, role=Role.TEACHER):
    """Who labels the images, when it is asked, and what is made of its answers."""

    # who labels, and with which weights
    teacher: str | None = flag(
        None,
        "weak teacher: timm name, hf-hub:ORG/NAME[@REV], local-dir:PATH, the folder of a run, "
        "hf:ORG/NAME[@REV] or hf:FOLDER (transformers), clip:MODEL/PRETRAINED (open_clip), "
        "onnx:FILE, labels:PATH, labels:hf://datasets/ORG/NAME[@REV] (docs/labels.md has what may "
        "follow after a ?), or MODULE:FUNCTION of --plugins; several, separated by commas, are an "
        "ensemble (mean of probabilities)",
        read=teacher_names,
        metavar="NAME[,NAME]",
        in_study="the key weak",
    )
    teacher_checkpoint: str | None = flag(
        None,
        "weights of the teacher: a .safetensors, .pth or .pth.tar file, or a run folder",
        role=Role.TEACHER | Role.TUNING,
        names=("--teacher-checkpoint", "--teacher-pretrained"),
        metavar="PATH[,PATH]",
        needs="teacher",
        idle=terms.LABELS_ALONE,
        form="PATH",
        in_study="`checkpoint` of an item of weak",
    )
    # a CLIP is asked in words
    prompts: str | None = flag(
        None,
        "with --teacher clip:...: templates with {} for the name of a class, a file with one a "
        "line, or texts separated by | (default: six kinds of photo and a drawing)",
        metavar="FILE|TEXT",
        needs="teacher",
        idle=terms.LABELS_ALONE,
    )
    # how it is built, if its checkpoint does not say it
    teacher_img_size: Pixels | None = flag(
        None,
        "input size of the teacher (default: its own)",
        idle=terms.LABELS_ALONE,
        in_study="img_size of an item of weak",
    )
    teacher_kwargs: Mapping[str, Any] = flag(
        {},
        "arguments of the teacher's constructor",
        idle=terms.LABELS_ALONE,
        in_study="model_kwargs of an item of weak",
    )
    # when it is asked, and what is kept of its answers
    teacher_targets: str = flag(
        "online",
        "online: the teacher sees every training view; cached: it labels each image once, before "
        "training; cached-views:N: it labels the views of N epochs before training, after which "
        "the views repeat",
        choices=("online", "cached", "cached-views:N"),
        metavar="KIND",
    )
    # on disk
    target_cache: str = flag(
        "output/targets",
        "where cached targets are kept; other runs with the same data and teacher find them there",
        role=Role.WHERE,
        metavar="DIR",
    )
    teacher_cache_dtype: Literal["float16", "float32"] = flag("float16", "dtype of cached logits")
    # what is made of the answers before the student sees them
    refine_labels: bool | None = flag(
        None,
        "train on the mean of the teacher's answers and of what a linear discriminant of the "
        "student's own features, fitted before training, makes of them (see docs/recipe.md); it "
        "needs --teacher-targets cached or cached-views:N, or labels:PATH",
        needs="teacher",
    )
    # several teachers
    teacher_assign: str = flag(
        "mean",
        "of several teachers use the mean; student: for each sample the one nearest to the "
        "student's prediction; posterior: what the last one says, corrected by what each other "
        "one confuses, with --teacher-targets cached; posterior:N: the same, and the last one is "
        "right on N percent of other images",
        choices=("mean", "student", "posterior", "posterior:N"),
        metavar="HOW",
        idle=terms.ONE_TEACHER,
    )
    # no flags: what follows from several
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
    """What stands between the labels of a cell, a name or key of `settings.forms.DELIMITERS`; None finds it out."""

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
class LossSettings(Concern, role=Role.TRAINING):
    """What the student is compared with, and how."""

    # how the student learns from the teacher
    loss: str | None = flag(
        None,
        "a distillation loss (see --list-losses; default with a teacher: adaptconf), or one of "
        "timm's criteria for supervised training (ce, bce, asl, poly, jsd)",
        role=Role.TEACHER | Role.TUNING,
        in_study="the key losses",
    )
    loss_kwargs: Mapping[str, Any] = flag(
        {},
        "hyper-parameters of the distillation loss",
        role=Role.TEACHER | Role.TUNING,
        in_study="kwargs under losses",
    )
    # and from ground truth, with which weight
    task_loss: Literal["ce", "bce", "asl", "poly", "jsd", "twoway", "zlpr"] | None = flag(
        None,
        "criterion on ground truth beside a distillation loss (default: ce; with --task "
        "multilabel bce)",
    )
    task_loss_weight: NonNegative | None = flag(
        None,
        "weight of the criterion on ground truth; 0 trains on the weak labels alone. Given alone, "
        "the distillation weight is 1 - W (default: both 1)",
        role=Role.TEACHER | Role.TUNING,
    )
    distill_loss_weight: NonNegative | None = flag(
        None, "weight of the distillation loss", role=Role.TEACHER | Role.TUNING
    )
    # the criterion of several classes an image
    bce_sum: bool = flag(False, "sum it over classes")
    bce_target_thresh: Share | None = flag(None, "binarise its soft targets")
    bce_pos_weight: NonNegative | None = flag(None, "its weight of positives")
    # classes that are rare
    loss_pos_weight: str = flag(
        "",
        "its weight of positives: a number, one for each class (1,2,...), a file with them, or "
        "neg_pos, computed from --class-stats",
        metavar="W|FILE|neg_pos",
    )
    loss_class_weight: str = flag(
        "",
        "its weight of each class: numbers, a file with them, or inv_freq or effective_num, "
        "computed from --class-stats",
        metavar="W|FILE|NAME",
    )
    loss_weight_power: NonNegative = flag(1.0, "exponent of neg_pos and inv_freq")
    class_stats: str = flag(
        "",
        "json with pos_counts, the samples of each class, and num_samples, as timm's "
        "class_weights.py writes it",
        metavar="FILE",
    )
    # arguments of single criteria
    asl_gamma_pos: NonNegative = flag(1.0, "focus of the asl criterion on the true class")
    asl_gamma_neg: NonNegative = flag(4.0, "and on the others")
    poly_epsilon: Annotated[float, Range(-1)] = flag(
        2.0, "coefficient of the poly criterion; 0 is cross-entropy"
    )
    # regularisation
    smoothing: Annotated[float, Range(0, 0.999999)] = flag(
        0.1, "label smoothing of the criterion (default with --task multilabel: 0)"
    )
    # the teacher of timm, beside its own flags
    kd_model_name: str | None = flag(
        None, "teacher of timm's own distillation tasks", role=Role.TEACHER, in_study="the key weak"
    )
    # timm's own tasks, with timm's own flags
    kd_distill_type: Literal["logit", "feature", "token"] = flag(
        "logit",
        "timm's distillation task: logits, pooled features, or a distillation token",
        role=Role.TEACHER,
    )
    kd_loss_type: Literal["kl"] = flag(
        "kl", "loss of timm's logit distillation; timm knows kl only", role=Role.TEACHER
    )
    kd_temperature: Positive = flag(
        4.0,
        "softmax temperature of distillation; given by hand, it also sets a --loss's temperature",
        role=Role.TEACHER | Role.TUNING,
    )
    kd_student_feature_dim: Count | None = flag(
        None, "width of the student's features (default: detected)", role=Role.TEACHER
    )
    kd_teacher_feature_dim: Count | None = flag(
        None, "width of the teacher's features (default: detected)", role=Role.TEACHER
    )
    kd_token_distill_type: Literal["soft", "hard"] = flag(
        "soft", "target of the distillation token", role=Role.TEACHER
    )

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the criterion and of the distillation loss."""
        return loss_weights(self.task_loss_weight, self.distill_loss_weight)
