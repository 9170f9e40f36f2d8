"""What a student in an ONNX file says of an image, by onnxruntime, NumPy and Pillow alone.

python onnx_alone.py  # beside student.onnx and image.jpg
"""

import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("student.onnx")
about, entry = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0]
height, width = entry.shape[2:]
share, image = float(about["crop_pct"]), Image.open("image.jpg").convert("RGB")
scale = (
    max(height / image.height, width / image.width) / share
)  # the shorter side, as crop_mode center has it
size = round(image.width * scale), round(image.height * scale)
image = image.resize(size, Image.Resampling[about["interpolation"].upper()])
left, top = (image.width - width) // 2, (image.height - height) // 2
pixels = np.asarray(image.crop((left, top, left + width, top + height))) / 255
pixels = (pixels - json.loads(about["mean"])) / json.loads(about["std"])
(logits,) = session.run(None, {entry.name: pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0]
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for place in shares.argsort()[::-1][:5]:
    print(f"{shares[place]:.1%} {json.loads(about['class_names'])[place]}")
