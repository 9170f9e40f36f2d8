"""``hf:``: image classifiers of transformers. Nothing of a repository is unpickled or executed."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import UserError
from ..hub.client import check_repo_id
from ..models.fingerprint import files_sha256
from ..target_kind import ONE_CLASS, kind_of_problem
from .openers import Opened, Request, register_teacher, usable_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic")  # by Pillow's numbers


class TransformersClassifier(nn.Module):
    """An image classifier of transformers as a function of images.

    Args:
        model: from `transformers.AutoModelForImageClassification`.

    Attributes:
        heads: names of the parts of the model that make logits of features; most models have one.
    """

    def __init__(self, model: "PreTrainedModel"):
        super().__init__()
        self.model = model
        self.num_classes = model.config.num_labels
        # all beside the encoder, by the names that transformers has for them
        parts = dict(model.named_children())
        self.heads = [name for name in parts if "classifier" in name or "head" in name]

    def cache_identity(self) -> str:
        """Return what identifies the network beside its weights."""
        # what differs between versions of transformers, or dtypes, is the same network
        config = self.model.config.to_dict()
        settings = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key not in ("dtype", "transformers_version")
        }
        return f"hf {type(self.model).__name__} {json.dumps(settings, sort_keys=True, default=str)}"

    def embed(self, images: Tensor) -> Tensor:
        """Return what the head is given, (B, D); where there are two, what each of them is given.

        Raises:
            UserError: it has none.
        """
        if not self.heads:
            raise UserError(
                f"{type(self.model).__name__} has no head whose input would be features"
            )
        given: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            for name in self.heads:
                head = self.model.get_submodule(name)
                watch = head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
                hooks.enter_context(watch)
            self.model(pixel_values=images)
        return torch.cat([features.flatten(1) for features in given], dim=1)

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
    repo, revision = name, "main"
    is_folder = Path(name).is_dir()
    if not is_folder:
        repo, _, branch = name.partition("@")
        check_repo_id(repo)
        if Path(repo).is_dir():
            raise UserError(
                f"{repo} is a folder, which has no revision '{branch}'; leave @{branch} out"
            )
        revision = branch or "main"

    # What it says of itself is looked at before anything of it is loaded.
    check_config(PretrainedConfig.get_config_dict(repo, revision=revision)[0])
    # A branch may move on meanwhile, so all that follows is of the commit of this configuration.
    if not is_folder:
        cached = try_to_load_from_cache(repo, "config.json", revision=revision)
        if isinstance(cached, str):
            revision = Path(cached).parent.name
    model, report = AutoModelForImageClassification.from_pretrained(
        repo,
        revision=revision,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    # Versions of transformers declare different types for what this returns.
    processor: Any = AutoImageProcessor.from_pretrained(
        repo, revision=revision, trust_remote_code=False
    )
    classifier = TransformersClassifier(model.eval())
    missing = sorted(report["missing_keys"])
    # An encoder alone has no head, which would be another one, at random, each time.
    if request.features:
        missing = [key for key in missing if key.partition(".")[0] not in classifier.heads]
        for name in classifier.heads:
            model.set_submodule(name, nn.Identity())
    if missing:
        raise UserError(
            f"its weights are not those of an image classifier: {len(missing)} of "
            f"{len(model.state_dict())} are missing ({', '.join(missing[:2])})"
        )

    # The classes as its configuration names them.
    labels = {int(number): str(label) for number, label in model.config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(model.config.num_labels)]
    origin: dict[str, str | None] = dict(repo=repo, revision=revision)
    if is_folder:
        origin = dict(folder=name, sha256=files_sha256(Path(name).glob("*.safetensors")))
    return Opened(
        classifier,
        input_of_processor(processor.to_dict()),
        usable_names(f"hf:{name}", names),
        origin,
        kind_of_problem(model.config.problem_type) or ONE_CLASS,
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
    # A share that is rounded up in floating point would give one pixel less.
    share = size / resized
    return share if math.floor(size / share) == resized else size / (resized + 0.5)


def input_of_processor(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's data configuration of what an image processor of transformers does."""
    # How large the image is made: its shorter edge, which keeps its shape, or both sides, which does not.
    size = settings.get("size") or {}
    edge = size.get("shortest_edge")
    height = edge or size.get("height", 224)
    width = edge or size.get("width", 224)
    crop_pct = 1.0
    crop_mode = "center" if edge else "squash"

    # What of it is seen. ConvNeXt crops small images, and squashes large ones.
    share = settings.get("crop_pct")
    crop = settings.get("crop_size") or {}
    if edge and share and edge >= 384:
        crop_mode = "squash"
    elif edge and share:
        crop_pct = crop_share(edge, int(edge / share))
    elif settings.get("do_center_crop") and "height" in crop:
        height, width = crop["height"], crop["width"]
        resized = edge or min(size.get("height", height), size.get("width", width))
        crop_pct = crop_share(height, resized)

    # Pixels from 0 to 255 are rescaled, shifted, then normalised; timm's are from 0 to 1 before it normalises.
    factor = 255.0
    if settings.get("do_rescale", True):
        factor *= float(settings.get("rescale_factor") or 1 / 255)
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if settings.get("do_normalize", True):
        mean, std = settings["image_mean"], settings["image_std"]
    resample = settings.get("resample")
    return dict(
        input_size=(len(mean), height, width),
        mean=tuple((m + offset) / factor for m in mean),
        std=tuple(s / factor for s in std),
        interpolation=INTERPOLATIONS[int(2 if resample is None else resample) % 4],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
