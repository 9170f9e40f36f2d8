"""Counted memory of a training step against what PyTorch's allocator gives in a real one."""

import re
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.profiler import profile

from w2s_plugins.students.tuning import Tuning, choose_trained, freeze_batchnorm
from w2s_plugins.study.memory import _step, step_memory

from .conftest import Cli

SIZE = (8, 3, 64, 64)
VIT = dict(img_size=64, patch_size=8, depth=3)


def make(name: str, tune: str, checkpointing: bool, device: str, **kwargs: object) -> nn.Module:
    with torch.device(device):
        model = timm.create_model(name, num_classes=10, **kwargs)
        model.set_grad_checkpointing(checkpointing)
        choose_trained(model, Tuning(tune), torch.zeros(1, *SIZE[1:]), name)
    return model


def allocated(model: nn.Module, amp_dtype: torch.dtype | None) -> tuple[int, int]:
    """Return the peak of a real step, and the size of the optimizer's state."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    model.train()
    freeze_batchnorm(model)
    alive = SimpleNamespace(bytes=0)
    _step(model, [], [SIZE], optimizer, amp_dtype, alive)
    state = sum(t.nbytes for values in optimizer.state.values() for t in values.values())
    with profile(profile_memory=True) as profiler:
        _step(model, [], [SIZE], optimizer, amp_dtype, alive)
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak + state + sum(t.nbytes for t in (*model.parameters(), *model.buffers())), state


@pytest.mark.parametrize("name, kwargs, tune, checkpointing, amp_dtype", [
    ("vit_tiny_patch16_224", VIT, "all", False, None),
    ("vit_tiny_patch16_224", VIT, "lora", True, None),
    ("vit_tiny_patch16_224", VIT, "last:1", True, torch.bfloat16),
    ("resnet18", {}, "all", False, None),
    ("resnet18", {}, "all", True, None),
])
def test_a_real_step(
        name: str, kwargs: dict, tune: str, checkpointing: bool, amp_dtype: torch.dtype | None) -> None:
    """Within 5 %, in bfloat16 6 %: kernels of the CPU take some memory for themselves."""
    counted = step_memory(make(name, tune, checkpointing, "meta", **kwargs), [], [SIZE], "adamw", amp_dtype)
    peak, state = allocated(make(name, tune, checkpointing, "cpu", **kwargs), amp_dtype)
    assert counted.peak == pytest.approx(peak, rel=0.06 if amp_dtype else 0.05)
    assert counted.optimizer == state
    assert counted.gradients <= counted.weights <= counted.peak - counted.activations


def test_table(cli: Cli) -> None:
    """Figures that can be added up by hand."""
    flags = ["cost", "--memory", "--model", "test_vit", "--num-classes", 10, "--batch-size", 4, "--opt", "adamw"]
    code, out, err = cli(*flags, "--teacher", "test_vit", "--tune", "all", "head", "--precision", "float32", "bfloat16")
    assert code == 0, err
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    params, teacher = (sum(p.numel() for p in timm.create_model("test_vit", num_classes=n).parameters())
                       for n in (10, 1000))
    sizes = [f"{4 * n / 1e6:.3g} MB" for n in (params + teacher, params, 2 * params)]
    assert next(row[3:6] for row in rows if row[:3] == ["all", "-", f"{params:,}"]) == sizes
    assert [row[4] for row in rows if row[:2] == ["head", "-"]] == ["2.6 kB", "1.3 kB"]  # 64 weights and a bias a class
    plain, checkpointed = (next(row for row in rows if row[:2] == ["all", kind]) for kind in ("-", "yes"))
    assert float(checkpointed[6].split()[0]) < float(plain[6].split()[0]) / 2
    assert float(checkpointed[-1]) > float(plain[-1]), "one more pass forward"
    assert "--tune hed: expected one of all" in cli(*flags, "--tune", "hed")[2]
    assert "--opt: unknown optimizer 'adamv'" in cli(*flags, "--opt", "adamv")[2]
    assert "names no student; give --model NAME" in cli("cost", "--memory")[2]
