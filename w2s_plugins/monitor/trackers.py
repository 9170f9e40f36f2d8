"""Services that show the figures of a run."""

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ..errors import UserError, one_line


class Trackers:
    """TensorBoard and Weights & Biases, where asked for.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard's events there.
        wandb: arguments of `wandb.init`, None for no Weights & Biases.
        id: of the run that goes on; a new one is drawn without it, where a service knows runs by theirs.
        step: update that it goes on from.

    Raises:
        UserError: asked for, but the package is not installed, or the service refuses the run.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool = False,
        wandb: Mapping[str, object] | None = None,
        id: str | None = None,
        step: int = 0,
    ):
        self.tensorboard = self.wandb = self.id = None
        # TensorBoard is told where the run goes on, so that what is trained again is not shown twice
        if tensorboard:
            writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
            first_step = step + 1 if step else None
            self.tensorboard = writer(str(folder), purge_step=first_step)
        if wandb is not None:
            # the service knows a run by its id, which checkpoints carry, so that a run that goes on is one curve there
            self.id = wandb.get("id") or id or secrets.token_hex(4)
            defaults = {"name": folder.name, "dir": str(folder), "resume": "allow"}
            how = {**defaults, **wandb, "id": self.id}
            package = _package("wandb", "wandb")
            try:
                self.wandb = package.init(**how)
            except Exception as error:  # it is not there, or knows nobody who has logged in
                raise UserError(f"--log-wandb: {one_line(error)}") from error

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Log scalars at an update."""
        if self.tensorboard is not None:
            for name, value in figures.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            # offline runs that resume restart their own count at 0
            self.wandb.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is left."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def _package(module: str, name: str) -> ModuleType:
    # imported only where asked for: both take seconds, and neither has to be installed
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--log-{name} needs a package: pip install {name}") from error
