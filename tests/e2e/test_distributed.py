"""Two gloo processes under torchrun do what one process does with batches of twice the size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import TINY, Done, differences, read_lines, read_run, run_script
from tests.parts import write_folder

pytestmark = pytest.mark.slow
Run = Callable[..., Done]
# Two processes sum the gradients of a batch in another order than one, which costs rounding: about 1e-7 of their size
# a step, and here six steps of SGD without momentum follow, at a learning rate of 0.05. A batch with one other sample
# in it moves weights a hundred times as far as the tolerance, as `test_cached` shows.
TOLERANCE = 1e-5


def distance(a: Path, b: Path, key: str = "state_dict") -> float:
    """Largest difference between the weights of two runs."""
    first, second = read_run(a)[key], read_run(b)[key]
    assert first.keys() == second.keys()
    return max((first[k].double() - second[k].double()).abs().max().item() for k in first)


def flags_of(weak: Path, *more: object) -> list[object]:
    """A network without batch norm, whose statistics would be those of half a batch; 97 samples, of which one is left
    over."""
    return [*TINY, "--train-slice", "0:97", "--model", "test_vit", "--img-size", 16, "--model-kwargs", "patch_size=4",
            "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--opt", "momentum", "--momentum", 0, *more]


def run_both(here: Run, folder: Path, flags: list[object]) -> tuple[Path, Path]:
    """Train with 32 samples a step, on one process and on two."""
    here(*flags, "--batch-size", 32, "--output", folder, "--experiment", "one").ok()
    run_script(*flags, "--batch-size", 16, "--output", folder, "--experiment", "two", cwd=folder, processes=2).ok()
    return folder / "one", folder / "two"


def assert_same_figures(one: Path, two: Path) -> None:
    for a, b in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        assert a["event"] == b["event"]
        if a["event"] == "train":
            assert a["terms"] == pytest.approx(b["terms"], rel=1e-4) and (a["lr"], a["step"]) == (b["lr"], b["step"])
        elif a["event"] == "start":
            assert a["teacher"] == pytest.approx(b["teacher"], rel=1e-6)
            assert a["student"] == pytest.approx(b["student"], rel=1e-6)


def test_online(here: Run, weak: Path, tmp_path: Path) -> None:
    """With random views, accumulation, clipping and an average of the weights."""
    one, two = run_both(here, tmp_path, flags_of(
        weak, "--grad-accum-steps", 2, "--clip-grad", 1, "--reprob", 0.3, "--model-ema", "--model-ema-decay", 0.5))
    assert distance(one, two) < TOLERANCE
    assert distance(one, two, "state_dict_ema") < TOLERANCE
    assert_same_figures(one, two)


def test_cached(here: Run, weak: Path, tmp_path: Path) -> None:
    """The labels are the same to the last bit and in the order of the data; so the training is the same."""
    flags = flags_of(weak, "--teacher-targets", "cached", "--task-loss-weight", 0)
    one, two = run_both(here, tmp_path, flags)
    labels = [load_file(run / "teacher_targets.safetensors")["logits"] for run in (one, two)]
    assert torch.equal(*labels) and labels[0].shape == (1, 97, 10)
    assert distance(one, two) < TOLERANCE
    assert_same_figures(one, two)
    here(*flags, "--batch-size", 32, "--train-slice", "0:96", "--output", tmp_path, "--experiment", "other").ok()
    assert distance(one, tmp_path / "other") > 100 * TOLERANCE


def test_timm_s_own_distillation(here: Run, weak: Path, tmp_path: Path) -> None:
    flags = [f for f in flags_of(weak) if f not in ("--teacher", "w2s_cnn2", "--teacher-checkpoint", weak)]
    one, two = run_both(here, tmp_path, [*flags, "--kd-model-name", f"local-dir:{weak / 'export'}"])
    assert distance(one, two) < TOLERANCE
    assert_same_figures(one, two)


def test_each_sample_is_counted_once(here: Run, tmp_path: Path) -> None:
    """An odd number of images, and of held-out ones: the figures of one process, before the first step."""
    write_folder(tmp_path / "data", {"train": 75, "validation": 31})
    flags = ["data", "--img-size", 16, "--batch-size", 4, "--warmup-epochs", 0, "--workers", 0, "--output", tmp_path]
    here(*flags, "--model", "w2s_cnn2", "--epochs", 5, "--lr", 0.05, "--experiment", "weak").ok()
    flags += ["--model", "w2s_cnn5", "--initial-checkpoint", student_of(here, flags, tmp_path), "--epochs", 1,
              "--lr", 1e-9, "--weight-decay", 0, "--teacher", "w2s_cnn2", "--teacher-checkpoint", tmp_path / "weak",
              "--select", "best", "--select-split", 7, "--experiment"]
    here(*flags, "one").ok()
    run_script(*flags, "two", cwd=tmp_path, processes=2).ok()
    starts = [[line for line in read_lines(tmp_path / name / "metrics.jsonl") if line["event"] == "start"]
              for name in ("one", "two")]
    for one, two, count in zip(*starts, (31, 7), strict=True):
        for who in ("teacher", "student"):
            for metric in {"top1", "agreement"} & one[who].keys():
                assert one[who][metric] == two[who][metric]
                assert one[who][metric] * count / 100 == pytest.approx(round(one[who][metric] * count / 100))
            assert one[who]["loss"] == pytest.approx(two[who]["loss"], rel=1e-6)
    assert 40 < starts[0][0]["student"]["top1"] < 100, "figures that could not differ would show nothing"


def student_of(here: Run, flags: list[object], folder: Path) -> Path:
    here(*flags, "--model", "w2s_cnn5", "--epochs", 3, "--lr", 0.02, "--experiment", "start").ok()
    return folder / "start" / "last.pth.tar"


def test_resume_and_batch_norm(weak: Path, tmp_path: Path) -> None:
    """Two processes, interrupted after an epoch, end with the very weights and statistics of two that were not."""
    flags = [*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--no-teacher-eval",
             "--drop", 0.2, "--mixup", 0.2, "--output", tmp_path, "--experiment"]
    run_script(*flags, "whole", cwd=tmp_path, processes=2).ok()
    run_script(*flags, "parts", "--stop-epoch", 1, cwd=tmp_path, processes=2).ok()
    run_script(*flags, "parts", "--resume", "auto", cwd=tmp_path, processes=2).ok()
    assert differences(read_run(tmp_path / "whole"), read_run(tmp_path / "parts")) == []
    for name in ("metrics.jsonl", "summary.csv", "export/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    figures = json.loads((tmp_path / "whole" / "result.json").read_text())["metrics"]
    done = run_script("--checkpoint", tmp_path / "whole", script="validate.py", cwd=tmp_path).ok()
    assert json.loads(done.out.split("--result\n")[1])["top1"] == pytest.approx(figures["top1"], abs=1e-3)


CRASH = '''
import os, time
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("crash")
def crash(inputs):
    global calls
    calls += 1
    if calls == {call} and os.path.exists("armed"):
        time.sleep(1)  # for the save in the background
        os._exit(1)
    return {{"distance": (inputs.student_logits - inputs.teacher_logits).square().mean()}}
'''


@pytest.mark.parametrize("call", [4, 5])
def test_resume_inside_an_epoch(weak: Path, tmp_path: Path, call: int) -> None:
    """Batch norm and the averages of terms differ from rank to rank until the epoch has ended, here after four steps;
    the crash comes a step before that and a step after it."""
    (tmp_path / "crash.py").write_text(CRASH.format(call=call))
    flags = [*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--batch-size", 8,
             "--val-interval", 2, "--recovery-interval", 1, "--plugins", "crash.py", "--loss", "crash", "--model-ema",
             "--output", tmp_path, "--experiment"]
    run_script(*flags, "whole", cwd=tmp_path, processes=2).ok()
    (tmp_path / "armed").touch()
    assert run_script(*flags, "parts", cwd=tmp_path, processes=2).code != 0
    (tmp_path / "armed").unlink()
    done = run_script(*flags, "parts", "--resume", "auto", cwd=tmp_path, processes=2).ok()
    assert f"goes on with epoch 1, step {call - 1}" in done.err
    assert differences(read_run(tmp_path / "whole"), read_run(tmp_path / "parts")) == []
    for name in ("metrics.jsonl", "summary.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_not_finite_on_one_process(weak: Path, tmp_path: Path) -> None:
    """A loss that breaks on the second process only: all skip the step alike, and all end."""
    (tmp_path / "break.py").write_text(
        "import os\n"
        "from w2s_plugins.losses import register_loss\n\n"
        "@register_loss('break_one')\n"
        "def break_one(inputs):\n"
        "    bad = os.environ['RANK'] == '1' and inputs.progress >= 0.5\n"
        "    return {'odd': inputs.student_logits.mean() * (float('nan') if bad else 1.0)}\n")
    done = run_script(*flags_of(weak), "--plugins", "break.py", "--loss", "break_one", "--nan-patience", 2,
                      "--no-teacher-eval", "--output", tmp_path, "--experiment", "run", cwd=tmp_path, processes=2)
    assert done.code != 0 and done.err.count("train_w2s.py: error:") == 1, done.err
    assert "step 4: term odd is not finite" in done.err or "step 4: the gradient is not finite" in done.err, done.err
    saved = read_run(tmp_path / "run")
    assert saved["epoch"] == 0 and all(v.isfinite().all() for v in saved["state_dict"].values())
