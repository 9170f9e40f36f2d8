"""``--tune``: runs of which a part is trained, and what is left of them."""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from .conftest import TINY, Run, in_file, read_result, taught

pytestmark = pytest.mark.usefixtures("no_group_left")
FLAGS = [*TINY, "--model w2s_cnn5 --tune lora:rank=2"]


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights that the student starts from."""
    torch.manual_seed(3)
    torch.save(timm.create_model("w2s_cnn5").state_dict(), tmp_path / "start.pth")
    return tmp_path / "start.pth"


def test_export(here: Run, weak: Path, start: Path, tmp_path: Path) -> None:
    """Plain timm loads the export, whose weights have the adapters in them, as validate.py reads the run."""
    done = here(
        *FLAGS,
        *taught(weak),
        "--initial-checkpoint",
        start,
        "--output",
        tmp_path,
        "--experiment run",
    ).ok()
    assert "--tune lora: lora of rank 2 at " in done.err
    export = tmp_path / "run" / "export"
    merged = timm.create_model(f"local-dir:{export}", pretrained=True)
    plain = timm.create_model("w2s_cnn5", num_classes=10)
    plain.load_state_dict(torch.load(start))
    assert {
        n for n, p in merged.state_dict().items() if not torch.equal(p, plain.state_dict()[n])
    } >= {"fc.weight", "fc.bias"}
    model = read_result(tmp_path / "run")["model"]
    assert model["tune"] == "lora:rank=2" and model["trained"] < model["params"]
    assert "trained weights" in (export / "README.md").read_text()
    found = here("--checkpoint", tmp_path / "run", script="validate").figures
    own = read_result(tmp_path / "run")["metrics"]["top1"]
    assert found["top1"] == pytest.approx(own, abs=1e-4)


def test_random_weights_of_which_most_stay(here: Run) -> None:
    """It is a warning, told again below the figures."""
    done = here(*FLAGS, "--epochs 1").ok()
    text = "WARNING: --model w2s_cnn5 with --tune lora:rank=2: starts from random weights"
    assert text in done.err and text in done.out


def test_a_run_of_adapters_as_a_start(here: Run, start: Path, tmp_path: Path) -> None:
    """Its folder stands for the export; its checkpoints are its own."""
    here(
        *FLAGS,
        "--model-ema --model-ema-decay 0.5",
        "--initial-checkpoint",
        start,
        "--output",
        tmp_path,
        "--experiment run",
    ).ok()
    flags = [*TINY, "--model w2s_cnn5", "--initial-checkpoint"]
    here(*flags, tmp_path / "run").ok()
    assert (
        "has adapters beside its weights; give the run's folder or its"
        in here(*flags, tmp_path / "run/last.pth.tar").error
    )


def test_a_teacher_keeps_its_pooling(here: Run, tmp_path: Path) -> None:
    """A checkpoint whose head was trained behind another pooling than the architecture's own."""
    flags = [*TINY, "--model test_vit --img-size 32", "--output", tmp_path]
    here(*flags, "--linear-probe --gp avg --model-kwargs fc_norm=False --experiment head").ok()
    last = tmp_path / "head" / "last.pth.tar"
    here(*flags, "--teacher test_vit", "--teacher-checkpoint", last, "--experiment taught").ok()
    taught, own = (read_result(tmp_path / name) for name in ("taught", "head"))
    assert taught["teacher"]["top1"] == own["metrics"]["top1"]


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (["test_vit", "--tune last:0.3"], True),
        (["test_vit", "--tune norm"], False),
        (["test_vit", "--tune last:0.3 --layer-decay 0.3"], False),
        (["w2s_cnn5", "--tune last:0.3"], False),
    ],
)
def test_the_rate_of_the_recipe_may_spoil_a_transformer(
    here: Run, flags: list[str | float], warned: bool
) -> None:
    done = here(*TINY, "--img-size 32 --opt adamw --lr 0.0006 --model", *flags).ok()
    said = "may spoil a transformer; --tune lora --lr 0.002 did better"
    # in the log when it is noticed, and below the figures at the end
    assert (said in done.err) == warned
    assert (said in done.out.partition("student, last epoch")[2]) == warned


def test_the_recipe_trains_adapters_of_a_transformer(here: Run, weak: Path, tmp_path: Path) -> None:
    """It says so, writes it down, and goes on with them."""
    flags = (*TINY, "--teacher", weak, "--config weak-labels --img-size 32 --model test_vit")
    flags = (*flags, "--task-loss-weight 0 --output", tmp_path, "--experiment run --epochs")
    done = here(*flags, 1).ok()
    assert "test_vit has attention: --tune lora (--for-transformers)" in done.err  # TINY has a rate
    assert "may spoil" not in done.err
    recorded = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    assert recorded["tune"] == "lora"
    assert recorded["for_transformers"] == {}
    here(*flags, 1, "--resume auto").ok()
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True)
    assert type(model).__name__ == "VisionTransformer"


def test_a_warning_is_in_the_closing_of_several_runs(here: Run, tmp_path: Path) -> None:
    """Once, whatever number of stages has it."""
    (tmp_path / "stages.yaml").write_text(
        "[{name: a}, {name: b, linear_probe: true, tune: all}, {name: c}]"
    )
    done = here(
        *TINY,
        "--epochs 1 --img-size 32 --opt adamw --lr 0.0006 --model test_vit",
        *in_file(tmp_path / "tune.yaml", ["--tune last:0.3"]),
        "--stages",
        tmp_path / "stages.yaml",
        "--experiment x",
    ).ok()
    closing = done.out.partition("* take ")[2]
    assert (
        closing.count("may spoil a transformer") == 1
        and "\nWARNING: stage a, stage c: --tune last:0.3" in closing
    )


def test_two_ranks(ranks: Run, start: Path, tmp_path: Path) -> None:
    """They end with one student."""
    done = ranks(
        *FLAGS,
        "--batch-size 8",
        "--initial-checkpoint",
        start,
        "--output",
        tmp_path,
        "--experiment two --model-ema",
        processes=2,
        cwd=tmp_path,
    ).ok()
    one = ranks(
        *FLAGS,
        "--initial-checkpoint",
        start,
        "--output",
        tmp_path,
        "--experiment one --model-ema",
        processes=1,
        cwd=tmp_path,
    ).ok()
    assert "weights of" in done.err and one.code == 0
    two, one = (
        load_file(tmp_path / name / "export" / "model.safetensors") for name in ("two", "one")
    )
    assert (
        max((two[n] - one[n]).abs().max().item() for n in one) < 2e-2
    )  # batch norm sees each rank's own batch
