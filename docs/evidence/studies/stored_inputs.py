"""True labels and weak ones, beside semi-supervised learning: rows of docs/evidence/few-true-labels.md.

    python docs/evidence/studies/stored_inputs.py lite0.safetensors output/nine_sets stored_inputs.csv \\
        --sets photos cartoons --seeds 0 1

It needs the teachers of nine_sets.py, and semilearn (`pip install semilearn`), whose own code of FixMatch and FreeMatch
runs here. All students train the last third of an EfficientNet-Lite0 on stored outputs of the first two thirds, which
are frozen: of six mild crops of each image, and of six strong views (a crop, and RandAugment of semilearn). So all have
the same network, weights, views, steps and rate, and a run takes a minute. Batches have 32 images with labels and 32
without, for twelve epochs of those without. The ways:

    direct      the labels alone, forty epochs.
    mean        elr, on the mean of teacher and direct.
    posterior   elr, on the posterior of both (teachers/posterior.py).
    both        the same, and of a strong view what the student says of the crop: the last stage of
                weak-labels-plus-few-true.
    both, two rounds      the same once more, where `both` stands in direct's place.
    both, mean teacher    as `both`, but of a strong view what the average of the student's weights says of the crop
                          (https://arxiv.org/abs/1703.01780), decay 0.99.
    both, weighed         as `both`, and each strong view counts by how sure the student is of the crop: the truncated
                          Gaussian of SoftMatch (https://arxiv.org/abs/2301.10921).
    fixmatch, freematch, softmatch   semilearn's, without a teacher: threshold 0.95, and those of the two others.
    mean, 60 %  from labels of the images that are right on 60 %, wrong at random, in the teacher's place; and so on.
"""

import argparse
import csv
import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"  # an import of semilearn needs it

import numpy as np
import timm
import torch
import torch.nn.functional as F
from forked import parser_of_study, predict
from PIL import Image
from safetensors.torch import load_file
from semilearn.algorithms.fixmatch import FixMatch
from semilearn.algorithms.freematch import FreeMatch
from semilearn.algorithms.softmatch import SoftMatch
from semilearn.datasets.augmentation import RandAugment
from sets import SETS, read
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import transforms

from w2s_plugins.losses import LossContext, LossInputs, create_loss
from w2s_plugins.target_kind import ONE_CLASS
from w2s_plugins.teachers.posterior import PosteriorTargets
from w2s_plugins.teachers.stored import CachedTargets
from w2s_plugins.training.task import consistency

PIXELS, VIEWS, MOST = 64, 6, 1200  # side, views of an image, images without labels
TESTED = 1500
BATCH, EPOCHS, RATE = 32, 12, 3e-4
DECAY = 0.99  # of averages
CPU = torch.device("cpu")
SEMILEARN = {"fixmatch": FixMatch, "freematch": FreeMatch, "softmatch": SoftMatch}
RIGHT = 0.6, 0.9  # of labels that are corrupted
WAYS = ["direct", "mean", "posterior", "both", *SEMILEARN]
WAYS += ["both, two rounds", "both, mean teacher", "both, weighed"]
WAYS += [f"{way}, {100 * share:.0f} %" for share in RIGHT for way in ("mean", "both")]
COLUMNS = ["set", "seed", "student", "labels", "top1", "seconds", "cpu", "commit"]


class Inputs(NamedTuple):
    """Stored inputs of the last third, in half precision.

    Args:
        plain: (N, ...) of whole images.
        crops: (N, VIEWS, ...) of mild crops.
        strong: (N, VIEWS, ...) of strong views.
        classes: (N,) true classes.
    """

    plain: Tensor
    crops: Tensor
    strong: Tensor
    classes: Tensor


