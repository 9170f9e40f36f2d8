"""``clip:``: CLIP and SigLIP of open_clip or transformers as zero-shot classifiers of the classes of the data."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest, one_line, quietly
from ..files import file_sha256, read_text
from ..hub.errors import on_hub
from .hf import load_transformers, network_of
from .name import TeacherName
from .opened import PROMPTS, Opened, Request, register_teacher


def read_prompts(text: str | None) -> tuple[str, ...]:
    """Return the templates of ``--prompts``: the lines of a file, or texts separated by ``|``; None for `PROMPTS`.

    Raises:
        UserError: there are none, or one has no place for the name.
    """
    if text is None:
        return PROMPTS
    try:
        lines = text.split("|") if "{}" in text else read_text(Path(text), "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {text}: no such file of templates ({one_line(error, 80)}), and no template: "
                        "expected texts with {} for the name of a class, separated by |") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    odd = next((prompt for prompt in prompts if "{}" not in prompt), None)
    if odd is not None:
        raise UserError(f"--prompts {text}: {odd!r:.60} has no {{}} for the name of a class")
    if not prompts:
        raise UserError(f"--prompts {text}: it is empty; expected a {{}} for the name of a class")
    return prompts


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
        return f"clip {self.about} {self.scale} {self.bias}"

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of unit length in float32."""
        embeddings = self.encode(images)
        embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
        return nn.functional.normalize(embeddings.float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.scale * self.embed(images) @ self.texts.float().T + self.bias


@register_teacher("clip")
def open_clip_model(text: str, request: Request) -> Opened:
    """Open a CLIP or SigLIP model of open_clip, or behind ``hf:`` of transformers.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020).
    """
    names = list(request.class_names or ())
    if not names:
        raise UserError("a zero-shot classifier needs the names of the classes, and the data has none, or the same one "
                        "twice: give --class-names FILE or a,b,c")
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"the class name '{double}' occurs twice; expected a name of its own for each class")
    inner = TeacherName.parse(text)
    opener = _of_transformers if inner.kind == "hf" else _of_open_clip
    classifier, config, origin = opener(inner.rest if inner.kind == "hf" else text, names, request)
    return Opened(classifier, config, names, {**origin, "prompts": list(request.prompts)})


Zero = tuple[ZeroShotClassifier, dict[str, object], dict[str, object]]  # with its data configuration and its origin


def _of_open_clip(name: str, names: list[str], request: Request) -> Zero:
    import open_clip

    # weights that run no code: of a name that open_clip knows, or a .safetensors file
    architecture, _, weights = name.partition("/")
    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in models:
        raise UserError(f"open_clip has no model '{architecture}'{nearest(architecture, models)}; expected "
                        "clip:MODEL/PRETRAINED such as clip:ViT-B-32/openai")
    if weights not in tags and not weights.endswith(".safetensors"):
        raise UserError(f"{architecture} has no weights '{weights}'{nearest(weights, tags)}; expected a .safetensors "
                        f"file{', or one of ' if tags else ''}{', '.join(tags)}")
    if weights not in tags and not Path(weights).is_file():
        raise UserError(f"{weights}: no such file")

    def load() -> tuple[nn.Module, Callable]:
        model = open_clip.create_model(architecture, pretrained=weights, force_image_size=request.img_size,
                                       require_pretrained=True, weights_only=True)
        return model.eval(), open_clip.get_tokenizer(architecture)

    with quietly(logging.INFO):
        model, tokenizer = on_hub(f"clip:{name}", load)
        origin = on_hub(f"clip:{name}", lambda: _origin(architecture, weights))
    with torch.inference_mode():
        texts = open_clip.build_zero_shot_classifier(
            model, tokenizer, [text.replace("_", " ") for text in names],
            [lambda text, t=t: t.replace("{}", text) for t in request.prompts]).T
        scale = float(model.logit_scale.exp())
    own = open_clip.get_model_preprocess_cfg(model)
    size = own["size"] if isinstance(own["size"], (tuple, list)) else (own["size"], own["size"])
    config = dict(
        input_size=(3, *size),
        mean=tuple(own["mean"]),
        std=tuple(own["std"]),
        interpolation=own.get("interpolation") or "bicubic",
        crop_pct=1.0,
        crop_mode={"squash": "squash", "longest": "border"}.get(own.get("resize_mode"), "center"),
    )
    about = json.dumps(dict(architecture=architecture, class_names=names, prompts=list(request.prompts)))
    return ZeroShotClassifier(model.visual, texts.detach().clone(), scale, about), config, origin


def _origin(architecture: str, weights: str) -> dict[str, object]:
    """Return which file, of which repository and commit, open_clip has the weights from."""
    import open_clip

    if Path(weights).is_file():
        return dict(file=weights, sha256=file_sha256(Path(weights)))
    found = open_clip.get_pretrained_cfg(architecture, weights)
    path = Path(open_clip.download_pretrained(found))  # which has it already
    repo = "/".join(str(found.get("hf_hub") or "").split("/")[:2])
    if repo:
        return dict(repo=repo, revision=path.parent.name, file=path.name, sha256=file_sha256(path))
    return dict(file=found.get("url"), tag=weights, sha256=file_sha256(path))


class ImageTower(nn.Module):
    """The half of a CLIP or SigLIP model of transformers that sees images, from these to embeddings (B, D)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.tower, self.project = model.vision_model, getattr(model, "visual_projection", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.tower(pixel_values=images).pooler_output)


def _of_transformers(name: str, names: list[str], request: Request) -> Zero:
    """Open a CLIP or SigLIP model of transformers. SigLIP's logits, scale and bias with them, are those of pairs of
    image and text, each for itself; here they are taken for those of classes that exclude one another.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv 2303.15343).
    """
    from transformers import AutoModel

    model, absent, config, origin, tokenizer = load_transformers(f"clip:hf:{name}", name, AutoModel, texts=True)
    if absent:
        raise UserError(f"its weights are not those of CLIP or SigLIP: {absent}")
    pairs = model.config.model_type == "siglip"  # trained on texts of one length, filled up, without a mask
    length = model.config.text_config.max_position_embeddings
    with torch.inference_mode():
        texts = torch.stack([_text_embedding(model, tokenizer, text, request.prompts, pairs, length) for text in names])
        scale, bias = float(model.logit_scale.exp()), float(getattr(model, "logit_bias", 0.0))
    about = json.dumps(dict(architecture=network_of(model, model.config.vision_config), class_names=names,
                            prompts=list(request.prompts), bias=bias))
    return ZeroShotClassifier(ImageTower(model), texts.clone(), scale, about, bias), config, origin


def _text_embedding(
        model: nn.Module, tokenizer: Callable, name: str, prompts: Sequence[str], pairs: bool, length: int) -> Tensor:
    """Return the mean of what the templates say of a class, (D,), of unit length."""
    tokens = tokenizer([prompt.replace("{}", name.replace("_", " ")) for prompt in prompts], truncation=True,
                       padding="max_length" if pairs else True, max_length=length, return_tensors="pt")
    found = model.get_text_features(**({"input_ids": tokens["input_ids"]} if pairs else tokens))
    found = nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)
    return nn.functional.normalize(found.mean(dim=0), dim=-1)
