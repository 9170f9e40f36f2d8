"""``hf:``: image classifiers of transformers. Nothing of a repository is unpickled or executed."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..hub.errors import check_repo_id, on_hub
from ..models.fingerprint import files_sha256
from .opened import Opened, Request, register_teacher, usable_names

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers
CLIP_TYPES = ("clip", "siglip")  # of models of transformers; a SigLIP 2 of one image size is of the type siglip
# which read no pickles, without the Fast at the end of some; the last two read tokenizer.json alone
TOKENIZERS = ("CLIPTokenizer", "SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "PreTrainedTokenizer",
              "TokenizersBackend")


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
    """Open ``AutoModelForImageClassification`` with its image processor."""
    from transformers import AutoModelForImageClassification

    found = load_transformers(f"hf:{name}", name, AutoModelForImageClassification)
    model = found.model
    if found.absent:
        raise UserError(f"its weights are not those of an image classifier: {found.absent}; a CLIP model is opened by "
                        "clip:MODEL/PRETRAINED, or clip:hf:NAME")
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(model.config.num_labels)]
    return Opened(TransformersClassifier(model), found.data_config, usable_names(f"hf:{name}", names), found.origin)


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
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what is missing is said below
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    in_folder = Path(place).is_dir()
    if in_folder and revision:
        raise UserError(f"{place} is a folder, which has no revision '{revision}'; leave @{revision} out")
    if not in_folder:
        try:
            check_repo_id(place)
        except UserError as error:
            raise UserError(f"no such folder, and {error}") from error

    def load() -> tuple[str, nn.Module, dict, object, Callable | None]:
        commit = _check_config(place, revision or "main", texts)
        safe = dict(revision=commit, trust_remote_code=False)
        model, report = auto.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe)
        processor = AutoImageProcessor.from_pretrained(place, **safe)
        return commit, model, report, processor, AutoTokenizer.from_pretrained(place, **safe) if texts else None

    try:
        commit, model, report, processor, tokenizer = on_hub(who, load)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot be opened by transformers: {one_line(error, 200)}") from error
    absent, missing = "", sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        absent = f"{len(missing)} of {len(model.state_dict())} are missing ({', '.join(missing[:2])})"
    if in_folder:
        origin = dict(folder=place, sha256=files_sha256(Path(place).glob("*.safetensors")))
    else:
        origin = dict(repo=place, revision=commit)
    return Loaded(model.eval(), absent, input_of_processor(processor.to_dict()), origin, tokenizer)


def _check_config(place: str, revision: str, texts: bool) -> str:
    """Look at what a repository says of itself before anything of it is loaded; return the commit, or the revision.

    Raises:
        UserError: it names code or another model, or a tokenizer that reads pickles.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config = PretrainedConfig.get_config_dict(place, revision=revision)[0]
    refuse_code(config)
    if not Path(place).is_dir():
        # a branch may move on meanwhile
        cached = try_to_load_from_cache(place, "config.json", revision=revision)
        revision = Path(cached).parent.name if isinstance(cached, str) else revision
    if texts:
        if config.get("model_type") not in CLIP_TYPES:
            raise UserError(f"is a model of the type {config.get('model_type')}; expected CLIP, SigLIP, or SigLIP 2 of "
                            "one image size")
        tokenizer = get_tokenizer_config(place, revision=revision).get("tokenizer_class")
        if tokenizer is not None and str(tokenizer).removesuffix("Fast") not in TOKENIZERS:
            raise UserError(f"its tokenizer is a {str(tokenizer)[:40]}; expected one of {', '.join(TOKENIZERS)}")
    return revision


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


def crop_share(size: int, resized: int) -> float:
    """Return timm's ``crop_pct`` of a crop of ``size`` from ``resized`` pixels, which timm finds by rounding down."""
    share = size / resized
    return share if math.floor(size / share) == resized else size / (resized + 0.5)


def input_of_processor(settings: Mapping[str, object]) -> dict[str, object]:
    """Return timm's data configuration of what an image processor of transformers does."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    edge, share = size.get("shortest_edge"), settings.get("crop_pct")
    # how large the image is made, and what of it is seen
    if edge and share:  # of ConvNeXt: small images are cropped, large ones squashed
        height = width = edge
        crop_pct, mode = (crop_share(edge, int(edge / share)), "center") if edge < 384 else (1.0, "squash")
    else:
        mode, crop_pct = "center" if edge else "squash", 1.0
        height, width = (edge, edge) if edge else (size.get("height", 224), size.get("width", 224))
        if settings.get("do_center_crop") and "height" in crop:
            height, width = crop["height"], crop["width"]
            crop_pct = crop_share(height, edge or min(size.get("height", height), size.get("width", width)))
    # pixels from 0 to 255 are rescaled, shifted, then normalised
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
