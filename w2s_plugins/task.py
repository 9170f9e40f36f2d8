"""The training task, to be used without the scripts: a `timm.task.TrainingTask`."""

from .engine.task import StudentModule, WeakToStrongTask

__all__ = ["StudentModule", "WeakToStrongTask"]
