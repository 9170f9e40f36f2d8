"""Features of images as a file: names and a matrix, as NumPy or pandas read it.

``.npz`` holds ``filename`` (N,), or ``id`` where images have positions and no names, and ``features`` (N, D) in float32.
``.parquet`` has the columns of these names, of which ``features`` is a list of D numbers.
"""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, one_line
from ..files import atomic_write, note_written
from ..labels.answers import key_column
from ..teachers.teacher import TeacherModel

# keys (n,) and features (n, D) of some images at a time
Rows = Iterable[tuple[Sequence[str | int], Tensor]]


def feature_width(member: TeacherModel, who: str) -> int:
    """Return D, by the features of one black image.

    Args:
        member: the model.
        who: begins the message.

    Raises:
        UserError: it has no features that can be had.
    """
    reason = "it gives logits alone"
    if member.embeds:
        images = torch.zeros(1, *member.data_config["input_size"], device=member.scale.device)
        try:
            with torch.inference_mode():
                return member.encode(images).shape[1]
        except Exception as error:  # models of plugins have errors of their own
            reason = one_line(error)
    raise UserError(
        f"{who}: has no features ({reason}); expected a model of timm, hf: or clip:, or one with a method embed"
    )


def write_features(path: Path, keyed_by: str, shape: tuple[int, int], rows: Rows) -> None:
    """Write names and features, whole or not at all, without holding all features in memory.

    Args:
        path: the file; its suffix says what it is.
        keyed_by: what the keys are, see `SampleKeys`.
        shape: (N, D).
        rows: of all N images.

    Raises:
        UserError: it cannot be written.
    """
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_npz
    with atomic_write(path) as temporary:
        write(temporary, key_column(keyed_by), shape, rows)
        # so that it can be written again: it is of this program
        note_written(path, temporary)


def _write_npz(path: Path, key_name: str, shape: tuple[int, int], rows: Rows) -> None:
    # as np.savez does, which takes whole arrays alone
    about = dict(descr="<f4", fortran_order=False, shape=shape)
    all_keys: list[str | int] = []
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, about)
            for keys, features in rows:
                all_keys += keys
                file.write(features.numpy().astype("<f4").tobytes())
        with archive.open(f"{key_name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.array(all_keys), allow_pickle=False)


def _write_parquet(path: Path, key_name: str, shape: tuple[int, int], rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    # a list of one length is a matrix to whoever reads it
    width = shape[1]
    key_type = pa.int64() if key_name == "id" else pa.string()
    schema = pa.schema({key_name: key_type, "features": pa.list_(pa.float32(), width)})
    with ParquetWriter(path, schema) as writer:
        for keys, features in rows:
            matrix = pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy()), width)
            columns = [pa.array(keys, key_type), matrix]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
