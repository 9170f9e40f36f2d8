"""All settings of a command together: a run's, and an evaluation's by ``validate.py``, made once from the flags."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from .concerns import (
    ComputeSettings,
    DataSettings,
    EpisodeSettings,
    EvaluationSettings,
    InputSettings,
    LabelSettings,
    LossSettings,
    OptimSettings,
    ReportSettings,
    RunSettings,
    StudentSettings,
    SubjectSettings,
    ViewSettings,
    WeakTeacherSettings,
)
from .field import Concern, dest_of
from .forms import parse_labels
from .programs import train_program


def _take_concerns(settings: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return each concern that is a field of some settings, made of all flags."""
    kinds = {field.name: field.type for field in fields(settings)}
    return {
        name: kind.take(flags)
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Concern)
    }


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All settings of a training run. A function that needs up to three concerns is given these alone."""

    data: DataSettings
    input: InputSettings
    episodes: EpisodeSettings
    labels: LabelSettings
    views: ViewSettings
    teacher: WeakTeacherSettings
    student: StudentSettings
    loss: LossSettings
    optim: OptimSettings
    evaluation: EvaluationSettings
    compute: ComputeSettings
    run: RunSettings
    flags: Mapping[str, object]
    """The flags that all of this was made of, for args.yaml and to compare runs by."""

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "TrainSettings":
        """Make the settings of all flags, by their names."""
        concerns = _take_concerns(cls, {**flags, **_derived(flags)})
        # A copy that nobody can write to: flags are still being filled in while settings are made to look at them.
        return cls(**concerns, flags=MappingProxyType(dict(flags)))

    def with_flags(self, **changes: object) -> "TrainSettings":
        """Return the settings with other values of some flags."""
        return self.from_flags({**self.flags, **changes})

    def uses(self, flag: str) -> bool:
        """Return whether a flag has this value (``--tune head``), or any but its default and the one that changes
        nothing (``--tune``).
        """
        name, _, value = flag.partition(" ")
        declared = train_program().flags[dest_of(name)]
        used = self.flags[declared.name]
        if value:
            return str(used) == value
        return bool(used) and used not in (declared.default, declared.neutral)

    @property
    def is_scored_by_teacher(self) -> bool:
        """Whether a held-out part has no ground truth, or none that is to be used: the teacher is right there."""
        uses_truth = self.loss.weights[0] != 0 and not self.data.unlabeled
        return bool(self.teacher.teacher) and not uses_truth

    @property
    def has_agreement(self) -> bool:
        """Whether the student can be compared with its teacher on samples that it is not trained on."""
        if self.teacher.models:
            return not self.evaluation.no_teacher_eval
        return self.teacher.has_labels_alone and self.data.select_split is not None


def _derived(flags: Mapping[str, Any]) -> dict[str, object]:
    """Return the values of fields that are no flags, or that have a type of their own."""
    # What `labels:FILE?combine=mean` says behind the name holds for all files of labels.
    of_labels = parse_labels(flags["teacher"])[1]
    return dict(
        semi_supervised=bool(flags["unlabeled"] and flags["task_loss_weight"]),
        crop_mode=None,
        view_epochs=count_view_epochs(flags),
        **{f"labels_{name}": value for name, value in of_labels.items()},
    )


def count_view_epochs(flags: Mapping[str, Any]) -> int:
    """Return the N of ``--teacher-targets cached-views:N``, 0 where no views are stored."""
    # Without a teacher nothing is stored of the views, but for the features of a linear probe.
    kind, _, number = flags["teacher_targets"].partition(":")
    stores_views = kind == "cached-views" and (flags["teacher"] or flags["linear_probe"])
    return int(number) if stores_views else 0


# ---------------------------------------------------------------- an evaluation


# flags of ``validate.py`` that have another name in a run
NAMES_IN_A_RUN = {
    "split": "val_split",
    "num_samples": "val_num_samples",
    "few_shot": "few_shot_eval",
}


@dataclass(frozen=True, kw_only=True)
class ValidateSettings:
    """All settings of an evaluation: those of a run, with defaults for what it has not, and its own."""

    data: DataSettings
    input: InputSettings
    episodes: EpisodeSettings
    teacher: WeakTeacherSettings
    student: StudentSettings
    evaluation: EvaluationSettings
    compute: ComputeSettings
    subject: SubjectSettings
    report: ReportSettings
    seed: int
    """Seed of all random numbers."""

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "ValidateSettings":
        """Make the settings of all flags of ``validate.py``, by their names."""
        known: dict[str, Any] = {
            NAMES_IN_A_RUN.get(name, name): value for name, value in flags.items()
        }
        # What an evaluation has no flag for is as a run has it that is given none; only the mode of the crop is one
        # that runs have not.
        of_run = train_program().flags.defaults() | known
        every = {**of_run, **_derived(of_run), "crop_mode": known["crop_mode"]}
        return cls(**_take_concerns(cls, every), seed=known["seed"])
