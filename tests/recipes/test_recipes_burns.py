"""The vision experiment of Burns et al.: AlexNet's weights, the recipes, and a small experiment of the same shape."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

import validate
from tests.e2e.conftest import ROOT, Done, here  # noqa: F401  (a fixture)
from w2s_plugins.build.flags import resolve_train_args
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.data import open_split
from w2s_plugins.teachers.teacher import StudentInput, create_teacher

FOLDER = ROOT / "hparams" / "burns"
STRONG = ("alexnet_dino_vitb8", "alexnet_dino_resnet50")


def config(name: str) -> list[str]:
    return ["--config", *(str(FOLDER / f"{part}.yaml") for part in ("base", name))]


# ---------------------------------------------------------------- AlexNet


@torch.no_grad()
def test_alexnet_is_torchvisions() -> None:
    torch.manual_seed(0)
    model, theirs = timm.create_model("alexnet").eval(), torchvision.models.alexnet().eval()
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(model(images), theirs(images))
    final, maps = model.forward_intermediates(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 27, 27), (192, 13, 13), (256, 6, 6)]
    pooled = model.forward_head(final, pre_logits=True)
    assert torch.equal(model.get_classifier()(pooled), model(images)) and pooled.shape == (2, 4096)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    assert timm.create_model("alexnet", in_chans=1)(images[:, :1]).shape == (2, 1000)


def test_alexnet_as_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come from where torchvision keeps them, in its own file format, with the transform that it documents."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    torch.manual_seed(3)
    theirs = torchvision.models.alexnet().eval()
    torch.save(theirs.state_dict(), file)
    student = StudentInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, 1000)
    teacher = create_teacher(["alexnet"], [], student, device=torch.device("cpu"))
    (member,) = teacher.members
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), theirs(images), atol=1e-4, rtol=1e-4)
    assert member.source["source"]["file"].endswith("download.pytorch.org/models/alexnet-owt-7be5be79.pth")
    assert len(member.source["source"]["sha256"]) == 64
    image = Image.effect_noise((400, 300), 90).convert("RGB")
    ours = create_transform(**member.data_config)(image)
    documented = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    steps = torchvision.transforms.Compose([  # of the image itself, as transforms() resizes it
        torchvision.transforms.Resize(documented.resize_size[0], documented.interpolation),
        torchvision.transforms.CenterCrop(documented.crop_size[0]), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(documented.mean, documented.std)])
    torch.testing.assert_close(ours, steps(image), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", STRONG)
def test_recipe_is_valid(name: str) -> None:
    args, given = parse(train_parser(), [*config(name), "--data-dir", "somewhere", "--experiment", "e"])
    assert (args.protocol, args.weak_fraction, args.train_slice, args.val_slice) == ("w2s", 0, "0:40000", "40000:")
    args.protocol = None
    resolve_train_args(args, given)
    assert args.linear_probe and args.teacher_targets == "cached" and args.loss_kwargs == {"temperature": 1.0}
    with torch.device("meta"):
        model = timm.create_model(args.model, num_classes=1000)
        assert model.get_classifier().in_features == {"vit_base_patch8_224.dino": 768, "resnet50": 2048}[args.model]
    assert resolve_data_config(vars(args), model=model) == resolve_data_config({}, model=timm.create_model("alexnet"))


def test_small_experiment(
        here: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
        capsys: pytest.CaptureFixture) -> None:
    """One split of ten classes, cut in two; a teacher that is there already; head after head on stored features."""
    for index, (image, label) in enumerate(open_split("w2s/digits", None, "validation", None, flag="")):
        folder = tmp_path / "data" / "val" / f"n{label:08}"
        folder.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(folder / f"{index:04}.png")
    common = ["--img-size", 8, "--workers", 0, "--log-interval", 100, "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5]
    digits = ["--dataset", "w2s/digits", "--val-split", "", *common, "--warmup-epochs", 0, "--lr", 0.1, "--no-aug"]
    here(*digits, "--model", "w2s_cnn2", "--train-slice", "0:50", "--epochs", 8, "--batch-size", 8, "--experiment",
         "weak").ok()
    here(*digits, "--model", "w2s_cnn5", "--train-slice", "80:600", "--epochs", 3, "--batch-size", 16, "--experiment",
         "pretrained").ok()
    weights = load_file("output/train/pretrained/export/model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("fc.")}, "backbone.safetensors")
    flags = [*config("alexnet_dino_resnet50"), "--data-dir", "data", *common, "--train-slice", "0:480", "--val-slice",
             "480:", "--model", "w2s_cnn5", "--finetune", "backbone.safetensors", "--teacher", "w2s_cnn2",
             "--teacher-checkpoint", "output/train/weak", "--batch-size", 16, "--lr", 0.01]
    done = here(*flags, "--experiment", "burns").ok()
    folder = Path("output/train/burns")
    record = json.loads((folder / "result.json").read_text())
    assert record["splits"]["student"] == record["splits"]["ceiling"]
    assert [record["splits"][n]["num_samples"] for n in ("student", "test")] == [480, 120]
    assert record["weak"]["value"] < record["student"]["value"] < record["ceiling"]["value"]
    assert record["pgr"]["low"] < record["pgr"]["value"] < 1
    assert done.err.count("Student features: ") == 2 and done.err.count("Student features found") == 2
    assert sorted(p.name for p in folder.iterdir()) == ["ceiling", "result.json", "student"]
    monkeypatch.setattr(sys, "argv", ["validate.py", "--checkpoint", str(folder / "student")])
    validate.main()
    found = json.loads(capsys.readouterr().out.split("--result\n")[1])
    assert found["top1"] == pytest.approx(record["student"]["value"], abs=1e-4)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody answers
    at = flags.index("--teacher")
    message = here(*flags[:at], "--experiment", "no").error
    assert message.startswith("--teacher alexnet: cannot be created: ")
    assert not Path("output/train/no").exists()
    message = here(*flags, "--val-slice", "470:", "--experiment", "no").error
    assert "--val-slice 470:: 10 of its 130 samples are trained on" in message
