"""``--linear-probe``: a head on stored features, and an ordinary run folder around it."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from w2s_plugins.data import open_split, take_slice
from w2s_plugins.data.order import KeyedSampler

from .conftest import (
    BRIEF,
    Run,
    assert_goes_on,
    differences,
    read_events,
    read_result,
    read_run,
    taught,
)

PLAIN = [*BRIEF, "--dataset w2s/digits --log-interval 100 --model w2s_cnn5 --epochs 3"]
FLAGS = [*PLAIN, "--linear-probe"]


def digits(split: str, part: str | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, 8, 8) and labels of a split."""
    dataset = take_slice(
        open_split("w2s/digits", None, split, None, flag="", input_img_mode="RGB"), part, 0
    )
    images = torch.stack([torch.from_numpy(np.array(image)) for image, _ in dataset])
    return (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, torch.tensor(
        [label for _, label in dataset]
    )


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a backbone without head, and of two weak teachers."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name, model, part, steps in (
        ("backbone", "w2s_cnn5", "0:600", 40),
        ("weak", "w2s_cnn2", "0:60", 30),
        ("weaker", "w2s_cnn2", "60:100", 30),
    ):
        torch.manual_seed(1)
        network = timm.create_model(model)
        fit(network, *digits("train", part), steps)
        found[name] = folder / f"{name}.safetensors"
        state = {
            k: v
            for k, v in network.state_dict().items()
            if name != "backbone" or not k.startswith("fc.")
        }
        save_file(state, found[name])
    return found


@pytest.fixture
def probe(here: Run, files: dict[str, Path]) -> Callable[..., Path]:
    """Trains a probe in this process and returns its folder."""

    def probe(name: str, *flags: object) -> Path:
        probe.done = here(
            *FLAGS, "--finetune", files["backbone"], "--experiment", name, *flags
        ).ok()
        return Path("output/train", name)

    return probe


def with_teacher(files: dict[str, Path], *names: str) -> list[object]:
    return [*taught(*(files[name] for name in names)), "--teacher-img-size 8 --task-loss-weight 0"]


def test_a_head_on_the_features_of_the_plain_model(
    here: Run, probe: Callable[..., Path], files: dict[str, Path]
) -> None:
    """The run agrees with a loop written by hand, and what it saves with what it says."""
    folder = probe(
        "probe",
        "--train-slice 600:1000 --head-init-scale 0 --opt momentum --sched none",
        "--weight-decay 0 --smoothing 0",
    )
    exported, given = (
        load_file(folder / "export" / "model.safetensors"),
        load_file(files["backbone"]),
    )
    assert (
        differences({k: v for k, v in exported.items() if not k.startswith("fc.")}, dict(given))
        == []
    )
    model = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    images, labels = digits("train", "600:1000")
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    head = nn.Linear(48, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer, sampler = (
        torch.optim.SGD(head.parameters(), 0.05, momentum=0.9),
        KeyedSampler(400, seed=42),
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for rows in torch.tensor([key.index for key in sampler]).split(16):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(exported["fc.weight"], head.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(exported["fc.bias"], head.bias.detach(), atol=1e-5, rtol=1e-4)

    record = read_result(folder)
    assert record["model"]["linear_probe"] and record["metrics"]["top1"] > 90
    images, labels = digits("validation")
    with torch.inference_mode():
        assert 100 * (model(images).argmax(1) == labels).double().mean() == pytest.approx(
            record["metrics"]["top1"]
        )
    assert differences(read_run(folder)["state_dict"], dict(exported)) == []
    assert (
        "the last layer, on features of the frozen model"
        in (folder / "export" / "README.md").read_text()
    )
    found = here("--checkpoint", folder, script="validate").figures
    for name in ("top1", "top5", "loss"):
        assert found[name] == pytest.approx(record["metrics"][name], abs=1e-4), name
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "args.yaml",
        "summary.csv",
        "metrics.jsonl",
        "result.json",
        "export",
        "last.pth.tar",
        "model_best.pth.tar",
        "predictions_last.csv",
    }

    again = probe("again", "--config", folder / "args.yaml")
    assert differences(read_run(again), read_run(folder)) == []
    assert "Student features found" in probe.done.err and "to write" not in probe.done.err


def test_goes_on_exactly(probe: Callable[..., Path], files: dict[str, Path], here: Run) -> None:
    flags = [
        "--train-slice 600:800",
        *with_teacher(files, "weak"),
        "--model-ema --model-ema-decay 0.9 --select best --select-split 40 --loss elr",
    ]
    whole = assert_goes_on(functools.partial(probe, "parts"), *flags, "--recovery-interval 4")
    assert "need not run" in probe.done.err and "goes on with epoch 2" in probe.done.err
    assert any("agreement" in e["student"] for e in read_events(whole, "start"))
    message = here(*PLAIN, "--output ends --experiment parts --resume auto").error
    assert "--linear-probe True -> False" in message


def test_stored_views(probe: Callable[..., Path], files: dict[str, Path], here: Run) -> None:
    """What is stored of each view is what a frozen network sees of it, epoch by epoch."""
    flags = [
        *with_teacher(files, "weak"),
        "--train-slice 600:760 --teacher-targets cached-views:2 --epochs 4",
        "--head-init-scale 0 --teacher-cache-dtype float32 --opt momentum --hflip 0.5",
        "--scale 0.5 1 --reprob 0.5",
    ]
    probe("views", *flags)
    assert "of 160 images in 2 view(s)" in probe.done.err
    here(*PLAIN, "--finetune", files["backbone"], *flags, "--tune head --experiment tuned").ok()
    ours, theirs = (
        load_file(f"output/train/{name}/export/model.safetensors") for name in ("views", "tuned")
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)
    assert_goes_on(functools.partial(probe, "parts"), *flags, stop=3)
