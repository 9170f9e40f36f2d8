"""What a student and its teacher say of an image. `space.json`, beside this file, names them.

    pip install -r requirements.txt
    python app.py
"""

import html
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config

HERE = Path(__file__).parent
SHOWN = 5  # classes


def open_timm(name: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict, list[str] | None]:
    """Return a model of timm or of the Hub, how its images are prepared, and the names of its classes."""
    model = timm.create_model(name, pretrained=True).eval()
    names, subset = model.pretrained_cfg.get("label_names"), infer_imagenet_subset(model)
    if not names and subset:
        names = ImageNetInfo(subset).label_descriptions()
    return model, resolve_model_data_config(model), names


def open_onnx(name: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict, list[str] | None]:
    """Return the same of a file of ONNX, which says it in its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(HERE / name), providers=["CPUExecutionProvider"])
    about, entry = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0]
    config = dict(
        input_size=entry.shape[1:],
        mean=json.loads(about["mean"]),
        std=json.loads(about["std"]),
        interpolation=about["interpolation"],
        crop_pct=float(about["crop_pct"]),
        crop_mode=about["crop_mode"],
    )

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])

    return run, config, json.loads(about.get("class_names", "null"))


class Classifier:
    """A model with its own preprocessing; called with an image it gives the likeliest classes and their shares."""

    def __init__(self, name: str):
        self.model, config, self.names = open_onnx(name) if name.endswith(".onnx") else open_timm(name)
        self.transform = create_transform(**config)
        self.mode = "L" if config["input_size"][0] == 1 else "RGB"

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, float]:
        shares = self.model(self.transform(image.convert(self.mode)).unsqueeze(0)).softmax(dim=1)[0]
        names = self.names or [f"class {number}" for number in range(len(shares))]
        often = Counter(names)  # ImageNet has two cranes
        found = {}
        for place in shares.argsort(descending=True)[:SHOWN].tolist():
            name = names[place] if often[names[place]] == 1 else f"{names[place]} (class {place})"
            found[name] = shares[place].item()
        return found


def make_page(settings: dict) -> gr.Blocks:
    """Return the page: an image to upload, and an answer for each model."""
    models = settings["models"]
    classifiers = [Classifier(model["model"]) for model in models]

    def classify(image: Image.Image | None) -> list[dict[str, float] | None]:
        return [None if image is None else classifier(image) for classifier in classifiers]

    with gr.Blocks(title=settings["title"], analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(settings['title'])}</h1>")
        image = gr.Image(type="pil", label="Image", height=320)
        with gr.Row():
            answers = [gr.Label(label=f"{model['role']}: {model['name']}") for model in models]
        image.change(classify, image, answers, api_name="classify")
    return page


if __name__ == "__main__":
    make_page(json.loads((HERE / "space.json").read_text(encoding="utf-8"))).launch()
