"""Real runs of ``train_w2s.py``: what they write, that they can be repeated, and that flags do what they say."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.e2e.conftest import (
    TINY,
    Run,
    assert_same_end,
    differences,
    read_events,
    read_result,
    read_run,
    run_script,
    taught,
)
from tests.parts import flags_in, lines, write_folder
from w2s_plugins.models.loading import read_checkpoint

RUN_FILES = {
    "args.yaml",
    "summary.csv",
    "metrics.jsonl",
    "last.pth.tar",
    "model_best.pth.tar",
    "result.json",
    "export",
}


# ---------------------------------------------------------------- the main job


@pytest.fixture(scope="module")
def student(weak: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job: a strong student trained on cached labels of a weak teacher alone."""
    folder = tmp_path_factory.mktemp("student")
    done = run_script(
        "--dataset w2s/digits --img-size 16 --train-slice 80: --model w2s_cnn5",
        *taught(weak),
        "--teacher-targets cached --loss adaptconf --task-loss-weight 0 --epochs 5",
        "--batch-size 32 --warmup-epochs 0 --lr 0.1 --workers 0 --hflip 0 --scale 0.7 1",
        "--color-jitter 0 --ceiling-acc 99",
        "--output",
        folder,
        "--experiment student",
        cwd=folder,
    ).ok()
    (folder / "student" / "stdout").write_text(done.out)
    (folder / "student" / "stderr").write_text(done.err)
    return folder / "student"


def test_run_folder(student: Path, weak: Path) -> None:
    assert {p.name for p in student.iterdir()} >= RUN_FILES
    assert {p.name for p in (student / "export").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert not list(student.glob("*tmp*")) and [p.name for p in student.glob(".*")] == [".lock"]
    args = yaml.safe_load((student / "args.yaml").read_text())
    assert args["loss"] == "adaptconf" and args["num_classes"] == 10 and args["epochs"] == 5
    header, *rows = (student / "summary.csv").read_text().splitlines()
    assert header.startswith("epoch,train_loss,train_kd,train_self,eval_loss,eval_top1,eval_top5")
    assert [row.split(",")[0] for row in rows] == list("01234")


def test_result(student: Path, weak: Path) -> None:
    record, last = read_result(student), read_events(student, "eval")[-1]
    assert [record["data"]["splits"][name]["split"] for name in ("train", "val")] == [
        "train",
        "validation",
    ]
    assert (
        record["metrics"]
        == last["val"]
        == {k: v for k, v in record["last"].items() if k != "epoch"}
    )
    # The teacher, at its own 8 pixels, sees 16-pixel images of the student that are scaled down.
    own = read_result(weak)["metrics"]["top1"]
    assert abs(record["teacher"]["top1"] - own) < 5 and own > 50
    assert record["teacher"]["models"][0]["source"]["file"].endswith("model.safetensors")
    assert len(record["teacher"]["models"][0]["source"]["sha256"]) == 64
    assert record["loss"] | {"kwargs": None} == dict(
        name="adaptconf",
        kwargs=None,
        task_loss="ce",
        task_loss_weight=0.0,
        distill_loss_weight=1.0,
        papers={"adaptconf": "Guo et al. 2024, 2402.03749"},
        strong_views=None,
    )
    assert record["metrics"]["top1"] > record["teacher"]["top1"], (
        "the student is to beat its teacher"
    )
    pgr = (record["metrics"]["top1"] - record["teacher"]["top1"]) / (99 - record["teacher"]["top1"])
    assert record["pgr"] == pytest.approx(pgr, rel=1e-12)
    assert (
        record["selected"] == {"rule": "last", "epoch": 4, "split": "validation"}
        and record["warnings"] == []
    )
    table = (student / "stdout").read_text()
    for text in ("teacher", "ceiling", "agreement", "PGR", f"{record['metrics']['top1']:.2f}"):
        assert text in table
    log = (student / "stderr").read_text()
    assert "Student w2s_cnn5: 0.05 M parameters, 10 classes, starts from random weights" in log
    assert "Teacher w2s_cnn2" in log and "matched" in log and "no CUDA here" in log
    assert (
        "Before training, val: teacher loss" in log
        and f"top1 {record['teacher']['top1']:.2f}" in log
    )


def test_repeat_from_args(here: Run, weak: Path, tmp_path: Path) -> None:
    """``args.yaml`` as ``--config`` repeats a run to the last bit, one of the released code's flags too."""
    flags = [
        "--distiller augconf --superalignment-threshold 0.3 --gt-loss-weight 0.5",
        "--teacher-targets cached",
    ]
    here(
        *TINY, "--model w2s_cnn5", *taught(weak), *flags, "--output", tmp_path, "--experiment a"
    ).ok()
    here("--config", tmp_path / "a" / "args.yaml", "--experiment b").ok()
    assert read_result(tmp_path / "a")["loss"] == read_result(tmp_path / "b")["loss"]
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("flags", "task", "distill"),
    [(["--task-loss-weight 0"], 0, 1), (["--task-loss-weight 0.3"], 0.3, 0.7)],
    ids=str,
)
def test_weights_of_terms(
    here: Run, weak: Path, tmp_path: Path, flags: list[str], task: float, distill: float
) -> None:
    here(
        *TINY, "--model w2s_cnn5", *taught(weak), *flags, "--output", tmp_path, "--experiment run"
    ).ok()
    assert len(read_events(tmp_path / "run", "train")) == 8
    for line in read_events(tmp_path / "run", "train"):
        terms = line["terms"]
        assert set(terms) == {"loss", "kd", "self"} | ({"task"} if task else set())
        expected = task * terms.get("task", 0) + distill * (terms["kd"] + terms["self"])
        assert terms["loss"] == pytest.approx(expected, rel=1e-5)  # the loss is summed in float32
    record = read_result(tmp_path / "run")
    assert (
        record["loss"]["task_loss_weight"],
        record["loss"]["distill_loss_weight"],
    ) == pytest.approx((task, distill))


