"""A grid of heads: each is what a probe of its own would be, and the best on the held-out part is the student."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from w2s_plugins.errors import UserError
from w2s_plugins.models.loading import settings_beside

from .conftest import Done, Forked, differences, read_lines, read_run
from .test_linear_probe import FLAGS, VIT, digits, files, probe, result, with_teacher  # noqa: F401  (fixtures)

Run = Callable[..., Done]
RATES, DECAYS = (0.02, 0.3), (0, 0.05)
HELD_OUT = ["--train-slice", "600:800", "--select", "best", "--select-split", 40]
GRID = ["--probe-lrs", *RATES, "--probe-weight-decays", *DECAYS]


def of_head(state: dict, number: int) -> dict:
    """What a checkpoint of a grid has of a head: that of a run of its own, under the names there."""
    prefix = f"members.{number}.module."
    own = {name.removeprefix(prefix).removeprefix("student."): value
           for name, value in state["task_state"].items() if name.startswith(prefix)}
    return {f"fc.{name}" if name in ("weight", "bias") else name: value for name, value in own.items()}


@pytest.mark.parametrize("flags", [
    ["--loss", "elr", "--opt", "sgd", "--clip-grad", 0.5],
    ["--loss", "temporal", "--opt", "adamw", "--sched-on-updates", "--warmup-epochs", 1],
    ["--loss", "sop", "--opt", "adan", "--model-ema", "--model-ema-decay", 0.9],
    ["--loss", "balanced_elr+gce", "--opt", "lookahead_adam", "--task-loss-weight", 0.5],
    ["--loss", "kd", "--opt", "adamw", "--grad-accum-steps", 2, "--teacher-weights", "learned"],
    ["--loss", "logconf", "--opt", "momentum", "--amp"],
    ["--teacher", "", "--opt", "adamw"],
], ids=lambda flags: flags[1] or "supervised")
def test_each_head_is_that_of_its_own_run(
        probe: Callable[..., Path], files: dict[str, Path], flags: list[object]) -> None:  # noqa: F811
    """Weights, parameters and memory of the loss, best epoch and its figures, to 1e-5 (in bfloat16 to 3e-3)."""
    teachers = ["weak", "weaker"] if "learned" in flags else ["weak"]
    flags = [*HELD_OUT, *(with_teacher(files, *teachers) if flags[1] else []), *flags]
    grid = probe("grid", *flags, *GRID)
    table, state = result(grid)["heads"], read_run(grid)
    tolerance, points = (dict(atol=3e-3, rtol=3e-2), 0.5) if "--amp" in flags else (dict(atol=1e-5, rtol=1e-4), 1e-6)
    for number, (rate, decay) in [*enumerate(itertools.product(RATES, DECAYS))][::3]:
        alone = probe(f"alone{number}", *flags, "--lr", rate, "--weight-decay", decay)
        single, head = read_run(alone), table[number]
        own = {**{name: single["state_dict"][name] for name in ("fc.weight", "fc.bias")},
               **single.get("task_state", {})}
        found = of_head(state, number)
        assert found.keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        best = result(alone)["best"]
        assert (head["lr"], head["weight_decay"]) == (rate, decay)
        assert head["val"]["top1"] == pytest.approx(best["top1"], abs=points)
        assert points > 1e-6 or head["epoch"] == best["epoch"]


def test_the_best_on_the_held_out_part_is_the_student(
        probe: Callable[..., Path], files: dict[str, Path]) -> None:  # noqa: F811
    """Also where it is found in the middle: what is exported, predicted and said is of that head and epoch."""
    flags = [*HELD_OUT, *with_teacher(files, "weak"), "--loss", "elr", "--model-ema", "--model-ema-decay", 0.9]
    whole = probe("whole", *flags, *GRID)
    record, events = result(whole), [e for e in read_lines(whole / "metrics.jsonl") if e["event"] == "eval"]
    agreements = [[head["select"]["agreement"] for head in event["heads"]] for event in events]
    highest = max(map(max, agreements))
    epoch = next(number for number, row in enumerate(agreements) if highest in row)
    head = agreements[epoch].index(highest)
    assert record["selected"]["epoch"] == epoch
    assert [h["chosen"] for h in record["heads"]] == [number == head for number in range(4)]
    assert record["heads"][head]["select"]["agreement"] == highest
    assert record["metrics"]["top1"] == events[epoch]["heads"][head]["val"]["top1"]
    assert f"head {head} *" in probe.done.out
    exported = load_file(whole / "export" / "model.safetensors")
    best = read_run(whole, "model_best.pth.tar")
    assert torch.equal(exported["fc.weight"], best["task_state_ema"][f"{head}.weight"])
    assert differences(dict(exported), best["state_dict_ema"]) == []
    model = timm.create_model(f"local-dir:{whole / 'export'}", pretrained=True).eval()
    images, labels = digits("validation")
    with torch.inference_mode():
        assert 100 * (model(images).argmax(1) == labels).double().mean() == pytest.approx(record["metrics"]["top1"])

    parts = probe("parts", *flags, *GRID, "--stop-epoch", 1)
    last = parts / "last.pth.tar"
    probe("parts", *flags, *GRID, "--resume", "auto")
    assert "goes on with epoch 2" in probe.done.err and last.exists()
    for name in ("last.pth.tar", "model_best.pth.tar"):
        assert differences(read_run(parts, name), read_run(whole, name)) == []
    for name in ("metrics.jsonl", "summary.csv", "predictions_best.csv", "export/model.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_goes_on_inside_an_epoch_on_two_processes(
        probe: Callable[..., Path], files: dict[str, Path], fork: Callable[..., Forked],  # noqa: F811
        tmp_path: Path) -> None:
    """Two processes train the heads of one, also when they are stopped on the way."""
    flags = [*HELD_OUT, *with_teacher(files, "weak"), "--loss", "sop", *GRID]
    one = probe("one", *flags)
    two = [*FLAGS, "--finetune", files["backbone"], *flags, "--batch-size", 8, "-vb", 16, "--experiment", "two"]
    recovery = tmp_path / "output/train/two/recovery-1-4.pth.tar"
    stopped = fork(*two, "--recovery-interval", 5, "--log-interval", 1, processes=2)
    stopped.wait_until(recovery.exists)
    stopped.send(signal.SIGKILL)
    stopped.wait()
    resumed = fork(*two, "--resume", recovery, processes=2)
    assert resumed.wait() == [0, 0], resumed.text(0)
    ours, theirs = read_run(one)["task_state"], read_run(tmp_path / "output/train/two")["task_state"]
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4)
    assert [h["val"]["top1"] for h in result(one)["heads"]] == pytest.approx([
        h["val"]["top1"] for h in result(tmp_path / "output/train/two")["heads"]])


def test_poolings(probe: Callable[..., Path], files: dict[str, Path]) -> None:  # noqa: F811
    """One more axis: a head sees its own columns; what no plain timm model has is measured, and never taken."""
    flags = [*VIT, *with_teacher(files, "weak"), "--select", "best", "--select-split", 24, "--loss", "elr"]
    pools = ["--probe-pools", "both", "avg", "token", "--probe-blocks", 1, 2]
    grid = probe("grid", *flags, *pools, "--probe-lrs", *RATES, RATES[0])
    table, state = result(grid)["heads"], read_run(grid)
    assert [(h["pool"], h["lr"]) for h in table] == [
        (pool, rate) for pool in ("both", "both:2", "avg", "token", "token:2") for rate in RATES]
    for number in (4, 7):
        alone = probe(f"alone{number}", *flags, "--probe-pools", table[number]["pool"], "--lr", table[number]["lr"])
        own = {name.replace("head.", "fc."): value for name, value in read_run(alone)["state_dict"].items()}
        found = of_head(state, number)
        for name in ("fc.weight", "fc.bias"):
            torch.testing.assert_close(found[name], own[name], atol=1e-5, rtol=1e-4)
        best = result(alone)["best"]
        assert (table[number]["epoch"], table[number]["val"]["top1"]) == (best["epoch"], pytest.approx(best["top1"]))
    chosen = next(h for h in table if h["chosen"])
    ranked = [h for h in table if h["pool"] in ("avg", "token")]
    assert chosen["select"]["agreement"] == max(h["select"]["agreement"] for h in ranked)
    model = timm.create_model(f"local-dir:{grid / 'export'}", pretrained=True).eval()
    assert model.global_pool == chosen["pool"]
    exported = load_file(grid / "export" / "model.safetensors")
    assert differences(dict(exported), read_run(grid, "model_best.pth.tar")["state_dict"]) == []

    with pytest.raises(UserError, match="does not say behind which of its poolings the head was trained"):
        settings_beside(grid / "last.pth.tar", "--checkpoint")

    parts = probe("parts", *flags, *pools, "--probe-lrs", *RATES, RATES[0], "--stop-epoch", 2)
    probe("parts", *flags, *pools, "--probe-lrs", *RATES, RATES[0], "--resume", "auto")
    for name in ("last.pth.tar", "model_best.pth.tar"):
        assert differences(read_run(parts, name), read_run(grid, name)) == []
    assert (parts / "export/model.safetensors").read_bytes() == (grid / "export/model.safetensors").read_bytes()


def test_a_head_that_breaks_skips_alone(probe: Callable[..., Path], files: dict[str, Path]) -> None:  # noqa: F811
    flags = [*HELD_OUT, *with_teacher(files, "weak"), "--opt", "momentum", "--sched", "none"]
    for loss in ("elr", "kd"):
        grid = probe(f"grid-{loss}", *flags, "--loss", loss, "--probe-lrs", 0.02, 1e38)
        assert "head lr 1e+38, weight decay 2e-05: its gradient is not finite; it skips such steps" in probe.done.err
        alone = probe(f"alone-{loss}", *flags, "--loss", loss, "--lr", 0.02)
        state = read_run(grid)
        torch.testing.assert_close(of_head(state, 0)["fc.weight"], read_run(alone)["state_dict"]["fc.weight"])
        assert all(value.isfinite().all() for value in state["task_state"].values())
        assert [h["chosen"] for h in result(grid)["heads"]] == [True, False]


@pytest.mark.parametrize("flags, message", [
    (["--probe-lrs", 0.1, 0.2], "the best head is chosen on samples that are held out: give --select best "
     "--select-split 0.1"),
    (["--probe-pools", "avg", "max"], "--probe-pools: the best head is chosen on samples that are held out"),
    ([*HELD_OUT, "--probe-weight-decays", -1], "--probe-weight-decays -1.0: expected at least 0"),
    ([*HELD_OUT, "--probe-lrs", 0.1, "--amp", "--amp-dtype", "float16"], "give --amp-dtype bfloat16"),
    ([*HELD_OUT, "--probe-lrs", 0.1, "--sched", "plateau"], "--sched plateau would lower the rates of all heads"),
    ([*HELD_OUT, "--probe-lrs", 0.1, "--opt", "lamb"], "--opt lamb clips the gradients of all parameters together"),
])
def test_refused(here: Run, flags: list[object], message: str) -> None:
    assert message in here(*FLAGS, *flags).error
