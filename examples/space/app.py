"""A Space: what a student and its teacher say of an image. Each is a file of ONNX beside this one.

Of the run folders of docs/start.md, with a look at the page before it is sent to the Hub:

    cp -r examples/space my-space
    w2s-hub export output/train/grocery-teacher --onnx my-space/teacher.onnx
    w2s-hub export output/train/grocery-student --onnx my-space/student.onnx
    pip install -r my-space/requirements.txt && python my-space/app.py
    hf upload me/my-space my-space --repo-type space
"""

import json
from collections import Counter
from pathlib import Path

import gradio as gr
import numpy as np
import onnxruntime
from PIL import Image
from timm.data import create_transform

FOLDER = Path(__file__).parent
SHOWN = 5  # classes


class Classifier:
    """A file of ONNX; called with an image it gives the likeliest classes and their probabilities."""

    def __init__(self, file: Path):
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]
        # its metadata say how images are prepared, and what the classes are called
        about = self.session.get_modelmeta().custom_metadata_map
        self.transform = create_transform(
            input_size=self.input.shape[1:],
            mean=json.loads(about["mean"]),
            std=json.loads(about["std"]),
            interpolation=about["interpolation"],
            crop_pct=float(about["crop_pct"]),
            crop_mode=about["crop_mode"],
        )
        self.mode = "L" if self.input.shape[1] == 1 else "RGB"
        self.names = json.loads(about.get("class_names", "[]"))

    def __call__(self, image: Image.Image) -> dict[str, float]:
        pixels = self.transform(image.convert(self.mode)).unsqueeze(0).numpy()
        logits = self.session.run(None, {self.input.name: pixels})[0][0]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        names = self.names or [f"class {number}" for number in range(len(logits))]
        count = Counter(names)  # ImageNet has two cranes
        answer = {}
        for number in probabilities.argsort()[::-1][:SHOWN].tolist():
            name = (
                names[number] if count[names[number]] == 1 else f"{names[number]} (class {number})"
            )
            answer[name] = float(probabilities[number])
        return answer


def make_page(files: list[Path]) -> gr.Blocks:
    """Return the page: an image to upload, and an answer of each model."""
    classifiers = [Classifier(file) for file in files]

    def classify(image: Image.Image | None) -> list[dict[str, float] | None]:
        return [None if image is None else classifier(image) for classifier in classifiers]

    with gr.Blocks(title="A student beside its teacher", analytics_enabled=False) as page:
        image = gr.Image(type="pil", label="Image", height=320)
        with gr.Row():
            answers = [gr.Label(label=file.stem) for file in files]
        image.change(classify, image, answers, api_name="classify")
    return page


if __name__ == "__main__":
    make_page(sorted(FOLDER.glob("*.onnx"))).launch()
