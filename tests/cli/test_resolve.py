"""Flags checked against each other and brought into this project's terms."""

import logging
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
import yaml
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2

from tests.parts import assert_refused, flags_in, lines, train_settings, words
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.errors import UserError
from w2s_plugins.losses import create_loss
from w2s_plugins.resolve.fill_in import check_paths
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.run.args_file import write_args
from w2s_plugins.settings.forms import loss_weights, parse_labels, unlabeled_roots
from w2s_plugins.settings.values import split_names

DIGITS = "--dataset w2s/digits"
TEACHER = f"{DIGITS} --teacher resnet18"


def resolve(*argv: str) -> SimpleNamespace:
    """The flags as a run resolves them."""
    return SimpleNamespace(**resolve_train_args(*parse(train_parser(), words(*argv))).flags)


@pytest.mark.parametrize(
    ("argv", "tune", "rate"),
    [
        ("--model vit_base_patch16_224", "lora", 0.002),
        ("--model xcit_nano_12_p16_224", "lora", 0.002),
        ("--model tf_efficientnet_lite0", "last:0.3", 0.0006),
        # attention that only pools
        ("--model resnet50_clip", "last:0.3", 0.0006),
        # what is typed stays
        ("--model test_vit --lr 0.01", "lora", 0.01),
        ("--model test_vit --tune last:0.3", "last:0.3", 0.0006),
        ("--model test_vit --tune all --lr 0.001", "all", 0.001),
        ("--model test_vit --tune lora", "lora", 0.002),
        ("--model w2s_cnn5 --tune lora", "lora", 0.0006),
    ],
)
def test_the_recipe_follows_the_network(argv: str, tune: str, rate: float) -> None:
    flags = resolve(TEACHER, "--config weak-labels --task-loss-weight 0", argv)
    assert (flags.tune, flags.lr, flags.for_transformers) == (tune, rate, {})
    # also if all flags are on the command line, as in a study
    listed = shlex.join(["lr=[0.0006,0.002]", "tune=['last:0.3','lora']"])
    if "--tune last" not in argv:
        again = resolve(TEACHER, f"--tune last:0.3 --lr 0.0006 --for-transformers {listed}", argv)
        assert (again.tune, again.lr) == (tune, rate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tnue=['all','lora']", "unknown key 'tnue' (nearest: tune)"),
        ("tune=lora", "tune: 'lora'; expected [A, B]"),
        ("tune=['all','lroa']", "--tune lroa"),
        ("epochs=[300,'x']", "--for-transformers: epochs: 'x' is a str, expected int"),
    ],
)
def test_changes_for_a_transformer_that_are_none(change: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(TEACHER, "--model test_vit", "--for-transformers", change)


# ---------------------------------------------------------------- data


# longer than a name of a file
COLUMNS = "labels:a.csv#" + ",".join(f"annotator {i}" for i in range(40))


IN_ORDER = f"""
clip:x, {COLUMNS}?combine=mean,resnet34  ->  clip:x  ->  {COLUMNS}?combine=mean  ->  resnet34
labels:a.csv#x, y,clip:z,labels:b.csv,c  ->  labels:a.csv#x,y  ->  clip:z  ->  labels:b.csv  ->  c
labels:a#1.csv,resnet18  ->  labels:a#1.csv  ->  resnet18
# what is not there by its whole name
labels:your,answers.csv,resnet18  ->  labels:your  ->  answers.csv  ->  resnet18
# what is there is one file, with what stands behind it
labels:my,answers.csv  ->  labels:my,answers.csv
my,answers.csv  ->  my,answers.csv
resnet18, labels:my,answers.csv,labels:b.csv  ->  resnet18  ->  labels:my,answers.csv  ->  labels:b.csv
labels:my,answers.csv?combine=mean,resnet18  ->  labels:my,answers.csv?combine=mean  ->  resnet18
labels:my,answers.csv#x,y?missing=skip,c:z  ->  labels:my,answers.csv#x,y?missing=skip  ->  c:z
labels:./one, two, three.csv,b.csv  ->  labels:./one, two, three.csv  ->  b.csv
# a column
labels:b.csv#my,answers.csv  ->  labels:b.csv#my,answers.csv
c,d,hf:c,d,b.csv  ->  c,d  ->  hf:c,d  ->  b.csv
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with files that have commas and number signs in their names."""
    monkeypatch.chdir(tmp_path)
    for name in ("my,answers.csv", "b.csv", "one, two, three.csv", "a#1.csv"):
        (tmp_path / name).touch()
    (tmp_path / "c,d").mkdir()
    (tmp_path / "batch#1").mkdir()
    (tmp_path / "batch#1" / "crowd.csv").touch()
    return tmp_path


@pytest.mark.parametrize("case", lines(IN_ORDER), ids=lambda case: case[0][:40])
def test_names_are_told_apart(files, case):
    text, *names = case
    assert split_names(text) == names


def test_many_names_and_the_longest_of_a_file(files):
    assert split_names(",".join(["x"] * 10000)) == ["x"] * 10000
    assert parse_labels("labels:my,answers.csv#x?missing=skip")[0] == ["my,answers.csv#x"]
    (files / "c").mkdir()
    assert unlabeled_roots("c,d") == ["c,d"]


def check_teacher(name):
    settings = train_settings("--unlabeled .", "--teacher", name, dataset="")
    check_paths(settings.data, settings.teacher)


@pytest.mark.parametrize("name", [COLUMNS, "labels:batch#2/crowd.csv#anna"])
def test_labels_that_are_not_there(files, name):
    assert_refused(f"{name[:24]}.*: no such file", check_teacher, name)


def test_a_folder_of_labels_may_have_a_number_sign_in_its_name(files):
    check_teacher("labels:batch#1/crowd.csv#anna")


DATA_DIRS = """
/position  ->  /position
--data-dir /flag  ->  /flag
/position --data-dir /flag  ->  /flag
--seed 42  ->  /env
--dataset torch/cifar10  ->  None
"""


@pytest.mark.parametrize("argv, expected", lines(DATA_DIRS))
def test_data_dir_by_position_flag_and_environment(monkeypatch, argv, expected):
    monkeypatch.setenv("IMAGENET_DIR", "/env")
    args = resolve(*argv.split())
    assert str(args.data_dir) == expected
    if expected == "/env":
        assert args.data is None


# ---------------------------------------------------------------- loss


CRITERIA = """
--val-interval 1  ->  null  ->  ce
--teacher resnet18  ->  adaptconf  ->  ce
--teacher resnet18 --loss kd --task-loss bce  ->  kd  ->  bce
--teacher resnet18 --bce-loss  ->  adaptconf  ->  bce
--loss ce  ->  null  ->  ce
--bce-loss  ->  null  ->  bce
--loss jsd --aug-splits 2  ->  null  ->  jsd
--teacher resnet18 --distiller bkd  ->  bkd  ->  ce
--kd-model-name resnet18  ->  null  ->  ce
"""
KWARGS = """
--loss adaptconf --kd-temperature 2  ->  {kd_temperature: 2.0}
--loss kd --kd-temperature 2  ->  {temperature: 2.0}
--loss hard --kd-temperature 2  ->  {}
--loss kd --kd-temperature 2 --loss-kwargs temperature=3  ->  {temperature: 3}
--loss adaptconf --superalignment-threshold 4  ->  {temperature: 4.0}
--loss augconf --superalignment-threshold 0.4 --superalignment-rate 0  ->  {alpha: 0.4, ramp: 0.0}
--loss adaptconf --superalignment-rate 0.3  ->  {}
--distiller kd  ->  {temperature: 1.0}
--distiller kd --kd-temperature 4  ->  {temperature: 4.0}
--distiller kd --loss-kwargs temperature=3  ->  {temperature: 3}
"""
WEIGHTS = """
--loss adaptconf  ->  [1.0, 1.0]
--task-loss-weight 0.3  ->  [0.3, 0.7]
--task-loss-weight 1  ->  [1.0, 0.0]
--distill-loss-weight 2  ->  [1.0, 2.0]
--gt-loss-weight 0.3  ->  [0.3, 1.0]
--gt-loss-weight 0 --kd-loss-weight 2  ->  [0.0, 2.0]
--task-loss-weight 0.5 --gt-loss-weight 0.3  ->  [0.5, 1.0]
"""


@pytest.mark.parametrize("argv, loss, task_loss", lines(CRITERIA))
def test_loss_and_criterion(argv, loss, task_loss):
    args = resolve(DIGITS, argv)
    assert (args.loss, args.task_loss) == (yaml.safe_load(loss), task_loss)


@pytest.mark.parametrize("argv, kwargs", lines(KWARGS))
def test_loss_kwargs_from_other_flags(argv, kwargs):
    args = resolve(TEACHER, argv)
    assert args.loss_kwargs == yaml.safe_load(kwargs)
    create_loss(args.loss, **args.loss_kwargs)


@pytest.mark.parametrize("argv, weights", lines(WEIGHTS))
def test_weights(argv, weights):
    args = resolve(TEACHER, argv)
    found = loss_weights(args.task_loss_weight, args.distill_loss_weight)
    assert [*found] == yaml.safe_load(weights)


def test_released_code_without_distillation_leaves_its_teacher_aside():
    args = resolve(TEACHER, "--teacher-pretrained weak.pth --distiller vanilla")
    assert (args.loss, args.task_loss) == (None, "ce")
    assert args.teacher is args.teacher_checkpoint is None


@pytest.mark.parametrize("task, distill", [(None, None), (0.3, None), (None, 2.0), (0.25, 3.0)])
def test_weights_mean_what_they_mean_in_timm(task, distill):
    """The same three modes give the same total as timm's own task."""
    from timm.task import LogitDistillationTask

    from tests.parts import student_and_teacher

    student, teacher, images, target = student_and_teacher()
    weights = dict(task_loss_weight=task, distill_loss_weight=distill)
    criterion = torch.nn.CrossEntropyLoss()
    theirs = LogitDistillationTask(student, teacher, criterion, **weights, verbose=False)
    result = theirs(images, target)
    ours = loss_weights(task, distill)
    total = ours[0] * result["task_loss"] + ours[1] * result["kd_loss"]
    torch.testing.assert_close(total, result["loss"])


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize(
    "cores, processes, workers", [(2, 1, 4), (16, 1, 16), (16, 2, 8), (64, 1, 16)]
)
def test_data_workers_of_a_gpu_follow_its_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert resolve(DIGITS).workers == workers
    assert resolve(DIGITS, "--workers 3").workers == 3
    assert resolve(DIGITS, "--device cpu").workers == 4  # timm's default


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_without_cuda_the_cpu_is_used():
    assert resolve(DIGITS).device == "cpu"
    assert_refused("use --device cpu", resolve, DIGITS, "--device cuda")


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cpu:"])
def test_behind_the_colon_of_a_device_stands_a_number(device):
    message = f"^--device {device}: unknown device"
    assert_refused(message, resolve, DIGITS, f"--device {device}")


def test_mixed_precision_on_a_cpu():
    amp = f"{DIGITS} --device cpu --amp"
    assert resolve(amp).amp_dtype == "bfloat16"
    assert resolve(amp, "--amp-dtype float16").amp_dtype == "float16"


# ---------------------------------------------------------------- names


# ---------------------------------------------------------------- combinations


@pytest.mark.parametrize("kind", ["xpu", "mps", "hpu", "npu", "mtia", "xla"])
def test_devices_that_are_not_there(kind):
    if kind == getattr(torch.accelerator.current_accelerator(), "type", None):
        pytest.skip("this one is")
    assert_refused(f"--device {kind}: ", resolve, DIGITS, f"--device {kind}")


@pytest.mark.parametrize("name", [*list_optimizers(), "lookahead_adam"])
def test_every_optimizer_of_timm_is_accepted(name):
    assert resolve(DIGITS, f"--opt {name}").opt == name


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize("name", train_parser().by_dest()["sched"].choices)
def test_every_schedule_is_accepted_here_and_by_timm(name):
    assert resolve(DIGITS, f"--sched {name}").sched == name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    how = dict(num_epochs=5, warmup_epochs=1, decay_milestones=(2,))
    scheduler, epochs = create_scheduler_v2(optimizer, sched=name, **how)
    assert epochs and (scheduler is None) == (name == "none")


def test_sync_bn_on_several_cpus_refused(monkeypatch):
    argv = f"{DIGITS} --sync-bn --device cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused("accelerators only", resolve, argv)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert resolve(argv).sync_bn


COMBINED = """
--aug-splits 3 --jsd-loss --split-bn  ->  {aug_splits: 3, task_loss: jsd, split_bn: true}
--split-bn --resplit  ->  {split_bn: true, resplit: true}
--mixup 0.2 --teacher resnet18  ->  {mixup: 0.2, loss: adaptconf}
--train-img-sizes 24 32 --train-batch-sizes 8 4 --train-size-probs 0 1  ->  \
{train_img_sizes: [24, 32], train_batch_sizes: [8, 4], train_size_probs: [0.0, 1.0]}
--select best --select-split 0.1 --val-split=  ->  {select: best, select_split: 0.1, val_split: ""}
--teacher resnet18 --eval-metric agreement  ->  {eval_metric: agreement, loss: adaptconf}
--resume auto --experiment a  ->  {resume: auto, experiment: a}
"""


@pytest.mark.parametrize("argv, expected", lines(COMBINED))
def test_combination_accepted(caplog, argv, expected):
    """As it was typed, and nothing of it is said to be without effect."""
    found, expected = vars(resolve(DIGITS, argv)), yaml.safe_load(expected)
    assert {name: found[name] for name in expected} == expected
    assert "no effect of" not in caplog.text


# ---------------------------------------------------------------- repeating a run


REPEATED = """
--seed 42 | --loss bce --amp | --kd-model-name resnet18 --kd-temperature 3
--teacher resnet18 --loss kd --kd-temperature 2 | --teacher resnet18 --distiller kd --gt-loss-weight 0.5
--teacher resnet18 --distiller augconf --superalignment-rate 0.2 | --teacher resnet18 --distiller vanilla
--teacher resnet18 --distiller fitnet --fitnet-loss-weight 10
"""


@pytest.mark.parametrize("argv", flags_in(REPEATED))
def test_args_yaml_resolves_to_the_same_run(tmp_path, caplog, argv):
    args = resolve(DIGITS, argv)
    write_args(tmp_path / "args.yaml", vars(args))
    caplog.clear()
    caplog.set_level(logging.INFO)
    again = resolve(f"--config {tmp_path}/args.yaml")
    assert not caplog.text
    assert vars(again) == vars(args)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--teacher labels:a.csv,labels:b.csv --teacher-assign posterior:101",
            "--teacher-assign posterior:101: expected how often the last teacher is right in percent, posterior:1 to "
            "posterior:100",
        ),
        (
            "--teacher resnet18,resnet34 --teacher-assign posterior:0",
            "(nearest: posterior:N, posterior)",
        ),
        (
            "--teacher resnet18 --strong-views rnd-m9",
            "'rnd-m9': unknown policy (nearest: rand); expected one of rand, augmix",
        ),
        (
            "--teacher resnet18 --strong-views ''",
            "'': unknown policy; expected one of rand, augmix",
        ),
        (
            "--teacher resnet18 --strong-views rand-foo",
            "'foo' is no part of rand; expected m, n, p",
        ),
        (
            "--teacher resnet18 --strong-views augmix-n3",
            "'n3' is no part of augmix; expected m, w, d",
        ),
        ("--teacher resnet18 --strong-views rand-m9-", "'' is no part of rand"),
    ],
)
def test_how_teachers_are_weighed_and_what_strong_views_are(argv: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(DIGITS, argv)


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-mstd0.5-inc1", "rand-m10-n3-mstd101", "rand-mstd1-tweights", "augmix-m5-w4-d2", "3a"],
)
def test_policies_of_strong_views(policy: str) -> None:
    assert resolve(TEACHER, f"--strong-views {policy}").strong_views == policy


