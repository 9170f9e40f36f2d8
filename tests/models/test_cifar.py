"""The networks against parameter counts, state-dict keys and logits of other people's implementations."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import w2s_plugins.models  # noqa: F401

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "cifar_models.json").read_text())[
    "models"
]
CIFAR_NAMES = {name if name.startswith("cifar_") else f"cifar_{name}": name for name in REFERENCE}


def fill(model: torch.nn.Module) -> None:
    """Give a model the weights with which the reference logits were computed."""
    count, state = 0, model.state_dict()
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        wave = 0.1 * torch.sin(
            12.9898 * torch.arange(count, count + value.numel(), dtype=torch.float64) + 1
        )
        count += value.numel()
        if key.endswith("running_var"):
            wave = wave.abs() + 0.9
        elif value.ndim == 1 and key.endswith(".weight"):
            wave = wave + 1
        state[key] = wave.float().reshape(value.shape)
    model.load_state_dict(state)


@pytest.mark.parametrize("name", CIFAR_NAMES)
def test_reference(name: str) -> None:
    reference = REFERENCE[CIFAR_NAMES[name]]
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == reference["params"]
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == list(
        map(tuple, reference["state"].items())
    )
    fill(model)
    images = torch.sin(0.37 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).reshape(
        2, 3, 32, 32
    )
    with torch.no_grad():
        logits = model.double().eval()(images)[:, :4].flatten()
    expected = torch.tensor(reference["logits_2x4"], dtype=torch.float64)
    # The reference has six decimals; the rest is room for another order of summation.
    torch.testing.assert_close(logits, expected, atol=6e-7, rtol=1e-9)


def test_names() -> None:
    assert set(timm.list_models("cifar_*")) == set(CIFAR_NAMES)


SHORT = """
resnet8 resnet20 resnet56 resnet8x4 resnet32x4 wrn_40_2 vgg8 mobilenetv2 shufflenetv1 shufflenetv2
"""


@pytest.mark.parametrize("short", SHORT.split())
def test_short_names(short: str) -> None:
    one, other = (timm.create_model(name).state_dict() for name in (short, f"cifar_{short}"))
    assert one.keys() == other.keys()


@pytest.mark.parametrize("taken", ["resnet50", "vgg11", "vgg13", "vgg16", "vgg19"])
def test_names_of_timm_stay_its_own(taken: str) -> None:
    assert timm.model_entrypoint(taken).__module__.startswith("timm.")


class Functional:
    """Layers straight from a state dict, in eval mode."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state

    def conv(self, x: torch.Tensor, key: str, stride: int = 1) -> torch.Tensor:
        weight = self.state[key + ".weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: torch.Tensor, key: str) -> torch.Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.state[f"{key}.{part}"][:, None, None] for part in parts)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return x.mean((2, 3)) @ self.state[key + ".weight"].T + self.state[key + ".bias"]


def test_preact_resnet() -> None:
    model = timm.create_model("preact_resnet34").double().eval()
    fill(model)
    net = Functional(model.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = net.norm(net.conv(images, "conv1"), "bn1").relu()
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            key = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            activated = net.norm(x, key + "bn1").relu()
            shortcut = net.conv(activated, key + "shortcut.0", 2) if stride == 2 else activated
            y = net.norm(net.conv(activated, key + "conv1", stride), key + "bn2").relu()
            x = net.conv(y, key + "conv2") + shortcut
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.linear(x, "linear2"), atol=0, rtol=1e-10)


@pytest.mark.parametrize(
    "name, depths", [("fewshot_resnet18", (1, 2, 2, 1)), ("fewshot_resnet36", (2, 3, 5, 2))]
)
def test_fewshot_resnet(name: str, depths: tuple[int, ...]) -> None:
    model = timm.create_model(name).double().eval()
    fill(model)
    net = Functional(model.state_dict())
    images = x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            key = f"layer{stage}.{block}."
            y = F.leaky_relu(net.norm(net.conv(x, key + "conv1"), key + "bn1"), 0.1)
            y = F.leaky_relu(net.norm(net.conv(y, key + "conv2"), key + "bn2"), 0.1)
            y = net.norm(net.conv(y, key + "conv3"), key + "bn3")
            if block == 0:
                x = net.norm(net.conv(x, key + "downsample.0"), key + "downsample.1")
            x = F.leaky_relu(x + y, 0.1)
            if block == 0:
                x = F.max_pool2d(x, 2)
    assert x.shape[1:] == (512, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.linear(x, "fc"), atol=0, rtol=1e-10)
