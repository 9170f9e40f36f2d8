"""Sharded students: two gloo processes do what one does, and their checkpoints go on anywhere."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import train_w2s
from tests.e2e.conftest import TINY, Done, differences, read_lines, read_run
from w2s_plugins.build.flags import resolve_train_args
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.cli.declare import Settings
from w2s_plugins.models.loading import find_weights, read_checkpoint, read_weights
from w2s_plugins.run.saver import take_out_shards

Run = Callable[..., Done]
# Two processes sum gradients in another order than one: about 1e-7 of their size a step.
TOLERANCE = 1e-5
# a plugin that ends the process in the third step
CRASH = '''
import os
from w2s_plugins.engine import step

steps, seed_step = [], step.seed_step

def crash(*args):
    steps.append(args)
    if len(steps) == 3:
        os._exit(1)
    seed_step(*args)

step.seed_step = crash
'''


@pytest.fixture(autouse=True)
def no_group_left() -> Iterator[None]:
    """A run of one process that ends with an error leaves its group behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a sharded checkpoint, whole: the rows of all files in their order."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    names = dict.fromkeys(name for file in files for name in file)
    parts = {name: [file[name] for file in files if name in file] for name in names}
    return {name: torch.cat(p) if p[0].ndim else p[0] for name, p in parts.items()}


def read_sharded(folder: Path) -> dict:
    """Everything in a sharded checkpoint that decides how a run goes on."""
    rest = {k: v for k, v in read_checkpoint(folder, "test").items() if k not in ("args", "saver")}
    return {**rest, "shards": by_hand(folder)}


def prepared(*flags: object) -> train_w2s.Run:
    """A run in this process that is ready to go on."""
    parser = train_parser()
    args, given = parse(parser, [str(f) for f in flags])
    resolve_train_args(args, given)
    return train_w2s.prepare(Settings(args))


def model_flags(weak: Path, folder: Path) -> list[object]:
    """A network without batch norm, a loss with parameters and an odd number of samples."""
    return [*TINY, "--train-slice", "0:97", "--model", "test_vit", "--img-size", 16, "--model-kwargs", "patch_size=4",
            "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--loss", "fitnet",
            "--grad-accum-steps", 2, "--clip-grad", 1, "--model-ema", "--model-ema-decay", 0.5, "--reprob", 0.3,
            "--opt", "momentum", "--recovery-interval", 1, "--output", folder, "--experiment"]


