"""A service as a teacher: each image is sent as a PNG to the address in LABELLER, which answers with probabilities.

python train_w2s.py --plugins service.py --teacher service:ask --teacher-targets cached ...
"""

import io
import json
import os
import time
import urllib.request

from torchvision.transforms.functional import to_pil_image


def label(image):
    file = io.BytesIO()
    to_pil_image(image).save(file, "PNG")
    for wait in (1, 4, 16, 64, None):
        try:
            with urllib.request.urlopen(
                os.environ["LABELLER"], file.getvalue(), timeout=60
            ) as answer:
                return json.load(answer)["probabilities"]
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


def ask(images):
    return [label(image) for image in images.cpu()]


ask.cache_identity = lambda: "labeller, version 3"