IDLE = """
--teacher resnet18 --linear-probe --channels-last --torchcompile --grad-checkpointing  ->  --linear-probe  ->  \
--channels-last --torchcompile --grad-checkpointing
--teacher resnet18 --linear-probe --drop-path 0.1 --fsdp  ->  --linear-probe  ->  --drop-path --fsdp
--teacher resnet18 --linear-probe --layer-decay 0.7 --sync-bn  ->  --linear-probe  ->  --layer-decay --sync-bn
--teacher resnet18 --linear-probe --tta 2 --save-images --mixup 0.2  ->  --linear-probe  ->  --tta --save-images --mixup
--linear-probe --hflip 0.1 --aa rand-m9  ->  --linear-probe without cached-views:N  ->  --hflip --aa
--teacher resnet18 --fsdp --channels-last --model-ema --model-ema-force-cpu  ->  --fsdp  ->  \
--channels-last --model-ema-force-cpu
--teacher resnet18 --no-aug --color-jitter 0.1 --vflip 0.5  ->  --no-aug  ->  --color-jitter --vflip
--resplit  ->  no --reprob and no --split-bn  ->  --resplit
--teacher resnet18 --teacher-assign student  ->  a single --teacher  ->  --teacher-assign
--val-split= --long-tail always  ->  no validation split  ->  --long-tail
--teacher labels:x.csv --teacher-img-size 8  ->  --teacher labels:PATH alone  ->  --teacher-img-size
photos  ->  --dataset w2s/digits, which brings its own images  ->  --data-dir
--episodic 5x1 --batch-size 7  ->  --episodic 5x1  ->  --batch-size
--teacher resnet18 --loss kd --rkd-squared  ->  --loss kd  ->  --rkd-squared
"""


@pytest.mark.parametrize("argv, mode, idle", lines(IDLE))
def test_flags_without_effect_are_noted_and_ignored(argv, mode, idle, caplog):
    args = resolve(DIGITS, *argv.split())
    (line,) = (line for line in caplog.messages if "no effect of" in line)
    said, _, names = line.partition(": no effect of ")
    assert said == f"WARNING: {mode}" and set(names.split(", ")) == set(idle.split())
    if mode in ("--episodic 5x1", "--loss kd"):  # where another value counts, or none is asked for
        return
    ignored = [flag[2:].replace("-", "_") for flag in idle.split()]
    defaults = train_parser().defaults()
    assert {n: getattr(args, n) for n in ignored} == {n: defaults[n] for n in ignored}
