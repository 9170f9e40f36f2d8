"""``onnx:`` and ``MODULE:FUNCTION``: classifiers that are no modules of torch."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, nearest, one_line
from ..files import file_sha256
from ..models.fingerprint import files_sha256, onnx_files
from ..models.foreign import PRETRAINED_CFG, check_value
from ..registry import loaded_plugin
from .opened import Opened, Request, register_teacher, usable_names

_logger = logging.getLogger(__name__)


class OutsideClassifier(nn.Module):
    """A classifier that torch does not know from inside. The first answer tells logits from probabilities.

    Args:
        who: its name, for messages.
        num_classes: C.
    """

    def __init__(self, who: str, num_classes: int):
        super().__init__()
        self.who, self.num_classes = who, num_classes
        self.probabilities: bool | None = None

    def to_logits(self, answers: Tensor, count: int) -> Tensor:
        """Return answers as logits (B, C) in float32; probabilities become their logarithms.

        Raises:
            UserError: another shape, values that are not finite, or rows that do not sum to one where others did.
        """
        answers = answers.float()
        if tuple(answers.shape) != (count, self.num_classes):
            raise UserError(f"{self.who}: answered {tuple(answers.shape)}, expected {(count, self.num_classes)}: a row "
                            "for each image, a column for each class")
        if not answers.isfinite().all():
            raise UserError(f"{self.who}: its answers are not finite")
        sums = bool(((answers >= 0).all(dim=1) & ((answers.sum(dim=1) - 1).abs() < 1e-2)).all())
        if self.probabilities is None:
            self.probabilities = sums
            _logger.info(f"Teacher {self.who}: answers with {'probabilities' if sums else 'logits'}")
        if not self.probabilities:
            return answers
        if not sums:
            raise UserError(f"{self.who}: its first answers were probabilities, and now rows do not sum to one")
        return answers.clamp(min=torch.finfo(torch.float32).tiny).log()


# ---------------------------------------------------------------- ONNX

EXAMPLES = {**PRETRAINED_CFG, "class_names": PRETRAINED_CFG["label_names"]}
IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], class_names=None, interpolation="bicubic",
                crop_pct=1.0, crop_mode="center")  # where a file does not say otherwise


class OnnxClassifier(OutsideClassifier):
    """A network that onnxruntime runs on the CPU."""

    def __init__(self, file: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        shape = session.get_outputs()[0].shape
        super().__init__(f"onnx:{file}", shape[-1] if shape else None)
        self._session, self.input, self.inputs = session, session.get_inputs()[0], len(session.get_inputs())
        self.metadata = session.get_modelmeta().custom_metadata_map
        self.sha256 = files_sha256(onnx_files(file))

    def cache_identity(self) -> str:
        """Return what identifies the network."""
        return f"onnx {self.sha256}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        array = images.float().cpu().contiguous().numpy()
        if self.input.type == "tensor(float16)":
            array = array.astype(np.float16)
        size = self.input.shape[0] if isinstance(self.input.shape[0], int) else len(array)
        # a network that takes so many images at a time is asked about the last of them several times
        filled = np.concatenate([array, np.repeat(array[-1:], -len(array) % size, axis=0)])
        try:
            answers = [self._session.run(None, {self.input.name: part})[0]
                       for part in np.split(filled, len(filled) // size)]
        except Exception as error:  # of onnxruntime, whose errors have no common class
            raise UserError(f"{self.who}: {one_line(error, 200)}") from error
        return self.to_logits(torch.from_numpy(np.concatenate(answers)[:len(images)]), len(images)).to(images.device)


@register_teacher("onnx")
def open_onnx(name: str, request: Request) -> Opened:
    """Open a file of ONNX. Its metadata may have ``class_names``, ``mean`` and ``std`` as JSON lists, and
    ``interpolation``, ``crop_pct`` and ``crop_mode``, which are timm's.
    """
    file = Path(name)
    if not file.is_file():
        raise UserError("no such file")
    try:
        model = OnnxClassifier(file)
    except ImportError:
        raise
    except Exception as error:  # onnxruntime has errors of its own for everything
        raise UserError(f"cannot be opened by onnxruntime: {one_line(error, 160)}") from error
    shape = model.input.shape
    if model.inputs != 1 or len(shape) != 4 or shape[1] not in (1, 3) or not isinstance(model.num_classes, int) or (
            model.input.type not in ("tensor(float)", "tensor(float16)")):
        raise UserError(f"takes {model.inputs} input(s), {model.input.type} {shape}, and gives {model.num_classes} "
                        "classes; expected images (N, C, H, W) of floats and a fixed number of classes")
    # how images are normalised, resized and cropped, as the file says; else as ImageNet's, and the shorter side
    counts = dict(mean=shape[1], std=shape[1], class_names=model.num_classes)
    found = {key: _read_metadata(model.metadata, key, counts.get(key)) for key in IMAGENET if key in model.metadata}
    size = request.img_size or 224
    height, width = (side if isinstance(side, int) else size for side in shape[2:])
    config = {**IMAGENET, "input_size": (shape[1], height, width), **found}
    names = config.pop("class_names")
    names = names and [str(name) for name in names]
    for key in ("mean", "std"):
        config[key] = tuple(float(value) for value in config[key][:shape[1]])
    return Opened(model, config, usable_names(f"onnx:{name}", names), dict(file=name, sha256=model.sha256))


def _read_metadata(metadata: Mapping[str, str], key: str, count: int | None) -> object:
    """Return a value of the metadata of a file, which may hold anything, as timm has it."""
    text = metadata[key]
    try:
        value = text if key in ("interpolation", "crop_mode") else json.loads(text)
    except ValueError:
        value = None
    check_value(key, value, EXAMPLES[key], "its metadata")
    if count is not None and len(value) != count:
        raise UserError(f"its metadata {key} has {len(value)} values, expected {count}")
    return value


# ---------------------------------------------------------------- a function of a plugin


class FunctionClassifier(OutsideClassifier):
    """A function of a plugin, from images in [0, 1] (B, 3, H, W) to probabilities or logits (B, C).

    It may have attributes: ``class_names``, ``num_classes``, ``input_size`` and ``cache_identity()``, a text by which
    its stored answers are found again.
    """

    def __init__(self, who: str, function: Callable[[Tensor], object], num_classes: int):
        super().__init__(who, num_classes)
        self.forward_images = function  # under a name by which it is known for code of a plugin
        if hasattr(function, "cache_identity"):
            self.cache_identity = function.cache_identity

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        try:
            answers = torch.as_tensor(self.forward_images(images.float()))
        except UserError:
            raise
        except Exception as error:  # code of a plugin
            raise UserError(f"{self.who}: {type(error).__name__}: {one_line(error, 200)}") from error
        return self.to_logits(answers, len(images)).to(images.device)


def open_function(module: str, name: str, request: Request) -> Opened:
    """Open a function of a module that ``--plugins`` has imported."""
    plugin = loaded_plugin(module)
    function = getattr(plugin, name, None)
    if not callable(function):
        known = [key for key, value in vars(plugin).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"--plugins {module} has no function '{name}'{nearest(name, known)}")
    names = getattr(function, "class_names", None)
    names = None if names is None else [str(text) for text in names]
    num_classes = len(names) if names else getattr(function, "num_classes", None) or request.num_classes
    if num_classes is None:
        raise UserError(f"give the function an attribute class_names or num_classes: {name}.num_classes = 10")
    size = request.img_size or getattr(function, "input_size", None) or request.student_size or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = request.in_chans
    config = dict(input_size=(channels, height, width), mean=(0.0,) * channels, std=(1.0,) * channels,
                  interpolation="bicubic", crop_pct=1.0, crop_mode="center")
    file = getattr(plugin, "__file__", None)
    origin = dict(file=file and Path(file).name, sha256=file and file_sha256(Path(file)))
    who = f"{module}:{name}"
    return Opened(FunctionClassifier(who, function, num_classes), config, usable_names(who, names), origin)