@pytest.mark.slow
def test_two_processes(here: Run, ranks: Run, weak: Path, tmp_path: Path) -> None:
    flags = model_flags(weak, tmp_path)
    here(*flags, "one", "--batch-size", 32).ok()
    sharded = ["--fsdp"]
    done = ranks(*flags, "two", *sharded, cwd=tmp_path, processes=2).ok()

    # half of the parameters on each
    kept, size = map(int, re.search(r"(\d+) of (\d+) parameters are on this one", done.err).groups())
    assert size / 2 <= kept < 0.52 * size

    # the training of one process
    one, two = read_run(tmp_path / "one"), by_hand(tmp_path / "two" / "last.sharded")
    for section in ("state_dict", "state_dict_ema", "task_state"):
        for name, tensor in one[section].items():
            assert (two[f"{section}.{name}"] - tensor).abs().max() < TOLERANCE, name
    assert not torch.equal(two["state_dict.head.weight"], two["state_dict_ema.head.weight"])

    # the export is the gathered average, and a plain timm model takes it
    export = load_file(tmp_path / "two" / "export" / "model.safetensors")
    averaged = {k.removeprefix("state_dict_ema."): v for k, v in two.items() if k.startswith("state_dict_ema.")}
    assert differences(export, averaged) == []
    timm.create_model(f"local-dir:{tmp_path / 'two' / 'export'}", pretrained=True)

    # interrupted in the first epoch and continued, to the last bit
    (tmp_path / "crash.py").write_text(CRASH)
    assert ranks(*flags, "cut", *sharded, "--plugins", "crash.py", cwd=tmp_path, processes=2).code != 0
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    done = ranks(*flags, "cut", *sharded, "--resume", "auto", cwd=tmp_path, processes=2).ok()
    assert "goes on with epoch 1, step 1" in done.err  # of two batches
    last = "last.sharded"
    assert differences(read_sharded(tmp_path / "two" / last), read_sharded(tmp_path / "cut" / last)) == []
    for file in ("metrics.jsonl", "summary.csv", "export/model.safetensors"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()
    assert not list((tmp_path / "cut").glob("recovery-*"))
    assert [p.name for p in (tmp_path / "cut").glob(".*")] == [".lock"]

    # loaded on one process: weights, average and optimizer are the same bits, and training goes on
    found = by_hand(next((tmp_path / "alone").glob("recovery-*")))
    alone = [*flags, "alone", *sharded, "--batch-size", 32, "--resume", "auto",
             "--resume-changes", "processes"]
    shards, _ = take_out_shards(prepared(*alone).output.saver._state(0, (None, None)))
    assert differences({k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in shards.items()}, found) == []
    assert any(name.startswith("optimizer.") for name in found)
    here(*alone).ok()
    other = by_hand(tmp_path / "alone" / last)
    assert max((other[name] - tensor).abs().max() for name, tensor in two.items()) < TOLERANCE


@pytest.mark.parametrize("loss", ["crd", "sop"])
def test_one_process(here: Run, weak: Path, tmp_path: Path, loss: str) -> None:
    """A group of one gives the same bits as no sharding, with features, parameters and memory by sample of the loss."""
    flags = [*TINY, "--epochs", 1, "--model", "test_vit", "--img-size", 16, "--model-kwargs", "patch_size=4",
             "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--loss", loss, "--opt", "adamw", "--lr", 1e-3,
             "--output", tmp_path, "--experiment"]
    here(*flags, "whole").ok()
    here(*flags, "part", "--fsdp").ok()
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert (whole / "export/model.safetensors").read_bytes() == (part / "export/model.safetensors").read_bytes()
    one, two = read_run(whole), by_hand(part / "last.sharded")
    of_loss = {name.removeprefix("task_state."): t for name, t in two.items() if name.startswith("task_state.")}
    assert differences(one["task_state"], of_loss) == []
    if loss == "sop":
        return

    # weights of a run that has not ended
    shutil.rmtree(part / "export")
    assert find_weights(str(part), "test") == part / "last.sharded"
    assert differences(read_weights(part / "last.sharded", "test"), one["state_dict"]) == []
    here(*TINY, "--epochs", 1, "--model", "w2s_cnn2", "--teacher", "test_vit", "--teacher-checkpoint", part, "--output",
         tmp_path, "--experiment", "next").ok()
    figures = [line["val"] for line in read_lines(part / "metrics.jsonl") if line["event"] == "eval"]
    start = next(line for line in read_lines(tmp_path / "next" / "metrics.jsonl") if line["event"] == "start")
    assert start["teacher"]["top1"] == figures[-1]["top1"]
    assert "written with --fsdp" in here(*flags, "part", "--resume", "auto").error
    assert "written without --fsdp" in here(*flags, "whole", "--resume", "auto", "--fsdp").error


def test_mixed_precision(here: Run, weak: Path, tmp_path: Path) -> None:
    """Nearly the training of autocast alone, with recomputed activations."""
    flags = [*TINY, "--model", "test_vit", "--img-size", 16, "--model-kwargs", "patch_size=4", "--teacher", "w2s_cnn2",
             "--teacher-checkpoint", weak, "--amp", "--amp-dtype", "bfloat16", "--val-split", "", "--no-teacher-eval",
             "--output", tmp_path, "--experiment"]
    here(*flags, "whole").ok()
    here(*flags, "part", "--fsdp", "--grad-checkpointing").ok()
    one, two = read_run(tmp_path / "whole")["state_dict"], by_hand(tmp_path / "part" / "last.sharded")
    moved = max((t - start).abs().max() for t, start in zip(one.values(), initial(here, flags, tmp_path).values()))
    apart = max((two[f"state_dict.{name}"] - t).abs().max() for name, t in one.items())
    assert 0 < apart < moved / 10


def initial(here: Run, flags: list[object], folder: Path) -> dict[str, torch.Tensor]:
    here(*flags, "start", "--lr", 1e-12, "--epochs", 1).ok()
    return read_run(folder / "start")["state_dict"]
