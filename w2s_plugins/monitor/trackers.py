"""Services that show the figures of a run."""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import UserError, one_line

_logger = logging.getLogger(__name__)


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
        self.tensorboard = self.wandb = self.trackio = None
        self.id = None
        if wandb is not None or trackio is not None:
            self.id = (wandb or {}).get("id") or id or secrets.token_hex(4)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--log-tensorboard needs a package: pip install tensorboard") from error
            self.tensorboard = SummaryWriter(str(folder), purge_step=step + 1 if step else None)  # trained again
        if wandb is not None:
            try:
                import wandb as package
            except ImportError as error:
                raise UserError("--log-wandb needs a package: pip install wandb") from error
            how = dict(name=folder.name, dir=str(folder), id=self.id, resume="allow")
            self.wandb = _begin("--log-wandb", lambda: package.init(**{**how, **wandb}))
        if trackio is not None:
            try:
                import trackio as package
            except ImportError as error:
                raise UserError("--log-trackio needs a package: pip install trackio") from error
            how = dict(name=f"{folder.name}-{self.id}", resume="allow", embed=False)  # it knows runs by their names
            self.trackio = _begin("--log-trackio", lambda: package.init(**how, **trackio))

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Log scalars at an update. TensorBoard's files end with a warning when they cannot be written."""
        if self.tensorboard is not None:
            with self._tensorboard_or_warning():
                for name, value in figures.items():
                    self.tensorboard.add_scalar(name, value, step)
        for run in filter(None, (self.wandb, self.trackio)):
            run.log(dict(figures), step=step)  # offline runs of W&B that resume restart their own count at 0

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
        for run in filter(None, (self.wandb, self.trackio)):
            run.finish()


def _begin(flag: str, init: Callable[[], object]) -> object:
    try:
        return init()
    except Exception as error:  # of a service that is not there, or knows nobody who has logged in
        raise UserError(f"{flag}: {type(error).__name__}: {one_line(error)}") from error
