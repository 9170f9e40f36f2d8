"""What happened in a run: metrics.jsonl, and summary.csv, which is made of its evaluations."""

import json
from pathlib import Path

from ..errors import RESUME, write_errors
from ..files import to_csv, to_json, write_text


class History:
    """The events of a run. Every checkpoint carries them all, so that the files can be written anew.

    metrics.jsonl gets each event as it comes, and both files are written whole by `save`. Events hold nothing that
    depends on time, so that repeated runs write the same.

    Args:
        folder: of the run.
        text: what a checkpoint carries, from `text`. Whatever is wrong with it raises some exception.
        start_epoch: epochs from here on are trained again, None for those that it has none of.
    """

    def __init__(self, folder: Path, text: str = "", start_epoch: int | None = None):
        self.metrics = folder / "metrics.jsonl"
        self.summary = folder / "summary.csv"
        self.evaluations: list[dict] = []
        # an epoch that is trained again writes its events again
        self._lines: list[str] = []
        for line in text.splitlines():
            if start_epoch is None or json.loads(line).get("epoch", -1) < start_epoch:
                self._add(line)

    @property
    def text(self) -> str:
        """All events, as in metrics.jsonl."""
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, event: str, /, **fields: object) -> None:
        """Add an event, to metrics.jsonl as well. Raises `UserError` when that cannot be written."""
        # an event is the same text in the file and in checkpoints
        line = to_json({"event": event, **fields})
        self._add(line)
        with write_errors(self.metrics, RESUME), self.metrics.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def save(self) -> None:
        """Write both files whole. Raises `UserError` when one cannot be written."""
        # whole and renamed, so that lines of another course of the run are gone
        write_text(self.metrics, self.text, RESUME)
        # timm's columns, and those of the few-shot test, which timm has not
        rows = []
        for event in self.evaluations:
            row = {"epoch": event["epoch"]}
            for prefix, key in (("train", "train"), ("eval", "val"), ("eval_few_shot", "few_shot")):
                row |= {f"{prefix}_{name}": value for name, value in (event.get(key) or {}).items()}
            rows.append({**row, "lr": event["lr"]})
        write_text(self.summary, to_csv(rows) if rows else "", RESUME)

    def _add(self, line: str) -> None:
        event = json.loads(line)
        self._lines.append(line)
        if event["event"] == "eval":
            self.evaluations.append(event)
