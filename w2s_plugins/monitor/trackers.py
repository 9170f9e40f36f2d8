"""Files and services that keep the figures of a run."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, one_line, write_errors
from ..files import to_json

_logger = logging.getLogger(__name__)


class MetricsFile:
    """metrics.jsonl: one line an event. It holds nothing that depends on time, so that repeated runs write the same.

    Lines wait in memory while the file cannot be written.

    Args:
        path: the file.
        keep: bytes to keep of what is there, from the checkpoint that a run resumes from.
        waiting: lines that were waiting when the checkpoint was written.
    """

    def __init__(self, path: Path, keep: int = 0, waiting: str = ""):
        self.path, self.size, self.waiting = path, 0, waiting
        if path.exists():
            self.size = min(keep, path.stat().st_size)
            os.truncate(path, self.size)

    def write(self, event: str, /, **fields: object) -> None:
        """Append one event, now or, after a warning, as soon as the file can be written."""
        told = bool(self.waiting)
        self.waiting += to_json({"event": event, **fields}) + "\n"
        try:
            self.flush()
        except UserError as error:
            if not told:
                _logger.warning(f"WARNING: {error}; lines wait in memory until it can be")

    def flush(self) -> None:
        """Write what waits, all of it or nothing. Raises `UserError` when that fails."""
        if not self.waiting:
            return
        data = self.waiting.encode()
        try:
            with write_errors(self.path), self.path.open("ab") as file:
                self.size = min(self.size, file.tell())  # less than before in a folder that was made again
                file.truncate(self.size)
                file.write(data)
        except UserError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.size)  # a part of the lines may be there
            raise
        self.size, self.waiting = self.size + len(data), ""

    def sync(self) -> None:
        """Have what is written on the disk before a checkpoint counts on it, a power cut later."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())


class Trackers:
    """TensorBoard and Weights & Biases, where asked for.

    Raises:
        UserError: asked for, but the package is not installed.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, config: dict[str, object]):
        self.tensorboard = self.wandb = None
        if args.log_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--log-tensorboard needs a package: pip install tensorboard") from error
            self.tensorboard = SummaryWriter(str(folder))
        if args.log_wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError("--log-wandb needs a package: pip install wandb") from error
            self.wandb = wandb
            wandb.init(
                project=args.wandb_project,
                name=folder.name,
                config=config,
                tags=args.wandb_tags,
                dir=str(folder),
                resume="must" if args.wandb_resume_id else None,
                id=args.wandb_resume_id or None,
            )

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
