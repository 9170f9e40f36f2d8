"""The parts of a run, made from the flags of timm's script: each does what it says."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf

from tests.parts import lines, random_images, small_model, train_settings
from w2s_plugins.data.keys import positions_in_split
from w2s_plugins.distributed.world import World
from w2s_plugins.errors import UserError
from w2s_plugins.losses import create_loss
from w2s_plugins.models.inference import cpu_has_bfloat16_units
from w2s_plugins.run.checkpoint import Checkpoint
from w2s_plugins.training.create_task import build_extractor, build_task
from w2s_plugins.training.data import build_data
from w2s_plugins.training.device import choose_layout, create_precision
from w2s_plugins.training.optimisation import create_optimizer
from w2s_plugins.training.run_files import in_layout_of
from w2s_plugins.training.student import build_student

WORLD = World(torch.device("cpu"), rank=0, size=1, distributed=False)


def student(*flags: object, model: str = "w2s_cnn5"):
    torch.manual_seed(0)
    return build_student(train_settings("--model", model, *flags), WORLD, 10)


# ---------------------------------------------------------------- data


def test_slice_then_held_out_part():
    settings = train_settings("--train-slice 0:100 --select best --select-split 0.2")
    data = build_data(settings)
    assert (len(data.train), len(data.select), len(data.val)) == (80, 20, 600)
    inside = {data.train.dataset.indices[i] for i in [*data.train.indices, *data.select.indices]}
    assert inside == set(data.train.dataset.indices)


# ---------------------------------------------------------------- student


def test_training_and_test_set_from_one_split(caplog):
    caplog.set_level("WARNING")
    split = ["--val-split train --train-slice 0:800"]
    data = build_data(train_settings(*split, "--val-slice 800:"))
    assert (len(data.train), len(data.val)) == (800, 397)
    assert not set(positions_in_split(data.train)) & set(positions_in_split(data.val))
    with pytest.raises(UserError, match=r"--val-slice 700:: 100 of its 497 samples are trained on"):
        build_data(train_settings(*split, "--val-slice 700:"))
    assert len(build_data(train_settings("--val-slice 0:100")).val) == 100
    assert not caplog.records
    build_data(train_settings(*split))
    assert "are the same samples, and 800 of them are trained on" in caplog.text


def test_starts_from_a_file(tmp_path):
    weights = small_model(5, "w2s_cnn5")
    torch.save({"state_dict_ema": weights.state_dict()}, tmp_path / "a.pth")
    model, _, source, *_ = student("--initial-checkpoint", tmp_path / "a.pth")
    assert all(torch.equal(v, weights.state_dict()[k]) for k, v in model.state_dict().items())
    assert source["init"] == "checkpoint" and len(source["source"]["sha256"]) == 64
    assert source["params"] == sum(p.numel() for p in weights.parameters())
    assert student()[2]["init"] == "random"
    save_for_hf(weights, tmp_path / "export", safe_serialization=True)
    source = student("--pretrained", model=f"local-dir:{tmp_path / 'export'}")[2]
    assert source["init"] == "pretrained" and len(source["source"]["sha256"]) == 64


def test_finetune_leaves_another_head_and_a_decoder_aside(tmp_path):
    weights = small_model(5, "w2s_cnn5", num_classes=7)
    torch.save(
        {"model": {**weights.state_dict(), "decoder.weight": torch.ones(1)}}, tmp_path / "a.pth"
    )
    model, *_ = student("--finetune", tmp_path / "a.pth")
    assert model.num_classes == 10
    head = tuple(f"{name}." for name in [model.pretrained_cfg["classifier"]])
    for name, value in model.state_dict().items():
        if not name.startswith(head):
            assert torch.equal(value, weights.state_dict()[name])
    with pytest.raises(UserError, match=r"--initial-checkpoint .*does not fit"):
        student("--initial-checkpoint", tmp_path / "a.pth")


def test_head_flags():
    plain, scaled = student()[0], student("--head-init-scale 0.1 --head-init-bias -4.6")[0]
    torch.testing.assert_close(scaled.get_classifier().weight, 0.1 * plain.get_classifier().weight)
    assert (scaled.get_classifier().bias == -4.6).all()


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network with a head of 7 classes, and of one with 10."""
    folder = tmp_path_factory.mktemp("starts")
    for classes in (7, 10):
        state = timm.create_model("test_resnet", num_classes=classes).state_dict()
        torch.save(state, folder / f"{classes}.pth")
    return folder


