"""Tiny teachers of other packages, made with the real ones: random weights, a few thousand parameters."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

NAMES = ("class2", "class0", "class1")  # the classes of `write_folder` in another order
CLIP = "w2s-test-clip"
CLIP_CONFIG = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=32, layers=2, width=32, patch_size=8, head_width=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1),
)
PLUGIN = f'''
import open_clip
import torch

open_clip.add_model_config("{CLIP}.json")


def predict(images):
    """Probabilities of three classes, by colour."""
    return images.mean(dim=(2, 3)).mul(9).softmax(dim=1)


predict.cache_identity = lambda: "colours 1"
'''


def make_hf(folder: Path, names: Sequence[str] = NAMES, seed: int = 0, **processor: object) -> Path:
    """A folder of transformers with a ViT of one layer and its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            initializer_range=0.5,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    )
    model.save_pretrained(folder)
    ViTImageProcessor(**{"size": {"height": 16, "width": 16}, **processor}).save_pretrained(folder)
    return folder


def register_clip(folder: Path) -> str:
    """Tell open_clip of a small model; returns its name."""
    import open_clip

    if CLIP not in open_clip.list_models():
        (folder / f"{CLIP}.json").write_text(json.dumps(CLIP_CONFIG))
        open_clip.add_model_config(folder / f"{CLIP}.json")
    return CLIP


def make_clip(folder: Path, seed: int = 0) -> Path:
    """The weights of that model, beside its description and a plugin that tells open_clip of it."""
    import open_clip
    from safetensors.torch import save_file

    register_clip(folder)
    (folder / f"{CLIP}.json").write_text(json.dumps(CLIP_CONFIG))
    (folder / "colours.py").write_text(PLUGIN)
    torch.manual_seed(seed)
    state = open_clip.create_model(CLIP).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "clip.safetensors"
    )
    return folder / "clip.safetensors"


def small_network(seed: int = 0, probabilities: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers, *([nn.Softmax(dim=1)] if probabilities else [])).eval()


def make_onnx(
    file: Path,
    seed: int = 0,
    batch: int | None = None,
    probabilities: bool = False,
    free: bool = False,
    **metadata: object,
) -> Path:
    """An ONNX file of that network on 16 x 16 pixels, or on any with ``free``, which takes any number of images, or
    ``batch`` at a time.
    """
    import onnx

    network = small_network(seed, probabilities)
    torch.onnx.export(
        network,
        (torch.zeros(batch or 1, 3, 16, 16),),
        str(file),
        dynamo=False,
        input_names=["images"],
        dynamic_axes=None
        if batch
        else {"images": {0: "batch", **({2: "h", 3: "w"} if free else {})}},
    )
    model = onnx.load(file)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, file)
    return file
