"""The few-shot recipes: each is checked in full, and the stages with AdaptConf take two steps on generated images."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.e2e.conftest import ROOT, Done, here, read_lines  # noqa: F401  (a fixture)
from w2s_plugins.cli import parse, resolve_train_args, train_parser
from w2s_plugins.losses import create_loss

FOLDER = ROOT / "hparams" / "fewshot"
RECIPES = {
    "classifier": ["mini", "classifier"],
    "classifier, adaptconf": ["mini", "classifier", "classifier_adaptconf"],
    "meta": ["mini", "meta"],
    "meta, adaptconf": ["mini", "meta", "meta_adaptconf"],
    "glyphs": ["glyphs"],
    "glyphs, meta": ["glyphs", "glyphs_meta"],
}


def config(recipe: str) -> list[str]:
    return ["--config", *(str(FOLDER / f"{name}.yaml") for name in RECIPES[recipe])]


def test_all_recipes_are_tested() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} == {name for names in RECIPES.values() for name in names}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_valid(recipe: str) -> None:
    argv = [*config(recipe), "--data-dir", "somewhere", "--model", "fewshot_resnet36"]
    if "adaptconf" in recipe:
        argv += ["--teacher", "fewshot_resnet12"]
    args, given = parse(train_parser(), argv)
    resolve_train_args(args, given)
    assert args.few_shot_eval == "5x1,5x5" and args.val_split == ""
    if "adaptconf" in recipe:
        assert create_loss(args.loss, **args.loss_kwargs).kwargs["kd_temperature"] == 10
    if recipe.startswith("meta"):
        assert (args.batch_size, args.train_batches_per_epoch, args.episodic) == (320, 200, "5x1")
    with torch.device("meta"):
        model = timm.create_model(args.model, num_classes=args.num_classes or 64)
        assert model.eval()(torch.zeros(1, 3, args.img_size, args.img_size)).shape == (1, 64)


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_header_has_a_command_of_flags_that_exist(name: str) -> None:
    header = "".join(line for line in (FOLDER / f"{name}.yaml").open() if line.startswith("#"))
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", header)) - {"--nproc_per_node", "--max-classes"}
    assert flags and flags <= set(train_parser().flags())
    for path in re.findall(r"hparams/\S+\.yaml", header):
        assert (ROOT / path).is_file()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 base, 5 validation and 5 novel classes of seven images each."""
    folder, rng = tmp_path_factory.mktemp("mini"), np.random.default_rng(0)
    for split, classes in (("base", 64), ("validation", 5), ("novel", 5)):
        for c in range(classes):
            (folder / split / f"n{c:02}").mkdir(parents=True)
            for i in range(7):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                image.save(folder / split / f"n{c:02}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("recipe, flags", [
    ("classifier, adaptconf", ["--train-slice", "0:32", "--batch-size", "16"]),
    ("meta, adaptconf", ["--train-batches-per-epoch", "2", "--episodes-per-batch", "1"]),
])
def test_two_steps(here: Callable[..., Done], mini: Path, recipe: str, flags: list[str]) -> None:  # noqa: F811
    common = ["--data-dir", mini, "--img-size", "16", "--teacher-img-size", "16", "--workers", "0", "--queries", "2",
              "--few-shot-episodes", "20"]
    teacher = timm.create_model("fewshot_resnet12", num_classes=64)
    torch.save(teacher.state_dict(), "teacher.pth")
    here(*config(recipe), *common, "--model", "fewshot_resnet12", "--teacher", "fewshot_resnet12",
         "--teacher-checkpoint", "teacher.pth", *flags, "--stop-epoch", "1", "--experiment", "run").ok()
    events = read_lines(Path("output/train/run/metrics.jsonl"))
    assert [e["update"] for e in events if e["event"] == "train"][-1] == 1
    assert 0 <= events[-1]["few_shot"]["5x5"] <= 100
