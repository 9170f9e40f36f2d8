"""Published checkpoints of self-supervised and image-text pretraining, as the start of a student.

timm's own filters rename and resize what is in them; here it is found what kind of file it is, what in it is no part of
an encoder, and how such weights are fine-tuned.
"""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

from ..errors import UserError
from ..models.loading import adapt_state, check_finite, classifier_prefixes, load_weights, read_weights

_logger = logging.getLogger(__name__)

# the encoder among other networks: of MoCo v3 and v2, then of DINO, DINOv2 and iBOT
WRAPPERS = {"base_encoder.": "MoCo", "encoder_q.": "MoCo", "backbone.": "DINO"}
# models that take each kind of weights
MODELS = {
    "MAE": "vit_base_patch16_224.mae",
    "MoCo": "vit_base_patch16_224 or resnet50",
    "DINO": "vit_base_patch16_224.dino or resnet50",
    "DINOv2": "vit_base_patch14_dinov2",
    "DINOv2 with registers": "vit_base_patch14_reg4_dinov2",
    "CLIP": "vit_base_patch16_clip_224, vit_base_patch16_clip_quickgelu_224 for OpenAI's",
}
MOCO_SMALL = (384, 12)  # width and heads of MoCo v3's ViT-S; any other ViT-S has 6 heads
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

    @property
    def pool(self) -> str | None:
        """The pooling that goes with the weights, None where it is the model's own."""
        return "avg" if self.kind == "MAE" or "fc_norm.weight" in self.state else None


def read_published(path: Path, flag: str) -> Published:
    """Read a checkpoint in the form in which its authors publish it.

    - MAE: *Masked Autoencoders Are Scalable Vision Learners* (arXiv:2111.06377), with or without its decoder.
    - DINO: *Emerging Properties in Self-Supervised Vision Transformers* (arXiv:2104.14294), the teacher's backbone.
    - DINOv2: *Learning Robust Visual Features without Supervision* (arXiv:2304.07193), blocks in chunks or flat.
    - MoCo v3: *An Empirical Study of Training Self-Supervised Vision Transformers* (arXiv:2104.02057), base encoder.
    - CLIP: *Learning Transferable Visual Models From Natural Language Supervision* (arXiv:2103.00020), the visual part.

    Raises:
        UserError: as `read_weights`.
    """
    whole = read_weights(path, flag, use_ema=True)
    wrapper = next((w for w in WRAPPERS if any(k.startswith(w) for k in whole)), "")
    state = {k.removeprefix(wrapper): v for k, v in whole.items() if k.startswith(wrapper)}
    kind = _kind(state, WRAPPERS.get(wrapper))
    if kind == "CLIP":
        kept = [k for k in state if k.startswith("visual.") and not k.startswith(("visual.proj", "visual.head."))]
    elif kind == "MAE":
        kept = [k for k in state if not k.startswith(("decoder", "mask_token"))]
    else:
        kept = list(state)
    ignored = [k for k in whole if not k.startswith(wrapper)] + [k for k in state if k not in set(kept)]
    return Published(path, kind, {k: state[k] for k in kept}, ignored)


def _kind(state: dict[str, Tensor], wrapped: str | None) -> str | None:
    if wrapped == "MoCo":
        return wrapped
    if any(k.startswith("visual.") for k in state):
        return "CLIP"
    if "register_tokens" in state or ("mask_token" in state and any(k.endswith(".ls1.gamma") for k in state)):
        return "DINOv2"
    if any(k.startswith(("decoder_embed.", "decoder_pred.")) for k in state):
        return "MAE"
    return wrapped or _kind_by_positions(state)


