"""Which part of a student is trained: all of it, its head, its norms, its last blocks, or low-rank adapters."""

from timm.models import group_parameters
from torch import Tensor, nn

from ..cli.forms import parse_part
from ..errors import UserError, logger
from .adapters import Adapters, add_adapters, heads_of


def choose_trained(model: nn.Module, tune: str, images: Tensor, name: str) -> None:
    """Freeze what is not trained, in place; of adapters, add them.

    Args:
        model: a timm model with its weights, before it is compiled or wrapped.
        tune: what is trained, one of `forms.TUNED_PARTS`. All but ``all`` train the head too.
        images: (B, C, H, W) of any content, on the model's device.
        name: of the model, for messages.

    Raises:
        UserError: more blocks than there are, or adapters that cannot be.
    """
    # The part that is trained, and the head with it.
    part, count, adapters = parse_part(tune)
    model.freezes_batchnorm = part != "all"
    if part == "lora":
        add_adapters(model, Adapters(**adapters), images, name)
    elif part != "all":
        trained = _names_of(model, part, count, name)
        for parameter, weight in model.named_parameters():
            weight.requires_grad_(parameter in trained)
    if part != "all":
        for head in heads_of(model):
            head.requires_grad_(True)

    # Say how much it is.
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    logger.info(
        f"--tune {tune}: {sum(sizes):,} weights of {total:,} are trained ({sum(sizes) / total:.2%}), in "
        f"{len(sizes)} tensors"
    )


def _names_of(model: nn.Module, part: str, count: float, name: str) -> set[str]:
    """Return the parameters of a part that is no head."""
    if part == "norm":
        return {
            f"{place}.{own}"
            for place, module in model.named_modules()
            if "Norm" in type(module).__name__
            for own, _ in module.named_parameters(recurse=False)
        }
    if part == "bias":
        return {
            parameter
            for parameter, _ in model.named_parameters()
            if parameter.rpartition(".")[2] == "bias"
        }
    return last_blocks(model, count, name) if part == "last" else set()


def last_blocks(model: nn.Module, count: float, name: str) -> set[str]:
    """Return the parameters of the last ``count`` blocks, as timm groups them for layer decay, and of what follows;
    below 1 it is a share of all blocks, at least one.

    Raises:
        UserError: the model says nothing of its blocks, or has fewer.
    """
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"--tune last:{count:g}: {name} does not tell its blocks; choose another part"
        )
    # timm's groups are blocks by depth, of which the head is the last.
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    own = {id(p) for head in heads_of(model) for p in head.parameters()}
    head = {
        layer for parameter, layer in layers.items() if id(model.get_parameter(parameter)) in own
    }
    blocks = sorted({*layers.values()} - head)
    # A share is one of the blocks above the stem.
    if count < 1:
        count = max(1, round(count * (len(blocks) - 1)))
    if count >= len(blocks):
        raise UserError(
            f"--tune last:{count:g}: {name} has {len(blocks) - 1} blocks above its stem; --tune all trains "
            "everything"
        )
    return {parameter for parameter, layer in layers.items() if layer >= blocks[-int(count)]}


def freeze_batchnorm(model: nn.Module) -> None:
    """Leave the batch norms of a student that is trained in part in evaluation mode.

    What was pretrained belongs together with its statistics. Those of a few weakly labelled images cost more than their
    weights gain (docs/students.md).
    """
    for whole in model.modules():
        if getattr(whole, "freezes_batchnorm", False):
            for module in whole.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
