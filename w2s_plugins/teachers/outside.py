"""``onnx:`` and ``MODULE:FUNCTION``: classifiers that are no modules of torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, logger, nearest, one_line
from ..files import file_sha256
from ..models.fingerprint import files_sha256, onnx_files
from ..models.foreign import PRETRAINED_CFG, check_value, with_thresholds
from ..registry import PLUGINS
from ..target_kind import ONE_CLASS, TargetKind, kind_of_problem
from ..target_kind.table import THRESHOLDS
from .openers import Opened, Request, register_teacher, usable_names

# where a file does not say otherwise
IMAGENET = dict(
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
    interpolation="bicubic",
    crop_pct=1.0,
    crop_mode="center",
)
EXAMPLES = {key: PRETRAINED_CFG[key] for key in IMAGENET} | {
    "class_names": PRETRAINED_CFG["label_names"]
}


class OutsideClassifier(nn.Module):
    """A classifier that torch does not know from inside. The first answer tells logits from probabilities.

    Args:
        who: its name, for messages.
        ask: from images (B, 3, H, W) in float32 to probabilities or logits (B, C).
        num_classes: C.
        identity: returns a text by which its stored answers are found again; None for this run alone.
        target_kind: what its labels are: probabilities sum to 1, or are those of each class by itself.
    """

    def __init__(
        self,
        who: str,
        ask: Callable[[Tensor], object],
        num_classes: int,
        identity: Callable[[], str] | None = None,
        target_kind: TargetKind = ONE_CLASS,
    ):
        super().__init__()
        self.who = who
        self.num_classes = num_classes
        self.forward_images = ask  # under a name by which it is known for code of a plugin
        self.probabilities: bool | None = None
        self.target_kind = target_kind
        if identity is not None:
            self.cache_identity = identity

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) in float32; probabilities become their logarithms.

        Raises:
            UserError: it fails, or answers with another shape, with values that are not finite, or with rows that are
                no probabilities where others were.
        """
        try:
            answers = torch.as_tensor(self.forward_images(images.float()))
            if answers.is_complex():
                raise TypeError("its answers are complex numbers")
            answers = answers.float()
        except Exception as error:  # onnxruntime and plugins have errors of their own
            raise UserError(
                f"{self.who}: {type(error).__name__}: {one_line(error, 200)}"
            ) from error
        if tuple(answers.shape) != (len(images), self.num_classes):
            raise UserError(
                f"{self.who}: answered {tuple(answers.shape)}, expected {(len(images), self.num_classes)}: "
                "a row for each image, a column for each class"
            )
        if not answers.isfinite().all():
            raise UserError(f"{self.who}: its answers are not finite")
        # What the first answers were, all others have to be.
        one_class = self.target_kind.name == ONE_CLASS.name
        sums = bool((answers >= 0).all())
        if one_class:
            sums = sums and bool(((answers.sum(dim=1) - 1).abs() < 1e-2).all())
        else:
            sums = sums and bool((answers <= 1).all())
        if self.probabilities is None:
            self.probabilities = sums
            logger.info(f"Teacher {self.who}: answers with {'probabilities' if sums else 'logits'}")
        if self.probabilities and not sums:
            raise UserError(
                f"{self.who}: its first answers were probabilities, and now rows "
                + ("do not sum to one" if one_class else "have values beyond 0 and 1")
            )
        if self.probabilities:
            answers = self.target_kind.from_probabilities(answers)
        return answers.to(images.device)


