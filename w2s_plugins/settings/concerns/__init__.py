"""All that the commands can be told: a flag is a field of one of these, and is declared nowhere else.

A run works with those that `resolve.train.resolve_train_args` returns, of which a function takes the concerns that it
needs. The help of a flag says what its value means.
"""

from .data import DataSettings, EpisodeSettings, InputSettings, LabelSettings
from .evaluation import EvaluatedSettings, ReportSettings, SubjectSettings
from .optim import OptimSettings
from .other_names import AliasSettings, RefusedSettings
from .prediction import Prediction
from .run import (
    CommandSettings,
    ComputeSettings,
    Debugging,
    EvaluationSettings,
    ProtocolSettings,
    RunSettings,
)
from .student import StudentSettings
from .teaching import LossSettings, WeakTeacherSettings
from .views import ViewSettings

__all__ = [
    "AliasSettings",
    "CommandSettings",
    "ComputeSettings",
    "DataSettings",
    "Debugging",
    "EpisodeSettings",
    "EvaluatedSettings",
    "EvaluationSettings",
    "InputSettings",
    "LabelSettings",
    "LossSettings",
    "OptimSettings",
    "Prediction",
    "ProtocolSettings",
    "RefusedSettings",
    "ReportSettings",
    "RunSettings",
    "StudentSettings",
    "SubjectSettings",
    "ViewSettings",
    "WeakTeacherSettings",
]
