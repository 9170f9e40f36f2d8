"""What it takes to label very many images in shards: bytes by kind of label, files, hours of a teacher."""

import math
import time
from collections.abc import Mapping

import torch
from timm.data.model_config import resolve_input_data_config

from ..errors import UserError
from ..labels.format import Manifest, rows_by_size
from ..labels.writer import readable
from ..models.loading import create_model
from ..monitor import format_table

BATCH, SECONDS = 64, 2.0  # of the measurement
KEY = 9  # characters of a key: 000000123
OF_KEY, OF_INDEX = 4, 20  # bytes beside the key in keys.json, and in the index of a shard
OF_SHARD = 2000  # bytes of a manifest and headers, about


def throughput_here(name: str, num_classes: int, img_size: int | None) -> float:
    """Return the images per second that a model labels on this machine's GPU, or CPU; loading is not in it.

    Raises:
        UserError: the model cannot be made.
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


def describe_labelling(
        model: str, images: int, num_classes: int, shard_size: int, topk: int, rates: Mapping[str, float],
        num_gpus: int) -> str:
    """Return as text what it takes that a model labels images.

    Args:
        model: its name.
        images: how many.
        num_classes: C.
        shard_size: images of a shard.
        topk: K of top-k labels.
        rates: images per second of one device, by its name.
        num_gpus: that share the work.

    Raises:
        UserError: K is not below the number of classes.
    """
    if topk >= num_classes:
        raise UserError(f"--top-k {topk}: expected 1 to {num_classes - 1}, below the number of classes")
    shards, rows = math.ceil(images / shard_size), []
    beside, index = (images * (KEY + more) + shards * OF_SHARD for more in (OF_KEY, OF_INDEX))
    for name, kind in (("hard", "hard"), (f"top-{topk}", "top-k"), ("logits or probabilities", "logits")):
        manifest = Manifest(shard_size, num_classes, {}, {}, kind, topk=topk if kind == "top-k" else None,
                            part_rows=rows_by_size(num_classes))
        rows.append([name, f"{manifest.row_bytes:,}", readable(manifest.row_bytes * images + beside),
                     f"{(len(manifest.parts(0)) + 2) * shards:,}"])
    hours = [[name, f"{rate:,.0f}", f"{images / rate / 3600:,.0f}", f"{images / rate / 3600 / num_gpus:,.1f}"]
             for name, rate in rates.items()]
    return "\n".join([
        f"{images:,} images in {shards:,} shards of {shard_size:,}, {num_classes:,} classes, labelled by {model}", "",
        format_table(rows, ["labels, float16", "bytes an image", "in all", "files"]), "",
        f"With keys of {KEY} characters, {readable(beside)} of it keys and manifests. Indexes of the shards, one file "
        f"each: {readable(index)}.", "",
        format_table(hours, ["teacher on", "img/s", "GPU hours", f"hours on {num_gpus}"]), "",
        "Hours are those of the network alone, estimates by FLOPs as for training; reading and decoding are left out."])
