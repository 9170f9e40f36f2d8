"""A function as a teacher: a logistic regression of scikit-learn on the features of a pretrained timm model.

labelled.npz has the few images that you labelled: images (N, 3, 64, 64) from 0 to 1, and labels (N,).

python train_w2s.py --plugins teacher_function.py --teacher teacher_function:linear ...
"""

import hashlib

import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression

known = np.load("labelled.npz")
body = timm.create_model("resnet10t", pretrained=True, num_classes=0).eval()


@torch.inference_mode()
def features(images):
    return body.to(images.device)(images).cpu().numpy()


judge = LogisticRegression(max_iter=1000)
judge.fit(features(torch.from_numpy(known["images"])), known["labels"])


def linear(images):
    return judge.predict_proba(features(images))


linear.input_size = 64
# stored answers are used again for as long as this text stays the same
linear.cache_identity = lambda: hashlib.sha256(judge.coef_.tobytes()).hexdigest()
