"""``clip:``: CLIP and SigLIP of open_clip as zero-shot classifiers of the classes of the data.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020).

Of several classes an image each is a question of its own. SigLIP was trained to answer it, by the sigmoid of its logit
(Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, arXiv 2303.15343). CLIP has only learned to compare
texts, so a class is compared with no class in particular: the same templates with `ANYTHING` in the place of its name.
"""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest, one_line, quietly
from ..files import file_sha256, read_text
from ..target_kind import SEVERAL_CLASSES
from .openers import PROMPTS, Opened, Request, register_teacher

ANYTHING = (
    "something"  # what a class is compared with where it is one of several that an image may have
)


def read_prompts(text: str | None) -> tuple[str, ...]:
    """Return the templates of ``--prompts``: the lines of a file, or texts separated by ``|``; None for `PROMPTS`.

    Raises:
        UserError: there are none, or one has no place for the name.
    """
    if text is None:
        return PROMPTS
    # A text with a place for a name is a template, anything else a file.
    try:
        lines = text.split("|") if "{}" in text else read_text(Path(text), "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--prompts {text}: no such file of templates ({one_line(error, 80)}), and no template: "
            "expected texts with {} for the name of a class, separated by |"
        ) from error
    # Without a place for the name all classes would have one text, and every image the same answer.
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts or not all("{}" in prompt for prompt in prompts):
        raise UserError(
            f"--prompts {text}: expected a {{}} for the name of a class in each template"
        )
    return prompts


class ZeroShotClassifier(nn.Module):
    """Images compared with the texts of classes, at the model's own temperature.

    Args:
        tower: from images to embeddings (B, D).
        texts: (C, D) embeddings of the classes, of unit length, or their differences from another one; None for an encoder
            alone, which has no logits.
        scale: the logits are this times the cosine.
        bias: is added to them.
        about: what the texts were made of, which identifies them.
    """

    texts: Tensor | None

    def __init__(
        self, tower: nn.Module, texts: Tensor | None, scale: float, about: str, bias: float = 0.0
    ):
        super().__init__()
        self.encode = tower
        self.scale = scale
        self.bias = bias
        self.num_classes = 0 if texts is None else len(texts)
        self.about = about
        self.register_buffer("texts", texts)

    def cache_identity(self) -> str:
        """Return what identifies the classifier beside its weights."""
        of_bias = f" {self.bias}" if self.bias else ""
        return f"clip {self.about} {self.scale}{of_bias}"

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of unit length in float32."""
        embeddings = self.encode(images)
        # some towers return their tokens as well
        if isinstance(embeddings, tuple):
            embeddings = embeddings[0]
        return nn.functional.normalize(embeddings.float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C); of an encoder alone the embeddings, as a model of timm without classes does."""
        embeddings = self.embed(images)
        if self.texts is None:
            return embeddings
        logits = self.scale * embeddings @ self.texts.float().T
        return logits + self.bias if self.bias else logits


@register_teacher("clip", takes_class_names=True)
def open_clip_model(name: str, request: Request) -> Opened:
    """Open a CLIP or SigLIP model of open_clip, which compares images with the names of the classes of the data."""
    import open_clip

    names, prompts = list(request.class_names or ()), list(request.prompts)
    if not request.features and (not names or len(set(names)) < len(names)):
        raise UserError(
            "a zero-shot classifier needs the names of the classes, each of them once: give --class-names "
            "FILE or a,b,c"
        )
    # Weights run no code: they are of a name that open_clip knows, or a .safetensors file.
    architecture, _, weights = name.partition("/")
    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in models:
        raise UserError(
            f"open_clip has no model '{architecture}'{nearest(architecture, models)}; expected "
            "clip:MODEL/PRETRAINED such as clip:ViT-B-32/openai"
        )
    is_file = weights.endswith(".safetensors") and Path(weights).is_file()
    if weights not in tags and not is_file:
        raise UserError(
            f"{architecture} has no weights '{weights}'{nearest(weights, tags)}; expected a .safetensors "
            f"file that is there, or one of {', '.join(tags) or 'none'}"
        )

    # The classes are embedded once; each is the mean of what the templates make of its name.
    with quietly(logging.INFO):
        model = open_clip.create_model(
            architecture,
            pretrained=weights,
            force_image_size=request.img_size,
            require_pretrained=True,
            weights_only=True,
        ).eval()
        texts = None
        several = request.target_kind.name == SEVERAL_CLASSES.name
        learned_bias = getattr(model, "logit_bias", None)
        is_compared = several and learned_bias is None
        asked = [*names, ANYTHING] if is_compared else names
        if not request.features:
            with torch.inference_mode():
                embedded = open_clip.build_zero_shot_classifier(
                    model,
                    open_clip.get_tokenizer(architecture),
                    [text.replace("_", " ") for text in asked],
                    [lambda text, t=t: t.replace("{}", text) for t in prompts],
                )
            texts = embedded.T.detach().clone()
            # a difference of cosines is the product with a difference of texts
            if is_compared:
                texts = texts[:-1] - texts[-1]
        scale = float(model.get_parameter("logit_scale").detach().exp())
    # Stored answers are found again by this beside the weights of the tower: other texts are another classifier.
    made_of = dict(architecture=architecture, class_names=names, prompts=prompts)
    if several:
        made_of["labels"] = request.target_kind.name
    about = json.dumps(made_of)
    tower = model.get_submodule("visual")
    bias = float(learned_bias.detach()) if several and learned_bias is not None else 0.0
    classifier = ZeroShotClassifier(tower, texts, scale, about, bias)

    # What open_clip does to an image, as timm says it: where it keeps the shape of an image, timm fills the border.
    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    if isinstance(size, int):
        size = (size, size)
    crop_modes = {"squash": "squash", "longest": "border"}
    config = dict(
        input_size=(3, *size),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=preprocess.get("interpolation") or "bicubic",
        crop_pct=1.0,
        crop_mode=crop_modes.get(preprocess.get("resize_mode", ""), "center"),
    )
    if is_file:
        origin = dict(file=weights, sha256=file_sha256(Path(weights)))
    else:
        published = open_clip.get_pretrained_cfg(architecture, weights)
        origin = dict(tag=weights, repo=published.get("hf_hub") or published.get("url"))
    return Opened(classifier, config, names, {**origin, "prompts": prompts}, request.target_kind)
