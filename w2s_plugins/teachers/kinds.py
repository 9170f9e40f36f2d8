"""Kinds of teachers beyond timm's models: what stands before the colon of a name says who opens it.

`hf:ORG/NAME` or `hf:FOLDER` is an image classifier of transformers, `clip:MODEL/PRETRAINED` a zero-shot classifier of
open_clip, `clip:hf:ORG/NAME` or `clip:hf:FOLDER` one of transformers, `onnx:FILE` a network that onnxruntime runs,
`MODULE:FUNCTION` a function of a module of ``--plugins``. A plugin adds another kind with `register_teacher`. Each
opener returns a module from normalised images to logits, with timm's data configuration of its input and the names of
its classes; what trains, stores and records a teacher knows nothing of the kind.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..errors import UserError, nearest, one_line
from ..files import file_sha256
from ..hub.errors import check_repo_id, on_hub
from ..models.foreign import PRETRAINED_CFG
from ..quiet import quietly
from ..registry import Registry, loaded_plugin, plugin_names

_logger = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers
PROMPTS = ("a photo of a {}.", "a blurry photo of a {}.", "a close-up photo of a {}.", "a cropped photo of a {}.",
           "a bright photo of a {}.", "a dark photo of a {}.", "a drawing of a {}.")
# what each kind imports, and what pip calls it
PACKAGES = {"hf": ("transformers", "transformers"), "clip": ("open_clip", "open_clip_torch"),
            "onnx": ("onnxruntime", "onnxruntime")}
KINDS_OF_TIMM = ("hf-hub", "local-dir")
CLIP_HF = "clip:hf:"  # begins the name of a zero-shot classifier of transformers
CLIP_TYPES = ("clip", "siglip")  # of models of transformers; a SigLIP 2 of one image size is of the type siglip
# which read no pickles, without the Fast at the end of some; the last two read tokenizer.json alone
TOKENIZERS = ("CLIPTokenizer", "SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "PreTrainedTokenizer",
              "TokenizersBackend")
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")


@dataclass(frozen=True)
class Request:
    """What a teacher is asked to be.

    Args:
        class_names: names of the classes of the data, None where they have none.
        num_classes: how many there are, None where any number will do.
        in_chans: channels of the images.
        img_size: size of the images in place of its own.
        student_size: height and width of the student's images, where known.
        prompts: templates with ``{}`` for the name of a class, for zero-shot classifiers.
    """

    class_names: Sequence[str] | None = None
    num_classes: int | None = None
    in_chans: int = 3
    img_size: int | None = None
    student_size: tuple[int, int] | None = None
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
    """Return the kind that a name of a teacher begins with, or the module of its function; None for models of timm."""
    kind, colon, _ = name.partition(":")
    if not colon or kind in (*KINDS_OF_TIMM, "hf_hub", "labels"):
        return None
    return kind if kind in TEACHERS or loaded_plugin(kind) is not None else None


def check_kind(flag: str, name: str) -> bool:
    """Return whether a teacher is of a kind of this module, by its name.

    Raises:
        UserError: there is no such kind, or its package is absent.
    """
    before, colon, rest = name.partition(":")
    if before == "labels":
        raise UserError(f"{flag} {name}: labels cannot be asked about images; expected a model")
    if not colon or before in (*KINDS_OF_TIMM, "hf_hub"):
        return False
    if kind_of(name) is None:
        known = [*KINDS_OF_TIMM, "labels", *TEACHERS.names(), *plugin_names()]
        raise UserError(f"{flag} {name}: unknown kind of teacher '{before}'{nearest(before, known)}; one of "
                        f"{', '.join(known)}, or MODULE:FUNCTION with --plugins MODULE")
    if not rest:
        raise UserError(f"{flag} {name}: expected a name behind the colon")
    module, package = PACKAGES.get("hf" if name.startswith(CLIP_HF) else before, (None, None))
    if module is not None and find_spec(module) is None:
        raise UserError(f"{flag} {name}: needs a package: pip install {package}")
    return True


def open_kind(name: str, request: Request, flag: str = "--teacher") -> Opened:
    """Open a teacher by its name, ``kind:NAME`` or ``MODULE:FUNCTION``.

    Raises:
        UserError: it cannot be opened.
    """
    check_kind(flag, name)
    kind, _, rest = name.partition(":")
    try:
        opened = TEACHERS.get(kind)(rest, request) if kind in TEACHERS else open_function(kind, rest, request)
    except UserError as error:
        raise UserError(f"{flag} {name}: {str(error).removeprefix(f'{name}: ')}") from error
    except Exception as error:  # each package has errors of its own
        raise UserError(f"{flag} {name}: cannot be opened: {type(error).__name__}: {one_line(error, 200)}") from error
    if request.img_size:
        opened.data_config["input_size"] = (opened.data_config["input_size"][0], request.img_size, request.img_size)
    return opened


def input_text(data_config: Mapping[str, object], whole: bool) -> str:
    """Say what a teacher sees: an image through its own transform, or the view of the student."""
    height, width = data_config["input_size"][-2:]
    if not whole:
        return f"{height} x {width} pixels: the student's view, resized (bicubic), under its own normalisation"
    crop = float(data_config["crop_pct"])
    shorter = f"{math.floor(height / crop)} x {math.floor(width / crop)}" if height != width else (
        str(math.floor(height / crop)))
    how = {"squash": f"squashed to {math.floor(height / crop)} x {math.floor(width / crop)}",
           "border": "whole, with borders"}.get(data_config["crop_mode"], f"shorter side to {shorter}, centre crop")
    return f"{height} x {width} pixels: the image through its own transform ({how}, {data_config['interpolation']})"


def compare_transforms(name: str, data_config: Mapping[str, object], own: Callable[[Image.Image], Tensor]) -> None:
    """Warn where timm's transform of a data configuration is not what a package does with an image of its model."""
    grid = np.linspace(0, 6, 61)[:, None] + np.linspace(0, 9, 83)[None]
    pixels = np.stack([np.sin(grid), np.cos(grid * 1.7), np.sin(grid.T[::-1].sum() + grid)], axis=2)
    image = Image.fromarray(((pixels + 1) * 127).astype(np.uint8))
    ours, theirs = create_transform(**data_config)(image), own(image)
    if ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.05:
        return
    found = f"{(ours - theirs).abs().mean():.2g} in the mean" if ours.shape == theirs.shape else (
        f"size {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    _logger.warning(f"WARNING: --teacher {name}: its own preprocessing does more than resize, crop and normalise "
                    f"(different by {found}); it sees images as timm would prepare them")


