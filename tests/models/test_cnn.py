"""The two networks of the quick demonstration."""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import w2s_plugins.models  # noqa: F401


def test_strong_network_learns_the_digits() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    x, y = F.interpolate(images, size=32, mode="bilinear"), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = timm.create_model("w2s_cnn5")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for batch in torch.cat([torch.randperm(1000) for _ in range(4)]).split(50):
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[1000:1400]).argmax(1) == y[1000:1400]).float().mean()
    assert accuracy > 0.8  # after four epochs; chance is 0.1
