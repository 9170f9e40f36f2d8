"""Sharded students: two gloo processes do what one does, and their checkpoints go on anywhere."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_map

import train_w2s
from tests.e2e.conftest import Run, assert_same_end, differences, read_run
from tests.e2e.test_distributed import TOLERANCE, flags_of
from tests.parts import words
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.resolve.train import resolve_train_args

pytestmark = pytest.mark.usefixtures("no_group_left")
# a plugin that ends the process in the third step
CRASH = """
import os
from w2s_plugins.training import step

steps, seed_step = [], step.seed_step

def crash(*args):
    steps.append(args)
    if len(steps) == 3:
        os._exit(1)
    seed_step(*args)

step.seed_step = crash
"""


def prepared(*flags: object) -> train_w2s.Run:
    """A run in this process that is ready to go on."""
    parser = train_parser()
    args, given = parse(parser, words(*flags))
    return train_w2s.prepare(resolve_train_args(args, given))


@pytest.mark.slow
def test_two_processes(here: Run, ranks: Run, weak: Path, tmp_path: Path) -> None:
    flags = flags_of(
        weak,
        "--loss fitnet --momentum 0.9 --grad-accum-steps 2 --clip-grad 1 --model-ema",
        "--model-ema-decay 0.5 --reprob 0.3 --recovery-interval 1",
        "--output",
        tmp_path,
        "--experiment",
    )
    here(*flags, "one", "--batch-size 32").ok()
    sharded = ["--fsdp"]
    done = ranks(*flags, "two", *sharded, cwd=tmp_path, processes=2).ok()

    # half of the parameters on each
    kept, size = map(
        int, re.search(r"(\d+) of (\d+) parameters are on this one", done.err).groups()
    )
    assert size / 2 <= kept < 0.52 * size

    # the training of one process
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    for section in ("state_dict", "state_dict_ema", "task_state"):
        for name, tensor in one[section].items():
            assert (two[section][name] - tensor).abs().max() < TOLERANCE, name
    assert not torch.equal(two["state_dict"]["head.weight"], two["state_dict_ema"]["head.weight"])

    # the export is the gathered average, and a plain timm model takes it
    export = load_file(tmp_path / "two" / "export" / "model.safetensors")
    assert differences(export, two["state_dict_ema"]) == []
    timm.create_model(f"local-dir:{tmp_path / 'two' / 'export'}", pretrained=True)

    # interrupted in the first epoch and continued, to the last bit
    (tmp_path / "crash.py").write_text(CRASH)
    assert ranks(*flags, "cut", *sharded, "--plugins crash.py", cwd=tmp_path, processes=2).code != 0
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    done = ranks(*flags, "cut", *sharded, "--resume auto", cwd=tmp_path, processes=2).ok()
    assert "goes on with epoch 1, step 1" in done.err  # of two batches
    assert_same_end(tmp_path / "two", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("recovery-*"))

    # loaded on one process: weights, average and optimizer are the same bits, and training goes on
    found = torch.load(next((tmp_path / "alone").glob("recovery-*")), weights_only=False)
    alone = [*flags, "alone", *sharded, "--batch-size 32 --resume auto"]
    saver = prepared(*alone).saver
    taken_up = tree_map(saver._whole, saver._state(0))
    for section in ("state_dict", "state_dict_ema", "task_state", "optimizer"):
        assert differences(taken_up[section], found[section]) == [], section
    assert found["optimizer"]["state"]
    here(*alone).ok()
    other = read_run(tmp_path / "alone")["state_dict"]
    assert (
        max((other[name] - tensor).abs().max() for name, tensor in two["state_dict"].items())
        < TOLERANCE
    )


@pytest.mark.parametrize("loss", ["crd", "sop"])
def test_one_process(here: Run, weak: Path, tmp_path: Path, loss: str) -> None:
    """A group of one gives the same bits as no sharding, with features, parameters and memory by sample of the loss,
    and with activations that are computed again."""
    flags = flags_of(
        weak,
        "--train-slice 0:64 --epochs 1",
        "--loss",
        loss,
        "--opt adamw --lr 0.001",
        "--output",
        tmp_path,
        "--experiment",
    )
    here(*flags, "whole").ok()
    here(*flags, "part", "--fsdp --grad-checkpointing").ok()
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert (whole / "export/model.safetensors").read_bytes() == (
        part / "export/model.safetensors"
    ).read_bytes()
    one, two = read_run(whole), read_run(part)
    assert differences(one["state_dict"], two["state_dict"]) == []
    assert differences(one["task_state"], two["task_state"]) == []
