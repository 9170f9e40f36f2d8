#!/usr/bin/env python3
"""Time and memory of every loss on logits, forward and backward, beside plain cross-entropy.

    python -m benchmarks.losses
    python -m benchmarks.losses --device cuda --classes 1000 --losses kd dkd adaptconf

Under Linux, MALLOC_TRIM_THRESHOLD_=1073741824 and MALLOC_MMAP_THRESHOLD_=1073741824 in the environment let glibc keep
what is freed, as a training process with its large steady working set does in effect. Otherwise the page faults of
fresh memory, which depend on what ran before, outweigh the arithmetic.

Memory is the peak of what the call allocates beyond its inputs and the memory by sample that a loss keeps. Ratios are
to ``kd`` on the same logits. The losses take turns, several times over, and the median of the turns counts, so that
neither a cold start nor other work on the machine falls on one of them.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from benchmarks.measure import ratios, table, take_turns
from w2s_plugins.losses import LossContext, LossInputs, create_loss, list_losses
from w2s_plugins.target_kind import KINDS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--losses", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="small tensors and one turn, to see that it works"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.classes = 10
    torch.set_num_threads(1)
    # what kd takes, to which all others are compared
    figures = measure(args)
    rows = []
    for name, found in figures.items():
        to_kd = ratios(found, figures["kd"])
        rows.append([f"`{name}`", *(f"{number:.2f}" for number in (*found, *to_kd))])
    print(
        table(["loss", "ms", "MB", f"time x `kd`, {args.classes:,} classes", "memory x `kd`"], rows)
    )


Figures = dict[str, tuple[float, float]]  # by loss, milliseconds and megabytes


def measure(args: argparse.Namespace) -> Figures:
    """Measure all losses."""
    # losses on features have no inputs here
    on_logits = [name for name in list_losses() if not create_loss(name).needs_features]
    names = ["cross-entropy", "kd", *(name for name in args.losses or on_logits if name != "kd")]
    inputs = make_inputs(8 if args.quick else 256, args.classes, args.device)
    steps = {name: make_step(name, inputs, args.device) for name in names}
    # time in turns; memory of one call
    turns, seconds = (1, 0.001) if args.quick else (7, 0.1)
    times = take_turns(
        {name: functools.partial(time_of, step, seconds) for name, step in steps.items()}, turns
    )
    return {
        name: (1e3 * statistics.median(times[name]), peak_megabytes(step, args.device))
        for name, step in steps.items()
    }


def make_inputs(batch_size: int, num_classes: int, device: str) -> LossInputs:
    """Random logits, the labels and indices a loss may ask for."""
    generator = torch.Generator().manual_seed(0)
    # logits that are as sure as those of a trained network
    student, teacher = (
        3 * torch.randn(batch_size, num_classes, generator=generator) for _ in range(2)
    )
    return LossInputs(
        student_logits=student.to(device).requires_grad_(),
        teacher_logits=teacher.to(device),
        target=torch.randint(num_classes, (batch_size,), generator=generator).to(device),
        index=torch.arange(batch_size, device=device),
        progress=0.5,
    )


def make_step(name: str, inputs: LossInputs, device: str) -> Callable[[], None]:
    """Return a function that computes a loss and its gradient on the student's logits."""
    if name == "cross-entropy":
        return lambda: differentiate(F.cross_entropy(inputs.student_logits, inputs.target), inputs)
    loss = create_loss(name)
    # of labels of the kind that it knows
    loss.take_kind(next(kind for kind in KINDS.values() if kind.name in loss.target_kinds))
    # losses with a memory make room for the samples
    loss.setup(LossContext(inputs.student_logits.shape[1], num_samples=2 * len(inputs.index)))
    loss.to(device)
    return lambda: differentiate(sum(loss(inputs).values()), inputs)


def differentiate(value: torch.Tensor, inputs: LossInputs) -> None:
    torch.autograd.grad(value, inputs.student_logits)


def time_of(step: Callable[[], None], seconds: float) -> float:
    """Return the seconds of a call, measured for at least so long."""
    return Timer("step()", globals={"step": step}).blocked_autorange(min_run_time=seconds).median


def peak_megabytes(step: Callable[[], None], device: str) -> float:
    """Largest sum of what is allocated and not yet freed during a call."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # what is allocated and not yet freed, event by event
    live = peak = 0
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        live += event.self_cpu_memory_usage
        peak = max(peak, live)
    return peak / 1e6


if __name__ == "__main__":
    main()