def _kind_by_positions(state: dict[str, Tensor]) -> str | None:
    """Return what an encoder alone is by its positions, which MAE and MoCo v3 do not train: both have sines and none
    for the class token, MAE along the rows of patches first, MoCo v3 along the columns.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or "norm.weight" not in state or "head.weight" in state:
        return None
    tokens, width = positions.shape[1:]
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1 or width % 4:
        return None
    row, column = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    for kind, order in (("MAE", (column, row)), ("MoCo", (row, column))):
        if torch.allclose(positions[0].float(), _sines(order, width), atol=0.01):
            return kind
    return None


def _sines(places: Sequence[Tensor], width: int) -> Tensor:
    """Return the positions (1 + N, width) of N patches at ``places``, with zeros for a class token before them.

    Each coordinate has the sines, then the cosines, of width / 4 frequencies.
    """
    rates = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    angles = [place[:, None] * rates for place in places]
    values = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, width), values])


def choose_pool(published: Published, model: str) -> str | None:
    """Return the pooling of a ViT that its weights ask for, or None where ``model`` is another or has its own."""
    if published.pool is None or not timm.models.is_model_in_modules(model, "vision_transformer"):
        return None
    _logger.info(f"--finetune {published.path}: pooling is {published.pool}, as such weights are fine-tuned; --gp "
                 "token takes the class token")
    return published.pool


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
    check_finite(published.state, str(published.path), flag)
    state = adapt_state(model, _flat_blocks(published.state) if kind == "DINOv2" else dict(published.state))

    # The head of a pretraining was not made for these classes.
    ignored = list(published.ignored)
    if kind:
        ignored += [k for k in state if k.startswith(heads)]
        state = {k: v for k, v in state.items() if not k.startswith(heads)}

    # What the model may have of its own: a norm at another place, and a pooling with weights.
    theirs, own = ({n for n in NORMS if f"{n}weight" in s} for s in (state, model.state_dict()))
    allow = (*heads, "decoder", "mask_token", *(NORMS if theirs and own and theirs != own else ()),
             *(() if any(k.startswith(ATTENTIVE) for k in state) else (ATTENTIVE,)))
    try:
        report = load_weights(model, state, str(published.path), flag, allow=allow)
    except UserError as error:
        name = f"{kind} with registers" if "register_tokens" in published.state else kind
        hint = f"; {name} weights are for models such as {MODELS[name]}" if kind else ""
        raise UserError(f"{error}{hint}") from error
    _warn_of_heads(model, kind)
    return (f"{published.path}{f' ({kind})' if kind else ''}: {report.matched} tensors loaded, "
            f"{_count([*ignored, *report.unexpected, *report.mismatched])} ignored, "
            f"{_count([*report.missing, *report.mismatched])} new{_resized(published.state, state)}")


def _resized(theirs: dict[str, Tensor], adapted: dict[str, Tensor]) -> str:
    """Return which of patch embedding and positions timm has resized, for the report."""
    def patch(state: dict[str, Tensor]) -> str | None:
        return next((f"{v.shape[-2]} x {v.shape[-1]} pixels" for k, v in state.items() if v.ndim == 4 and k.endswith(
            ("patch_embed.proj.weight", "visual.conv1.weight"))), None)

    def grid(state: dict[str, Tensor]) -> str | None:
        count = next((v.shape[-2] for k, v in state.items() if k.endswith(("pos_embed", "positional_embedding"))), None)
        return count and "{0} x {0} patches".format(math.isqrt(count))  # with or without other tokens

    changes = [(name, of(theirs), of(adapted)) for name, of in (("patch embedding", patch), ("positions", grid))]
    texts = [f"{name} from {old} to {new}" for name, old, new in changes if old and new and old != new]
    return f"; resized: {', '.join(texts)}" if texts else ""


def _flat_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return DINOv2's state as timm's filter knows it: ``blocks.CHUNK.BLOCK.`` without the chunk, with a mask token."""
    flat = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}
    return {"mask_token": state["cls_token"], **flat}


def _count(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "none"


def _warn_of_heads(model: nn.Module, kind: str | None) -> None:
    width, heads = MOCO_SMALL
    if kind != "MoCo" or getattr(model, "embed_dim", None) != width:
        return
    own = model.blocks[0].attn.num_heads
    if own != heads:
        _logger.warning(f"WARNING: MoCo v3's ViT-S has {heads} attention heads, this model has {own}: the weights fit, "
                        f"but do not mean the same; give --model-kwargs num_heads={heads}")


def warn_of_normalisation(published: Published, data_config: dict) -> None:
    """Warn when images are not normalised as they were in pretraining."""
    if published.kind is None:
        return
    clip = published.kind == "CLIP"
    mean, std = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if clip else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    own = tuple(data_config["mean"]), tuple(data_config["std"])
    if len(own[0]) == 3 and own != (mean, std):
        flags = " ".join(["--mean", *map(str, mean), "--std", *map(str, std)])
        _logger.warning(f"WARNING: images are normalised by mean {own[0]} and std {own[1]}; {published.kind} weights "
                        f"were trained with {flags}")
