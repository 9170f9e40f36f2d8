#!/usr/bin/env python3
"""Time of a training epoch with cached targets beside one with the live teacher, and one without any teacher.

    python -m benchmarks.target_cache
    python -m benchmarks.target_cache --device cuda --model resnet50 --teacher resnet18 --size 224 --classes 1000

The three kinds of epochs take turns in one process, on the same random images, so that other work on the machine falls
on all of them; the median of the turns counts. Reading the cache is timed as it is in training: rows of a random order,
half precision, mapped files. Without a teacher the target is a tensor that is there already, so the loss is the same.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from benchmarks.measure import ratios, take_turns, timed
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.engine.task import WeakToStrongTask
from w2s_plugins.labels.store import Answers, LabelReader, Manifest, ensure_labels
from w2s_plugins.losses import create_loss
from w2s_plugins.models.loading import create_model
from w2s_plugins.teachers.stored import CachedTargets
from w2s_plugins.teachers.teacher import StudentInput, Teacher, TeacherModel


def main() -> None:
    args = create_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(args, measure(args, Path(folder)))


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--teacher", default="resnet10t")
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--samples", type=int, default=50000, help="rows of the cache")
    parser.add_argument("--topk", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each turn, by kind of epoch."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch_size, 3, args.size, args.size, generator=generator).to(device)
    order = torch.randperm(args.samples, generator=generator)
    present = torch.randn(args.batch_size, args.classes, generator=generator).to(device)
    teachers = {
        "no teacher": (lambda index: present, True),
        "cached": (create_cache(args, folder, device), True),
        "online": (create_teacher(args).to(device), False),
    }
    epochs = {name: create_epoch(args, device, *teacher, images, order) for name, teacher in teachers.items()}
    return take_turns({name: timed(epoch) for name, epoch in epochs.items()}, args.turns)


def create_network(flag: str, name: str, args: argparse.Namespace) -> nn.Module:
    """Create a network that takes images of ``args.size``."""
    return create_model(flag, name, pretrained=False, inputs={"img_size": args.size}, num_classes=args.classes)


def create_teacher(args: argparse.Namespace) -> Teacher:
    model = create_network("--teacher", args.teacher, args)
    config = dict(input_size=(3, args.size, args.size), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Teacher([TeacherModel(model, config, StudentInput(config["mean"], config["std"], 3, args.classes))])


def create_cache(args: argparse.Namespace, folder: Path, device: torch.device) -> CachedTargets:
    manifest = Manifest(args.samples, args.classes, {}, {}, "top-k" if args.topk else "logits", topk=args.topk)
    ensure_labels(folder / "labels", manifest, SampleKeys("index", range(args.samples)), lambda parts: (
        Answers(torch.randn(part.stop - part.first, args.classes)) for part in parts))
    return CachedTargets([LabelReader(folder / "labels")], device)


def create_epoch(
        args: argparse.Namespace,
        device: torch.device,
        teacher: Callable[[Tensor], Tensor],
        cached: bool,
        images: Tensor,
        order: Tensor,
) -> Callable[[], None]:
    """Return a function that trains a student for some steps."""
    torch.manual_seed(0)
    task = WeakToStrongTask(
        create_network("--model", args.model, args), teacher, create_loss("kd"), task_loss_weight=0.0,
        cached=cached, device=device, verbose=False)
    task.train()
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=1e-3, momentum=0.9)

    def epoch() -> None:
        for step in range(args.steps):
            start = step * args.batch_size % (args.samples - args.batch_size + 1)
            task(images, index=order[start:start + args.batch_size])["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return epoch


def report(args: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Print the medians, and the ratios turn by turn with their spread."""
    machine = f"CPU, {args.threads} thread(s)" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{args.model} <- {args.teacher}, {args.size} px, {args.classes} classes, batch {args.batch_size}, "
          f"{args.samples} cached samples, {machine}, torch {torch.__version__}\n")
    for name, turns in seconds.items():
        print(f"{name:10}  {1e3 * statistics.median(turns) / args.steps:8.2f} ms a step")
    print()
    for other in ("online", "no teacher"):
        shares = ratios(seconds["cached"], seconds[other])
        print(f"cached / {other:10}  {statistics.median(shares):.3f} (of {args.turns} turns, {min(shares):.3f} to "
              f"{max(shares):.3f})")


if __name__ == "__main__":
    main()
