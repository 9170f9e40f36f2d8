"""A model as a file of ONNX. It is compared with the model before it is there, and says how images are prepared."""

import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError, near_path, one_line, quietly, write_errors
from ..target_kind import ONE_CLASS, TargetKind

PACKAGES = "onnx", "onnxscript", "onnxruntime"
TOLERANCE = 1e-3  # of the largest logit; float32 in another order of additions is about 1e-6
ONE_FILE = (
    1_900_000_000  # bytes of weights that still go into the file itself, which ONNX limits to 2 GiB
)
INPUT, OUTPUT = "images", "logits"


def check_onnx(file: Path, flag: str) -> None:
    """Look at the name of a file, and for the packages that write and read it, without importing them.

    Raises:
        UserError: it cannot be written.
    """
    # torch exports without some of them, and fails at its last step.
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"{flag} needs packages: pip install {' '.join(missing)}")
    if file.suffix != ".onnx":
        raise UserError(
            f"{flag} {file}: expected a name that ends with .onnx (nearest: {file.with_suffix('.onnx')})"
        )
    if not file.parent.is_dir():
        raise UserError(f"{flag} {file}: no folder {file.parent}{near_path(file.parent)}")


def export_onnx(
    model: nn.Module,
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None,
    file: Path,
    target_kind: TargetKind = ONE_CLASS,
) -> str:
    """Write a model as ``file``, from normalised images (B, C, H, W) to logits (B, K), for batches of any size B.

    Its metadata are ``mean``, ``std`` and ``class_names`` (JSON lists), ``interpolation``, ``crop_pct`` and
    ``crop_mode``, as `teachers.outside.open_onnx` reads them. Weights beyond 1.9 GB lie beside it, in ``FILE.data``.

    Args:
        model: of timm, in eval mode.
        data_config: its preprocessing, as ``timm.data.resolve_data_config`` returns it.
        class_names: by number; None where they are not known.
        file: ends with ``.onnx``; one that is there is replaced.
        target_kind: what its labels are; of several classes the metadata have transformers' ``problem_type``, and the
            thresholds if there is one for each.

    Returns:
        What was written and how far it is from the model, in a line.

    Raises:
        UserError: it cannot be exported or written, or onnxruntime gives other logits; then nothing is changed.
    """
    # written beside its place and compared there
    model = model.float().cpu()
    size = tuple(data_config["input_size"])
    with (
        write_errors(file, "export again"),
        tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as folder,
    ):
        new = Path(folder) / file.name
        try:
            metadata = _metadata(data_config, class_names)
            # texts as they are, as all plain texts of a file's metadata
            metadata |= {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in target_kind.recorded.items()
            }
            _write(model, size, metadata, new)
            difference, largest = _compare(model, size, new)
        except OSError:
            raise
        except Exception as error:  # torch's exporter and onnxruntime have errors of many kinds
            # torch tells first which of its steps it was
            reason = error
            while reason.__cause__ is not None:
                reason = reason.__cause__
            raise UserError(
                f"{file}: cannot be exported: {type(reason).__name__}: {one_line(reason, 200)}"
            ) from error
        compared = f"logits of onnxruntime and of torch differ by {difference:.1e}, of values up to {largest:.3g}"
        if not difference <= TOLERANCE * largest:  # nor where either is no number
            raise UserError(f"{file}: not written: {compared}; {TOLERANCE:g} of these is allowed")
        # the weights come before what refers to them
        for path in sorted(Path(folder).iterdir(), reverse=True):
            os.replace(path, file.parent / path.name)
    return (
        f"{file}: {' x '.join(map(str, size))} pixels, {model.num_classes} classes "
        f"{'with' if class_names else 'without'} names; {compared}"
    )


def _metadata(data_config: Mapping[str, Any], class_names: Sequence[str] | None) -> dict[str, str]:
    """Return what a file says of its images and classes."""
    metadata = {key: json.dumps(list(data_config[key])) for key in ("mean", "std")}
    metadata |= {key: str(data_config[key]) for key in ("interpolation", "crop_pct", "crop_mode")}
    if class_names:
        metadata["class_names"] = json.dumps(list(class_names))
    return metadata


def _write(model: nn.Module, size: Sequence[int], metadata: Mapping[str, str], file: Path) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # the exporter logs each of its steps, and warns of what it replaces
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(2, *size),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    if program is None:
        raise TypeError("torch.onnx.export returned nothing")
    # each node says which line of which file of this machine made it
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    # a file of ONNX has 2 GiB at most
    weights = sum(value.nbytes for value in model.state_dict().values())
    program.save(file, external_data=weights > ONE_FILE)


@torch.inference_mode()
def _compare(model: nn.Module, size: Sequence[int], file: Path) -> tuple[float, float]:
    """Return how far logits of a file are from those of its model at most, on noise, and the largest of these."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    # three images where two were traced, so that a batch size that became a constant is noticed
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    logits = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    return (expected - logits).abs().max().item(), expected.abs().max().item()
