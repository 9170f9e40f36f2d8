"""Two and four gloo processes do what one process does with batches of two and four times the size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import TINY, Run, read_events, read_run, taught

pytestmark = pytest.mark.slow
# Several processes sum the gradients of a batch in another order than one, which costs rounding: about 1e-7 of their
# size a step, and here six steps of SGD without momentum follow, at a learning rate of 0.05. A batch with one other
# sample in it moves weights a hundred times as far as the tolerance, as `test_cached` shows.
TOLERANCE = 1e-5


def distance(a: Path, b: Path, key: str = "state_dict") -> float:
    """Largest difference between the weights of two runs."""
    first, second = read_run(a)[key], read_run(b)[key]
    assert first.keys() == second.keys()
    return max((first[k].double() - second[k].double()).abs().max().item() for k in first)


def flags_of(weak: Path, *more: object) -> list[object]:
    """A network without batch norm, whose statistics would be those of half a batch; 97 samples, of which one is left
    over."""
    return [
        *TINY,
        "--train-slice 0:97 --model test_vit --img-size 16 --model-kwargs patch_size=4",
        *taught(weak),
        "--opt momentum --momentum 0",
        *more,
    ]


@pytest.fixture
def run_both(here: Run, ranks: Run, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Trains with 32 samples a step, on one process and on several."""

    def run_both(flags: list[object], processes: int = 2) -> tuple[Path, Path]:
        flags = [*flags, "--output", tmp_path, "--experiment"]
        here(*flags, "one", "--batch-size 32").ok()
        ranks(
            *flags, "more", "--batch-size", 32 // processes, cwd=tmp_path, processes=processes
        ).ok()
        return tmp_path / "one", tmp_path / "more"

    return run_both


def assert_same_figures(one: Path, two: Path) -> None:
    for a, b in zip(read_events(one), read_events(two), strict=True):
        assert a["event"] == b["event"]
        if a["event"] == "train":
            assert a["terms"] == pytest.approx(b["terms"], rel=1e-4) and (a["lr"], a["step"]) == (
                b["lr"],
                b["step"],
            )
        elif a["event"] == "start":
            assert a["teacher"] == pytest.approx(b["teacher"], rel=1e-6)
            assert a["student"] == pytest.approx(b["student"], rel=1e-6)


def test_four_with_accumulation(run_both: Callable, weak: Path) -> None:
    """With random views, clipping and an average of the weights; odd numbers of evaluated and of held-out images, of
    which each counts once."""
    flags = flags_of(
        weak,
        "--grad-accum-steps 2 --clip-grad 1 --reprob 0.3 --model-ema",
        "--model-ema-decay 0.5 --train-slice 0:104 --val-slice 0:61 --select best",
        "--select-split 7",
    )
    one, four = run_both(flags, 4)
    assert distance(one, four) < TOLERANCE
    assert distance(one, four, "state_dict_ema") < TOLERANCE
    assert_same_figures(one, four)


def test_cached(run_both: Callable, here: Run, weak: Path, tmp_path: Path) -> None:
    """The labels are the same to the last bit and in the order of the data; so the training is the same."""
    flags = flags_of(weak, "--teacher-targets cached --task-loss-weight 0")
    one, two = run_both(flags)
    assert distance(one, two) < TOLERANCE
    assert_same_figures(one, two)
    here(
        *flags, "--batch-size 32 --train-slice 0:96", "--output", tmp_path, "--experiment other"
    ).ok()
    assert distance(one, tmp_path / "other") > 100 * TOLERANCE


@pytest.mark.parametrize(("eps", "low", "high"), [(1e-8, TOLERANCE, 0.005), (1e-2, 0.0, TOLERANCE)])
def test_adamw(run_both: Callable, weak: Path, eps: float, low: float, high: float) -> None:
    """AdamW divides a gradient by its own size: one that is nothing but rounding, such as that of the bias of a ViT's
    keys, which is 0 in exact numbers, moves its weight by up to the learning rate. Figures are the same. With a large
    ``--opt-eps`` such gradients stay small, and so does the distance: what is exchanged is right."""
    flags = flags_of(weak, "--opt adamw --lr 0.005", "--opt-eps", eps)
    one, two = run_both(flags)
    assert low <= distance(one, two) < high
    assert_same_figures(one, two)


@pytest.mark.parametrize("accum", [1, 2])
def test_features_alone(run_both: Callable, weak: Path, accum: int) -> None:
    """The head gets no gradient, and neither does weight decay reach it."""
    one, two = run_both(
        flags_of(
            weak,
            "--loss fitnet --task-loss-weight 0 --weight-decay 0.1",
            "--grad-accum-steps",
            accum,
            "--epochs 1 --no-teacher-eval",
        )
    )
    assert distance(one, two) < TOLERANCE
    start, end = (read_run(folder)["state_dict"]["head.weight"] for folder in (one, two))
    assert torch.equal(start, end)


def test_features_and_memory(ranks: Run, weak: Path, tmp_path: Path) -> None:
    ranks(
        *flags_of(weak),
        "--loss elr+fitnet --loss-kwargs fitnet.weight=0.1 --batch-size 8",
        "--output",
        tmp_path,
        "--experiment two",
        cwd=tmp_path,
        processes=2,
    ).ok()
    state = read_run(tmp_path / "two")["task_state"]
    assert state["loss.parts.elr.memory.visits"].sum() == 2 * 96  # both ranks' samples, two epochs
    assert any("fitnet" in name for name in state)


def test_not_finite_on_one_process(ranks: Run, weak: Path, tmp_path: Path) -> None:
    """A loss that breaks on the second process only: all skip the step alike, and all end."""
    (tmp_path / "break.py").write_text(
        "import os\n"
        "from w2s_plugins.losses import register_loss\n\n"
        "@register_loss('break_one')\n"
        "def break_one(inputs):\n"
        "    bad = os.environ['RANK'] == '1' and inputs.progress >= 0.5\n"
        "    return {'odd': inputs.student_logits.mean() * (float('nan') if bad else 1.0)}\n"
    )
    done = ranks(
        *flags_of(weak),
        "--plugins break.py --loss break_one --nan-patience 2 --no-teacher-eval",
        "--output",
        tmp_path,
        "--experiment run",
        cwd=tmp_path,
        processes=2,
    )
    assert done.code == 2, done.err
    assert "step 4: loss or gradient is not finite" in done.err, done.err
    saved = read_run(tmp_path / "run")
    assert saved["epoch"] == 0 and all(v.isfinite().all() for v in saved["state_dict"].values())