# ---------------------------------------------------------------- flags and configs


# what a run of two epochs has to show of a flag, or of several
FLAGS = yaml.safe_load("""
ema: --model-ema --model-ema-decay 0.5
bfloat16: --model-dtype bfloat16
growing sizes: --train-img-sizes 8 12 --train-size-schedule progressive --train-batches-per-epoch 3
saving: --checkpoint-hist 1 --val-interval 2 --save-epochs 1 --save-images --log-tensorboard
intervals: --val-interval 2 --recovery-interval 2 --log-interval 2 -vb 100
ranked by loss: --eval-metric loss --select best
cool-down: --sched-on-updates --warmup-epochs 1 --min-lr 1e-4 --cooldown-epochs 1
""")


def check(name: str, run: Path, saved: dict) -> None:
    """What a flag is to have changed."""
    files, trained = {p.name for p in run.iterdir()}, read_events(run, "train")
    epochs = [e["epoch"] for e in read_events(run, "eval")]
    assert epochs == {"intervals": [1], "cool-down": [0, 1, 2]}.get(name, [0, 1])
    if name == "growing sizes":
        assert len(trained) == 6
    elif name == "cool-down":
        assert trained[-1]["lr"] == pytest.approx(1e-4)
    elif name == "bfloat16":
        assert {v.dtype for v in saved["state_dict"].values() if v.is_floating_point()} == {
            torch.bfloat16
        }
    elif name == "ema":
        assert differences(saved["state_dict"], saved["state_dict_ema"])
        assert (
            differences(load_file(run / "export" / "model.safetensors"), saved["state_dict_ema"])
            == []
        )
    elif name == "saving":
        assert "train-batch-0.jpg" in files and any("tfevents" in f for f in files)
        assert len([f for f in files if f.startswith("checkpoint-")]) == 1
        assert read_checkpoint(run / "milestone-1.pth.tar", "--resume")["epoch"] == 0
    elif name == "intervals":
        assert not [f for f in files if f.startswith("recovery-")], (
            "an epoch has been saved after them"
        )
        assert [line["update"] for line in trained] == [0, 2, 3, 0, 2, 3]
    elif name == "ranked by loss":
        losses = [line["val"]["loss"] for line in read_events(run, "eval")]
        assert read_result(run)["selected"]["epoch"] == losses.index(min(losses))


