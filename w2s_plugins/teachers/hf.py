"""``hf:``: image classifiers of transformers. Nothing of a repository is unpickled or executed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import UserError
from ..hub.client import check_repo_id
from ..models.fingerprint import files_sha256
from .openers import Opened, Request, register_teacher, usable_names

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers


class TransformersClassifier(nn.Module):
    """An image classifier of transformers as a function of images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.num_classes = model, model.config.num_labels

    def cache_identity(self) -> str:
        """Return what identifies the network beside its weights."""
        config = self.model.config.to_dict()
        settings = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key not in ("dtype", "transformers_version")
        }
        return f"hf {type(self.model).__name__} {json.dumps(settings, sort_keys=True, default=str)}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.model(pixel_values=images).logits


@register_teacher("hf")
def open_transformers(name: str, request: Request) -> Opened:
    """Open an image classifier with its image processor, from ``ORG/NAME[@REVISION]`` or a folder.

    Raises:
        UserError: it is something else, names code, or lacks weights.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification, PretrainedConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what is missing is said below
    # A folder may have an @ in its name; of a repository it begins the revision.
    is_folder = Path(name).is_dir()
    place, _, branch = (name, "", "") if is_folder else name.partition("@")
    if not is_folder:
        check_repo_id(place)
        if Path(place).is_dir():
            raise UserError(
                f"{place} is a folder, which has no revision '{branch}'; leave @{branch} out"
            )

    # What it says of itself is looked at before anything of it is loaded; all is of one commit.
    revision = branch or "main"
    check_config(PretrainedConfig.get_config_dict(place, revision=revision)[0])
    cached = (
        try_to_load_from_cache(place, "config.json", revision=revision) if not is_folder else None
    )
    revision = Path(cached).parent.name if isinstance(cached, str) else revision
    safe = dict(revision=revision, trust_remote_code=False)
    model, report = AutoModelForImageClassification.from_pretrained(
        place, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe
    )
    processor = AutoImageProcessor.from_pretrained(place, **safe)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"its weights are not those of an image classifier: {len(missing)} of "
            f"{len(model.state_dict())} are missing ({', '.join(missing[:2])})"
        )

    # The classes as its configuration names them.
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(model.config.num_labels)]
    origin = dict(repo=place, revision=revision)
    if is_folder:
        origin = dict(folder=place, sha256=files_sha256(Path(place).glob("*.safetensors")))
    return Opened(
        TransformersClassifier(model.eval()),
        input_of_processor(processor.to_dict()),
        usable_names(f"hf:{name}", names),
        origin,
    )


def check_config(config: Mapping[str, object], where: str = "config.json") -> None:
    """Raise a `UserError` for a configuration that names code or another repository beside the architecture."""
    # Parts of a model have configurations of their own.
    for key, value in config.items():
        names_code = (
            key in ("quantization_config", "kernel_config", "adapter_path")
            or "implementation" in key
        )
        if names_code and value not in (None, "eager", "sdpa"):
            raise UserError(
                f"refused: its {where} names code or another model: {key}: {str(value)[:60]!r}"
            )
        if key == "model_type" and value == "timm_wrapper":
            raise UserError(
                "refused: it is a wrapped model of timm, which names another one; hf-hub: opens such"
            )
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
        crop_pct, mode = (
            (crop_share(edge, int(edge / share)), "center") if edge < 384 else (1.0, "squash")
        )
    else:
        mode, crop_pct = "center" if edge else "squash", 1.0
        height, width = (edge, edge) if edge else (size.get("height", 224), size.get("width", 224))
        if settings.get("do_center_crop") and "height" in crop:
            height, width = crop["height"], crop["width"]
            crop_pct = crop_share(
                height, edge or min(size.get("height", height), size.get("width", width))
            )
    # Pixels from 0 to 255 are rescaled, shifted, then normalised.
    factor = (
        255 * float(settings.get("rescale_factor") or 1 / 255)
        if settings.get("do_rescale", True)
        else 255.0
    )
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
