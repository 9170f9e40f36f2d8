"""What is sharded, in which dtypes, and what is refused. One process is a group of its own."""

import pytest
import timm
import torch
from timm.task import ClassificationTask
from torch import nn
from torch.distributed.tensor import DTensor

from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.training import fsdp

pytestmark = pytest.mark.usefixtures("no_group_left")
CPU = torch.device("cpu")


def sharded_task(
    model: nn.Module, amp_dtype: torch.dtype | None = None, compiled: str | None = None
):
    task = ClassificationTask(model, verbose=False)
    options = dict(backend=compiled) if compiled else None
    fsdp.shard(task, Precision(CPU, amp_dtype=amp_dtype), World(CPU, 0, 1, False), options)
    return task


def names_of_blocks(name: str) -> list[str]:
    model = timm.create_model(name)
    names = {id(module): n for n, module in model.named_modules()}
    return [names[id(block)] for block in fsdp.find_blocks(model)]


def test_blocks() -> None:
    assert names_of_blocks("test_vit") == [f"blocks.{i}" for i in range(6)]
    found = names_of_blocks("test_convnext")
    assert {n for n in found if "blocks" in n} == {
        f"stages.{s}.blocks.{b}" for s, depth in enumerate((1, 2, 4, 2)) for b in range(depth)
    }
    found = names_of_blocks("test_resnet")
    assert {n.rpartition(".")[0] for n in found if n.startswith("layer")} == {
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    }
    assert all(
        n.count(".") == 2 for n in names_of_blocks("test_efficientnet") if n.startswith("blocks")
    )
    model = timm.create_model("test_vit")
    model.blocks[4].mlp.fc1.weight = model.blocks[2].mlp.fc1.weight  # one block would lack it
    assert [*map(id, fsdp.find_blocks(model))] == [id(model.blocks[i]) for i in (0, 1, 3, 5)]


def test_mixed_precision() -> None:
    """Blocks are gathered in bfloat16, the rest and all gradients are float32, and so are a batch norm's blocks."""
    torch.manual_seed(0)
    images, target = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    model, seen = timm.create_model("test_vit", num_classes=10), {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = ClassificationTask(model, verbose=False)(images, target)["loss"]
    task = sharded_task(model, torch.bfloat16)
    for name in ("blocks.0.mlp.fc1", "head"):
        task.trainable_module.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: module.weight.dtype})
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(images, target)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2**-8, atol=0)  # bfloat16 has 8 bits
    assert seen == {"blocks.0.mlp.fc1": torch.bfloat16, "head": torch.float32}
    assert {p.grad.dtype for p in task.get_clip_parameters()} == {torch.float32}
    with_batch_norm = sharded_task(timm.create_model("test_resnet", num_classes=10), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with_batch_norm(images, target)["loss"].backward()


def test_evaluation_between_steps() -> None:
    """Evaluation gives the logits of the whole model and leaves it sharded and trainable."""
    model = timm.create_model("test_vit", num_classes=10)
    images, target = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    expected = model.eval()(images)
    task = sharded_task(model, compiled="eager")
    logits = task.get_eval_model()(images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert all(isinstance(p, DTensor) for p in model.parameters())
    task(images, target)["loss"].backward()
    gathered = task.get_eval_model().gather()
    assert torch.equal(gathered.eval()(images), expected)
    assert type(gathered).__name__ == "VisionTransformer"
