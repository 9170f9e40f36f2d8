"""Kinds of teachers beyond timm's models: what stands before the colon of a name says who opens it.

`hf:ORG/NAME` or `hf:FOLDER` is an image classifier of transformers, `clip:MODEL/PRETRAINED` a zero-shot classifier of
open_clip, `onnx:FILE` a network that onnxruntime runs. A plugin adds another with `register_teacher`. Each opener
returns a module from normalised images to logits, with timm's data configuration of its input and the names of its
classes; what trains, stores and records a teacher knows nothing of the kind.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest, one_line
from ..files import file_sha256
from ..hub.errors import on_hub
from ..registry import Registry

_logger = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers
PROMPTS = ("a photo of a {}.", "a blurry photo of a {}.", "a close-up photo of a {}.", "a cropped photo of a {}.",
           "a bright photo of a {}.", "a dark photo of a {}.", "a drawing of a {}.")


@dataclass(frozen=True)
class Request:
    """What a teacher is asked to be.

    Args:
        class_names: names of the classes of the data, None where they have none.
        in_chans: channels of the images.
        prompts: templates with ``{}`` for the name of a class, for zero-shot classifiers.
    """

    class_names: Sequence[str] | None = None
    in_chans: int = 3
    prompts: Sequence[str] = PROMPTS


class Opened(NamedTuple):
    """A teacher that has been opened.

    Args:
        model: frozen, from images (B, 3, H, W) in its own normalisation to logits (B, C); ``num_classes`` is C.
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode, as timm has them.
        class_names: names of its classes, or None.
        origin: where its weights are from, for the record.
    """

    model: nn.Module
    data_config: dict[str, object]
    class_names: list[str] | None
    origin: dict[str, object]


Opener = Callable[[str, Request], Opened]
TEACHERS: Registry[Opener] = Registry("kind of teacher")


def register_teacher(kind: str) -> Callable[[Opener], Opener]:
    """Return a decorator that registers what opens ``kind:NAME``.

    The function takes NAME and a `Request` and returns an `Opened`. What is stored of a teacher is found again by its
    weights and its ``repr``; a model with more to it has a method ``cache_identity()`` that returns a text.
    """
    return lambda opener: TEACHERS.register(kind, opener)


def kind_of(name: str) -> str | None:
    """Return the kind that a name of a teacher begins with; None for models of timm."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in TEACHERS else None


def open_kind(name: str, request: Request) -> Opened:
    """Open a teacher by its name, ``kind:NAME``. Raises `UserError` when that cannot be done."""
    kind, _, rest = name.partition(":")
    try:
        return TEACHERS.get(kind)(rest, request)
    except UserError as error:
        raise UserError(f"--teacher {name}: {error}") from error
    except ImportError as error:
        package = {"hf": "transformers", "clip": "open_clip_torch", "onnx": "onnxruntime"}.get(kind, error.name)
        raise UserError(f"--teacher {name}: needs a package: pip install {package}") from error


# ---------------------------------------------------------------- transformers


class TransformersClassifier(nn.Module):
    """An image classifier of transformers as a function of images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.num_classes = model, model.config.num_labels

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.model(pixel_values=images).logits


@register_teacher("hf")
def open_transformers(name: str, request: Request) -> Opened:
    """Open ``AutoModelForImageClassification`` with its image processor; nothing of it is unpickled or executed."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    place, _, revision = name.partition("@")
    safe = dict(revision=revision or "main", trust_remote_code=False)
    try:
        model, processor = on_hub(f"--teacher hf:{name}", lambda: (
            AutoModelForImageClassification.from_pretrained(place, use_safetensors=True, **safe),
            AutoImageProcessor.from_pretrained(place, **safe)))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot be opened by transformers: {one_line(error, 160)}") from error
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels[i] for i in range(len(labels))]
    generated = names == [f"LABEL_{i}" for i in range(len(names))]
    origin = dict(repo=None if Path(place).is_dir() else place, folder=place if Path(place).is_dir() else None,
                  revision=getattr(model.config, "_commit_hash", None))
    return Opened(TransformersClassifier(model), input_of_processor(processor.to_dict()),
                  None if generated else names, origin)


