"""Which part of a student is trained: all of it, its head, its norms, its last blocks, or low-rank adapters."""

from timm.models import group_parameters
from torch import Tensor, nn

from ..errors import UserError, logger
from ..models.loading import TimmModel
from ..settings.forms import Tuning
from .adapters import Adapters, add_adapters, heads_of


def choose_trained(model: TimmModel, tuning: Tuning, images: Tensor, name: str) -> None:
    """Freeze what is not trained, in place; of adapters, add them.

    Args:
        model: a timm model with its weights, before it is compiled or wrapped.
        tuning: what is trained.
        images: (B, C, H, W) of any content, on the model's device.
        name: of the model, for messages.

    Raises:
        UserError: more blocks than there are, or adapters that cannot be.
    """
    # The part that is trained, and the head with it.
    if tuning.adds_modules:
        add_adapters(model, Adapters(**tuning.adapters), images, name)
    elif tuning.is_partial:
        trained = _names_of(model, tuning, name)
        for parameter, weight in model.named_parameters():
            weight.requires_grad_(parameter in trained)
    if tuning.is_partial:
        for head in heads_of(model):
            head.requires_grad_(True)

    # How much is trained is what a reader of the log compares between parts.
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    logger.info(
        f"--tune {tuning.text}: {sum(sizes):,} weights of {total:,} are trained ({sum(sizes) / total:.2%}), in "
        f"{len(sizes)} tensors"
    )


def _names_of(model: TimmModel, tuning: Tuning, name: str) -> set[str]:
    """Return the parameters of a part that is no head."""
    names = [parameter for parameter, _ in model.named_parameters()]
    # Norms share no class, but all of timm's and torch's have it in their name.
    if tuning.part == "norm":
        norms = {n for n, module in model.named_modules() if "Norm" in type(module).__name__}
        return {parameter for parameter in names if parameter.rpartition(".")[0] in norms}
    if tuning.part == "bias":
        return {parameter for parameter in names if parameter.rpartition(".")[2] == "bias"}
    return last_blocks(model, tuning.blocks, name) if tuning.part == "last" else set()


def layers_of(model: TimmModel, coarse: bool = False) -> dict[str, int]:
    """Return the layer of each parameter as timm counts them for layer decay: blocks by depth, the head last."""
    return dict(group_parameters(model, model.group_matcher(coarse=coarse), reverse=True))


def last_blocks(model: TimmModel, count: float, name: str) -> set[str]:
    """Return the parameters of the last ``count`` blocks, as timm groups them for layer decay, and of what follows;
    below 1 it is a share of all blocks, at least one.

    Raises:
        UserError: the model says nothing of its blocks, or has fewer.
    """
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"--tune last:{count:g}: {name} does not tell its blocks; choose another part"
        )
    # The head is the last of timm's groups, and is trained anyway.
    layers = layers_of(model)
    in_head = {id(p) for head in heads_of(model) for p in head.parameters()}
    head = {layer for n, layer in layers.items() if id(model.get_parameter(n)) in in_head}
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


def freeze_batchnorm(student: nn.Module) -> None:
    """Leave the batch norms of a student that is trained in part in evaluation mode.

    What was pretrained belongs together with its statistics. Those of a few weakly labelled images cost more than their
    weights gain (docs/students.md).
    """
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
