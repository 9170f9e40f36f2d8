"""Progress bar on a terminal or in a notebook with widgets, log lines elsewhere; rank 0 only."""

import functools
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm.std import tqdm as std_tqdm

from ..errors import LONGEST_NAME, PublicFormatter, logger, shorten, shown

with warnings.catch_warnings():  # that a notebook has no widgets, or that it has
    warnings.simplefilter("ignore")
    from tqdm.autonotebook import tqdm

Item = TypeVar("Item")

KNOWN_WARNINGS = (
    "`broadcast_buffers` is deprecated",  # timm's tasks take no other name
    "Detected pickle protocol",  # a refused file has its own message
    "There is a performance drop because we have not yet",  # of torch.vmap
    "This DataLoader will create",  # timm's default of 4 workers is kept
)
# packages of which only warnings are shown
NOISY = (
    "httpx",
    "httpx2",
    "httpcore",
    "filelock",
    "timm.models._builder",
    "timm.utils.checkpoint_saver",
    "timm.models._helpers",
    "timm.models._hub",
    "huggingface_hub",
    "torch.distributed",
)


class _TqdmHandler(logging.Handler):
    """Writes log lines above the progress bar; a line that the disk of a redirected output refuses is lost."""

    def emit(self, record: logging.LogRecord) -> None:
        # a notebook shows stderr in red
        notebook = type(sys.stdout).__module__ == "ipykernel.iostream"
        stream = sys.stdout if notebook and record.levelno < logging.WARNING else sys.stderr
        try:
            tqdm.write(self.format(record), file=stream)
        except BrokenPipeError:
            raise
        except OSError:
            pass


def setup_logging(primary: bool) -> None:
    """Show log lines on rank 0, warnings only on the others."""
    # tqdm's own lock is shared with forks, and whoever is killed while it writes keeps it
    tqdm.set_lock(threading.RLock())
    # one handler for all packages
    handler = _TqdmHandler()
    handler.setFormatter(PublicFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if primary else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it shows its warnings itself
    # what is known here and tells the user nothing
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING if primary else logging.ERROR)


class Console:
    """Progress of a training run.

    Args:
        primary: False shows nothing.
        total: updates in the whole run, for the time left.
        done: updates done before this process started.
    """

    def __init__(self, primary: bool, total: int, done: int = 0):
        self.primary = primary
        self.total = total
        self.first = done
        self.started = time.monotonic()
        self.samples = 0
        self.waited = 0.0  # seconds
        self.bar = None
        if primary and has_terminal():
            self.bar = tqdm(
                total=total,
                initial=done,
                unit="step",
                dynamic_ncols=True,
                leave=False,
                file=sys.stdout,
            )

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield batches, and add up for how long they are waited for."""
        # the clock runs while the loop asks for the next batch, and stands while that is worked on
        began = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def update(self, samples: int) -> None:
        """Count one update of ``samples`` samples."""
        self.samples += samples
        if self.bar is not None:
            self.bar.update(1)

    def log(
        self,
        epoch: int,
        num_epochs: int,
        update: int,
        updates: int,
        terms: dict[str, float],
        lr: float,
    ) -> None:
        """Show the averages of the loss terms, rate, share of the time that went into waiting for data, and time left."""
        if not self.primary:
            return
        # rates since this process started
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = f"{self.samples / elapsed:.3g} img/s, data {100 * self.waited / elapsed:.0f} %"
        text = " ".join(f"{k} {v:.4g}" for k, v in terms.items())
        # beside a bar, or as a line of the log
        if self.bar is not None:
            self.bar.set_description(f"epoch {epoch + 1}/{num_epochs}")
            self.bar.set_postfix_str(f"{text} lr {lr:.2e} {rate}")
            return
        done = epoch * updates + update + 1
        left = elapsed / max(done - self.first, 1) * max(self.total - done, 0)
        logger.info(
            f"epoch {epoch + 1}/{num_epochs} step {update + 1}/{updates} {text} lr {lr:.2e} "
            f"{rate}, {std_tqdm.format_interval(left)} left"
        )

    def wrap(self, text: str) -> Callable[[Iterable[Item]], Iterable[Item]] | None:
        """Return a function that wraps an iterable to show progress under the heading ``text``; None where there is no
        place for a bar.
        """
        # lines of a log would only say that something goes on
        if not (self.primary and has_terminal()):
            return None
        return functools.partial(tqdm, desc=text, leave=False, dynamic_ncols=True, file=sys.stdout)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def has_terminal() -> bool:
    """True when stdout is a terminal, or a notebook that shows a progress bar."""
    return tqdm is not std_tqdm or sys.stdout.isatty()


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return a table for the console: first column left, others right; None is shown as a dash."""
    # texts first, then the width of each column
    heads = [_cell(head) for head in header]
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [heads, *texts]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, (text, width) in enumerate(zip(cells, widths)):
            padded.append(text.rjust(width) if column else text.ljust(width))
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(heads), rule, *map(line, texts)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else shorten(shown(value), LONGEST_NAME)