def crop_share(size: int, resized: int) -> float:
    """Return timm's ``crop_pct`` of a crop of ``size`` from ``resized`` pixels, which timm finds by rounding down."""
    share = size / resized
    return share if math.floor(size / share) == resized else size / (resized + 0.5)


def read_prompts(text: str | None) -> tuple[str, ...]:
    """Return the templates of ``--prompts``: the lines of a file, or texts separated by ``|``; None for `PROMPTS`.

    Raises:
        UserError: there are none, or one has no place for the name.
    """
    if text is None:
        return PROMPTS
    file = Path(text)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if "{}" not in text else text.split("|")
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {text}: no such file of templates ({one_line(error, 80)}), and no template: "
                        "expected texts with {} for the name of a class, separated by |") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    odd = next((prompt for prompt in prompts if "{}" not in prompt), None)
    if odd is not None or not prompts:
        raise UserError(f"--prompts {text}: {f'{odd!r:.60} has no' if prompts else 'it is empty; expected a'} {{}} for "
                        "the name of a class")
    return prompts


# ---------------------------------------------------------------- transformers


class TransformersClassifier(nn.Module):
    """An image classifier of transformers as a function of images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.num_classes = model, model.config.num_labels

    def cache_identity(self) -> str:
        """Return what identifies the network beside its weights."""
        return f"hf {network_of(self.model, self.model.config)}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.model(pixel_values=images).logits


def network_of(model: nn.Module, config: object) -> str:
    """Return what a model of transformers is beside its weights."""
    settings = {k: v for k, v in config.to_dict().items()
                if not k.startswith("_") and k not in ("dtype", "transformers_version")}
    return f"{type(model).__name__} {json.dumps(settings, sort_keys=True, default=str)}"


@register_teacher("hf")
def open_transformers(name: str, request: Request) -> Opened:
    """Open ``AutoModelForImageClassification`` with its image processor; nothing of it is unpickled or executed."""
    from transformers import AutoModelForImageClassification

    found = load_transformers(f"hf:{name}", name, AutoModelForImageClassification)
    model = found.model
    if found.absent:
        raise UserError(f"its weights are not those of an image classifier: {found.absent}; a CLIP model is opened by "
                        "clip:MODEL/PRETRAINED, or clip:hf:NAME")
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(model.config.num_labels)]
    return Opened(TransformersClassifier(model), found.data_config, _usable(f"hf:{name}", names), found.origin)


class Loaded(NamedTuple):
    """A model of transformers.

    Args:
        model: with its weights, in float32.
        absent: which of these were not there, as a text; empty for none.
        data_config: timm's, of its image processor.
        origin: where it is from.
        tokenizer: of a model with texts.
    """

    model: nn.Module
    absent: str
    data_config: dict[str, object]
    origin: dict[str, object]
    tokenizer: Callable | None


def load_transformers(who: str, name: str, auto: type, texts: bool = False) -> Loaded:
    """Load a model by its class of ``Auto...``, from ``ORG/NAME[@REV]`` or a folder, with its image processor and, for
    ``texts``, its tokenizer.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what is missing is said below
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    if Path(place).is_dir() and revision:
        raise UserError(f"{place} is a folder, which has no revision '{revision}'; leave @{revision} out")
    if not Path(place).is_dir():
        _check_place(place)
    safe = dict(revision=revision or "main", trust_remote_code=False)

    def load() -> tuple[nn.Module, dict, object, Callable | None]:
        config = PretrainedConfig.get_config_dict(place, revision=safe["revision"])[0]
        refuse_code(config)
        safe["revision"] = _commit_of(place, safe["revision"]) or safe["revision"]  # a branch may move on meanwhile
        if texts and config.get("model_type") not in CLIP_TYPES:
            raise UserError(f"is a model of the type {config.get('model_type')}; expected CLIP, SigLIP, or SigLIP 2 of "
                            "one image size")
        spoken = str(get_tokenizer_config(place, revision=safe["revision"]).get("tokenizer_class")) if texts else "None"
        if spoken != "None" and spoken.removesuffix("Fast") not in TOKENIZERS:
            raise UserError(f"its tokenizer is a {spoken[:40]}; expected one of {', '.join(TOKENIZERS)}")
        model, report = auto.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe)
        return model, report, AutoImageProcessor.from_pretrained(place, **safe), (
            AutoTokenizer.from_pretrained(place, **safe) if texts else None)

    try:
        model, report, processor, tokenizer = on_hub(who, load)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot be opened by transformers: {one_line(error, 200)}") from error
    missing = sorted(report["missing_keys"])
    absent = f"{len(missing)} of {len(model.state_dict())} are missing ({', '.join(missing[:2])})" if (
        missing or report["mismatched_keys"]) else ""
    folder = Path(place) if Path(place).is_dir() else None
    origin = dict(folder=place, sha256=_sha256_of(folder.glob("*.safetensors"))) if folder else dict(
        repo=place, revision=safe["revision"])
    config = input_of_processor(processor.to_dict())
    compare_transforms(who, config, lambda image: processor(image, return_tensors="pt")["pixel_values"][0])
    return Loaded(model.eval(), absent, config, origin, tokenizer)


