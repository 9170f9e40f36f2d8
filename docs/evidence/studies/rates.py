"""Auto-RGN, for studies: a rate for each tensor, by its gradient beside its weights (https://arxiv.org/abs/2210.11466)."""

import io
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from forked import predict
from PIL import Image
from sets import read
from timm.data.config import resolve_data_config
from torchvision import transforms

from w2s_plugins.training import optimisation


def measured_rates(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict:
    """Return for each tensor ||gradient|| / ||weight||, a mean over batches of 32, as a share of the largest one."""
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = dict.fromkeys(names, 0.0)
    model.eval()
    for batch, target in zip(images.split(32), labels.split(32)):
        loss = F.cross_entropy(model(batch), target)
        gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        for name, gradient in zip(names, gradients):
            if gradient is not None:
                sums[name] += (gradient.norm() / names[name].detach().norm().clamp(min=1e-8)).item()
    largest = max(sums.values())
    return {name: value / largest for name, value in sums.items()}


def rates_by_tensor(folder: Path, pixels: int) -> None:
    """Let the optimizer of this process have a rate for each tensor, from 256 images and their weak labels.

    Args:
        folder: of a divided set: its photos.tar is labelled by its teacher.
        pixels: of a side of the student's images.
    """
    classes = (folder / "classes.txt").read_text().split()
    says = predict(folder / "teacher", folder / "photos.tar", classes)
    content = dict(list(read(folder / "photos.tar").items())[:256])
    images = [Image.open(io.BytesIO(image)).convert("RGB") for image in content.values()]
    labels = torch.tensor([says[key] for key in content]).argmax(dim=1)
    create = optimisation.create_optimizer_v2

    def with_rates(module: torch.nn.Module, **flags: Any) -> torch.optim.Optimizer:
        student = module.get_submodule("student")
        config = resolve_data_config(model=student)
        view = transforms.Compose(
            [
                transforms.Resize(pixels, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(pixels),
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )
        shares = measured_rates(student, torch.stack([view(image) for image in images]), labels)
        optimizer = create(module, **flags)
        by_id = {id(p): shares[name] for name, p in student.named_parameters() if name in shares}
        for name, share in sorted(shares.items(), key=lambda item: -item[1])[:10]:
            print(f"{share:.4f} {name}")
        # a group for each tensor, whose rates the schedule scales
        groups = [
            {**group, "params": [p], "lr_scale": by_id.get(id(p), 1.0)}
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        optimizer.param_groups[:] = groups
        return optimizer

    optimisation.create_optimizer_v2 = with_rates
