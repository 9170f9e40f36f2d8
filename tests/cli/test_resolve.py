"""Flags checked against each other and brought into this project's terms."""

import argparse
import logging

import pytest
import torch

from w2s_plugins.build.flags import resolve_train_args
from w2s_plugins.build.resolve import CRITERIA, MULTI_LABEL
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.cli.forms import loss_weights
from w2s_plugins.cli.groups import SCHEDULERS
from w2s_plugins.errors import UserError
from w2s_plugins.losses import create_loss
from w2s_plugins.run.args_file import write_args

DIGITS = ("--dataset", "w2s/digits")
TEACHER = (*DIGITS, "--teacher", "resnet18")


def resolve(*argv: str) -> argparse.Namespace:
    args, given = parse(train_parser(), argv)
    resolve_train_args(args, given)
    return args


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        resolve(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- data


def test_data_dir_by_position_flag_and_environment(monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/env")
    assert resolve("/position").data_dir == "/position"
    assert resolve("--data-dir", "/flag").data_dir == "/flag"
    assert resolve("/position", "--data-dir", "/flag").data_dir == "/flag"
    args = resolve()
    assert (args.data_dir, args.data) == ("/env", None)
    assert resolve("--dataset", "torch/cifar10").data_dir is None


def test_no_data_says_how_to_give_it(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    message = refused()
    assert all(word in message for word in ("--data-dir", "IMAGENET_DIR", "--dataset w2s/digits"))
    assert resolve(*DIGITS).data_dir is None


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("argv, loss, task_loss", [
    (DIGITS, None, "ce"),
    (TEACHER, "adaptconf", "ce"),
    ((*TEACHER, "--loss", "kd"), "kd", "ce"),
    ((*TEACHER, "--loss", "kd", "--task-loss", "bce"), "kd", "bce"),
    ((*TEACHER, "--bce-loss"), "adaptconf", "bce"),
    ((*DIGITS, "--loss", "ce"), None, "ce"),
    ((*DIGITS, "--loss", "bce"), None, "bce"),
    ((*DIGITS, "--bce-loss"), None, "bce"),
    ((*DIGITS, "--jsd-loss", "--aug-splits", "3"), None, "jsd"),
    ((*DIGITS, "--loss", "jsd", "--aug-splits", "2"), None, "jsd"),
    ((*TEACHER, "--distiller", "bkd"), "bkd", "ce"),
    ((*DIGITS, "--kd-model-name", "resnet18"), None, "ce"),
])
def test_loss_and_criterion(argv, loss, task_loss):
    args = resolve(*argv)
    assert (args.loss, args.task_loss) == (loss, task_loss)


def test_criteria_exist_in_timm():
    from timm.loss import LOSS_TYPES, create_classification_loss

    assert {*CRITERIA, *MULTI_LABEL} == set(LOSS_TYPES)
    for name in CRITERIA:
        create_classification_loss(name, jsd_splits=3)


@pytest.mark.parametrize("argv, message", [
    ((*TEACHER, "--loss", "adaptcnf"), "--loss: unknown loss 'adaptcnf' (nearest: adaptconf"),
    ((*TEACHER, "--loss", "kd + rkdd"), "--loss: unknown loss 'rkdd' (nearest: rkd"),
    ((*TEACHER, "--task-loss", "cee"), "--task-loss: unknown choice 'cee' (nearest: ce"),
    ((*DIGITS, "--loss", "kd"), "--loss kd needs a teacher: give --teacher"),
    ((*TEACHER, "--loss", "bce"), "--task-loss bce"),
    ((*TEACHER, "--loss", "ce"), "--task-loss ce"),
    ((*TEACHER, "--loss", "adaptconf", "--loss-kwargs", "temprature=1"), "(nearest: temperature"),
    ((*TEACHER, "--loss", "adaptconf", "--loss-kwargs", "temperature=hot"), "expected float"),
    ((*TEACHER, "--kd-model-name", "resnet18"), "name two teachers"),
    ((*DIGITS, "--kd-model-name", "resnet18", "--loss", "kd"), "use --teacher resnet18"),
    ((*DIGITS, "--kd-model-name", "resnet19"), "--kd-model-name: unknown model 'resnet19' (nearest: resnet1"),
    ((*DIGITS, "--kd-loss-type", "mse"), "--kd-loss-type: unknown choice 'mse'; one of kl"),
])
def test_loss_refused(argv, message):
    assert message in refused(*argv)


def test_released_code_without_distillation_leaves_its_teacher_aside():
    args = resolve(*TEACHER, "--teacher-pretrained", "weak.pth", "--distiller", "vanilla")
    assert (args.loss, args.task_loss, args.teacher, args.teacher_checkpoint) == (None, "ce", None, None)


@pytest.mark.parametrize("argv, kwargs", [
    (("--loss", "adaptconf"), {}),
    (("--loss", "adaptconf", "--kd-temperature", "2"), {"kd_temperature": 2.0}),
    (("--loss", "kd", "--kd-temperature", "2"), {"temperature": 2.0}),
    (("--loss", "hard", "--kd-temperature", "2"), {}),
    (("--loss", "kd", "--kd-temperature", "2", "--loss-kwargs", "temperature=3"), {"temperature": 3}),
    (("--loss", "adaptconf", "--superalignment-threshold", "4"), {"temperature": 4.0}),
    (("--loss", "augconf", "--superalignment-threshold", "0.4", "--superalignment-rate", "0"),
     {"alpha": 0.4, "ramp": 0.0}),
    (("--loss", "adaptconf", "--superalignment-rate", "0.3"), {}),
    (("--distiller", "kd"), {"temperature": 1.0}),
    (("--distiller", "kd", "--kd-temperature", "4"), {"temperature": 4.0}),
    (("--distiller", "kd", "--loss-kwargs", "temperature=3"), {"temperature": 3}),
    (("--distiller", "adaptconf"), {}),
])
def test_loss_kwargs_from_other_flags(argv, kwargs):
    args = resolve(*TEACHER, *argv)
    assert args.loss_kwargs == kwargs
    create_loss(args.loss, **args.loss_kwargs)


def test_flags_of_views_without_effect_are_reported(caplog):
    caplog.set_level(logging.INFO)
    resolve(*DIGITS, "--no-aug", "--scale", "0.5", "1", "--hflip", "0")
    assert "--no-aug: no effect of --scale" in caplog.messages


def test_flag_of_the_released_code_without_meaning_for_the_loss_is_reported(caplog):
    caplog.set_level(logging.INFO)
    resolve(*TEACHER, "--loss", "kd", "--superalignment-rate", "0.3", "--rkd-squared")
    assert "--superalignment-rate has no meaning for --loss kd" in caplog.text
    assert "--rkd-squared has no meaning for --loss kd" in caplog.text


@pytest.mark.parametrize("argv, weights", [
    ((), (1.0, 1.0)),
    (("--task-loss-weight", "0"), (0.0, 1.0)),
    (("--task-loss-weight", "0.3"), (0.3, 0.7)),
    (("--distill-loss-weight", "2"), (1.0, 2.0)),
    (("--task-loss-weight", "0.5", "--distill-loss-weight", "2"), (0.5, 2.0)),
    (("--gt-loss-weight", "0.3"), (0.3, 1.0)),
    (("--kd-loss-weight", "3"), (1.0, 3.0)),
    (("--gt-loss-weight", "0", "--kd-loss-weight", "2"), (0.0, 2.0)),
    (("--task-loss-weight", "0.5", "--gt-loss-weight", "0.3"), (0.5, 1.0)),
])
def test_weights(argv, weights):
    args = resolve(*TEACHER, *argv)
    assert loss_weights(args.task_loss_weight, args.distill_loss_weight) == weights


def test_weights_mean_what_they_mean_in_timm():
    """The same three modes give the same total as timm's own task."""
    from timm.task import LogitDistillationTask

    from tests.parts import student_and_teacher

    student, teacher, images, target = student_and_teacher()
    for task, distill in ((None, None), (0.3, None), (None, 2.0), (0.25, 3.0)):
        theirs = LogitDistillationTask(
            student, teacher, torch.nn.CrossEntropyLoss(), task_loss_weight=task, distill_loss_weight=distill,
            verbose=False)
        result = theirs(images, target)
        ours = loss_weights(task, distill)
        total = ours[0] * result["task_loss"] + ours[1] * result["kd_loss"]
        torch.testing.assert_close(total, result["loss"])


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize("cores, processes, workers", [(2, 1, 4), (16, 1, 16), (16, 2, 8), (64, 1, 16)])
def test_data_workers_of_a_gpu_follow_its_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert resolve(*DIGITS).workers == workers
    assert resolve(*DIGITS, "--workers", "3").workers == 3
    assert resolve(*DIGITS, "--device", "cpu").workers == 4  # timm's default


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_without_cuda_the_cpu_is_used():
    args = resolve(*DIGITS)
    assert (args.device, args.no_accelerator) == ("cpu", True)
    assert "use --device cpu" in refused(*DIGITS, "--device", "cuda")
    assert resolve(*DIGITS, "--device", "cpu").no_accelerator is False


def test_mixed_precision_on_a_cpu():
    assert resolve(*DIGITS, "--device", "cpu", "--amp").amp_dtype == "bfloat16"
    assert resolve(*DIGITS, "--device", "cpu", "--amp", "--amp-dtype", "float16").amp_dtype == "float16"
    assert "--amp-dtype: unknown choice 'fp16'" in refused(*DIGITS, "--amp-dtype", "fp16")
    assert "--model-dtype: unknown choice 'half'" in refused(*DIGITS, "--model-dtype", "half")
    assert "--model-dtype bfloat16" in refused(*DIGITS, "--amp", "--model-dtype", "bfloat16")
    assert "unknown device" in refused(*DIGITS, "--device", "gpu")
    for kind in ("xpu", "mps", "hpu", "npu", "mtia", "xla"):
        if kind != getattr(torch.accelerator.current_accelerator(), "type", None):
            assert f"--device {kind}: " in refused(*DIGITS, "--device", kind)


# ---------------------------------------------------------------- names and ranges


@pytest.mark.parametrize("argv, message", [
    (("--model", "resnet19"), "--model: unknown model 'resnet19' (nearest: resnet1"),
    (("--model", "resnet18.a1_in2k"), "has no weights 'a1_in2k' (nearest: a1_in1k"),
    (("--model", "timm/resnet18"), "(nearest: hf-hub:timm/resnet18, local-dir:timm/resnet18)"),
    (("--teacher", "resnet18,resnt34"), "--teacher: unknown model 'resnt34' (nearest: resnet34"),
    (("--opt", "adamv"), "--opt: unknown optimizer 'adamv' (nearest: adam"),
    (("--sched", "cosin"), "--sched: unknown choice 'cosin' (nearest: cosine"),
    (("--clip-mode", "norms"), "--clip-mode: unknown choice 'norms' (nearest: norm); one of norm, value, agc"),
    (("--mixup-mode", "half"), "--mixup-mode: unknown choice 'half'"),
    (("--remode", "pixels"), "--remode: unknown choice 'pixels' (nearest: pixel)"),
    (("--train-crop-mode", "rcc"), "--train-crop-mode: unknown choice 'rcc' (nearest: rrc"),
    (("--interpolation", "cubic"), "--interpolation: unknown choice 'cubic' (nearest: bicubic)"),
    (("--train-interpolation", "cubic"), "--train-interpolation: unknown choice 'cubic' (nearest: bicubic)"),
    (("--scale", "0.5"), "--scale: expected two numbers"),
    (("--train-batches-per-epoch", "0"), "--train-batches-per-epoch 0: expected at least 1"),
    (("--ratio", "1", "1", "1"), "--ratio: expected two numbers"),
    (("--cutmix-minmax", "0.5"), "--cutmix-minmax: expected two numbers"),
    (("--seed", "-1"), "--seed -1: expected 0 to"),
    (("--dist-bn", "sum"), "--dist-bn: unknown choice 'sum'"),
    (("--eval-metric", "top2"), "--eval-metric: unknown choice 'top2' (nearest: top5, top1)"),
    (("--lr-base-scale", "log"), "--lr-base-scale: unknown choice 'log'"),
    (("--worker-seeding", "none"), "--worker-seeding: unknown choice 'none'"),
    (("--batch-size", "0"), "--batch-size 0: expected at least 1"),
    (("--epochs", "-1"), "--epochs -1: expected at least 1"),
    (("--grad-accum-steps", "0"), "--grad-accum-steps 0: expected at least 1"),
    (("--log-interval", "0"), "--log-interval 0: expected at least 1"),
    (("--val-interval", "0"), "--val-interval 0: expected at least 1"),
    (("--checkpoint-hist", "0"), "--checkpoint-hist 0: expected at least 1"),
    (("--nan-patience", "0"), "--nan-patience 0: expected at least 1"),
    (("--workers", "-1"), "--workers -1: expected at least 0"),
    (("--clip-grad", "0"), "--clip-grad 0.0: expected at least 1e-06"),
    (("--clip-grad", "-1"), "--clip-grad -1.0: expected at least 1e-06"),
])
def test_name_or_range_refused(argv, message):
    assert message in refused(*DIGITS, *argv)


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_every_optimizer_and_schedule_of_timm_is_accepted():
    from timm.optim import list_optimizers
    from timm.scheduler import create_scheduler_v2

    for name in (*list_optimizers(), "lookahead_adam"):
        resolve(*DIGITS, "--opt", name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for name in SCHEDULERS:
        resolve(*DIGITS, "--sched", name)
        create_scheduler_v2(optimizer, sched=name, num_epochs=5, warmup_epochs=1, decay_milestones=(2,))


def test_hub_ids_and_folders_are_not_looked_up_in_timm():
    args = resolve(*DIGITS, "--model", "local-dir:/a", "--teacher", "hf-hub:a/b@main,local-dir:/c")
    assert args.model == "local-dir:/a"


# ---------------------------------------------------------------- combinations


MIX = ("--mixup", "0.2")


@pytest.mark.parametrize("argv, message", [
    (("--naflex-loader",), "--naflex-loader"),
    (("--torchscript",), "use --torchcompile"),
    (("--aug-splits", "1"), "--aug-splits 1 is no split"),
    (("--aug-splits", "3", *MIX), "--aug-splits cannot be combined with mixup"),
    (("--aug-splits", "3", "--cutmix", "1"), "--aug-splits cannot be combined with mixup"),
    (("--aug-splits", "3", "--cutmix-minmax", "0.2", "0.8"), "--aug-splits cannot be combined with mixup"),
    (("--aug-splits", "3", "--no-aug"), "--aug-splits cannot be combined with --no-aug"),
    (("--train-batches-per-epoch", "5"), "--train-batches-per-epoch needs --train-img-sizes"),
    (("--aug-splits", "3", "--no-prefetcher"), "--aug-splits needs the prefetcher"),
    (("--jsd-loss",), "--aug-splits of at least 2"),
    (("--split-bn",), "--split-bn needs --aug-splits or --resplit"),
    (("--split-bn", "--aug-splits", "2", "--sync-bn"), "exclude each other"),
    ((*MIX, "--batch-size", "5"), "--batch-size 5 must be even"),
    (("--cutmix-minmax", "0.2", "0.8", "--batch-size", "5"), "--batch-size 5 must be even"),
    ((*MIX, "--train-img-sizes", "24", "32", "--train-batch-sizes", "8", "7"), "--batch-size 7 must be even"),
    (("--aug-splits", "2", "--teacher", "resnet18", "--teacher-targets", "cached"), "--aug-splits needs"),
    (("--aug-splits", "2", "--train-img-sizes", "24", "32"), "--train-img-sizes cannot be combined"),
    ((*MIX, "--mixup-off-epoch", "1", "--teacher", "resnet18", "--teacher-targets", "cached-views:2"),
     "--mixup-off-epoch ends mixing once"),
    (("--train-img-sizes", "24", "32", "--train-batch-sizes", "8"), "--train-batch-sizes has 1 values for 2 sizes"),
    (("--train-img-sizes", "24", "32", "--train-size-probs", "1"), "--train-size-probs has 1 values for 2 sizes"),
    (("--train-batch-sizes", "8"), "--train-batch-sizes needs --train-img-sizes"),
    (("--train-size-probs", "1"), "--train-size-probs needs --train-img-sizes"),
    (("--train-img-sizes", "24", "32", "--train-size-probs", "0", "0"), "--train-size-probs: expected"),
    (("--train-img-sizes", "24", "32", "--train-size-probs", "nan", "1"), "--train-size-probs nan: expected a finite"),
    (("--train-img-sizes", "0", "32"), "image and batch sizes are at least 1"),
    (("--train-img-sizes", "24", "--train-size-schedule", "progressive"), "at least 2 --train-img-sizes"),
    (("--teacher-checkpoint", "weak.pth"), "--teacher-checkpoint needs --teacher"),
    (("--select-split", "0.1"), "--select-split needs --select best"),
    (("--select", "best", "--val-split", ""), "--select best needs"),
    (("--select", "best", "--select-split", "0.1", "--teacher", "resnet18", "--task-loss-weight", "0",
      "--no-teacher-eval"), "leave out --no-teacher-eval"),
    (("--push-labels", "a/b", "--teacher", "resnet18"), "--push-labels a/b: with --teacher-targets online no labels"),
    (("--push-labels", "a/b", "--teacher", "resnet18,vgg11", "--teacher-targets", "cached"), "there are 2: name one"),
    (("--push-labels", "a/b", "--teacher", "labels:x.csv"), "labels of --teacher labels:x.csv are there already"),
    (("--push-labels", "a/b"), "has no effect without --teacher"),
    (("--eval-metric", "agreement"), "--eval-metric agreement needs a --teacher"),
    (("--eval-metric", "agreement", "--teacher", "labels:x.csv"), "says nothing of the validation split"),
    (("--eval-metric", "agreement", "--teacher", "resnet18", "--no-teacher-eval"), "leave out --no-teacher-eval"),
    (("--teacher", "labels:x.csv", "--teacher-topk", "3"), "--teacher-topk is about a model, and there are labels"),
    (("--teacher", "labels:x.csv", "--teacher-targets", "cached-views:2"), "--teacher-targets cached-views:2 is about"),
    (("--teacher", "labels:x.csv", "--teacher-checkpoint", "a"), "--teacher-checkpoint is about a model"),
    (("--clean-select", "knn:5", "--clean-select-model", "labels:x.csv"), "labels cannot be asked about images"),
    (("--eval-metric", "few-shot"), "--eval-metric few-shot needs --few-shot-eval NxK"),
    (("--resume", "auto"), "name it with --experiment"),
    (("--epochs", "3", "--start-epoch", "3"), "--start-epoch 3 is not below --epochs 3"),
])
def test_combination_refused(argv, message):
    assert message in refused(*DIGITS, *argv)


@pytest.mark.parametrize("argv, message", [
    (MIX, "mixup and cutmix: cannot be combined with labelled samples in the batches of --unlabeled"),
    (("--train-img-sizes", "24", "32"), "--train-img-sizes: cannot be combined with labelled samples"),
    (("--episodic", "5x1"), "--episodic is about labels"),
    (("--batch-size", "1"), "--batch-size 1 has no room for labelled samples"),
    (("--dataset", ""), "--task-loss-weight 0.5 is about labels, which the images of --unlabeled do not have"),
    (("--labeled-share", "1.5"), "--labeled-share 1.5: expected 0 to 1"),
])
def test_labelled_samples_beside_others_refused(argv, message):
    semi = (*DIGITS, "--unlabeled", "photos", "--teacher", "resnet18", "--task-loss-weight", "0.5")
    assert message in refused(*semi, *argv)


def test_sync_bn_on_several_cpus_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "accelerators only" in refused(*DIGITS, "--sync-bn", "--device", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert resolve(*DIGITS, "--sync-bn", "--device", "cpu").sync_bn


@pytest.mark.parametrize("argv", [
    ("--aug-splits", "3", "--jsd-loss", "--split-bn"),
    ("--split-bn", "--resplit"),
    (*MIX, "--batch-size", "6"),
    (*MIX, "--teacher", "resnet18"),
    ("--teacher", "resnet18", "--teacher-targets", "cached"),
    ("--train-img-sizes", "24", "32", "--train-batch-sizes", "8", "4", "--train-size-probs", "0", "1"),
    ("--select", "best", "--select-split", "0.1", "--val-split", ""),
    ("--teacher", "resnet18", "--eval-metric", "agreement"),
    ("--resume", "auto", "--experiment", "a"),
])
def test_combination_accepted(argv):
    resolve(*DIGITS, *argv)


# ---------------------------------------------------------------- repeating a run


@pytest.mark.parametrize("argv", [
    (),
    ("--teacher", "resnet18"),
    ("--teacher", "resnet18", "--loss", "kd"),
    ("--teacher", "resnet18", "--loss", "kd", "--kd-temperature", "2"),
    ("--teacher", "resnet18", "--distiller", "kd", "--gt-loss-weight", "0.5"),
    ("--teacher", "resnet18", "--distiller", "augconf", "--superalignment-rate", "0.2"),
    ("--teacher", "resnet18", "--distiller", "vanilla"),
    ("--loss", "bce", "--amp"),
    ("--kd-model-name", "resnet18", "--kd-temperature", "3"),
])
def test_args_yaml_resolves_to_the_same_run(tmp_path, caplog, argv):
    parser = train_parser()
    args, given = parse(parser, [*DIGITS, *argv])
    resolve_train_args(args, given)
    write_args(tmp_path / "args.yaml", {k: v for k, v in vars(args).items() if k in parser.by_dest()})
    caplog.clear()
    caplog.set_level(logging.INFO)
    again = resolve("--config", str(tmp_path / "args.yaml"))
    assert not caplog.text
    args.no_accelerator = again.no_accelerator  # the device is written as cpu, no longer as a fall-back
    assert vars(again) == vars(args)
    if args.loss:
        assert create_loss(again.loss, **again.loss_kwargs).kwargs == create_loss(args.loss, **args.loss_kwargs).kwargs


@pytest.mark.parametrize("mode, flags", [
    ("--linear-probe", ("--channels-last", "--torchcompile", "--grad-checkpointing", "--drop-path", "0.1", "--fsdp")),
    ("--linear-probe", ("--layer-decay", "0.7", "--sync-bn", "--split-bn", "--tta", "2", "--save-images")),
    ("--fsdp", ("--channels-last", "--model-ema", "--model-ema-force-cpu")),
])
def test_flags_without_effect_in_a_mode_are_noted_and_ignored(mode, flags, caplog):
    args = resolve(*TEACHER, mode, *flags)
    idle = [flag for flag in flags if flag.startswith("--") and flag != "--model-ema"]
    (line,) = (line for line in caplog.messages if "no effect of" in line)
    assert line.startswith(f"WARNING: {mode}: no effect of ")
    assert set(line.partition("no effect of ")[2].split(", ")) == set(idle)
    defaults = train_parser().defaults()
    names = [flag[2:].replace("-", "_") for flag in idle]
    assert {name: getattr(args, name) for name in names} == {name: defaults[name] for name in names}


# ---------------------------------------------------------------- sharding


def test_sharding():
    sharded = (*TEACHER, "--fsdp")
    assert resolve(*sharded, "--opt", "adamw", "--clip-grad", "1").fsdp
    for flags, named in (
        (("--opt", "muon"), "--opt muon does not work"),
        (("--clip-grad", "1", "--clip-mode", "agc"), "--clip-mode agc"),
        (("--sync-bn", "--device", "cpu"), "--sync-bn"),
        (("--model-ema", "--model-dtype", "bfloat16"), "--model-dtype"),
        (("--few-shot-eval", "5x1"), "--few-shot-eval"),
        (("--episodic", "5x1"), "--episodic"),
    ):
        assert named in refused(*sharded, *flags)
    assert "--kd-model-name" in refused(*DIGITS, "--fsdp", "--kd-model-name", "resnet18")
