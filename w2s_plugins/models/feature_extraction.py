"""Logits and intermediate features of any timm model in one forward pass, through its own interface, without hooks.

The features of a model are a list: feature maps (B, C, H, W), shallow to deep, then the pooled pre-logits (B, D).
Tokens are laid out as maps; class and other prefix tokens are left out of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ..errors import UserError

NUM_STAGES = 4


class FeatureModel(Protocol):
    """timm's interface to the features of a model."""

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final features, and those of some levels, all if None."""
        ...

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of final features, or what the classifier is given."""
        ...

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        ...


_INTERFACE = ("forward_intermediates", "forward_head", "get_classifier")


def _has_interface(model: nn.Module) -> TypeGuard[FeatureModel]:
    return all(hasattr(model, method) for method in _INTERFACE)


def feature_model(model: nn.Module) -> FeatureModel:
    """Return a model that has timm's interface. Raises `UserError` that names what it lacks."""
    if _has_interface(model):
        return model
    method = next(method for method in _INTERFACE if not hasattr(model, method))
    raise UserError(
        f"{type(model).__name__} has no {method}: losses on features need a model "
        "with timm's interface"
    )


@dataclass(frozen=True)
class FeatureExtractor:
    """Runs a model for its logits and features. Holds what is known about the model, not the model itself.

    Made by `create_feature_extractor`. Gradients flow if they are enabled, so that the same call serves a student and
    a frozen teacher.

    Args:
        stages: ascending indices into the model's feature levels.
        shapes: shape without batch dimension of each feature: (C, H, W) for the maps, (D,) for the pre-logits.
        one_head_call: the logits are the classifier on the pre-logits, so the head need not run twice. A second run
            would update batch norm statistics within the head twice and draw a second dropout mask.
    """

    stages: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    one_head_call: bool

    def __call__(self, model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits (B, num_classes), equal to ``model(images)``, and the features of the chosen stages."""
        # One pass through the network, then the head once where that is enough.
        network = feature_model(model)
        final, maps = network.forward_intermediates(images, indices=list(self.stages))
        pre_logits = network.forward_head(final, pre_logits=True)
        if self.one_head_call:
            logits = network.get_classifier()(pre_logits)
        else:
            logits = network.forward_head(final)
        return logits, [*maps, pre_logits]


def create_feature_extractor(
    model: nn.Module,
    input_size: tuple[int, int, int],
    stages: Sequence[int] | None = None,
) -> FeatureExtractor:
    """Find out which features a model has, by one forward pass in evaluation mode, and choose among them.

    Args:
        model: a timm model; its parameters, buffers and modes are left as they are.
        input_size: (C, H, W) of the images it will see.
        stages: indices into its feature levels, negative ones from the end. By default the last four levels; for
            models whose levels all have one shape, such as plain ViTs, four blocks evenly spread, the last included.

    Raises:
        UserError: the model has no `forward_intermediates`, or no such stage.
    """
    network = feature_model(model)

    # One pass shows the shape of every level, and whether the head is the classifier alone.
    parameter = next(model.parameters())
    pixels = torch.linspace(
        -1, 1, torch.Size(input_size).numel(), device=parameter.device, dtype=parameter.dtype
    )
    images = pixels.reshape(1, *input_size)
    # frozen parts do not train as the rest does
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            final, maps = network.forward_intermediates(images)
            pre_logits = network.forward_head(final, pre_logits=True)
            logits = network.forward_head(final)
            one_head_call = _is_classifier_on_pre_logits(network, pre_logits, logits)
    finally:
        for module, training in modes:
            module.training = training
    map_shapes = [tuple(level.shape[1:]) for level in maps]

    # The levels that are asked for, in their order.
    count = len(maps)
    if stages is None:
        chosen = default_stages(map_shapes)
    else:
        chosen = tuple(sorted({stage % count for stage in stages}))
        all_exist = all(-count <= stage < count for stage in stages)
        if not chosen or len(chosen) < len(stages) or not all_exist:
            raise UserError(
                f"stages {list(stages)}: expected one or more different levels out of "
                f"the model's {count}, 0 to {count - 1}"
            )
    shapes = (*(map_shapes[stage] for stage in chosen), tuple(pre_logits.shape[1:]))
    return FeatureExtractor(chosen, shapes, one_head_call)


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a timm model gives its classifier, (B, D): the pooled pre-logits.

    Raises:
        UserError: the model has not timm's interface.
    """
    forward_features = getattr(model, "forward_features", None)
    forward_head = getattr(model, "forward_head", None)
    if forward_features is None or forward_head is None:
        raise UserError(
            f"{type(model).__name__} has no forward_features and forward_head: few-shot "
            "learning and --clean-select knn need a model with timm's interface"
        )
    # Models with two heads give what each of them sees.
    pooled = forward_head(forward_features(images), pre_logits=True)
    return torch.cat(pooled, dim=1) if isinstance(pooled, (tuple, list)) else pooled.flatten(1)


def default_stages(map_shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the indices of the stages used when none are chosen, given the shapes of all of a model's maps."""
    # The last levels are the semantic ones; blocks of one shape are spread over the depth.
    count = len(map_shapes)
    if count <= NUM_STAGES:
        return tuple(range(count))
    if len(set(map_shapes)) == 1:
        return tuple(i * count // NUM_STAGES - 1 for i in range(1, NUM_STAGES + 1))
    return tuple(range(count - NUM_STAGES, count))


def _is_classifier_on_pre_logits(
    model: FeatureModel,
    pre_logits: Tensor,
    logits: Tensor,
) -> bool:
    """True where applying the model's classifier to the pre-logits gives its logits to the last bit."""
    # To the last bit, since a student that is trained on features must give the logits that it gives without.
    try:
        again = model.get_classifier()(pre_logits)
    except (TypeError, RuntimeError, NotImplementedError, IndexError):
        return False  # several classifiers, or one that takes maps
    # Equal to the last bit, for logits that depend on the weights at all.
    # The output of a head of zeros proves nothing.
    shows_weights = bool((logits != logits[:, :1]).any())
    return shows_weights and torch.is_tensor(again) and torch.equal(again, logits)