def _check_place(place: str) -> None:
    try:
        check_repo_id(place)
    except UserError as error:
        raise UserError(f"no such folder, and {error}") from error


def refuse_code(config: Mapping[str, object], where: str = "config.json") -> None:
    """Raise a `UserError` for a configuration that names code or another repository beside the architecture."""
    for key, value in config.items():
        named = key in ("quantization_config", "kernel_config", "adapter_path") or (
            "implementation" in key and value not in (None, "eager", "sdpa"))
        if (named and value is not None) or (key == "model_type" and value == "timm_wrapper"):
            hint = "; a model of timm is opened by hf-hub:" if key == "model_type" else ""
            raise UserError(f"refused: its {where} names code or another model: {key}: "
                            f"{one_line(ValueError(value), 60)}{hint}")
        if isinstance(value, dict):
            refuse_code(value, f"{where}: {key}")


def _usable(who: str, names: list[str]) -> list[str] | None:
    """Return the names of classes where they say something: generated ones, and double ones, do not."""
    if names == [f"LABEL_{i}" for i in range(len(names))]:
        return None
    double = next((name for name in names if names.count(name) > 1), None)
    if double is None:
        return names
    _logger.warning(f"WARNING: --teacher {who}: the class name '{double}' occurs twice; its classes are taken by "
                    "position")
    return None


