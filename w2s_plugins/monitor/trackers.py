"""Services that show the figures of a run."""

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ..errors import UserError, one_line


class Trackers:
    """TensorBoard, Weights & Biases and trackio, where asked for.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard's events there.
        wandb: arguments of `wandb.init`, None for no Weights & Biases.
        trackio: arguments of `trackio.init`, None for no trackio.
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
            trackio: Mapping[str, object] | None = None,
            id: str | None = None,
            step: int = 0,
    ):
        self.tensorboard = self.wandb = self.trackio = self.id = None
        # the services know a run by its id
        if wandb is not None or trackio is not None:
            self.id = (wandb or {}).get("id") or id or secrets.token_hex(4)
        # each of them where it is asked for
        if tensorboard:
            writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
            self.tensorboard = writer(str(folder), purge_step=step + 1 if step else None)  # trained again
        if wandb is not None:
            how = dict(name=folder.name, dir=str(folder), id=self.id, resume="allow")
            self.wandb = _begin("wandb", **{**how, **wandb})
        if trackio is not None:
            # which knows runs by their names
            how = dict(name=f"{folder.name}-{self.id}", resume="allow", embed=False)
            self.trackio = _begin("trackio", **how, **trackio)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Log scalars at an update."""
        if self.tensorboard is not None:
            for name, value in figures.items():
                self.tensorboard.add_scalar(name, value, step)
        for run in filter(None, (self.wandb, self.trackio)):
            run.log(dict(figures), step=step)  # offline runs of W&B that resume restart their own count at 0

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        for run in filter(None, (self.wandb, self.trackio)):
            run.finish()


def _package(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--log-{name} needs a package: pip install {name}") from error


def _begin(name: str, /, **how: object) -> object:
    package = _package(name, name)
    try:
        return package.init(**how)
    except Exception as error:  # of a service that is not there, or knows nobody who has logged in
        raise UserError(f"--log-{name}: {type(error).__name__}: {one_line(error)}") from error
