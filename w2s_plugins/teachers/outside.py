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
from .openers import Opened, Request, register_teacher, usable_names

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

    def answers(self, images: Tensor) -> Tensor:
        """Return probabilities or logits (B, C) for images (B, 3, H, W) in float32."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) in float32; probabilities become their logarithms.

        Raises:
            UserError: it fails, or answers with another shape, with values that are not finite, or with rows that do
                not sum to one where others did.
        """
        try:
            answers = self.answers(images.float()).float()
        except UserError:
            raise
        except Exception as error:  # onnxruntime and plugins have errors of their own
            raise UserError(f"{self.who}: {type(error).__name__}: {one_line(error, 200)}") from error
        if tuple(answers.shape) != (len(images), self.num_classes):
            raise UserError(f"{self.who}: answered {tuple(answers.shape)}, expected {(len(images), self.num_classes)}: "
                            "a row for each image, a column for each class")
        if not answers.isfinite().all():
            raise UserError(f"{self.who}: its answers are not finite")
        # What the first answers were, all others have to be.
        sums = bool(((answers >= 0).all(dim=1) & ((answers.sum(dim=1) - 1).abs() < 1e-2)).all())
        if self.probabilities is None:
            self.probabilities = sums
            _logger.info(f"Teacher {self.who}: answers with {'probabilities' if sums else 'logits'}")
        if self.probabilities and not sums:
            raise UserError(f"{self.who}: its first answers were probabilities, and now rows do not sum to one")
        if self.probabilities:
            answers = answers.clamp(min=torch.finfo(torch.float32).tiny).log()
        return answers.to(images.device)


# ---------------------------------------------------------------- ONNX

EXAMPLES = {**PRETRAINED_CFG, "class_names": PRETRAINED_CFG["label_names"]}
IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], class_names=None, interpolation="bicubic",
                crop_pct=1.0, crop_mode="center")  # where a file does not say otherwise


class OnnxClassifier(OutsideClassifier):
    """A network that onnxruntime runs on the CPU. It is known by every file that it is read from."""

    def __init__(self, file: Path):
        import onnxruntime

        # As many threads as torch has; its shape says how many classes there are.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        shape = session.get_outputs()[0].shape
        super().__init__(f"onnx:{file}", shape[-1] if shape else None)
        self._session, self.inputs = session, session.get_inputs()
        self.metadata = session.get_modelmeta().custom_metadata_map
        self.sha256 = files_sha256(onnx_files(file))

    def cache_identity(self) -> str:
        """Return what identifies the network."""
        return f"onnx {self.sha256}"

    def answers(self, images: Tensor) -> Tensor:
        array, taken = images.cpu().contiguous().numpy(), self.inputs[0]
        if taken.type == "tensor(float16)":
            array = array.astype(np.float16)
        # A network that takes so many images at a time is asked about the last of them several times.
        size = taken.shape[0] if isinstance(taken.shape[0], int) else len(array)
        filled = np.concatenate([array, np.repeat(array[-1:], -len(array) % size, axis=0)])
        parts = np.split(filled, len(filled) // size)
        answers = np.concatenate([self._session.run(None, {taken.name: part})[0] for part in parts])
        return torch.from_numpy(answers[:len(images)])


@register_teacher("onnx")
def open_onnx(name: str, request: Request) -> Opened:
    """Open a file of ONNX. Its metadata may have ``class_names``, ``mean`` and ``std`` as JSON lists, and
    ``interpolation``, ``crop_pct`` and ``crop_mode``, which are timm's.
    """
    if not Path(name).is_file():
        raise UserError("no such file")
    model = OnnxClassifier(Path(name))
    taken, count = model.inputs[0], model.num_classes
    takes_images = len(model.inputs) == 1 and len(taken.shape) == 4 and taken.shape[1] in (1, 3)
    if not takes_images or taken.type not in ("tensor(float)", "tensor(float16)") or not isinstance(count, int):
        raise UserError(f"takes {taken.type} {taken.shape}, and gives {count} classes; expected one input of images "
                        "(N, C, H, W) in floats, and a fixed number of classes")

    # How images are normalised, resized and cropped, as the file says; else as ImageNet's.
    channels = taken.shape[1]
    counts = dict(mean=channels, std=channels, class_names=count)
    own = {key: _read_metadata(model.metadata, key, counts.get(key)) for key in IMAGENET if key in model.metadata}
    height, width = (side if isinstance(side, int) else request.img_size or 224 for side in taken.shape[2:])
    config = {**IMAGENET, "input_size": (channels, height, width), **own}
    names = [str(name) for name in config.pop("class_names") or ()]
    for key in ("mean", "std"):
        config[key] = tuple(float(value) for value in config[key][:channels])
    return Opened(model, config, usable_names(f"onnx:{name}", names or None), dict(file=name, sha256=model.sha256))


def _read_metadata(metadata: Mapping[str, str], key: str, count: int | None) -> object:
    """Return a value of the metadata of a file, which may hold anything, as timm has it."""
    # Two are plain texts, the others JSON.
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

    def answers(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.forward_images(images))


def open_function(module: str, name: str, request: Request) -> Opened:
    """Open a function of a module that ``--plugins`` has imported."""
    # Only what the user has imported is looked into.
    plugin = loaded_plugin(module)
    function = getattr(plugin, name, None)
    if not callable(function):
        known = [key for key, value in vars(plugin).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"--plugins {module} has no function '{name}'{nearest(name, known)}")

    # Its classes: names, a number, or as many as the data have.
    names = [str(text) for text in getattr(function, "class_names", None) or ()]
    num_classes = len(names) or getattr(function, "num_classes", None) or request.num_classes
    if num_classes is None:
        raise UserError(f"give the function an attribute class_names or num_classes: {name}.num_classes = 10")

    # It sees pixels as they are, in the size of the student's images unless it says another.
    size = request.img_size or getattr(function, "input_size", None) or request.student_size or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels, who = request.in_chans, f"{module}:{name}"
    config = dict(
        input_size=(channels, height, width),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
    )
    file = getattr(plugin, "__file__", None)
    origin = dict(file=file and Path(file).name, sha256=file and file_sha256(Path(file)))
    return Opened(FunctionClassifier(who, function, num_classes), config, usable_names(who, names or None), origin)