@pytest.mark.parametrize("name", FLAGS)
def test_flags(here: Run, weak: Path, tmp_path: Path, name: str) -> None:
    """Flags in a run of the main job."""
    here(
        *TINY,
        "--model w2s_cnn5",
        *taught(weak),
        *FLAGS[name].split(),
        "--output",
        tmp_path,
        "--experiment run",
    ).ok()
    saved = read_run(tmp_path / "run")
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    check(name, tmp_path / "run", saved)


ONE = "--epochs 1 --val-split '' --model w2s_cnn2"
TAUGHT = f"{ONE} --teacher w2s_cnn2 --no-teacher-eval"
BATCH_NORM = f"{ONE} --model test_efficientnet --img-size 32 --train-slice 0:32"
RESIDUAL = f"{ONE} --model test_resnet --img-size 32 --train-slice 0:32"
# for flags that are given, those of which each alone changes the weights that come out
EFFECTS = f"""
{ONE}  ->  --mixup 0.2 | --cutmix 1 | --cutmix-minmax 0.2 0.8 | --smoothing 0 | --bce-loss | --task-loss asl
{ONE}  ->  --task-loss poly | --grad-accum-steps 2 | --clip-grad 0.01 | --layer-decay 0.5 | --amp | --reprob 0.9
{ONE}  ->  --train-img-sizes 8 12 | --aug-splits 2 | --aug-repeats 3 | --no-aug | --vflip 0.5 | --hflip 0
{ONE}  ->  --color-jitter 0 | --color-jitter-prob 0.2 | --scale 0.5 1 | --ratio 1 1 | --train-interpolation bicubic
{ONE}  ->  --train-crop-mode rkrr | --aa rand-m9-mstd0.5-inc1 | --drop 0.3 | --head-init-scale 0.1
{ONE}  ->  --head-init-bias -2 | --gp max | --interpolation bilinear --scale 1 1 | --seed 1 | --mean 0.1
{ONE} --epochs 3  ->  --lr-noise 0 0.9
{ONE} --mixup 0.2  ->  --cutmix 1 | --mixup-mode elem | --mixup-mode pair | --mixup-prob 0.5 | --no-prefetcher
{ONE} --mixup 0.2 --cutmix 1  ->  --mixup-switch-prob 0.05
{ONE} --epochs 2 --mixup 0.2  ->  --mixup-off-epoch 1
{ONE} --task-loss bce --mixup 0.2  ->  --bce-sum | --bce-pos-weight 2 | --bce-target-thresh 0.2
{ONE} --clip-grad 0.01  ->  --clip-mode value | --clip-mode agc
{ONE} --layer-decay 0.5  ->  --layer-decay-min-scale 0.6
{ONE} --amp  ->  --amp-dtype float16
{ONE} --reprob 0.9  ->  --remode const | --recount 2 | --no-prefetcher
{ONE} --train-img-sizes 8 12  ->  --train-size-probs 0 1 | --train-batch-sizes 16 8
{ONE} --train-img-sizes 8 12 --train-batch-sizes 16 8  ->  --variable-batch-loss-scale sqrt
{ONE} --aug-splits 2 --aa rand-m3  ->  --jsd-loss
{ONE} --aug-splits 2 --aa rand-m3 --reprob 0.9  ->  --resplit
{ONE} --img-size 24  ->  --gaussian-blur-prob 1
{BATCH_NORM}  ->  --bn-momentum 0.2 | --bn-eps 0.1
{RESIDUAL}  ->  --drop-path 0.5 | --drop-connect 0.5
{RESIDUAL} --aug-splits 2 --aa rand-m3  ->  --split-bn
{TAUGHT}  ->  --loss augconf | --loss kd | --loss bkd | --loss hard | --teacher-img-size 12
"""
NO_EFFECT = """
--workers 2 --use-multi-epochs-loader --pin-mem | --wandb-project p --wandb-tags a b | --save-images
--device cpu --synchronize-step --no-ddp-bb --local_rank 0 | --dist-bn '' | --sync-bn | --fast-norm
"""


