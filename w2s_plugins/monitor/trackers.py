"""Services that show the figures of a run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, one_line

_logger = logging.getLogger(__name__)


class Trackers:
    """TensorBoard and Weights & Biases, where asked for.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard's events there.
        wandb: arguments of `wandb.init`, None for no Weights & Biases.

    Raises:
        UserError: asked for, but the package is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False, wandb: dict[str, object] | None = None):
        self.tensorboard = self.wandb = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--log-tensorboard needs a package: pip install tensorboard") from error
            self.tensorboard = SummaryWriter(str(folder))
        if wandb is not None:
            try:
                import wandb as package
            except ImportError as error:
                raise UserError("--log-wandb needs a package: pip install wandb") from error
            self.wandb = package
            package.init(name=folder.name, dir=str(folder), **wandb)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Log scalars at an update. TensorBoard's files end with a warning when they cannot be written."""
        if self.tensorboard is not None:
            with self._tensorboard_or_warning():
                for name, value in figures.items():
                    self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(figures, step=step)  # offline runs that resume restart their own count at 0

    @contextlib.contextmanager
    def _tensorboard_or_warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of its thread; it writes nothing any more
            _logger.warning(f"WARNING: --log-tensorboard: its file cannot be written ({one_line(error)}); training "
                            "goes on without it")
            self.tensorboard = None

    def close(self) -> None:
        if self.tensorboard is not None:
            with self._tensorboard_or_warning():
                self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