@register_teacher("onnx")
def open_onnx(name: str, request: Request) -> Opened:
    """Open a file of ONNX, which onnxruntime runs on the CPU. Its metadata may have ``class_names``, ``mean`` and
    ``std`` as JSON lists, and ``interpolation``, ``crop_pct`` and ``crop_mode``, which are timm's; ``problem_type``, which
    is transformers'; and ``label_thresholds``, from which probability on an image has each of several classes.
    """
    import onnxruntime

    if not Path(name).is_file():
        raise UserError("no such file")
    # As many threads as torch has: by itself it takes all cores, also those of other processes of the run.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    # The shape of what it gives says how many classes there are.
    taken, shape = session.get_inputs()[0], session.get_outputs()[0].shape
    count = shape[-1] if shape else None
    takes_images = (
        len(session.get_inputs()) == 1 and len(taken.shape) == 4 and taken.shape[1] in (1, 3)
    )
    if not takes_images or taken.type != "tensor(float)" or not isinstance(count, int):
        raise UserError(
            f"takes {taken.type} {taken.shape}, and gives {count} classes; expected one input of images "
            "(N, C, H, W) in float32, and a fixed number of classes"
        )

    # How images are normalised, resized and cropped, as the file says; else as ImageNet's.
    channels, metadata = taken.shape[1], session.get_modelmeta().custom_metadata_map
    counts = dict(mean=channels, std=channels, class_names=count)
    recorded = {
        key: _read_metadata(metadata, key, counts.get(key)) for key in EXAMPLES if key in metadata
    }
    names = [str(name) for name in recorded.pop("class_names", ())]
    height, width = (side if isinstance(side, int) else 224 for side in taken.shape[2:])
    config = {**IMAGENET, "input_size": (channels, height, width), **recorded}
    for key in ("mean", "std"):
        config[key] = tuple(float(value) for value in config[key][:channels])

    def ask(images: Tensor) -> Tensor:
        array = images.cpu().contiguous().numpy()
        # A network that takes so many images at a time is asked about the last of them several times.
        size = taken.shape[0] if isinstance(taken.shape[0], int) else len(array)
        filled = np.concatenate([array, np.repeat(array[-1:], -len(array) % size, axis=0)])
        parts = np.split(filled, len(filled) // size)
        answers = np.concatenate(
            [np.asarray(session.run(None, {taken.name: part})[0]) for part in parts]
        )
        return torch.from_numpy(answers[: len(images)])

    # It is known by every file that it is read from.
    who, sha256 = f"onnx:{name}", files_sha256(onnx_files(Path(name)))
    # Its metadata may say what its labels are; else it is taken for what is asked for.
    kind = kind_of_problem(metadata.get("problem_type")) or request.target_kind
    if THRESHOLDS in metadata:
        kind = with_thresholds(kind, _read_json(metadata[THRESHOLDS]), "its metadata") or kind
    model = OutsideClassifier(who, ask, count, lambda: f"onnx {sha256}", kind)
    origin = dict(file=name, sha256=sha256)
    return Opened(model, config, usable_names(who, names or None), origin, kind)


def _read_metadata(metadata: Mapping[str, str], key: str, count: int | None) -> Any:
    """Return a value of the metadata of a file, which may hold anything, as timm has it."""
    # Two are plain texts, the others JSON.
    value: Any = metadata[key]
    if key not in ("interpolation", "crop_mode"):
        value = _read_json(value)
    check_value(key, value, EXAMPLES[key], "its metadata")
    if count is not None and len(value) != count:
        raise UserError(f"its metadata {key} has {len(value)} values, expected {count}")
    return value


def _read_json(text: str) -> Any:
    """Return what a text of the metadata says as JSON, None if it says nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def open_function(module: str, name: str, request: Request) -> Opened:
    """Open a function of a module that ``--plugins`` has imported, from images in [0, 1] (B, 3, H, W) to probabilities
    or logits (B, C). It may have attributes: ``class_names``, ``num_classes``, ``input_size`` and ``cache_identity()``,
    a text by which its stored answers are found again.
    """
    # Only what the user has imported is looked into: a name in a run of others imports nothing.
    plugin = PLUGINS.get(module)
    function = getattr(plugin, name, None)
    if not callable(function):
        known = [
            key
            for key, value in vars(plugin).items()
            if callable(value) and not key.startswith("_")
        ]
        raise UserError(f"--plugins {module} has no function '{name}'{nearest(name, known)}")

    if request.features:
        raise UserError("has no features: a function gives answers alone; expected a model")
    # Its classes: names, a number, or as many as the data have.
    names = [str(text) for text in getattr(function, "class_names", None) or ()]
    num_classes = len(names) or getattr(function, "num_classes", None) or request.num_classes
    if num_classes is None:
        raise UserError(
            f"give the function an attribute class_names or num_classes: {name}.num_classes = 10"
        )

    # It sees pixels as they are, in the size of the student's images unless it says another.
    size = getattr(function, "input_size", None) or request.student_size or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels, who = request.in_chans or 3, f"{module}:{name}"
    config = {
        **IMAGENET,
        "input_size": (channels, height, width),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    # One that was made in a notebook, or handed to the Python API, has no file.
    file = getattr(plugin, "__file__", None)
    origin: dict[str, str | None] = dict(file=None, sha256=None)
    if file:
        origin = dict(file=Path(file).name, sha256=file_sha256(Path(file)))
    identity, kind = getattr(function, "cache_identity", None), request.target_kind
    model = OutsideClassifier(who, function, num_classes, identity, kind)
    return Opened(model, config, usable_names(who, names or None), origin, kind)
