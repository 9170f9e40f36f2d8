"""JPEG files that the device decodes, crops and resizes (``--decoder nvjpeg``).

Data workers read the files and draw the views (`decoding.DeviceTransform`); what is not for the device they decode
themselves, as for ``--decoder torchvision``. The main process hands the files of a batch to torchvision's `decode_jpeg`
when timm's prefetcher moves the batch to the device. On a CPU the same code gives the views of ``--decoder
torchvision``, by which it is tested.
"""

import functools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from ..errors import one_line
from .decoding import Encoded, View, cut, explain_unreadable
from .unreadable import UnreadableSample

_logger = logging.getLogger(__name__)


class File(NamedTuple):
    """One of the files of a batch: its place there, its length in bytes, and what is wanted of it."""

    place: int
    length: int
    view: View
    name: str


@dataclass
class EncodedBatch:
    """Images of a batch, most of them still to be decoded. Moves to the device like a tensor: there it is one.

    Args:
        data: the bytes of the files, one after another; one tensor, for each that leaves a worker takes an open file.
        files: in the order of their places.
        ready: (N, 3, H, W) the images in the other places.
    """

    data: Tensor
    files: list[File]
    ready: Tensor | None

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Return the batch (B, 3, H, W) uint8 on the device.

        Raises:
            UnreadableSample: neither the device nor the CPU decodes a file.
        """
        images = [] if self.ready is None else list(self.ready.to(device, non_blocking=non_blocking))
        for file, image in zip(self.files, self._decoded(device)):
            images.insert(file.place, cut(image, file.view))
        return torch.stack(images)

    def _decoded(self, device: torch.device) -> list[Tensor]:
        parts = list(self.data.split([file.length for file in self.files]))
        try:
            return _decode(parts, device) if parts else []
        except RuntimeError:  # which says nothing of the others, nor which it is
            return [_decode_alone(file, part, device) for file, part in zip(self.files, parts)]


def _decode(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    if device.type == "cuda":  # else the decoder may write to memory that is still being read (pytorch/vision#9606)
        torch.cuda.current_stream(device).synchronize()
    return decode_jpeg(parts, ImageReadMode.RGB, device)


def _decode_alone(file: File, part: Tensor, device: torch.device) -> Tensor:
    try:
        return _decode([part], device)[0]
    except RuntimeError as error:
        _warn(one_line(error))
    try:
        (image,) = _decode([part], torch.device("cpu"))
    except RuntimeError as error:
        raise UnreadableSample(f"{file.name}: cannot be read ({explain_unreadable(error)})") from error
    return image.to(device)


@functools.cache
def _warn(reason: str) -> None:
    _logger.warning(f"WARNING: --decoder nvjpeg: files that the device does not decode are left to the CPU: {reason}")


def collate_encoded(batch: list[tuple[Encoded | Tensor, int]]) -> tuple[EncodedBatch, Tensor]:
    """Make a batch of files and decoded images."""
    images, labels = zip(*batch)
    encoded = {place: image for place, image in enumerate(images) if isinstance(image, Encoded)}
    data = bytearray().join(image.data for image in encoded.values())
    ready = [image for image in images if isinstance(image, Tensor)]
    return EncodedBatch(
        torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8),
        [File(place, len(image.data), image.view, image.name) for place, image in encoded.items()],
        torch.stack(ready) if ready else None), torch.tensor(labels)