def input_of_processor(settings: dict[str, object]) -> dict[str, object]:
    """Return timm's data configuration of what an image processor of transformers does."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    edge = size.get("shortest_edge")
    cropped = bool(settings.get("do_center_crop")) and "height" in crop
    height, width = (crop["height"], crop["width"]) if cropped else (
        (edge, edge) if edge else (size.get("height", 224), size.get("width", 224)))
    factor = 255 * float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
    normalises = settings.get("do_normalize", True)
    mean = settings.get("image_mean") if normalises else [0.0] * 3
    std = settings.get("image_std") if normalises else [1.0] * 3
    resized = edge or min(size.get("height", height), size.get("width", width))
    return dict(
        input_size=(len(mean), height, width),
        mean=tuple(m / factor for m in mean),
        std=tuple(s / factor for s in std),
        interpolation=INTERPOLATIONS[int(settings.get("resample") or 2) % 4],
        crop_pct=height / resized if cropped else 1.0,
        crop_mode="center" if cropped or edge else "squash",
    )


# ---------------------------------------------------------------- CLIP


class ZeroShotClassifier(nn.Module):
    """Images compared with the texts of classes, at the model's own temperature.

    Args:
        encode: the image tower, from images to embeddings (B, D).
        texts: (C, D) embeddings of the classes, of unit length.
        scale: the logits are this times the cosine.
    """

    def __init__(self, encode: nn.Module, texts: Tensor, scale: float):
        super().__init__()
        self.encode, self.scale, self.num_classes = encode, scale, len(texts)
        self.register_buffer("texts", texts)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        embeddings = nn.functional.normalize(self.encode(images).to(self.texts.dtype), dim=-1)
        return self.scale * embeddings @ self.texts.T


@register_teacher("clip")
def open_clip_model(name: str, request: Request) -> Opened:
    """Open a CLIP or SigLIP model of open_clip as a zero-shot classifier of the classes of the data.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020).
    """
    import open_clip

    if not request.class_names:
        raise UserError("needs the names of the classes: give --class-names FILE or a,b,c")
    architecture, _, weights = name.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(f"unknown model '{architecture}'{nearest(architecture, open_clip.list_models())}; expected "
                        "MODEL/PRETRAINED such as ViT-B-32/openai")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags and not weights.endswith(".safetensors"):
        raise UserError(f"unknown weights '{weights}'{nearest(weights, tags)}; expected one of {', '.join(tags)}, or a "
                        ".safetensors file")
    if weights.endswith(".safetensors") and not Path(weights).is_file():
        raise UserError(f"{weights}: no such file")
    model = on_hub(f"--teacher clip:{name}", lambda: open_clip.create_model(architecture, pretrained=weights)).eval()
    with torch.inference_mode():
        texts = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(architecture), list(request.class_names), list(request.prompts))
        scale = float(model.logit_scale.exp())
    own = open_clip.get_model_preprocess_cfg(model)
    size = own["size"] if isinstance(own["size"], (tuple, list)) else (own["size"], own["size"])
    config = dict(
        input_size=(3, *size), mean=tuple(own["mean"]), std=tuple(own["std"]), interpolation=own["interpolation"],
        crop_pct=1.0, crop_mode="squash" if own.get("resize_mode") == "squash" else "center")
    origin = dict(file=weights, sha256=file_sha256(Path(weights))) if Path(weights).is_file() else dict(
        repo=f"open_clip {architecture}", revision=weights)
    return Opened(ZeroShotClassifier(model.visual, texts.T.clone(), scale), config, list(request.class_names), origin)


# ---------------------------------------------------------------- ONNX


class OnnxClassifier(nn.Module):
    """A network that onnxruntime runs on the CPU."""

    def __init__(self, file: Path):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.input, output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self.metadata = self._session.get_modelmeta().custom_metadata_map
        self.num_classes, self.sha256 = output.shape[-1], file_sha256(file)

    def cache_identity(self) -> str:
        """Return what identifies the network."""
        return self.sha256

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        (logits,) = self._session.run(None, {self.input.name: images.float().cpu().contiguous().numpy()})[:1]
        return torch.from_numpy(logits).to(images.device)


@register_teacher("onnx")
def open_onnx(name: str, request: Request) -> Opened:
    """Open a file of ONNX. Its metadata may have ``class_names``, ``mean`` and ``std`` as JSON lists."""
    file = Path(name)
    if not file.is_file():
        raise UserError("no such file")
    try:
        model = OnnxClassifier(file)
        found = {key: json.loads(text) for key, text in model.metadata.items() if key in ("class_names", "mean", "std")}
    except ImportError:
        raise
    except Exception as error:  # onnxruntime has errors of its own for everything
        raise UserError(f"cannot be opened by onnxruntime: {one_line(error, 160)}") from error
    shape = model.input.shape
    if len(shape) != 4 or not isinstance(model.num_classes, int):
        raise UserError(f"takes {shape} and gives {model.num_classes} classes; expected images (N, C, H, W) and a "
                        "fixed number of classes")
    height, width = (side if isinstance(side, int) else 224 for side in shape[2:])
    mean, std = found.get("mean", [0.485, 0.456, 0.406]), found.get("std", [0.229, 0.224, 0.225])
    names = found.get("class_names")
    config = dict(input_size=(shape[1], height, width), mean=tuple(mean), std=tuple(std), interpolation="bicubic",
                  crop_pct=1.0, crop_mode="center")
    return Opened(model, config, names, dict(file=name, sha256=model.sha256))
