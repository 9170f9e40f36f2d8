"""A grid of heads: each is what a probe of its own would be, and the best on the held-out part is the student."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from .conftest import Done, differences, read_lines, read_run
from .test_linear_probe import FLAGS, files, probe, result, with_teacher  # noqa: F401  (fixtures)

Run = Callable[..., Done]
RATES, DECAYS = (0.02, 0.3), (0, 0.05)
HELD_OUT = ["--train-slice", "600:800", "--select", "best", "--select-split", 40]
GRID = ["--probe-lrs", *RATES, "--probe-weight-decays", *DECAYS]
CLOSE = dict(atol=1e-5, rtol=1e-4)


def of_head(state: dict, number: int) -> dict:
    """What a checkpoint of a grid has of a head: that of a run of its own, under the names there."""
    prefix = f"members.{number}."
    own = {name.removeprefix(prefix): value for name, value in state["task_state"].items() if name.startswith(prefix)}
    return {name.replace("student.", "fc.") if "loss" not in name else name.removeprefix(""): value
            for name, value in own.items()}


@pytest.mark.parametrize("flags", [
    ["--loss", "elr", "--opt", "sgd", "--clip-grad", 0.5],
    ["--loss", "temporal", "--opt", "adamw", "--sched-on-updates", "--warmup-epochs", 1],
    ["--loss", "sop", "--opt", "lamb"],
    ["--loss", "balanced_elr+gce", "--opt", "lookahead_adam", "--task-loss-weight", 0.5],
    ["--loss", "kd", "--opt", "adamw", "--model-ema", "--model-ema-decay", 0.9, "--grad-accum-steps", 2],
    ["--loss", "logconf", "--opt", "momentum", "--amp"],
], ids=lambda flags: flags[1])
def test_each_head_is_that_of_its_own_run(
        probe: Callable[..., Path], files: dict[str, Path], flags: list[object]) -> None:  # noqa: F811
    flags = [*HELD_OUT, *with_teacher(files, "weak"), *flags]
    grid = probe("grid", *flags, *GRID)
    table, state = result(grid)["heads"], read_run(grid)
    close = dict(atol=3e-3, rtol=3e-2) if "--amp" in flags else CLOSE
    for number, (rate, decay) in enumerate(itertools.product(RATES, DECAYS)):
        alone = probe(f"alone{number}", *flags, "--lr", rate, "--weight-decay", decay)
        single, head = read_run(alone), table[number]
        own = {**{f"fc.{part}": single["state_dict"][f"fc.{part}"] for part in ("weight", "bias")},
               **single.get("task_state", {})}
        found = of_head(state, number)
        assert found.keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(found[name], value, **close, msg=lambda text: f"{name}: {text}")
        best = result(alone)["best"]
        assert (head["lr"], head["weight_decay"], head["epoch"]) == (rate, decay, best["epoch"])
        assert head["val"]["top1"] == pytest.approx(best["top1"], abs=0.2 if "--amp" in flags else 1e-6)