HEADS = """
--finetune 7.pth --tune last:1  ->  zeros
--finetune 7.pth --tune norm  ->  zeros
--finetune 7.pth --tune head  ->  zeros
--finetune 7.pth --tune last:1 --head-init-scale 1  ->  timm's
--finetune 10.pth --tune last:1  ->  timm's
--finetune 7.pth  ->  timm's
--tune last:1  ->  timm's
--finetune 7.pth --teacher w2s_cnn2  ->  zeros, and the recipe is recommended
--finetune 7.pth --teacher w2s_cnn2 --head-init-scale 1  ->  timm's
--finetune 10.pth --teacher w2s_cnn2  ->  timm's, and the recipe is recommended
--initial-checkpoint 10.pth --teacher w2s_cnn2  ->  timm's, and the recipe is recommended
--pretrained-path 7.pth --teacher w2s_cnn2  ->  zeros, and the recipe is recommended
--pretrained-path 7.pth  ->  timm's
--teacher w2s_cnn2  ->  timm's
--finetune 7.pth --teacher w2s_cnn2 --linear-probe  ->  timm's
--finetune 7.pth --tune last:1 --teacher w2s_cnn2 --loss kd+dist  ->  timm's
"""


@pytest.mark.parametrize(("flags", "head"), lines(HEADS))
def test_a_new_head_begins_with_zeros_where_a_teacher_or_a_part_is_learned(
    starts, monkeypatch, caplog, flags, head
):
    """A random one would undo what it stands on; timm's own is left to students of ground truth, and of nothing."""
    monkeypatch.chdir(starts)
    caplog.set_level("INFO")
    model = student(flags, model="test_resnet")[0]
    assert model.get_classifier().weight.any() != head.startswith("zeros")
    recommended = "the recommended one is --config weak-labels" in caplog.text
    assert recommended == head.endswith("recommended")


def test_input_flags():
    model, config, *_ = student(
        "--in-chans 1 --mean 0.3 --std 0.2 --crop-pct 0.7 --interpolation nearest"
    )
    assert model(random_images(1)[:, :1]).shape == (1, 10)
    assert config["input_size"] == (1, 32, 32)
    assert (tuple(config["mean"]), tuple(config["std"])) == ((0.3,), (0.2,))
    assert (config["crop_pct"], config["interpolation"]) == (0.7, "nearest")


def test_layout_dtype_and_kwargs():
    model = student("--channels-last --model-dtype bfloat16 --model-kwargs widths=((8,),(8,8))")[0]
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [f["num_chs"] for f in model.feature_info] == [8, 8]


