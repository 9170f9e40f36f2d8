"""What is sharded, in which dtypes, and what is refused. One process is a group of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.task import ClassificationTask
from torch import nn

from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.engine import fsdp
from w2s_plugins.errors import UserError
from w2s_plugins.models.shards import RUN_FILE, previous, read_section, replace_folder, write_shards
from w2s_plugins.run.find import find_resume

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def sharded_task(model: nn.Module, amp_dtype: torch.dtype | None = None, compiled: str | None = None):
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
        f"stages.{s}.blocks.{b}" for s, depth in enumerate((1, 2, 4, 2)) for b in range(depth)}
    found = names_of_blocks("test_resnet")
    assert {n.rpartition(".")[0] for n in found if n.startswith("layer")} == {"layer1", "layer2", "layer3", "layer4"}
    assert all(n.count(".") == 2 for n in names_of_blocks("test_efficientnet") if n.startswith("blocks"))


def test_mixed_precision() -> None:
    """Blocks are gathered in bfloat16, the rest and all gradients are float32, and so are a batch norm's blocks."""
    task = sharded_task(timm.create_model("test_vit", num_classes=10), torch.bfloat16)
    seen = {}
    for name in ("blocks.0.mlp.fc1", "head"):
        task.trainable_module.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: module.weight.dtype}))
    images, target = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(images, target)["loss"]
    loss.backward()
    assert seen == {"blocks.0.mlp.fc1": torch.bfloat16, "head": torch.float32}
    assert {p.grad.dtype for p in task.get_clip_parameters()} == {torch.float32}
    with_batch_norm = sharded_task(timm.create_model("test_resnet", num_classes=10), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with_batch_norm(images, target)["loss"].backward()


def test_evaluation_between_steps() -> None:
    """Evaluation in inference mode gives the logits of the whole model and leaves it sharded and trainable."""
    model = timm.create_model("test_vit", num_classes=10)
    images, target = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    expected = model.eval()(images)
    task = sharded_task(model, compiled="eager")
    with torch.inference_mode():
        logits = task.get_eval_model()(images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert all(isinstance(p, fsdp.DTensor) for p in model.parameters())
    task(images, target)["loss"].backward()
    gathered = task.get_eval_model().gather()
    assert torch.equal(gathered.eval()(images), expected)
    assert type(gathered).__name__ == "VisionTransformer"


def test_shards_on_disk(tmp_path: Path) -> None:
    fsdp.join_alone(World(CPU, 0, 1, False))
    first = {"state_dict.a": torch.arange(6.0).reshape(3, 2), "state_dict.n": torch.tensor(3),
             "task_state.b": torch.ones(1)}
    folder = tmp_path / "last.sharded"
    folder.mkdir()
    write_shards(folder, first)
    with pytest.raises(UserError, match="no other checkpoint"):  # without its small file it is not complete
        find_resume(tmp_path)
    torch.save({"epoch": 0}, folder / RUN_FILE)
    section = read_section(folder, "state_dict", "--resume")
    assert section.keys() == {"a", "n"} and torch.equal(section["a"], first["state_dict.a"])
    assert section["n"].dtype == torch.int64 and section["n"] == 3

    folder.rename(previous(folder))  # killed between the two renames
    assert find_resume(tmp_path).path == previous(folder)
    new = tmp_path / ".last.sharded.tmp"
    shutil.copytree(previous(folder), new)
    replace_folder(new, folder)
    assert find_resume(tmp_path).path == folder and [p.name for p in tmp_path.iterdir()] == ["last.sharded"]

    file = next(folder.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError, match=f"damaged: {file.name} is not what was written, by its SHA-256"):
        read_section(folder, "state_dict", "--resume")
    shutil.copytree(folder, tmp_path / "checkpoint-1.sharded")
    (whole := tmp_path / "checkpoint-1.sharded" / file.name).write_bytes(content)
    assert find_resume(tmp_path).path == whole.parent, "the damaged one is passed over"
    file.write_bytes(content[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_section(folder, "state_dict", "--resume")