_BASELINES: dict[str, dict[str, torch.Tensor]] = {}


def weights(here: Run, weak: Path, flags: str) -> dict[str, torch.Tensor]:
    """Weights that a run with these flags comes to."""
    teacher = ["--teacher-checkpoint", weak] if "--teacher" in flags else []
    shutil.rmtree("run", ignore_errors=True)
    here(*TINY, flags, *teacher, "--output . --experiment run").ok()
    return read_run(Path("run"))["state_dict"]


def baseline(here: Run, weak: Path, flags: str) -> dict[str, torch.Tensor]:
    """The same of flags that several tests compare with."""
    if flags not in _BASELINES:
        _BASELINES[flags] = weights(here, weak, flags)
    return _BASELINES[flags]


@pytest.mark.parametrize(
    ("given", "flag"), [(given, flag) for given, row in lines(EFFECTS) for flag in flags_in(row)]
)
def test_every_flag_has_its_effect(here: Run, weak: Path, given: str, flag: str) -> None:
    """Beside the flags that it needs, each changes the weights, which stay finite."""
    changed = weights(here, weak, f"{given} {flag}")
    assert all(tensor.isfinite().all() for tensor in changed.values())
    assert differences(changed, baseline(here, weak, given))


CHECKPOINTED = f"{TAUGHT} --model test_vit --img-size 16 --model-kwargs patch_size=4"


@pytest.mark.parametrize(
    ("given", "flag"),
    [*((ONE, flag) for flag in flags_in(NO_EFFECT)), (CHECKPOINTED, "--grad-checkpointing")],
)
def test_flags_without_effect_on_the_weights(here: Run, weak: Path, given: str, flag: str) -> None:
    """How the work is done, and what is shown of it, does not change what comes out: the same bits."""
    same = weights(here, weak, f"{given} {flag}")
    assert differences(same, baseline(here, weak, given)) == []


SCHEDULES = ["cosine", "none", "step"]


