"""Counts files of weights with one flipped bit that are read as if nothing were wrong.

    python benchmarks/flipped_bits.py

A run of two epochs is trained; then one bit of one tensor is flipped, in copies of its checkpoints and of its export,
and each copy is read as a run does that resumes, as a teacher is made, and as validate.py reads.
"""

import argparse
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from w2s_plugins.errors import UserError
from w2s_plugins.models.loading import find_weights, read_checkpoint, read_weights
from w2s_plugins.monitor import format_table
from w2s_plugins.teachers.teacher import load_frozen_model

ROOT = Path(__file__).parents[1]
MODEL = "w2s_cnn2"
EXPORT = Path("export", "model.safetensors")


def train(folder: Path) -> Path:
    """Train a small run and return its folder, with ``last``, a recovery checkpoint and an export."""
    flags = ["--dataset", "w2s/digits", "--img-size", "8", "--train-slice", "0:64", "--batch-size", "16", "--workers",
             "0", "--model", MODEL, "--epochs", "2", "--warmup-epochs", "0", "--opt", "adamw", "--output", str(folder),
             "--experiment", "run"]
    subprocess.run([sys.executable, ROOT / "train_w2s.py", *flags], check=True, capture_output=True)
    shutil.copy(folder / "run" / "last.pth.tar", folder / "run" / "recovery-2-1.pth.tar")
    return folder / "run"


def tensor_bytes(path: Path) -> list[tuple[int, int]]:
    """Return where the tensors of a file of weights lie: offset and length of each piece."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        first = 8 + struct.unpack("<Q", content[:8])[0]
        return [(first, len(content) - first)]
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if "/data/" in r.filename and r.file_size]
    starts = [r.header_offset + 30 + sum(struct.unpack_from("<HH", content, r.header_offset + 26)) for r in records]
    return [(start, record.file_size) for start, record in zip(starts, records)]


def flip_bit(path: Path, draw: random.Random) -> None:
    """Flip one bit of one tensor, the tensors of a file by their size."""
    pieces = tensor_bytes(path)
    ((start, length),) = draw.choices(pieces, [length for _, length in pieces])
    content = bytearray(path.read_bytes())
    content[start + draw.randrange(length)] ^= 1 << draw.randrange(8)
    path.unlink()  # it may be a link that other names share
    path.write_bytes(content)


def silent(run: Path, name: Path | str, read: Callable[[Path], object], count: int, draw: random.Random) -> int:
    """Return how many of ``count`` damaged copies of a run are read without an error; ``name`` is damaged."""
    passed = 0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "run")
            shutil.copytree(run, copy)
            flip_bit(copy / name, draw)
            try:
                read(copy)
                passed += 1
            except UserError:
                pass
    return passed


def count_silent(run: Path, share: float = 1.0, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Return for each way of reading how many damaged copies were read as whole ones, and of how many.

    Args:
        run: from `train`.
        share: of the full number of copies.
        seed: of the bits.
    """
    ways = {
        "last.pth.tar, resumed": ("last.pth.tar", 50, lambda run: read_checkpoint(run / "last.pth.tar", "--resume")),
        "recovery, resumed": (
            "recovery-2-1.pth.tar", 50, lambda run: read_checkpoint(run / "recovery-2-1.pth.tar", "--resume")),
        "last.pth.tar, as teacher": (
            "last.pth.tar", 16, lambda run: load_frozen_model(MODEL, str(run / "last.pth.tar"), 3)),
        "export, as teacher of its run": (EXPORT, 8, lambda run: load_frozen_model(MODEL, str(run), 3)),
        "export, as local-dir teacher": (
            EXPORT, 8, lambda run: load_frozen_model(f"local-dir:{run / 'export'}", None, 3)),
        "export, validated": (EXPORT, 10, lambda run: read_weights(find_weights(str(run), "x"), "--checkpoint")),
    }
    draw, counts = random.Random(seed), {}
    for way, (name, count, read) in ways.items():
        count = max(1, round(share * count))
        counts[way] = silent(run, name, read, count, draw), count
    return counts


def main() -> None:
    """Train, damage, read, and print the counts."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = count_silent(train(Path(folder)))
    print(format_table([[way, passed, count] for way, (passed, count) in counts.items()], ["", "silent", "of"]))


if __name__ == "__main__":
    main()
