"""What happened in a run: metrics.jsonl, and summary.csv, which is made of its evaluations."""

import json
import logging
from pathlib import Path

from ..errors import RESUME, UserError, write_errors
from ..files import to_csv, to_json, write_text

_logger = logging.getLogger(__name__)


class History:
    """The events of a run. Every checkpoint carries them all, so that the files can be written anew.

    metrics.jsonl gets each event as it comes, and both files are written whole by `save`; so what could not be written
    for a while is there as soon as that succeeds. Events hold nothing that depends on time, so that repeated runs write
    the same.

    Args:
        folder: of the run.
        text: what a checkpoint carries, from `text`. Whatever is wrong with it raises some exception.
        start_epoch: epochs from here on are trained again, None for those that it has none of.
    """

    def __init__(self, folder: Path, text: str = "", start_epoch: int | None = None):
        self.metrics, self.summary = folder / "metrics.jsonl", folder / "summary.csv"
        self.evaluations: list[dict] = []
        self._lines: list[str] = []
        self._rows: list[dict] = []  # of summary.csv
        self._whole = False  # metrics.jsonl has all lines
        for line in text.splitlines():
            if start_epoch is None or json.loads(line).get("epoch", -1) < start_epoch:
                self._add(line)

    @property
    def text(self) -> str:
        """All events, as in metrics.jsonl."""
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, event: str, /, **fields: object) -> None:
        """Add an event, to metrics.jsonl as well; a failure is a warning, and it is written by the next `save`."""
        line = to_json({"event": event, **fields})
        self._add(line)
        if not self._whole:
            return
        try:
            with write_errors(self.metrics, RESUME), self.metrics.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except UserError as error:
            self._whole = False  # half of the line may be there
            _logger.warning(f"WARNING: {error}; it is written again at the end of the epoch")

    def save(self) -> None:
        """Write both files whole. Raises `UserError` when one cannot be written."""
        write_text(self.metrics, self.text, RESUME)
        self._whole = True
        write_text(self.summary, to_csv(self._rows) if self._rows else "", RESUME)

    def _add(self, line: str) -> None:
        event = json.loads(line)
        self._lines.append(line)
        if event["event"] == "eval":
            self.evaluations.append(event)
            self._rows.append(_summary_row(**event))


def _summary_row(
        epoch: int,
        train: dict[str, float],
        lr: float,
        val: dict[str, float] | None = None,
        few_shot: dict[str, float] | None = None,
        **_: object,
) -> dict[str, object]:
    """Return a row of summary.csv, with timm's columns."""
    measured = {**(val or {}), **{f"few_shot_{k}": v for k, v in (few_shot or {}).items()}}
    return {"epoch": epoch, **{f"train_{k}": v for k, v in train.items()},
            **{f"eval_{k}": v for k, v in measured.items()}, "lr": lr}