@pytest.mark.parametrize(
    ("sched", "on_updates"),
    [("plateau", False), *((s, by_update) for s in SCHEDULES for by_update in (False, True))],
)
def test_schedules(here: Run, tmp_path: Path, sched: str, on_updates: bool) -> None:
    """The learning rates of a run are those of timm's schedule, called alone."""
    flags = [
        *TINY,
        "--train-slice 0:32 --model w2s_cnn2 --epochs 4",
        "--sched",
        sched,
        "--warmup-epochs 1 --decay-epochs 1 --decay-milestones 2 3 --decay-rate 0.5",
        *(["--sched-on-updates"] if on_updates else []),
    ]
    here(*flags, "--output", tmp_path, "--experiment run").ok()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.05)
    schedule, epochs = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched,
        4,
        decay_epochs=1,
        decay_milestones=[2, 3],
        decay_rate=0.5,
        warmup_epochs=1,
        warmup_lr=1e-5,
        cycle_decay=0.5,
        step_on_epochs=not on_updates,
        updates_per_epoch=2,
        patience_epochs=10,
    )
    expected = []
    for update in range(2 * epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step_update(update + 1)
            if update % 2:
                schedule.step(update // 2 + 1, 1.0)
    assert [line["lr"] for line in read_events(tmp_path / "run", "train")] == pytest.approx(
        expected, rel=1e-12
    )


# ---------------------------------------------------------------- which checkpoint is reported


def test_select_best(here: Run, weak: Path, tmp_path: Path) -> None:
    too_fast = [
        "--sched step --decay-epochs 2 --decay-rate 20"
    ]  # so that the last epoch is not the best
    flags = [
        *TINY,
        "--train-slice 0:96 --model w2s_cnn5",
        *taught(weak),
        "--epochs 4 --select best",
        *too_fast,
        "--output",
        tmp_path,
    ]
    done = here(*flags, "--experiment open").ok()
    record, history = read_result(tmp_path / "open"), read_events(tmp_path / "open", "eval")
    best = max(history, key=lambda e: e["val"]["top1"])
    assert best["epoch"] < history[-1]["epoch"]
    assert (
        record["best"] == {"epoch": best["epoch"], **best["val"]}
        and record["metrics"] == best["val"]
    )
    assert "--select-split" in record["warnings"][-1]
    table, _, below = done.out.partition("WARNING: ")
    assert "student, last epoch" in table and below.startswith(record["warnings"][0])
    exported = load_file(tmp_path / "open" / "export" / "model.safetensors")
    assert (
        differences(exported, read_run(tmp_path / "open", "model_best.pth.tar")["state_dict"]) == []
    )
    assert read_run(tmp_path / "open", "model_best.pth.tar")["epoch"] == best["epoch"]
    rows = [
        line.split(",")
        for line in (tmp_path / "open" / "predictions_best.csv").read_text().splitlines()[1:]
    ]
    hits = sum(target == student for target, student, _ in rows)
    assert 100 * hits / len(rows) == pytest.approx(best["val"]["top1"])

    here(*flags, "--experiment held --select-split 32").ok()
    record, history = read_result(tmp_path / "held"), read_events(tmp_path / "held", "eval")
    best = max(history, key=lambda e: e["select"]["top1"])
    assert record["selected"]["split"] == "held-out part of the training split"
    assert not any("--select-split" in warning for warning in record["warnings"])
    assert record["best"]["epoch"] == best["epoch"] and record["metrics"] == best["val"]
    assert record["data"]["train_samples"] == 64


# ---------------------------------------------------------------- the commands of the released code


def test_released_cifar_command(weak: Path, tmp_path: Path) -> None:
    """As typed there, but for the names of the scripts, the number of processes and the length."""
    write_folder(tmp_path / "data", {"train": 24, "validation": 12}, size=(32, 32))
    (tmp_path / "cifar_v0.yaml").write_text(
        "{epochs: 1, batch_size: 8, opt: sgd, lr: 0.2, min_lr: 2.0e-3, warmup_epochs: 0, sched: cosine, smoothing: 0, "
        "color_jitter: 0, weight_decay: 5.0e-4, interpolation: bilinear, crop_pct: 0.875, num_classes: 3, "
        "workers: 0, mean: [0.5071, 0.4865, 0.4409], std: [0.2673, 0.2564, 0.2762]}"
    )
    state = timm.create_model("cifar_resnet20", num_classes=3).state_dict()
    torch.save(
        {"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "v0_resnet20.pth"
    )
    done = run_script(
        "data",
        "--config cifar_v0.yaml --model resnet56 --distiller adaptconf --teacher resnet20",
        "--teacher-pretrained v0_resnet20.pth --superalignment-rate 0.3",
        "--superalignment-threshold 0.7 --output OUT --eval-interval-end 0.75",
        "--model-name mine",
        cwd=tmp_path,
        processes=1,
    ).ok()
    (run,) = (tmp_path / "OUT").iterdir()
    record = read_result(run)
    assert record["loss"]["name"] == "adaptconf" and record["loss"]["kwargs"]["temperature"] == 0.7
    assert (record["loss"]["task_loss_weight"], record["loss"]["distill_loss_weight"]) == (1, 1)
    assert "top-1" in done.out and record["command"].startswith("torchrun ")


# ---------------------------------------------------------------- plugins, help


KERNELS = """
import os
import torch
from w2s_plugins.losses import register_loss


@register_loss("odd")
def odd(inputs):
    print("workspace", os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "measured", torch.backends.cudnn.benchmark)
    torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # of this no device has a deterministic kernel
    return {"odd": inputs.student_logits.square().mean()}
"""


@pytest.mark.parametrize("flags", [(), ("--deterministic",)])
def test_deterministic_kernels(weak: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """They are asked for, and an operation that has none is warned of; on CUDA this is to give the same bits."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    done = run_script(
        *TINY,
        "--epochs 1 --model w2s_cnn2",
        *taught(weak),
        "--plugins kernels.py --loss odd",
        "--output",
        tmp_path,
        *flags,
        cwd=tmp_path,
    ).ok()
    assert ("put_ does not have a deterministic implementation" in done.out + done.err) == bool(
        flags
    )
    assert f"workspace {':4096:8' if flags else None} measured False" in done.out + done.err
