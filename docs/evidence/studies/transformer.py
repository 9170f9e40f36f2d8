"""Ways to train all weights of a transformer, beside the recipe: rows of docs/evidence/transformer.md.

    python docs/evidence/studies/transformer.py DATA dinov2_s14.safetensors output/transformer rows.csv --seeds 0 1

`DATA` is what sets.py makes; the weights are those of timm's vit_small_patch14_dinov2. A small network, the teacher,
labels 800 images. All students learn from its answers, in bfloat16. Whose names begin with "all":

    all, field       as transformers are fine-tuned: the head at 0.002, each block below it at 0.65 of the next one's
                     rate, an epoch of warm-up, gradients clipped at 3, stochastic depth of 0.1.
    all, LP-FT       the same, from the head of a linear probe (https://arxiv.org/abs/2202.10054).
    all, Auto-RGN    from that head, and each tensor has its own rate: 0.002 for the one whose gradient is the largest
                     beside its weights, those of the others in proportion (https://arxiv.org/abs/2210.11466).

The last three students are the stages of weak-labels-plus-few-true, if they are asked for. What is finished stays.
"""

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import add_rows, parser_of_study, predict, row_of  # noqa: E402
from nine_sets import folder_name, stages_of, train_students  # noqa: E402
from sets import divide_by_thing, read  # noqa: E402

from benchmarks.recipe import WEAK, right  # noqa: E402
from w2s_plugins.training import optimisation  # noqa: E402

# by set: its folder, images with labels and without
SETS = {"CIFAR-10": ("cifar10", 1000, 800), "groceries": ("grocery", 800, 800)}
SETS |= {f"{name}, 100 labels": (data, 100, 300) for name, (data, *_) in SETS.items()}
PIXELS = 98
VIT = f"--model vit_small_patch14_dinov2 --finetune {{weights}} --img-size {PIXELS} --amp --amp-dtype bfloat16"
ALL = "--config weak-labels --tune all --epochs 5 --warmup-epochs 1 --clip-grad 3 --drop-path 0.1"
FROM_PROBE = "--finetune {folder}/probe/last.pth.tar --head-init-scale 1"
STUDENTS = {
    "teacher": ("truth", WEAK),
    "probe": (
        "teacher",
        f"{VIT} --linear-probe --loss elr --opt adamw --lr 0.01 --batch-size 64 --epochs 20",
    ),
    "recipe": ("teacher", f"{VIT} --config weak-labels"),
    "all, field": ("teacher", f"{VIT} {ALL} --lr 0.002 --layer-decay 0.65"),
    "all, LP-FT": ("teacher", f"{VIT} {ALL} --lr 0.002 --layer-decay 0.65 {FROM_PROBE}"),
    "all, Auto-RGN": ("teacher", f"{VIT} {ALL} --lr 0.002 {FROM_PROBE}"),
    **stages_of(VIT),
}
COLUMNS = ["set", "seed", "student", "flags", "labels", "teacher", "top1", "cpu", "commit"]


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


def rates_by_tensor(folder: Path) -> None:
    """Let the optimizer of this process have a rate for each tensor, from 256 images and their weak labels."""
    classes = (folder / "classes.txt").read_text().split()
    says = predict(folder / "teacher", folder / "photos.tar", classes)
    content = dict(list(read(folder / "photos.tar").items())[:256])
    view = transforms.Compose(
        [
            transforms.Resize(PIXELS, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(PIXELS),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = [Image.open(io.BytesIO(image)).convert("RGB") for image in content.values()]
    pixels = torch.stack([view(image) for image in images])
    labels = torch.tensor([says[key] for key in content]).argmax(dim=1)
    create = optimisation.create_optimizer_v2

    def with_rates(module: torch.nn.Module, **flags: Any) -> torch.optim.Optimizer:
        student = module.get_submodule("student")
        shares = measured_rates(student, pixels, labels)
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


def main() -> None:
    """Train, and write the rows of what is finished."""
    parser = parser_of_study(__doc__, SETS, ["CIFAR-10", "groceries"])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS)[:6])
    args = parser.parse_args()
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    torch.set_num_threads(1)
    students = {student: STUDENTS[student] for student in STUDENTS if student in args.students}
    for seed in args.seeds:
        for name in args.sets:
            data, labelled, photos = SETS[name]
            folder = args.output / folder_name(name) / f"seed{seed}"
            divide_by_thing(args.data / data, labelled, photos, seed, folder)
            prepare: dict[str, Callable[[], None]] = {
                "all, Auto-RGN": partial(rates_by_tensor, folder)
            }
            train_students(folder, students, args.weights, seed, "--val-slice 0:1000", prepare)
    # all that is finished, by any command
    rows = []
    for name, (_, labelled, _) in SETS.items():
        for folder in sorted((args.output / folder_name(name)).glob("seed*")):
            for student, (teacher, flags) in STUDENTS.items():
                place = folder / folder_name(student)
                if student == "part" or not (place / "seconds.json").exists():
                    continue
                row = row_of(
                    args, name, int(folder.name.removeprefix("seed")), student, flags, place
                )
                row |= dict(labels=f"{labelled} true", teacher="")
                if teacher != "truth":
                    weak = f"{right(folder / 'teacher').mean():.1f}"
                    row |= dict(labels="of the teacher", teacher=weak)
                rows.append(row)
    add_rows(args.rows, rows, COLUMNS)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