def halves(weights: Path, classes: int) -> tuple[nn.Module, nn.Module]:
    """Return the frozen first two thirds, and the last third with a head of zeros; batch norms keep their statistics."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    state = {name: t for name, t in load_file(weights).items() if not name.startswith("classifier")}
    model.load_state_dict(state, strict=False)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    model.eval().to(memory_format=torch.channels_last)
    first = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:5])
    last = nn.Sequential(
        *model.blocks[5:], model.conv_head, model.bn2, model.global_pool, model.classifier
    )
    return first, last


def store(
    first: nn.Module, images: dict[str, bytes], flips: bool, classes: list[str], views: int
) -> Inputs:
    """Return the outputs of the first two thirds for images by name, CLASS/FILE."""
    bicubic = transforms.InterpolationMode.BICUBIC
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    plain = transforms.Compose(
        [transforms.Resize(round(PIXELS / 0.875), bicubic), transforms.CenterCrop(PIXELS)]
    )
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(PIXELS, (0.7, 1.0), interpolation=bicubic),
            *([transforms.RandomHorizontalFlip()] if flips else []),
        ]
    )
    strong = transforms.Compose([crop, RandAugment(3, 5)])
    opened = [Image.open(io.BytesIO(content)).convert("RGB") for content in images.values()]

    @torch.no_grad()
    def run(view: Callable[[Image.Image], Image.Image]) -> Tensor:
        parts = []
        for start in range(0, len(opened), 125):
            batch = torch.stack([tensor(view(image)) for image in opened[start : start + 125]])
            parts.append(first(batch.contiguous(memory_format=torch.channels_last)).half())
        return torch.cat(parts)

    return Inputs(
        run(plain),
        torch.stack([run(crop) for _ in range(views)], dim=1) if views else torch.empty(0),
        torch.stack([run(strong) for _ in range(views)], dim=1) if views else torch.empty(0),
        torch.tensor([classes.index(name.split("/")[-2]) for name in images]),
    )


class Order:
    """Batches of positions, in a new order each time that all have been drawn."""

    def __init__(self, count: int, batch: int, generator: torch.Generator):
        self.count, self.batch, self.generator = count, min(batch, count), generator
        self.left = torch.empty(0, dtype=torch.long)

    def next(self) -> Tensor:
        """Return the positions of a batch."""
        while len(self.left) < self.batch:
            order = torch.randperm(self.count, generator=self.generator)
            self.left = torch.cat([self.left, order])
        drawn, self.left = self.left[: self.batch], self.left[self.batch :]
        return drawn


def draw(views: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return a view of each of some images (B, ...)."""
    number = torch.randint(views.shape[1], (len(rows),), generator=generator)
    return views[rows, number].float().contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def says(last: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits (N, C)."""
    return torch.cat([last(part.float()) for part in inputs.split(250)])


def accuracy(logits: Tensor, classes: Tensor) -> float:
    """Return the top-1 in percent."""
    return 100 * float((logits.argmax(dim=1) == classes).float().mean())


class Trainer:
    """What all ways share: the data of a set and seed, and how a student begins and is updated."""

    def __init__(self, labelled: Inputs, photos: Inputs, classes: int, weights: Path, seed: int):
        self.labelled, self.photos = labelled, photos
        self.classes, self.weights, self.seed = classes, weights, seed

    def begin(
        self, steps: int
    ) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Return a student with its optimizer and a cosine schedule."""
        torch.manual_seed(self.seed)
        last = halves(self.weights, self.classes)[1]
        optimizer = torch.optim.AdamW(last.parameters(), lr=RATE, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * min(step / steps, 1)))
        )
        return last, optimizer, schedule

    def direct(self, rows: Tensor, epochs: int, batch: int) -> nn.Module:
        """Train on some of the labels alone."""
        generator = torch.Generator().manual_seed(self.seed)
        steps = max(1, epochs * len(rows) // min(batch, len(rows)))
        last, optimizer, schedule = self.begin(steps)
        order = Order(len(rows), batch, generator)
        for _ in range(steps):
            drawn = rows[order.next()]
            logits = last(draw(self.labelled.crops, drawn, generator))
            step(F.cross_entropy(logits, self.labelled.classes[drawn]), optimizer, schedule)
        return last

    def student(self, target: Tensor, strong: bool, how: str = "") -> nn.Module:
        """Train on the labels, and on a target (N, C), probabilities, of the images without any.

        Args:
            target: of these images.
            strong: whether strong views are learned from.
            how: ``mean teacher`` or ``weighed``; else of a strong view what the student says of the crop.
        """
        generator = torch.Generator().manual_seed(self.seed + 100)
        count = len(self.photos.classes)
        steps = EPOCHS * count // BATCH
        last, optimizer, schedule = self.begin(steps)
        loss = create_loss("elr")
        loss.setup(LossContext(num_classes=self.classes, num_samples=count))
        with_labels = Order(len(self.labelled.classes), BATCH, generator)
        without = Order(count, BATCH, generator)
        average = AveragedModel(last, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        mean, variance = 1 / self.classes, 1.0  # of how sure the student is
        for number in range(steps):
            some, others = with_labels.next(), without.next()
            views = [
                draw(self.labelled.crops, some, generator),
                draw(self.photos.crops, others, generator),
            ]
            if strong:
                views.append(draw(self.photos.strong, others, generator))
            logits = last(torch.cat(views)).split([len(view) for view in views])
            terms = loss(
                LossInputs(logits[1], target[others].log(), index=others, progress=number / steps)
            )
            total = sum(terms.values())
            if strong and how == "mean teacher":
                with torch.no_grad():
                    of_crop = average(views[1])
                total = total + consistency(of_crop, logits[2])
            elif strong and how == "weighed":
                sure, classes = logits[1].detach().softmax(dim=1).max(dim=1)
                mean = DECAY * mean + (1 - DECAY) * float(sure.mean())
                variance = DECAY * variance + (1 - DECAY) * float(sure.var())
                weights = torch.exp(-((sure - mean).clamp(max=0) ** 2) / (2 * variance / 4))
                losses = F.cross_entropy(logits[2], classes, reduction="none")
                total = total + (weights * losses).mean()
            elif strong:
                total = total + consistency(logits[1], logits[2])
            of_labels = F.cross_entropy(logits[0], self.labelled.classes[some])
            step(0.5 * of_labels + 0.5 * total, optimizer, schedule)
            if how == "mean teacher":
                average.update_parameters(last)
        return last

    def semilearn(self, name: str) -> nn.Module:
        """Train by semilearn's algorithm, which is given batches, and whose loss is taken as it is."""
        generator = torch.Generator().manual_seed(self.seed + 100)
        steps = EPOCHS * len(self.photos.classes) // BATCH
        last, optimizer, schedule = self.begin(steps)

        class Net(nn.Module):
            """The student in the form that semilearn expects; its batch norms stay as they are."""

            def __init__(self):
                super().__init__()
                self.last = last

            def forward(self, inputs: Tensor) -> dict[str, Tensor]:
                features = self.last[:-1](inputs)
                return {"logits": self.last[-1](features), "feat": features}

            def train(self, mode: bool = True) -> "Net":
                return super().train(False)

        class Algorithm(SEMILEARN[name]):
            """Without its loaders and optimizer."""

            def set_dataset(self) -> None:
                return None

            def set_data_loader(self) -> None:
                return None

            def set_optimizer(self) -> tuple[object, object]:
                return optimizer, schedule

        flags = dict.fromkeys(
            ["ema_m", "save_name", "save_dir", "resume", "gpu", "rank", "pretrain_path"], 0
        ) | dict.fromkeys(
            ["amp", "distributed", "use_wandb", "use_aim", "use_pretrain", "use_quantile"], False
        )
        # the defaults of semilearn, and the average over a hundred batches, as these runs are short
        flags |= dict(
            num_classes=self.classes, epoch=1, num_train_iter=steps, num_eval_iter=10**9,
            num_log_iter=10**9, ulb_loss_ratio=1.0, use_cat=True, clip_grad=0, algorithm=name,
            world_size=1, T=0.5, hard_label=True, p_cutoff=0.95, ema_p=0.99, ent_loss_ratio=0.01,
            clip_thresh=False, dist_align=True, dist_uniform=True, n_sigma=2, per_class=False,
        )  # fmt: skip
        algorithm = Algorithm(SimpleNamespace(**flags), lambda **_: Net())
        with_labels = Order(len(self.labelled.classes), BATCH, generator)
        without = Order(len(self.photos.classes), BATCH, generator)
        for number in range(steps):
            some, others = with_labels.next(), without.next()
            algorithm.it = number
            out, _ = algorithm.train_step(
                draw(self.labelled.crops, some, generator),
                self.labelled.classes[some],
                draw(self.photos.crops, others, generator),
                draw(self.photos.strong, others, generator),
            )
            step(out["loss"], optimizer, schedule)
        return algorithm.model.last


def step(
    loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> None:
    """Update once."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


class Table:
    """Answers (N, C) as `CachedTargets` read them."""

    folder = None

    def __init__(self, probabilities: Tensor):
        self.logits = probabilities.clamp(min=1e-6).log()
        self.manifest = SimpleNamespace(num_classes=probabilities.shape[1], views=1)

    def has(self, index: Tensor) -> Tensor:
        return torch.ones(len(index), dtype=torch.bool)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        return self.logits[index]


def corrupt(classes: Tensor, count: int, right: float) -> Tensor:
    """Return one-hot labels (N, C) that are right so often, and else any other class."""
    generator = torch.Generator().manual_seed(int(100 * right))
    other = torch.randint(1, count, classes.shape, generator=generator)
    wrong = torch.rand(classes.shape, generator=generator) >= right
    return F.one_hot(torch.where(wrong, (classes + other) % count, classes), count).float()


def run(args: argparse.Namespace, name: str, seed: int, writer: "csv.DictWriter[str]") -> None:
    """Train a set and seed in all ways, and write their rows."""
    data, *_, more = SETS[name]
    folder = args.runs / data / f"seed{seed}"
    classes = (folder / "classes.txt").read_text().split()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

    # the images, and what the first two thirds make of them
    first, _ = halves(args.weights, len(classes))
    flips = "--hflip 0" not in more
    images = [read(folder / f"{part}.tar") for part in ("labelled", "rest", "test")]
    images[1] = dict(list(images[1].items())[:MOST])
    tested = list(images[2].items())
    random.Random(7).shuffle(tested)
    images[2] = dict(tested[:TESTED])
    labelled, photos, test = (
        store(first, part, flips, classes, views) for part, views in zip(images, (VIEWS, VIEWS, 0))
    )
    by_name = predict(folder / "teacher", folder / "photos.tar", classes)
    teacher = torch.tensor([by_name[key] for key in list(read(folder / "photos.tar"))[:MOST]])
    trainer = Trainer(labelled, photos, len(classes), args.weights, seed)

    def write(way: str, labels: str, last: nn.Module, began: float) -> None:
        row = dict(
            set=name,
            seed=seed,
            student=way,
            labels=labels,
            top1=f"{accuracy(says(last, test.plain), test.classes):.2f}",
            seconds=f"{time.process_time() - began:.0f}",
            cpu=args.cpu,
            commit=args.commit,
        )
        writer.writerow(row)
        print(*row.values(), flush=True)

    # direct, and half of it, by which its answers are calibrated
    began = time.process_time()
    direct = trainer.direct(torch.arange(len(labelled.classes)), 40, 64)
    write("direct", "true", direct, began)
    order = torch.randperm(len(labelled.classes), generator=torch.Generator().manual_seed(5))
    half, held_out = order.tensor_split(2)
    part = trainer.direct(half, 20, 32)
    right = accuracy(says(part, labelled.plain[held_out]), labelled.classes[held_out])
    own = says(direct, photos.plain).softmax(dim=1)

    sources = {"": teacher} | {
        f", {100 * share:.0f} %": corrupt(photos.classes, len(classes), share) for share in RIGHT
    }
    for way in args.ways:
        if way == "direct":
            continue
        began = time.process_time()
        if way in SEMILEARN:
            write(way, "true", trainer.semilearn(way), began)
            continue
        kind, _, how = way.partition(", ")
        weak = sources.get(f", {how}", teacher)
        labels = f"weak, {accuracy(weak, photos.classes):.1f} % right"
        target = ((own + weak) / 2).clamp(min=1e-6)
        if kind != "mean":
            target = posterior(weak, own, right)
        student = trainer.student(target, kind == "both", how)
        if how == "two rounds":
            said = says(student, photos.plain).softmax(dim=1)
            student = trainer.student(posterior(weak, said, right), True)
        write(way, labels, student, began)


def posterior(weak: Tensor, own: Tensor, right: float) -> Tensor:
    """Return the posterior (N, C) of a teacher and of a student that is right on so many percent."""
    targets = CachedTargets([Table(weak), Table(own)], CPU, ONE_CLASS)  # pyright: ignore[reportArgumentType]
    rows = torch.arange(len(weak))
    return PosteriorTargets(targets, len(rows), right)(rows).softmax(dim=1).clamp(min=1e-6)


def main() -> None:
    """Add rows to a file."""
    parser = parser_of_study(__doc__, SETS, list(SETS))
    parser.add_argument("weights", type=Path)
    parser.add_argument("runs", type=Path, help="output folder of nine_sets.py")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_new = not args.rows.exists()
    with args.rows.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for seed in args.seeds:
            for name in args.sets:
                run(args, name, seed, writer)
                file.flush()


if __name__ == "__main__":
    main()