def _sha256_of(files: Iterator[Path]) -> str | None:
    """Return the hash of a file, or of the hashes of several."""
    found = [file_sha256(file) for file in sorted(files)]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest() if found else None


def _commit_of(repo: str, revision: str, file: str = "config.json") -> str | None:
    path = None if Path(repo).is_dir() else try_to_load_from_cache(repo, file, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def input_of_processor(settings: Mapping[str, object]) -> dict[str, object]:
    """Return timm's data configuration of what an image processor of transformers does."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    edge, share = size.get("shortest_edge"), settings.get("crop_pct")
    if edge and share:  # of ConvNeXt: small images are cropped, large ones squashed
        height = width = edge
        crop_pct, mode = (crop_share(edge, int(edge / share)), "center") if edge < 384 else (1.0, "squash")
    else:
        cropped = bool(settings.get("do_center_crop")) and "height" in crop
        height, width = (crop["height"], crop["width"]) if cropped else (
            (edge, edge) if edge else (size.get("height", 224), size.get("width", 224)))
        resized = edge or min(size.get("height", height), size.get("width", width))
        crop_pct = crop_share(height, resized) if cropped else 1.0
        mode = "center" if edge else "squash"
    factor = 255 * float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    normalises = settings.get("do_normalize", True)
    mean = settings.get("image_mean") if normalises else [0.0] * 3
    std = settings.get("image_std") if normalises else [1.0] * 3
    resample = settings.get("resample")
    return dict(
        input_size=(len(mean), height, width),
        mean=tuple((m + offset) / factor for m in mean),
        std=tuple(s / factor for s in std),
        interpolation=INTERPOLATIONS[int(2 if resample is None else resample) % 4],
        crop_pct=crop_pct,
        crop_mode=mode,
    )


# ---------------------------------------------------------------- CLIP


class ZeroShotClassifier(nn.Module):
    """Images compared with the texts of classes, at the model's own temperature.

    Args:
        encode: the image tower, from images to embeddings (B, D).
        texts: (C, D) embeddings of the classes, of unit length.
        scale: the logits are this times the cosine, plus ``bias``.
        about: what the texts were made of, which identifies them.
        bias: of SigLIP.
    """

    def __init__(self, encode: nn.Module, texts: Tensor, scale: float, about: str, bias: float = 0.0):
        super().__init__()
        self.encode, self.scale, self.num_classes, self.about = encode, scale, len(texts), about
        self.bias = bias
        self.register_buffer("texts", texts)

    def cache_identity(self) -> str:
        """Return what identifies the classifier beside its weights."""
        return f"clip {self.about} {self.scale}"

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of unit length in float32."""
        embeddings = self.encode(images)
        embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
        return nn.functional.normalize(embeddings.float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.scale * self.embed(images) @ self.texts.float().T + self.bias


@register_teacher("clip")
def open_clip_model(name: str, request: Request) -> Opened:
    """Open a CLIP or SigLIP model of open_clip, or behind ``hf:`` of transformers, as a zero-shot classifier of the
    classes of the data.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020).
    """
    names = list(request.class_names or ())
    if not names:
        raise UserError("a zero-shot classifier needs the names of the classes, and the data has none, or the same one "
                        "twice: give --class-names FILE or a,b,c")
    double = next((text for text in names if names.count(text) > 1), None)
    if double is not None:
        raise UserError(f"the class name '{double}' occurs twice; expected a name of its own for each class")
    if name.startswith("hf:"):
        return _open_transformers_clip(name.removeprefix("hf:"), names, request.prompts)
    import open_clip

    architecture, _, weights = name.partition("/")
    _check_clip(architecture, weights, open_clip)
    with quietly(logging.INFO):
        model = on_hub(f"clip:{name}", lambda: open_clip.create_model(
            architecture, pretrained=weights, force_image_size=request.img_size, require_pretrained=True,
            weights_only=True)).eval()
        tokenizer = open_clip.get_tokenizer(architecture)
    spoken = [text.replace("_", " ") for text in names]
    with torch.inference_mode():
        texts = open_clip.build_zero_shot_classifier(
            model, tokenizer, spoken, [lambda text, t=t: t.replace("{}", text) for t in request.prompts]).T
        scale = float(model.logit_scale.exp())
    own = open_clip.get_model_preprocess_cfg(model)
    size = own["size"] if isinstance(own["size"], (tuple, list)) else (own["size"], own["size"])
    mode = {"squash": "squash", "longest": "border"}.get(own.get("resize_mode"), "center")
    config = dict(input_size=(3, *size), mean=tuple(own["mean"]), std=tuple(own["std"]),
                  interpolation=own.get("interpolation") or "bicubic", crop_pct=1.0, crop_mode=mode)
    compare_transforms(f"clip:{name}", config, open_clip.image_transform(
        tuple(size), is_train=False, mean=config["mean"], std=config["std"], resize_mode=own.get("resize_mode"),
        interpolation=own.get("interpolation"), fill_color=own.get("fill_color", 0)))
    about = json.dumps(dict(architecture=architecture, class_names=names, prompts=list(request.prompts)))
    return Opened(ZeroShotClassifier(model.visual, texts.detach().clone(), scale, about), config, names,
                  {**_clip_origin(architecture, weights, open_clip), "prompts": list(request.prompts)})


class ImageTower(nn.Module):
    """The half of a CLIP or SigLIP model of transformers that sees images, from these to embeddings (B, D)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.tower, self.project = model.vision_model, getattr(model, "visual_projection", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.tower(pixel_values=images).pooler_output)


def _open_transformers_clip(name: str, names: list[str], prompts: Sequence[str]) -> Opened:
    """Open a CLIP or SigLIP model of transformers. SigLIP's logits, scale and bias with them, are those of pairs of
    image and text, each for itself; here they are taken for those of classes that exclude one another.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv 2303.15343).
    """
    from transformers import AutoModel

    model, absent, config, origin, tokenizer = load_transformers(f"{CLIP_HF}{name}", name, AutoModel, texts=True)
    if absent:
        raise UserError(f"its weights are not those of CLIP or SigLIP: {absent}")
    pairs = model.config.model_type == "siglip"  # trained on texts of one length, filled up, without a mask
    length = model.config.text_config.max_position_embeddings
    texts = []
    with torch.inference_mode():
        for text in names:
            tokens = tokenizer([prompt.replace("{}", text.replace("_", " ")) for prompt in prompts], truncation=True,
                               padding="max_length" if pairs else True, max_length=length, return_tensors="pt")
            found = model.get_text_features(**({"input_ids": tokens["input_ids"]} if pairs else tokens))
            found = nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)
            texts.append(nn.functional.normalize(found.mean(dim=0), dim=-1))
        scale, bias = float(model.logit_scale.exp()), float(getattr(model, "logit_bias", 0.0))
    about = json.dumps(dict(architecture=network_of(model, model.config.vision_config), class_names=names,
                            prompts=list(prompts), bias=bias))
    return Opened(ZeroShotClassifier(ImageTower(model), torch.stack(texts).clone(), scale, about, bias), config, names,
                  {**origin, "prompts": list(prompts)})


def _check_clip(architecture: str, weights: str, open_clip: object) -> None:
    """Raise a `UserError` unless ``MODEL/PRETRAINED`` names a model of open_clip and weights that run no code."""
    models = open_clip.list_models()
    if architecture not in models:
        raise UserError(f"open_clip has no model '{architecture}'{nearest(architecture, models)}; expected "
                        "clip:MODEL/PRETRAINED such as clip:ViT-B-32/openai")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights.endswith(".safetensors"):
        if not Path(weights).is_file():
            raise UserError(f"{weights}: no such file")
    elif weights not in tags:
        raise UserError(f"{architecture} has no weights '{weights}'{nearest(weights, tags)}; expected a .safetensors "
                        f"file{f', or one of {chr(44).join(tags)}' if tags else ''}")


def _clip_origin(architecture: str, weights: str, open_clip: object) -> dict[str, object]:
    if Path(weights).is_file():
        return dict(file=weights, sha256=file_sha256(Path(weights)))
    found = open_clip.get_pretrained_cfg(architecture, weights)
    repo, _, file = str(found.get("hf_hub") or "").strip("/").partition("/")
    name, _, file = file.partition("/")
    repo = f"{repo}/{name}"
    if name:
        for candidate in filter(None, (file, *CLIP_FILES)):
            path = try_to_load_from_cache(repo, candidate)
            if isinstance(path, str):
                return dict(repo=repo, revision=Path(path).parent.name, file=candidate, sha256=file_sha256(path))
        return dict(repo=repo, tag=weights)
    return dict(file=found.get("url"), tag=weights)


# ---------------------------------------------------------------- what is no module of torch


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


class OnnxClassifier(OutsideClassifier):
    """A network that onnxruntime runs on the CPU."""

    def __init__(self, file: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self_input, output = session.get_inputs()[0], session.get_outputs()[0]
        columns = output.shape[-1] if output.shape else None
        super().__init__(f"onnx:{file}", columns)
        self._session, self.input, self.inputs = session, self_input, len(session.get_inputs())
        self.metadata = session.get_modelmeta().custom_metadata_map
        beside = (file.with_name(f"{file.name}.data"), file.with_name(f"{file.name}_data"))  # weights of large networks
        self.sha256 = _sha256_of(path for path in (file, *beside) if path.is_file())

    def cache_identity(self) -> str:
        """Return what identifies the network."""
        return f"onnx {self.sha256}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        dtype = np.float16 if self.input.type == "tensor(float16)" else np.float32
        array = images.float().cpu().contiguous().numpy().astype(dtype, copy=False)
        fixed = self.input.shape[0] if isinstance(self.input.shape[0], int) else None
        answers = self._ask(array) if fixed in (None, len(array)) else self._by_size(array, fixed)
        return self.to_logits(torch.from_numpy(answers), len(images)).to(images.device)

    def _ask(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(None, {self.input.name: images})[0]
        except Exception as error:  # of onnxruntime, whose errors have no common class
            raise UserError(f"{self.who}: {one_line(error, 200)}") from error

    def _by_size(self, images: np.ndarray, size: int) -> np.ndarray:
        """Ask about as many images at a time as the network takes, the last of them several times."""
        filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
        return np.concatenate([self._ask(part) for part in np.split(filled, len(filled) // size)])[:len(images)]


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
    found = _onnx_metadata(model.metadata, shape[1], model.num_classes)
    size = request.img_size or 224
    height, width = (side if isinstance(side, int) else size for side in shape[2:])
    names = found.pop("class_names")
    config = dict(input_size=(shape[1], height, width), **found)
    names = names and _usable(f"onnx:{name}", names)
    return Opened(model, config, names, dict(file=name, sha256=model.sha256))


def _onnx_metadata(metadata: Mapping[str, str], channels: int, num_classes: int) -> dict[str, object]:
    """Return mean, std, names of the classes and how images are resized and cropped, as the file says; else those of
    ImageNet, none, and the shorter side in bicubic.
    """
    found: dict[str, object] = {"mean": [0.485, 0.456, 0.406][:channels], "std": [0.229, 0.224, 0.225][:channels],
                                "class_names": None, "interpolation": "bicubic", "crop_pct": 1.0,
                                "crop_mode": "center"}
    for key, kind, count in (("mean", float, channels), ("std", float, channels), ("class_names", str, num_classes)):
        if key not in metadata:
            continue
        try:
            value = json.loads(metadata[key])
            found[key] = [kind(item) for item in value]
        except (ValueError, TypeError) as error:
            raise UserError(f"its metadata {key} is no JSON list") from error
        if len(found[key]) != count or (key == "std" and min(found[key]) <= 0):
            raise UserError(f"its metadata {key} has {len(found[key])} values, expected {count}"
                            f"{' above 0' if key == 'std' else ''}")
    for key, kind in (("interpolation", str), ("crop_pct", _number), ("crop_mode", str)):
        allowed, expected = PRETRAINED_CFG[key]
        if key in metadata:
            found[key] = kind(metadata[key])
            if not allowed(found[key]):
                raise UserError(f"its metadata {key} is '{metadata[key]:.40}', expected {expected}")
    return {**found, "mean": tuple(found["mean"]), "std": tuple(found["std"])}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which nothing allows


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
    return Opened(FunctionClassifier(who, function, num_classes), config, names and _usable(who, names), origin)
