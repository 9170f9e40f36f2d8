"""Files and services that keep the figures of a run."""

import argparse
import json
import os
from pathlib import Path

from ..errors import UserError, one_line, write_remedy


class MetricsFile:
    """metrics.jsonl: one line an event. It holds nothing that depends on time, so that repeated runs write the same.

    Args:
        path: the file.
        keep: bytes to keep of what is there, from the checkpoint that a run resumes from.
    """

    def __init__(self, path: Path, keep: int = 0):
        self.path = path
        if path.exists():
            os.truncate(path, min(keep, path.stat().st_size))

    def write(self, event: str, /, **fields: object) -> None:
        """Append one event. Raises `UserError` when the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **fields}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({one_line(error)}); "
                            f"{write_remedy(self.path, error)}") from error


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
        """Log scalars at an update."""
        if self.tensorboard is not None:
            for name, value in figures.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(figures, step=step)  # offline runs that resume restart their own count at 0

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
