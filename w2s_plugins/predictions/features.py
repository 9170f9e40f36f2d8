"""Features of images as a file: names and a matrix, as NumPy or pandas read it.

``.npz`` holds ``filename`` (N,), or ``id`` where images have positions and no names, and ``features`` (N, D) in float32.
``.parquet`` has the columns of these names, of which ``features`` is a list of D numbers.
"""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import atomic_write, note_written
from ..labels.answers import key_column
from ..labels.store import LabelReader, read_keys

ROWS = 8192  # that are in memory at a time


def read_rows(reader: LabelReader, rows: Tensor) -> Iterator[tuple[Sequence[str | int], Tensor]]:
    """Yield the keys of the images ``rows`` (n,), and what is stored of them, some at a time."""
    # some at a time: probabilities of a million images in a thousand classes are 4 GB
    all_keys = read_keys(reader.folder, reader.manifest)
    for some in rows.split(ROWS):
        yield [all_keys[row] for row in some.tolist()], reader(some, torch.device("cpu"))


def write_features(path: Path, reader: LabelReader, rows: Tensor) -> None:
    """Write names and features, whole or not at all, without holding all features in memory.

    Args:
        path: the file; its suffix says what it is.
        reader: of the features.
        rows: (n,) of the images.

    Raises:
        UserError: it cannot be written.
    """
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_npz
    with atomic_write(path) as temporary:
        write(temporary, reader, rows)
        # so that it can be written again: it is of this program
        note_written(path, temporary)


def _write_npz(path: Path, reader: LabelReader, rows: Tensor) -> None:
    # as np.savez does, which takes whole arrays alone
    manifest = reader.manifest
    shape = len(rows), manifest.num_classes
    about = dict(descr=np.dtype(np.float32).str, fortran_order=False, shape=shape)
    names: list[str | int] = []
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, about)
            for keys, features in read_rows(reader, rows):
                names += keys
                file.write(features.numpy().tobytes())
        with archive.open(f"{key_column(manifest.keyed_by)}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.array(names))


def _write_parquet(path: Path, reader: LabelReader, rows: Tensor) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    # lists of one length are a matrix to whoever reads them
    name, width = key_column(reader.manifest.keyed_by), reader.manifest.num_classes
    kind = pa.int64() if name == "id" else pa.string()
    schema = pa.schema({name: kind, "features": pa.list_(pa.float32(), width)})
    with ParquetWriter(path, schema) as writer:
        for keys, features in read_rows(reader, rows):
            matrix = pa.FixedSizeListArray.from_arrays(features.flatten().numpy(), width)
            writer.write_batch(pa.record_batch([pa.array(keys, kind), matrix], schema))
