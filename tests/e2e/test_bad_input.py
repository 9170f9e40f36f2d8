"""Damaged and hostile files, a loss that is not finite: one line, exit code 2.

Wrong flags stand in the table of `test_bad_flags.py`.
"""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.e2e.conftest import TINY, Run, read_run, taught
from tests.parts import Armed, assert_says

CNN = [*TINY, "--model w2s_cnn2"]
HERE = ["--output . --experiment run"]


def distil(weak: Path) -> list[object]:
    return [*TINY, "--model w2s_cnn5", *taught(weak), "--no-teacher-eval"]


# ---------------------------------------------------------------- files of weights


# how each is made of a whole one, and what is said of it
BAD_FILES = {
    "missing": (lambda path, good: None, "no such file"),
    "truncated": (lambda path, good: path.write_bytes(good.read_bytes()[:-2000]), "truncated"),
    "text": (
        lambda path, good: path.write_text("these are no weights"),
        "cannot be read as a checkpoint",
    ),
    "no tensors": (lambda path, good: torch.save({"state_dict": {"a": 1}}, path), ""),
    "torch pickle": (
        lambda path, good: torch.save(
            {"state_dict": {"a": torch.ones(1)}, "extra": Armed(path.with_suffix(".ran"))}, path
        ),
        "would run code when loaded",
    ),
    "plain pickle": (
        lambda path, good: path.write_bytes(pickle.dumps(Armed(path.with_suffix(".ran")))),
        "would run code",
    ),
    "safetensors": (lambda path, good: path.write_bytes(save({"a": torch.ones(100)})[:-50]), ""),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize(
    "flag",
    ["--teacher-checkpoint", "--initial-checkpoint", "--finetune", "--pretrained-path", "--resume"],
)
def test_bad_file(here: Run, weak: Path, tmp_path: Path, flag: str, kind: str) -> None:
    path = tmp_path / ("bad.safetensors" if kind == "safetensors" else "bad.pth.tar")
    write, said = BAD_FILES[kind]
    write(path, weak / "last.pth.tar")
    teacher = ["--teacher w2s_cnn2"] if flag == "--teacher-checkpoint" else []
    assert_says(here(*CNN, *teacher, flag, path).error, flag, str(path), said)
    assert not path.with_suffix(".ran").exists() and not list(
        tmp_path.glob("output/train/*/*.pth.tar")
    )


# ---------------------------------------------------------------- a loss that is not finite

PLUGIN = """
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("{name}", summary="breaks at some of its calls, in this process")
def break_(inputs):
    global calls
    calls += 1
    bad = {first} <= calls < {last}
    return {{"soft": inputs.student_logits.square().mean(), "edge": inputs.student_logits.mean() * (
        float("nan") if bad else 1.0)}}
"""


def breaking(name: str, first: int, last: int) -> list[object]:
    Path("plugin.py").write_text(PLUGIN.format(name=name, first=first, last=last))
    return ["--plugins plugin.py", "--loss", name, "--nan-patience 3"]


def test_loss_not_finite(here: Run, weak: Path) -> None:
    """The first epoch is good, the third step of the second one breaks."""
    done = here(*distil(weak), *HERE, *breaking("breaks", 6, 1000), "--epochs 3")
    assert_says(done.error, "step 7", "learning rate 0.0", "3 bad steps", "--nan-patience", "--lr")
    saved = read_run(Path("run"))
    assert saved["epoch"] == 0 and all(
        value.isfinite().all() for value in saved["state_dict"].values()
    )
    assert not Path("run/export").exists() and not Path("run/result.json").exists()


@pytest.mark.parametrize(
    ("lr", "flags"),
    [
        ("1e+30", []),  # what the weights give is not finite
        (
            "1e+38",
            ["--recovery-interval 1"],
        ),  # after a first step whose loss is finite they are not finite themselves
        ("1e+38", ["--batch-size 64"]),  # of an epoch of one step
    ],
)
def test_diverged_at_the_end(here: Run, lr: str, flags: list[object]) -> None:
    """A run too short for patience to end: the broken model is neither saved nor exported."""
    flags = [*CNN, *HERE, *flags]
    here(*flags, "--stop-epoch 1").ok()
    before = Path("run/last.pth.tar").read_bytes()
    done = here(*flags, "--lr", lr, "--weight-decay 1000.0 --no-resume-opt --resume auto")
    assert_says(done.error, "epoch 2", "not finite", f"learning rate {lr}", "not saved", "--lr")
    assert Path("run/last.pth.tar").read_bytes() == before and not [*Path("run").glob("recovery-*")]


# ---------------------------------------------------------------- as real processes


@pytest.mark.parametrize("wrong", ["--output /proc/none", "--model resnet81"])
def test_two_ranks(ranks: Run, tmp_path: Path, wrong: str) -> None:
    """It is told, and every one ends: after the processes have met, and before."""
    done = ranks(*CNN, wrong, processes=2, cwd=tmp_path)
    said = f"train_w2s.py: error: {wrong.split()[0]}"
    assert 0 not in done.codes and said in done.err, done.err
