"""``hf:``: image classifiers of transformers. Nothing of a repository is unpickled or executed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import UserError
from ..hub.errors import check_repo_id
from ..models.fingerprint import files_sha256
from .openers import Opened, Request, register_teacher, usable_names

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers
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

    model, config, origin = load_transformers(name, AutoModelForImageClassification, "an image classifier")
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(model.config.num_labels)]
    return Opened(TransformersClassifier(model), config, usable_names(f"hf:{name}", names), origin)


def load_transformers(
        name: str,
        auto: type,
        what: str,
        types: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, object], dict[str, object]]:
    """Load a model from ``ORG/NAME[@REV]`` or a folder; return it with timm's data configuration of its image
    processor, and where it is from: ``repo`` and ``revision``, or ``folder`` and ``sha256``.

    Args:
        name: of a repository, or a folder.
        auto: its class of ``Auto...``.
        what: it has to be, for messages.
        types: of models that it may be; any without them.

    Raises:
        UserError: it is something else, names code, or lacks weights.
    """
    from transformers import AutoImageProcessor, PretrainedConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what is missing is said below
    is_folder = Path(name).is_dir()
    place, _, branch = (name, "", "") if is_folder else name.partition("@")
    if not is_folder:
        check_repo_id(place)
        if Path(place).is_dir():
            raise UserError(f"{place} is a folder, which has no revision '{branch}'; leave @{branch} out")

    # What it says of itself is looked at before anything of it is loaded; all is of one commit.
    revision = branch or "main"
    config = PretrainedConfig.get_config_dict(place, revision=revision)[0]
    check_config(config)
    if types and config.get("model_type") not in types:
        raise UserError(f"is a model of the type {config.get('model_type')}; expected {what}")
    cached = None if is_folder else try_to_load_from_cache(place, "config.json", revision=revision)
    revision = Path(cached).parent.name if isinstance(cached, str) else revision
    safe = dict(revision=revision, trust_remote_code=False)
    model, report = auto.from_pretrained(
        place, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe)
    processor = AutoImageProcessor.from_pretrained(place, **safe)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"its weights are not those of {what}: {len(missing)} of {len(model.state_dict())} are missing "
                        f"({', '.join(missing[:2])})")
    origin = dict(repo=place, revision=revision)
    if is_folder:
        origin = dict(folder=place, sha256=files_sha256(Path(place).glob("*.safetensors")))
    return model.eval(), input_of_processor(processor.to_dict()), origin


def load_tokenizer(origin: Mapping[str, object]) -> Callable:
    """Load the tokenizer of a model, which `load_transformers` has found there. Raises `UserError` for a kind that
    reads pickles.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    place, revision = str(origin.get("repo") or origin["folder"]), origin.get("revision") or "main"
    kind = get_tokenizer_config(place, revision=revision).get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in TOKENIZERS:
        raise UserError(f"its tokenizer is a {str(kind)[:40]}; expected one of {', '.join(TOKENIZERS)}")
    return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)


def check_config(config: Mapping[str, object], where: str = "config.json") -> None:
    """Raise a `UserError` for a configuration that names code or another repository beside the architecture."""
    for key, value in config.items():
        names_code = key in ("quantization_config", "kernel_config", "adapter_path") or "implementation" in key
        if names_code and value not in (None, "eager", "sdpa"):
            raise UserError(f"refused: its {where} names code or another model: {key}: {str(value)[:60]!r}")
        if key == "model_type" and value == "timm_wrapper":
            raise UserError("refused: it is a wrapped model of timm, which names another one; hf-hub: opens such")
        if isinstance(value, dict):
            check_config(value, f"{where}: {key}")


def crop_share(size: int, resized: int) -> float:
    """Return timm's ``crop_pct`` of a crop of ``size`` from ``resized`` pixels, which timm finds by rounding down."""
    share = size / resized
    return share if math.floor(size / share) == resized else size / (resized + 0.5)


def input_of_processor(settings: Mapping[str, object]) -> dict[str, object]:
    """Return timm's data configuration of what an image processor of transformers does."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    edge, share = size.get("shortest_edge"), settings.get("crop_pct")
    # How large the image is made, and what of it is seen.
    if edge and share:  # of ConvNeXt: small images are cropped, large ones squashed
        height = width = edge
        crop_pct, mode = (crop_share(edge, int(edge / share)), "center") if edge < 384 else (1.0, "squash")
    else:
        mode, crop_pct = "center" if edge else "squash", 1.0
        height, width = (edge, edge) if edge else (size.get("height", 224), size.get("width", 224))
        if settings.get("do_center_crop") and "height" in crop:
            height, width = crop["height"], crop["width"]
            crop_pct = crop_share(height, edge or min(size.get("height", height), size.get("width", width)))
    # Pixels from 0 to 255 are rescaled, shifted, then normalised.
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
