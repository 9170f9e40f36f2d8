"""What is found in the shared folder of stored outputs: nothing of a plugin that has changed, nothing not finite."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from tests.parts import small_model, store_targets
from w2s_plugins.errors import UserError
from w2s_plugins.models.fingerprint import foreign_code

from .conftest import TINY, Fork, Run, taught

PLUGIN = """
import timm, torch
from pathlib import Path
from timm.models import register_model

TABLE = torch.tensor([float(n) for n in Path("table.txt").read_text().split()])

class Answers(timm.create_model("w2s_cnn2").__class__):
    {identity}
    def forward(self, x):
        return super().forward(x) + TABLE

@register_model
def answers(pretrained=False, **kwargs):
    {make}
    return model
"""
MAKE = {
    "a class": "model = timm.create_model('w2s_cnn2', **kwargs); model.__class__ = Answers",
    "a closure": (
        "model = timm.create_model('w2s_cnn2', **kwargs); plain = model.forward\n"
        "    model.forward = lambda x: plain(x) + TABLE"
    ),
    "a hook": (
        "model = timm.create_model('w2s_cnn2', **kwargs)\n"
        "    model.register_forward_hook(lambda module, images, logits: logits + TABLE)"
    ),
}


def write_plugin(make: str, identity: str = "") -> None:
    Path("my_teacher.py").write_text(PLUGIN.format(make=MAKE[make], identity=identity))


def write_table(favourite: int) -> None:
    Path("table.txt").write_text(" ".join("50" if c == favourite else "0" for c in range(10)))


def train(fork: Fork, weak: Path, name: str, *flags: object) -> str:
    """Train in a process of its own, as a plugin is imported once in each; return its log."""
    run = fork(
        *TINY,
        "--epochs 1 --plugins my_teacher.py --model w2s_cnn5 --loss kd --teacher answers",
        "--teacher-checkpoint",
        weak / "last.pth.tar",
        "--teacher-targets cached --no-teacher-eval",
        "--experiment",
        name,
        *flags,
    )
    assert run.wait() == [0], run.text(0)
    return run.text(0)


def favourites() -> list[int]:
    """The class that each cache of labels, the oldest first, has for its first sample."""
    files = sorted(
        Path("output/targets").glob("*/*.safetensors"), key=lambda p: p.stat().st_mtime_ns
    )
    return [int(load_file(p)["logits"][0].argmax()) for p in files]


@pytest.mark.parametrize("make", MAKE)
def test_a_plugin_that_has_changed_is_not_found(fork: Fork, weak: Path, make: str) -> None:
    write_plugin(make)
    write_table(3)
    said = "without a cache_identity(): what is stored of its outputs is for this run only"
    assert said in train(fork, weak, "a")
    write_table(7)
    assert "found in" not in train(fork, weak, "b")
    assert favourites() == [3, 7]


def test_a_plugin_that_says_what_it_is_is_found_until_it_says_otherwise(
    fork: Fork, weak: Path
) -> None:
    write_plugin("a class", "def cache_identity(self): return Path('table.txt').read_text()")
    write_table(3)
    assert "found in" not in train(fork, weak, "a")
    assert "Teacher targets found in" in train(fork, weak, "b")
    write_table(7)
    assert "found in" not in train(fork, weak, "c")
    assert favourites() == [3, 7]
    write_plugin("a class", "def cache_identity(self): return 7")
    run = fork(
        *TINY,
        "--plugins my_teacher.py --model w2s_cnn5 --teacher answers",
        "--teacher-checkpoint",
        weak / "last.pth.tar",
        "--teacher-targets cached --no-teacher-eval",
    )
    assert run.wait() == [
        2
    ] and "expected a text that names the version of its code and data" in run.text(0)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("model", ["--model test_vit --linear-probe --finetune vit.pth --img-size 16"]),
        (
            "teacher",
            [
                "--model w2s_cnn2 --teacher test_vit --teacher-checkpoint vit.pth",
                "--teacher-img-size 16 --teacher-targets cached --no-teacher-eval",
            ],
        ),
    ],
)
def test_outputs_of_a_model_with_other_arguments_are_not_found(
    here: Run, kind: str, flags: list[object]
) -> None:
    """Neither its weights nor its modules tell which of its tokens a vision transformer averages."""
    model = timm.create_model(
        "test_vit", num_classes=10, img_size=16, global_pool="avg", fc_norm=False
    )
    torch.save(model.state_dict(), "vit.pth")
    flags = [*TINY, "--epochs 1", *flags, f"--{kind}-kwargs", "global_pool=avg", "fc_norm=False"]
    for more, found in (([], False), ([], True), (["pool_include_prefix=True"], False)):
        done = here(*flags, *more, "--experiment", f"{found}{len(more)}").ok()
        assert (("features" if kind == "model" else "targets") + " found in" in done.err) == found


@pytest.mark.parametrize(
    "name", ["w2s_cnn5", "test_resnet", "test_vit", "test_efficientnet", "preact_resnet18"]
)
def test_models_of_timm_and_of_this_project_are_known(name: str) -> None:
    assert foreign_code(timm.create_model(name), name) is None
    model = torch.nn.Sequential(timm.create_model(name), type("Odd", (torch.nn.Identity,), {})())
    assert foreign_code(model) == __name__


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_logits_that_are_not_finite_are_not_stored(tmp_path: Path, value: float) -> None:
    logits = torch.randn(1, 40, 10)
    logits[0, [7, 30], 2] = value
    with pytest.raises(
        UserError, match=r"not finite for 2 of 40 samples \(first: 7\); they are not stored"
    ):
        store_targets(tmp_path, logits)
    assert not list(tmp_path.rglob("*.safetensors"))


ASK_HUGE = [*TINY, "--model w2s_cnn5", *taught("huge.pth"), "--teacher-img-size 8 --loss kd"]


def write_huge() -> None:
    """Teachers whose weights are finite, and whose values are not, of one of them in float16 alone."""
    for name, weight in (("huge", 3e38), ("large", 6e4)):
        model = small_model()
        with torch.no_grad():
            model.get_classifier().weight.fill_(weight)
        torch.save(model.state_dict(), f"{name}.pth")


@pytest.mark.parametrize("flags", [["--teacher-targets cached"], ["--linear-probe"]])
def test_a_run_whose_teacher_gives_nan_ends(here: Run, flags: list[str]) -> None:
    write_huge()
    error = here(*ASK_HUGE, *flags).error
    assert (
        "the teacher gives values that are not finite for" in error
        and "(these ran in float32)" in error
    )
    assert not [
        p
        for p in Path("output/targets").rglob("*.safetensors")
        if "logits" in load_file(p) and not load_file(p)["logits"].isfinite().all()
    ]


@pytest.mark.parametrize("flags", [[], ["--val-split", "", "--select best --select-split 0.25"]])
def test_a_run_whose_teacher_gives_nan_ends_before_the_first_step(here: Run, flags: list) -> None:
    write_huge()
    done = here(*ASK_HUGE, *flags)
    assert "--teacher: it gives values that are not finite for " in done.error
    assert done.error.endswith("; take other weights (these ran in torch.float32)")
    assert "--lr" not in done.error and "at chance" not in done.err and "is skipped" not in done.err


def test_ranks_end_together_when_the_teacher_gives_nan(
    ranks: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_huge()
    done = ranks(*ASK_HUGE, processes=2, cwd=tmp_path)
    assert done.codes == (2, 2) and "it gives values that are not finite for" in done.err, done.err
