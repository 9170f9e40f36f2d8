"""Samples that cannot be read: what names them, what takes their place in training, and when there are too many.

A file that cannot be read is an `UnreadableSample`, whatever error its decoder raised: the run ends with the name of
the file. timm has no flag for it; it returns the next sample of the dataset in its place, which here would put another
image under a position by which targets are cached and losses remember, and count a sample twice in an evaluation. With
`--data-errors skip:N` the sampler's keys carry the next views of the batch of all ranks together (`ReplaceableKey`, 16
at most), and the first that can be read takes the place, with its own position, label and seed; so the batch does not
depend on workers or ranks. The main process counts files, each once; ranks exchange what they have met when they log,
before a recovery checkpoint and at the end of an epoch, so that N is of the run. Checkpoints hold the list, with which
a resumed run goes on, and result.json does. The maker of cached targets sees a black image in place of such a sample
(`Blanked`), counts it, and notes in the part that it has no answer; training asks for that of the stand-in. A file
that was mended since is refused until the part is made anew. Evaluations, `--linear-probe`, the features that select
samples and `--episodic` always raise. Streams (`wds/`, `tfds/`) keep timm's behaviour.
"""

import logging
from collections.abc import Iterable

from PIL import Image

from ..distributed.world import gather_objects
from ..errors import UserError
from .workers import WorkerError
from .wrapper import Wrapper

UNREADABLE = -2 ** 31  # label of a blank image

_logger = logging.getLogger(__name__)


class UnreadableSample(WorkerError):
    """A sample that cannot be read or decoded; the text begins with its file."""


class Blanked(Wrapper):
    """A dataset that gives a black image, with the label `UNREADABLE`, for a sample that cannot be read.

    It is for passes over all samples in which none can take the place of another.
    """

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            return self.dataset[index]
        except UnreadableSample:
            # of the mode of the others, so that it goes into one batch with them
            image = Image.new(self._mode(), (64, 64))
            return (self.transform(image) if self.transform else image), UNREADABLE

    def _mode(self) -> str:
        source = self.dataset
        while not hasattr(source, "input_img_mode") and hasattr(source, "dataset"):
            source = source.dataset
        return getattr(source, "input_img_mode", None) or "RGB"

    def why(self, index: int) -> str:
        """Return the message about a sample that could not be read."""
        try:
            self.dataset[index]
        except UnreadableSample as error:
            return str(error)
        return f"sample {index} of the training set: cannot be read (now it can, a moment ago it could not)"


class SkippedSamples:
    """The unreadable files of a run, each counted once however often it is met.

    A rank knows of those of the others from each `agree` on.
    """

    def __init__(self, limit: int, distributed: bool = False):
        self.limit, self.distributed = limit, distributed
        self.messages: dict[str, None] = {}  # a set in order

    def add(self, messages: Iterable[str]) -> None:
        """Count messages of `UnreadableSample`. Raises `UserError` past the limit."""
        for message in messages:
            # a file counts once, however many epochs meet it
            if message in self.messages:
                continue
            self.messages[message] = None
            if len(self.messages) > self.limit:
                raise UserError(f"{message}; that makes {len(self.messages)} unreadable files, --data-errors allows "
                                f"{self.limit}; allow more, or repair them")
            _logger.warning(f"{message}; another sample of the batch takes its place ({len(self.messages)} of at most "
                            f"{self.limit} files, --data-errors)")

    def agree(self) -> list[str]:
        """Count what the other ranks have met; return all messages. All ranks must call it. Raises as `add` does."""
        if self.distributed:
            self.add(message for messages in gather_objects(list(self.messages)) for message in messages)
        return list(self.messages)

    def go_on_from(self, messages: Iterable[str]) -> None:
        """Count what the run had met before it was interrupted. Raises `UserError` when that is past the limit."""
        # in the order in which they were met
        self.messages = {**dict.fromkeys(messages), **self.messages}
        if self.messages:
            _logger.info(f"{len(self.messages)} unreadable files so far, --data-errors allows {self.limit}")
        if len(self.messages) > self.limit:
            raise UserError(f"--data-errors skip:{self.limit}: this run has met {len(self.messages)} unreadable files "
                            "before it was interrupted; allow more, or repair them")