LAST, PLAIN = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("model", "device", "flags", "layout"),
    [
        ("test_resnet", "cpu", "", LAST),
        ("test_resnet", "cpu", "--no-channels-last", PLAIN),
        ("test_resnet", "cpu", "--linear-probe --channels-last", PLAIN),
        ("test_resnet", "cpu", "--fsdp", PLAIN),
        ("test_vit", "cpu", "", PLAIN),
        ("test_vit", "cpu", "--channels-last", LAST),
        ("mixer_s32_224", "cpu", "", PLAIN),
        ("test_resnet", "cuda", "", PLAIN),
        ("test_resnet", "cuda", "--amp", LAST),
        ("test_resnet", "cuda", "--model-dtype bfloat16", LAST),
        ("test_vit", "cuda", "--amp", PLAIN),
        ("test_resnet", "mps", "--amp", PLAIN),
    ],
)
def test_the_memory_layout_follows_from_network_device_and_precision(
    model: str, device: str, flags: str, layout: torch.memory_format
) -> None:
    settings = train_settings("--model", model, flags)
    if device != "cpu":  # which need not be here
        network = timm.create_model(model)
        assert choose_layout(network, torch.device(device), settings.compute) is layout
        return
    made = build_student(settings, WORLD, 10)
    assert made.layout is layout
    assert made.resolved["channels_last"] == (layout is LAST)
    weight = next(p for p in made.model.parameters() if p.ndim == 4 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("model", "flags", "is_noted"),
    [
        ("test_resnet", "", True),
        ("test_vit", "", True),
        ("test_resnet", "--amp", False),
        ("test_resnet", "--model-dtype float32", False),
        ("test_resnet", "--linear-probe", False),
        ("test_efficientnet", "", False),
    ],
)
def test_bfloat16_is_named_once_where_it_is_faster(
    model: str, flags: str, is_noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    student(flags, model=model)
    count = caplog.text.count("--amp --amp-dtype bfloat16")
    assert count == (is_noted and cpu_has_bfloat16_units())


@pytest.mark.parametrize(
    ("flags", "recorded", "expected"),
    [("", False, False), ("", True, True), ("--no-channels-last", True, False), ("", None, None)],
)
def test_a_run_goes_on_in_the_layout_in_which_it_was_begun(
    flags: str, recorded: bool | None, expected: bool | None
) -> None:
    args = Namespace(channels_last=recorded)
    content = {"version": 2, "epoch": 0, "state_dict": {}, "args": args}
    checkpoint = Checkpoint.from_content(Path("last.pth.tar"), content)
    goes_on = in_layout_of(train_settings(flags), checkpoint)
    assert goes_on.compute.channels_last is expected


@pytest.mark.parametrize(
    ("model", "flags", "look", "expected"),
    [
        (
            "test_efficientnet",
            "--bn-momentum 0.01 --bn-eps 0.1",
            lambda m: (m.bn1.momentum, m.bn1.eps),
            (0.01, 0.1),
        ),
        ("test_vit", "--drop 0.3", lambda m: m.head_drop.p, 0.3),
        ("test_vit", "--drop-path 0.2", lambda m: m.blocks[-1].drop_path1.drop_prob, 0.2),
        ("test_vit", "--drop-connect 0.2", lambda m: m.blocks[-1].drop_path1.drop_prob, 0.2),
        ("test_vit", "--img-size 64", lambda m: m(random_images(1, 64)).shape, (1, 10)),
        ("test_vit", "--grad-checkpointing", lambda m: m.grad_checkpointing, True),
        ("test_resnet", "--split-bn --aug-splits 3", lambda m: m.bn1.num_splits, 3),
    ],
)
def test_flags_of_the_student(model, flags, look, expected):
    assert look(student(flags, model=model)[0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "flags, dtype, amp_dtype, scales",
    [
        ("", torch.float32, None, False),
        ("--amp --amp-dtype float16", torch.float32, torch.float16, True),
        ("--amp", torch.float32, torch.bfloat16, False),
        ("--model-dtype bfloat16", torch.bfloat16, None, False),
    ],
)
def test_precision_flags(flags, dtype, amp_dtype, scales):
    precision = create_precision(train_settings(flags).compute, WORLD)
    assert (precision.dtype, precision.amp_dtype, precision.scaler is not None) == (
        dtype,
        amp_dtype,
        scales,
    )


# ---------------------------------------------------------------- learning rate and precision


@pytest.mark.parametrize(
    "flags, world_size, expected",
    [
        ("--lr 0.3", 4, 0.3),
        ("--batch-size 128", 2, 0.1),
        ("--batch-size 128 --grad-accum-steps 4", 1, 0.2),
        ("--batch-size 64 --opt adamw", 1, 0.05),
        ("--batch-size 64 --lr-base-scale sqrt", 1, 0.05),
        ("--batch-size 64 --lr-base 1 --lr-base-size 64", 1, 1.0),
        ("--train-img-sizes 24 32 --train-batch-sizes 128 64 --train-size-probs 1 3", 1, 0.03125),
    ],
)
def test_learning_rate_is_scaled_by_timms_rule(flags, world_size, expected, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    assert train_settings(flags).optim.lr == pytest.approx(expected)


# ---------------------------------------------------------------- tasks of timm


@pytest.mark.parametrize(
    "kind, model, terms",
    [
        ("logit", "test_resnet", {"task_loss", "kd_loss"}),
        ("feature", "test_resnet", {"task_loss", "kd_loss"}),
        ("token", "deit_tiny_distilled_patch16_224", {"task_loss", "distill_loss"}),
    ],
)
def test_timms_own_distillation(tmp_path, kind, model, terms):
    """timm's task is made from timm's flags, with a teacher from a folder."""
    save_for_hf(timm.create_model("test_resnet", num_classes=10), tmp_path, safe_serialization=True)
    size = 224 if kind == "token" else 32
    settings = train_settings(
        "--model",
        model,
        "--num-classes 10",
        "--img-size",
        size,
        "--kd-model-name",
        f"local-dir:{tmp_path}",
        "--kd-distill-type",
        kind,
        "--kd-temperature 2 --smoothing 0.3",
    )
    net, config, *_ = build_student(settings, WORLD, settings.data.num_classes)
    data = build_data(settings)
    precision = create_precision(settings.compute, WORLD)
    task = build_task(settings, net, None, None, data, config, precision, WORLD)
    target = torch.tensor([1, 2])
    result = task(random_images(2, size), target)
    assert {"loss", "output"} | terms <= set(result)
    smoothed = F.cross_entropy(result["output"], target, label_smoothing=0.3)
    torch.testing.assert_close(result["task_loss"], smoothed)
    optimizer = create_optimizer(settings.optim, task)
    result["loss"].backward()
    optimizer.step()


def test_feature_levels_are_arguments_of_the_loss() -> None:
    """And of a sum as a whole; the released flag on stages comes down to them."""
    settings = train_settings("--teacher w2s_cnn2 --distiller fitnet --fitnet-stage 0 1")
    loss = create_loss(settings.loss.loss, **settings.loss.loss_kwargs)
    assert loss.student_stages == loss.teacher_stages == [0, 1]
    loss = create_loss("kd+fitnet", student_stages=[1], teacher_stages=[0])
    chosen = []
    teacher = SimpleNamespace(choose_stages=chosen.append)
    extractor = build_extractor(
        loss, small_model(0, "w2s_cnn5"), {"input_size": (3, 8, 8)}, teacher
    )
    assert extractor.stages == (1,) and chosen == [[0]]
