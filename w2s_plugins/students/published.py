"""Published checkpoints of self-supervised and image-text pretraining, as the start of a student.

timm's own filters rename and resize what is in them; here it is found what kind of file it is, what in it is no part of
an encoder, and how such weights are fine-tuned.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

from ..errors import UserError, logger
from ..models.loading import adapt_state, classifier_prefixes, first_of, load_weights, read_weights

WRAPPER = "backbone."  # the encoder among other networks, of DINO and DINOv2
# models that take each kind of weights
MODELS = {
    "MAE": "vit_base_patch16_224.mae",
    "DINO": "vit_base_patch16_224.dino or resnet50",
    "DINOv2": "vit_base_patch14_dinov2",
    "DINOv2 with registers": "vit_base_patch14_reg4_dinov2",
    "CLIP": "vit_base_patch16_clip_224, vit_base_patch16_clip_quickgelu_224 for OpenAI's",
}
NORMS = ("norm.", "fc_norm.")  # of all tokens before pooling, and of the pooled ones
ATTENTIVE = "attn_pool."


@dataclass
class Published:
    """A checkpoint that a student may start from.

    Args:
        path: the file.
        kind: one of `MODELS`, None for any other checkpoint.
        state: the tensors of the encoder, under the names of the file.
        ignored: names of the tensors that are no part of it.
    """

    path: Path
    kind: str | None
    state: dict[str, Tensor]
    ignored: list[str]


def read_published(path: Path, flag: str) -> Published:
    """Read a checkpoint in the form in which its authors publish it.

    - MAE: *Masked Autoencoders Are Scalable Vision Learners* (arXiv:2111.06377), with or without its decoder.
    - DINO: *Emerging Properties in Self-Supervised Vision Transformers* (arXiv:2104.14294), the teacher's backbone.
    - DINOv2: *Learning Robust Visual Features without Supervision* (arXiv:2304.07193), blocks in chunks or flat.
    - CLIP: *Learning Transferable Visual Models From Natural Language Supervision* (arXiv:2103.00020), the visual part.

    Raises:
        UserError: as `read_weights`.
    """
    # The encoder among other networks.
    whole = read_weights(path, flag, use_ema=True)
    wrapper = WRAPPER if any(k.startswith(WRAPPER) for k in whole) else ""
    state = {k.removeprefix(wrapper): v for k, v in whole.items() if k.startswith(wrapper)}
    kind = _kind(state) or ("DINO" if wrapper else None)

    # CLIP compares images with texts, MAE paints what was masked: what serves that alone is no part of an encoder.
    kept = state
    if kind == "CLIP":
        visual = {k: v for k, v in state.items() if k.startswith("visual.")}
        kept = _without(visual, ("visual.proj", "visual.head."))
    elif kind == "MAE":
        kept = _without(state, ("decoder", "mask_token"))
    outside = [k for k in whole if not k.startswith(wrapper)]
    return Published(path, kind, kept, [*outside, *(k for k in state if k not in kept)])


def _without(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


def _kind(state: dict[str, Tensor]) -> str | None:
    if any(k.startswith("visual.") for k in state):
        return "CLIP"
    # MAE's decoder has a mask token too, but no layer scale.
    has_layer_scale = any(k.endswith(".ls1.gamma") for k in state)
    if "register_tokens" in state or ("mask_token" in state and has_layer_scale):
        return "DINOv2"
    has_decoder = any(k.startswith(("decoder_embed.", "decoder_pred.")) for k in state)
    return "MAE" if has_decoder or _has_fixed_positions(state) else None


def _has_fixed_positions(state: dict[str, Tensor]) -> bool:
    """Return whether an encoder alone is MAE's: its positions are not trained, with exact zeros for the class token."""
    positions = state.get("pos_embed")
    if positions is None or "norm.weight" not in state or "head.weight" in state:
        return False
    return positions.ndim == 3 and positions.shape[1] > 1 and not positions[:, 0].any()


def choose_pool(published: Published, model: str) -> str | None:
    """Return the pooling of a ViT that its weights ask for, or None where ``model`` is another or has its own."""
    averaged = published.kind == "MAE" or "fc_norm.weight" in published.state
    if not averaged or not timm.models.is_model_in_modules(model, "vision_transformer"):
        return None
    logger.info(
        f"--finetune {published.path}: pooling is avg, as such weights are fine-tuned; --gp token takes the "
        "class token"
    )
    return "avg"


def load_published(model: nn.Module, published: Published, flag: str) -> str:
    """Load a checkpoint into a model, whose head may be another, and say what became of its tensors.

    The head of a pretraining is never taken. MAE's and others' ``norm`` acts before pooling, timm's ``fc_norm`` behind
    it: a model that has the other one of the two starts with a new one, as one with attentive pooling that they lack.

    Returns:
        Counts and some names of what was loaded, ignored, and is new.

    Raises:
        UserError: the weights are not for this model.
    """
    # timm's own filter renames and resizes what is in the file.
    kind, heads = published.kind, classifier_prefixes(model)
    in_file = _flat_blocks(published.state) if kind == "DINOv2" else dict(published.state)
    state = adapt_state(model, in_file)

    # The head of a pretraining was not made for these classes.
    ignored = list(published.ignored)
    if kind:
        ignored += [k for k in state if k.startswith(heads)]
        state = _without(state, heads)

    # What the model may have of its own: a norm at another place, and a pooling with weights.
    allow = (*heads, "decoder", "mask_token")
    norms_in_file, norms_in_model = _norms_of(state), _norms_of(model.state_dict())
    if norms_in_file and norms_in_model and norms_in_file != norms_in_model:
        allow += NORMS
    if not any(name.startswith(ATTENTIVE) for name in state):
        allow += (ATTENTIVE,)
    try:
        report = load_weights(model, state, str(published.path), flag, allow=allow)
    except UserError as error:
        if kind is None:
            raise
        name = f"{kind} with registers" if "register_tokens" in published.state else kind
        raise UserError(f"{error}; {name} weights are for models such as {MODELS[name]}") from error
    return (
        f"{published.path}{f' ({kind})' if kind else ''}: {report.matched} tensors loaded, "
        f"{_counted([*ignored, *report.unexpected, *report.mismatched])} ignored, "
        f"{_counted([*report.missing, *report.mismatched])} new"
    )


def _norms_of(state: dict[str, Tensor]) -> set[str]:
    return {norm for norm in NORMS if f"{norm}weight" in state}


def _flat_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return DINOv2's state as timm's filter knows it: ``blocks.CHUNK.BLOCK.`` without the chunk, with a mask token."""
    flat = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}
    return {"mask_token": state["cls_token"], **flat}


def _counted(names: list[str]) -> str:
    return f"{len(names)} ({first_of(names, 4)})" if names else "none"


def warn_of_normalisation(published: Published, data_config: dict) -> None:
    """Warn when images are not normalised as they were in pretraining."""
    if published.kind is None:
        return
    # All but CLIP were trained with the statistics of ImageNet.
    theirs = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if published.kind == "CLIP":
        theirs = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    mean, std = tuple(data_config["mean"]), tuple(data_config["std"])
    # Images of another number of channels have statistics of their own.
    if len(mean) == 3 and (mean, std) != theirs:
        flags = " ".join(["--mean", *map(str, theirs[0]), "--std", *map(str, theirs[1])])
        logger.warning(
            f"WARNING: images are normalised by mean {mean} and std {std}; {published.kind} weights "
            f"were trained with {flags}"
        )
