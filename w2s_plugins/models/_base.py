"""What the small networks have in common: timm's model interface, layers, and registration in timm's registry."""

import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.layers.helpers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..private_names import feature_take_indices

Block = Callable[[int, int, int], nn.Module]  # made from input channels, output channels and stride


class StagedNet(nn.Module):
    """timm's model interface for a network of stem, stages, final layers, pooling and a linear classifier.

    A subclass creates its modules under the names that its checkpoints use, says in the class attributes how they
    hang together, adds its stages with `_add_stage` and ends its ``__init__`` with `_add_classifier`.

    Attributes:
        stem: Names of the modules before the first stage, in order of use.
        stage_name: Name of a stage, with braces for its number.
        final: Names of the modules between the last stage and the pooling, in order of use.
        classifier_name: Name of the linear classifier.

    Args:
        num_classes: Classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: A pooling type of timm's ``SelectAdaptivePool2d``.
        drop_rate: Dropout on the pooled features, in [0, 1).
    """

    stem: tuple[str, ...] = ()
    stage_name: str = "layer{}"
    final: tuple[str, ...] = ()
    classifier_name: str = "fc"

    def __init__(
        self,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.pool_type = global_pool
        self._stages: list[str] = []
        # in timm's form, by which its tools find the features of a model
        self.feature_info: list[dict[str, Any]] = []

    def _add_feature(self, module: str, num_chs: int, reduction: int) -> None:
        """Describe a feature: where it comes from, its channels, and input pixels per feature pixel."""
        self.feature_info.append({"num_chs": num_chs, "reduction": reduction, "module": module})

    def _add_stage(
        self, number: int, layers: nn.Module, num_chs: int, reduction: int | None
    ) -> None:
        """Add a stage; it is a feature unless its ``reduction`` is None."""
        # a stage may lie in another module, where the checkpoints have it there
        name = self.stage_name.format(number)
        parent, _, leaf = name.rpartition(".")
        self.get_submodule(parent).add_module(leaf, layers)
        self._stages.append(name)
        if reduction is not None:
            self._add_feature(name, num_chs, reduction)

    def _add_stages(self, block: Block, in_chs: int, stages: Iterable[tuple[int, int, int]]) -> int:
        """Add stages of so many channels, blocks and stride each; return the channels of the last one."""
        reduction = 1
        for number, (chs, depth, stride) in enumerate(stages, 1):
            reduction *= stride
            self._add_stage(number, repeat_block(block, in_chs, chs, depth, stride), chs, reduction)
            in_chs = chs
        return in_chs

    def _add_classifier(self, num_features: int) -> None:
        """Add the classifier; ``num_features`` channels enter the pooling."""
        self.num_features = num_features
        self.reset_classifier(self.num_classes, self.pool_type)

    def group_matcher(self, coarse: bool = False) -> dict[str, str | None]:
        """Patterns that sort parameters by depth, for layer-wise learning-rate decay."""
        # Stages count by their number, blocks within them too where layers are told apart.
        stage = "^" + re.escape(self.stage_name).replace(r"\{\}", r"(\d+)")
        return {
            "stem": _any_of(self.stem),
            "blocks": stage if coarse else stage + r"\.(\d+)",
            "final": _any_of(self.final),
        }

    def get_classifier(self) -> nn.Module:
        """The linear classifier, or an identity when there is none."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place; 0 classes for none. The pooling stays as it is when not given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.pool_type = global_pool
        # a model that is on a device, or in half precision, stays so with its new head
        like_the_others = get_device_dtype(self)
        # without a rate timm returns no dropout between the two
        self.global_pool, *_, classifier = create_classifier(
            self.num_features,
            num_classes,
            self.pool_type,
            device=like_the_others["device"],
            dtype=like_the_others["dtype"],
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.set_submodule(self.classifier_name, classifier)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final features, and those of the stem and the stages, from one pass.

        Args:
            x: Images (B, C, H, W).
            indices: The last n features if an int, all if None, else the ones listed.
        """
        take, _ = feature_take_indices(len(self.feature_info), indices)
        wanted = [self.feature_info[i]["module"] for i in take]
        # From the image to the last features.
        intermediates = []
        for name in (*self.stem, *self._stages, *self.final):
            x = self.get_submodule(name)(x)
            if name in wanted:
                intermediates.append(x)
        return x, intermediates

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the features before pooling, (B, num_features, h, w)."""
        return self.forward_intermediates(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features before pooling to logits (B, num_classes), or to pooled features if ``pre_logits``."""
        x = F.dropout(self.global_pool(x), p=self.drop_rate, training=self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def repeat_block(block: Block, in_chs: int, chs: int, depth: int, stride: int) -> nn.Sequential:
    """So many blocks, of which the first has the stride and changes the channels."""
    first = block(in_chs, chs, stride)
    return nn.Sequential(first, *[block(chs, chs, 1) for _ in range(depth - 1)])


def conv(
    in_chs: int,
    out_chs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(
        in_chs, out_chs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def conv_bn_act(*convolution: int, **more: int) -> list[nn.Module]:
    """A convolution as by `conv`, batch norm and ReLU."""
    layer = conv(*convolution, **more)
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]


class ConvBlock(nn.Module):
    """A block with convolutions ``conv1``, ``conv2``, ..., each followed by its batch norm ``bn1``, ``bn2``, ...

    Args:
        convolutions: Arguments of `conv` for each.
    """

    def __init__(self, *convolutions: tuple[int, ...]):
        super().__init__()
        for number, arguments in enumerate(convolutions, 1):
            layer = conv(*arguments)
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", nn.BatchNorm2d(layer.out_channels))
        self.act = nn.ReLU(inplace=True)

    def normed(self, number: int, x: Tensor) -> Tensor:
        """Apply the convolution of that number and its batch norm."""
        return self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x))


def _any_of(modules: Sequence[str]) -> str | None:
    """A pattern for the parameters of some modules; None where there are none."""
    return rf"^(?:{'|'.join(modules)})\." if modules else None


def init_weights(model: nn.Module, linear_std: float | None = None) -> None:
    """Draw convolution weights from N(0, 2 / fan-out) (He et al. 2015, arXiv 1502.01852), with biases of 0.

    Args:
        model: What to initialise, in place.
        linear_std: Standard deviation of linear weights, biases 0 as well; PyTorch's own initialisation if None.
    """
    # In the order of the modules, since each draw moves the generator on; batch norms keep ones and zeros.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class BlockNet(StagedNet):
    """A stem, stages of blocks and, if wanted, a last 1x1 convolution.

    Args:
        block: Makes a block; the first one of a stage has its stride.
        depths: Blocks of each stage.
        widths: Output channels of the stem, if there is one, and of each stage.
        strides: Of each stage.
        stem_kernel: Size of the kernels of the stem, 0 for no stem.
        final_width: Output channels of the last convolution, 0 for none.
        he_init: Draw weights by `init_weights`, else by PyTorch's own initialisation.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int] = (1, 2, 2, 2),
        stem_kernel: int = 3,
        final_width: int = 0,
        he_init: bool = True,
        **common: Any,
    ):
        super().__init__(**common)
        # The stem keeps the resolution.
        in_chs = self.in_chans
        if stem_kernel:
            in_chs, *widths = widths
            self.stem = ("conv1", "bn1", "act1")
            self.conv1, self.bn1, self.act1 = conv_bn_act(self.in_chans, in_chs, stem_kernel)
            self._add_feature("act1", in_chs, 1)
        in_chs = self._add_stages(block, in_chs, zip(widths, depths, strides))
        if final_width:
            self.final = ("conv2", "bn2", "act2")
            self.conv2, self.bn2, self.act2 = conv_bn_act(in_chs, final_width, 1)
        # The classifier is PyTorch's.
        if he_init:
            init_weights(self)
        self._add_classifier(final_width or in_chs)


CIFAR_CFG = {
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "mean": (0.5071, 0.4865, 0.4409),
    "std": (0.2673, 0.2564, 0.2762),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "first_conv": "conv1",
    "license": "apache-2.0",
}


def register_variants(
    model_cls: type[StagedNet],
    variants: dict[str, dict[str, Any]],
    **cfg: Any,
) -> None:
    """Register networks of one class in timm's registry; ``cifar_NAME`` as ``NAME`` too where timm has none of it.

    Args:
        model_cls: The class that they are built from.
        variants: Model names and the keyword arguments that make each.
        cfg: Entries of their ``pretrained_cfg``, the same for all, where they differ from `CIFAR_CFG`.
    """
    by_name = dict(variants)
    for name, args in variants.items():
        short_name = name.removeprefix("cifar_")
        if not timm.is_model(short_name):
            by_name[short_name] = args

    # timm finds the settings of an architecture in its module, as default_cfgs
    module = sys.modules[model_cls.__module__]
    cfg = {"classifier": model_cls.classifier_name, **CIFAR_CFG, **cfg}
    default_cfgs = getattr(module, "default_cfgs", {})
    new_cfgs = generate_default_cfgs(dict.fromkeys(by_name, cfg))
    vars(module)["default_cfgs"] = {**default_cfgs, **new_cfgs}
    # and the function that builds it by the function's name
    for name, args in by_name.items():
        build = functools.partial(build_model_with_cfg, model_cls, name, **args)
        vars(build).update(__module__=module.__name__, __name__=name)
        register_model(build)
