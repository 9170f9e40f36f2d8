"""What it takes to label very many images in shards: bytes by kind of label, files, hours of a teacher."""

import math
import time
from dataclasses import dataclass

import torch
from timm.data.model_config import resolve_input_data_config

from ..errors import UserError
from ..labels.format import Manifest, rows_by_size
from ..labels.writer import readable
from ..models.loading import create_model
from ..monitor import format_table

BATCH, SECONDS = 64, 2.0  # of the measurement
KEY = 9  # characters of a key: 000000123
OF_KEY, OF_INDEX = 4, 24  # bytes beside the key in keys.json, and in the index of a shard
OF_SHARD = 2000  # bytes of a manifest and headers, about


@dataclass(frozen=True)
class Labelling:
    """What is labelled, and by whom.

    Args:
        model: the teacher.
        images: how many.
        num_classes: C.
        shard_size: images of a shard.
        topk: K of top-k labels.
    """

    model: str
    images: int
    num_classes: int
    shard_size: int
    topk: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.images / self.shard_size)


def throughput_here(name: str, num_classes: int, img_size: int | None) -> float:
    """Return the images per second that a model labels on this machine's GPU, or CPU, with random weights.

    Loading is not in it. Raises `UserError` for a model that cannot be made.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model("--teacher", name, pretrained=False, inputs=dict(img_size=img_size), num_classes=num_classes)
    model = model.eval().to(device)
    size = resolve_input_data_config(model, args=dict(img_size=img_size))["input_size"]
    images, batches, started = torch.randn(BATCH, *size, device=device), -1, 0.0
    with torch.inference_mode():
        while batches < 1 or time.monotonic() - started < SECONDS:
            if batches == 0:  # the first one is not counted
                started = time.monotonic()
            model(images).argmax(1).cpu()  # waits for the device
            batches += 1
    return BATCH * batches / (time.monotonic() - started)


def describe_labelling(what: Labelling, rates: dict[str, float], num_gpus: int) -> str:
    """Return what it takes, as text.

    Args:
        what: is labelled.
        rates: images per second of one device, by its name.
        num_gpus: that share the work.

    Raises:
        UserError: K is not below the number of classes.
    """
    if what.topk >= what.num_classes:
        raise UserError(f"--top-k {what.topk}: expected 1 to {what.num_classes - 1}, below the number of classes")
    size, beside = min(what.shard_size, what.images), what.images * (KEY + OF_KEY) + what.shards * OF_SHARD
    rows = []
    for name, kind in (("hard", "hard"), (f"top-{what.topk}", "top-k"), ("logits or probabilities", "logits")):
        manifest = Manifest(size, what.num_classes, {}, {}, kind, topk=what.topk if kind == "top-k" else None,
                            part_rows=rows_by_size(what.num_classes))
        files = len(manifest.parts(0)) + 2
        rows.append([name, f"{manifest.row_bytes:,}", readable(manifest.row_bytes * what.images + beside),
                     f"{files * what.shards:,}"])
    hours = [[name, f"{rate:,.0f}", f"{what.images / rate / 3600:,.0f}", f"{what.images / rate / 3600 / num_gpus:,.1f}"]
             for name, rate in rates.items()]
    index = what.images * (KEY + OF_INDEX) + what.shards * OF_SHARD
    return "\n".join([
        f"{what.images:,} images in {what.shards:,} shards of {what.shard_size:,}, {what.num_classes:,} classes, "
        f"labelled by {what.model}", "",
        format_table(rows, ["labels, float16", "bytes an image", "in all", "files"]), "",
        f"With keys of {KEY} characters, {readable(beside)} of it keys and manifests. Indexes of the shards, one file "
        f"each: {readable(index)}.", "",
        format_table(hours, ["teacher on", "img/s", "GPU hours", f"hours on {num_gpus}"]), "",
        "Hours are those of the network alone, estimates by FLOPs as for training; reading and decoding are left out."])


def show_labelling(what: Labelling, rates: dict[str, float], throughput: str | None, img_size: int | None,
                   num_gpus: int) -> None:
    """Print what a labelling takes; a throughput in img/s, or ``here`` to measure it, stands beside the estimates."""
    if throughput == "here":
        rates = {"this machine, measured": throughput_here(what.model, what.num_classes, img_size), **rates}
    elif throughput is not None:
        rates = {"--throughput": _number(throughput), **rates}
    print(describe_labelling(what, rates, num_gpus))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(f"--throughput {text}: expected images per second, or here")
    return value

