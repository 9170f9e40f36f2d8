"""Every recipe under hparams/: the commands in its header are checked in full, and train on generated images.

A new file is found by itself. It needs a header with a command that loads it, directly or by another file's ``config``.
"""

import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from tests.e2e.conftest import ROOT, Done, here, read_lines  # noqa: F401  (a fixture)
from tests.parts import encoded, lines, write_tar
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.labels.noise import CIFAR100_SUPERCLASSES
from w2s_plugins.models.loading import create_model
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.study.controls import without

SHIPPED = {path.stem: path for path in sorted((ROOT / "hparams").glob("*/*.yaml"))}
# folders whose files want other data than those below, and have a file of tests to themselves, as has
# weak-labels (e2e/test_stages.py)
ELSEWHERE = ("studies", "stages")
FILES = [
    name
    for name, path in SHIPPED.items()
    if path.parent.name not in ELSEWHERE and not name.startswith("weak-labels")
]
DOCUMENT = (ROOT / "docs" / "paper.md").read_text()
CLASSES = {
    "torch/cifar10": 10,
    "torch/cifar100": 100,
    "torch/fashion_mnist": 10,
    "w2s/digits": 10,
    "inat2018": 8142,
    "inat2021": 10_000,
}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = sorted(CIFAR100_SUPERCLASSES.read_text().split())


def header(file: str) -> list[str]:
    """The comment that a file begins with, without its marks, lines of a command joined."""
    lines = SHIPPED[file].read_text().splitlines()
    stop = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return re.sub(r" \\\n\s+", " ", "\n".join(line[2:] for line in lines[:stop])).splitlines()


def commands(file: str) -> list[tuple[str, ...]]:
    """The flags of the training commands in a header."""
    lines = [line.strip() for line in header(file) if line.startswith("  ")]
    return [
        tuple(shlex.split(line.partition("train_w2s.py ")[2]))
        for line in lines
        if "train_w2s.py" in line
    ]


def loaded(file: str) -> set[str]:
    """A file and those that it reads first."""
    named = yaml.safe_load(SHIPPED[file].read_text()).get("config", [])
    return {file}.union(*map(loaded, named if isinstance(named, list) else [named]))


# each command once, with the first file that has it
COMMANDS = {argv: file for file in reversed(FILES) for argv in commands(file)}
# what each file is about that has images of ImageNet, CIFAR or iNaturalist; few-shot learning has tests of its own
TRAINED = list(
    dict.fromkeys(
        commands(file)[0]
        for file in FILES
        if file.startswith(("cifar100", "imagenet", "inat", "noisy"))
    )
)
each_command = pytest.mark.parametrize(
    "argv", COMMANDS, ids=[f"{f}-{i}" for i, f in enumerate(COMMANDS.values())]
)


def resolve(*argv: str) -> object:
    args, given = parse(train_parser(), argv)
    return SimpleNamespace(**resolve_train_args(args, given).flags)


@functools.cache
def logits_shape(
    name: str, classes: int, channels: int, size: int | None, kwargs: str
) -> tuple[int, ...]:
    """Shape of what a model says of two images of its size; nothing is computed."""
    with torch.device("meta"):
        model = create_model(
            "--model",
            name,
            pretrained=False,
            inputs=dict(img_size=size, in_chans=channels),
            num_classes=classes,
            **json.loads(kwargs),
        ).eval()
        size = size or timm.data.resolve_data_config(model=model)["input_size"][-1]
        return tuple(model(torch.zeros(2, channels, size, size)).shape)


def class_count(args: object) -> int | None:
    """Classes of the data that a recipe names; of folders it is ImageNet's unless the recipe says otherwise."""
    return CLASSES.get(args.dataset) or args.num_classes or (None if args.few_shot_eval else 1000)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("file", FILES)
def test_flags_and_files_of_the_header_exist(file: str) -> None:
    text = " ".join(" ".join(header(file)).split())
    of_others = {"--nproc_per_node", "--max-classes"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) <= {
        *train_parser().flags(),
        *of_others,
    }
    named = {p.rstrip(".,;:") for p in re.findall(r"(?:hparams|docs)/[\w/.-]+", text)}
    assert all((ROOT / p).exists() for p in named), named
    siblings = re.findall(r"(?<![\w/.-])[\w*-]+\.yaml", text.partition("  ")[0])
    assert all(list((ROOT / "hparams").glob(f"*/{name}")) for name in siblings), siblings


@pytest.mark.parametrize("file", FILES)
def test_the_first_command_of_the_header_loads_the_file(file: str) -> None:
    assert commands(file)
    assert file in set().union(*(loaded(token) for token in commands(file)[0] if token in SHIPPED))


@pytest.mark.parametrize("argv", commands("imagenet-resnet50-mae-vit-base"))
def test_mae_recipes_normalise_as_in_pretraining(argv: tuple[str, ...]) -> None:
    args = resolve(*argv)
    pretraining = timm.get_pretrained_cfg("vit_base_patch16_224.mae")
    assert (tuple(args.mean), tuple(args.std)) == (pretraining.mean, pretraining.std)


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in re.findall(r"```\n(.*?)```", re.sub(r" \\\n\s+", " ", DOCUMENT), re.S)
        for line in block.splitlines()
        if re.match(r"\s*(torchrun|run|w2s-train) ", line)
    ],
)
def test_documented_command_is_valid(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = re.sub("^run ", "w2s-train --data-dir DATA --config ", line.strip()).replace("$t", "1")
    args = resolve(*shlex.split(line.partition("w2s-train ")[2]))
    assert args.experiment and args.data_dir


# the rows of the table in hparams/README.md: its five columns
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (ROOT / "hparams" / "README.md").read_text().splitlines()
    if line.startswith("| [")
]


def test_the_table_has_each_file_once() -> None:
    """Names are those of one file each, whichever folder it is in."""
    files = sorted(path.relative_to(ROOT / "hparams") for path in (ROOT / "hparams").rglob("*.*"))
    assert len(files) <= 51 and len(SHIPPED) == len(files) - 1
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in SHIPPED)
    named = [re.fullmatch(r"\[(.+)\]\(\1\.yaml\)", row[0])[1] for row in ROWS]
    assert sorted(f"{name}.yaml" for name in named) == [
        str(file) for file in files if file.suffix == ".yaml"
    ]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table(row: list[str]) -> None:
    """Its command is valid and loads the file, whose header has the same numbers."""
    name, (_, _, expected, hours, command) = row[0].partition("]")[0].rpartition("/")[2], row
    text = " ".join(
        re.sub("^# ?", "", line)
        for line in SHIPPED[name].read_text().splitlines()
        if line[:1] == "#"
    )
    numbers = re.findall(
        r"(?<![\w.])\d[\d.]*(?!\w)",
        f"{re.sub(r'[(].*?[)]', '', expected)} {hours.partition(',')[0]}",
    )
    if "docs/" not in row[2] and not name.startswith("inat2"):  # pages and other files have those
        assert all(
            re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", text) for number in numbers
        ), numbers
    argv = shlex.split(command.strip("`").replace("MODEL", "resnet18"))
    if argv[0].startswith("--"):
        resolve(*argv)
        assert name in set().union(
            *(
                {token} if SHIPPED[name].parent.name == "stages" else loaded(token)
                for token in argv
                if token in SHIPPED
            )
        )


@pytest.mark.parametrize(
    "name", [name for name, path in SHIPPED.items() if path.parent.name == "recipes"]
)
def test_a_recipe_needs_nothing_but_data(name: str) -> None:
    """Whoever teaches is trained by it, or has weights on the Hub."""
    args = resolve("--config", name, "--data-dir", "DATA", "--experiment", "x")
    assert args.model and not args.teacher_checkpoint
    trained = args.protocol and args.weak_config
    fetched = {None if trained else args.teacher, args.model if args.pretrained else None}
    assert all(timm.get_pretrained_cfg(model).hf_hub_id for model in fetched - {None, ""})


# ---------------------------------------------------------------- what it means


@each_command
def test_command_is_valid_and_its_models_can_be_built(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    args = resolve(*argv)
    classes, channels = class_count(args), args.in_chans or 3
    assert args.num_classes in (None, classes)
    for name, size in ((args.model, args.img_size), (args.teacher, args.teacher_img_size)):
        if name:
            kwargs = json.dumps(args.model_kwargs if name == args.model else args.teacher_kwargs)
            assert logits_shape(name, classes or 185, channels, size, kwargs) == (2, classes or 185)


OF_THE_PAPER = [file for file in FILES if file.startswith(("cifar100", "imagenet", "inat"))]
PAIRS = [f for f in OF_THE_PAPER if "paper-adaptconf" in loaded(f)]


def of_pair(pair: str, *variants: str) -> SimpleNamespace:
    return resolve("--config", pair, *variants, "--data-dir", "DATA")


def weights_of(args: SimpleNamespace) -> tuple[float | None, float | None]:
    return args.task_loss_weight, args.distill_loss_weight


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_has_the_loss_of_the_paper(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain = of_pair(pair)
    kwargs = {"temperature": 4.0 if "mae" in pair else 0.5, "kd_temperature": 1.0}
    assert (plain.loss, plain.loss_kwargs, plain.task_loss_weight) == ("adaptconf", kwargs, None)


OF_LOSSES = {
    "kd": {"temperature": 1.0},
    "augconf": {"alpha": 0.5, "ramp": 0.3, "kd_temperature": 1.0},
    "adaptconf": {"temperature": 0.5, "kd_temperature": 1.0},
}


@pytest.mark.parametrize("loss", OF_LOSSES)
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_compose_with_losses(pair: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain, weak = of_pair(pair), of_pair(pair, f"paper-{loss}", "no-ground-truth")
    assert (weak.loss, weak.loss_kwargs) == (loss, OF_LOSSES[loss])
    assert (weak.model, weak.teacher) == (plain.model, plain.teacher)
    assert weights_of(weak) == (0, 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_compose_with_variants(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain, ceiling = of_pair(pair), of_pair(pair, "no-ground-truth", "ceiling")
    assert (ceiling.loss, ceiling.task_loss, ceiling.teacher) == (None, "ce", "")
    assert weights_of(ceiling) == (None, None)
    same = ("model", "lr", "epochs", "dataset")
    assert {name: getattr(ceiling, name) for name in same} == {n: getattr(plain, n) for n in same}


PAPER = """
cifar100-v0  ->  --epochs 240 --batch-size 64 --opt sgd --lr 0.2 --min-lr 2e-3 --warmup-epochs 10 --sched cosine
cifar100-v0  ->  --smoothing 0 --weight-decay 5e-4 --color-jitter 0 --interpolation bilinear --crop-pct 0.875
cifar100-v0  ->  --img-size 32 --mixup 0 --mean .5071 .4865 .4409 --std .2673 .2564 .2762
cifar100-v1  ->  --epochs 240 --lr 0.2 --aa original-mstd0.5 --mixup 0.1 --img-size 32
imagenet-v0  ->  --epochs 100 --batch-size 64 --opt sgd --lr 0.1 --sched step --decay-epochs 30 --decay-rate 0.1
imagenet-v0  ->  --weight-decay 1e-4 --crop-pct 0.95 --smoothing 0.1 --color-jitter 0
imagenet-mae  ->  --epochs 100 --batch-size 128 --opt adamw --lr 2e-3 --layer-decay 0.65 --weight-decay 0.05
imagenet-mae  ->  --warmup-epochs 5 --warmup-lr 1e-4 --min-lr 1e-6 --sched cosine --smoothing 0.1 --drop-path 0.1
imagenet-mae  ->  --mixup 0.8 --cutmix 1.0 --reprob 0.25 --aa rand-m9-mstd0.5-inc1
imagenet-resnet50-mae-vit-base inat2018  ->  --num-classes 8142 --lr 2e-3 --epochs 100 --amp --dataset inat2018
miniimagenet-resnet12-resnet36  ->  --epochs 100 --batch-size 128 --lr 0.1 --decay-milestones 90 --weight-decay 5e-4
miniimagenet-resnet12-resnet36  ->  --num-classes 64 --few-shot-eval 5x1,5x5 --val-split=
miniimagenet-resnet12-resnet36  ->  --loss-kwargs temperature=8.0 kd_temperature=10.0
miniimagenet-meta-resnet12-resnet36  ->  --epochs 20 --train-batches-per-epoch 200 --episodic 5x1:4 --queries 15
miniimagenet-meta-resnet12-resnet36  ->  --lr 1e-3 --weight-decay 5e-4 --sched none
miniimagenet-meta-resnet12-resnet36  ->  --few-shot-eval 5x1,5x5 --few-shot-split validation
miniimagenet-meta-resnet12-resnet36  ->  --loss-kwargs temperature=0.25 kd_temperature=10.0
"""


@pytest.mark.parametrize(("files", "flags"), lines(PAPER))
def test_settings_are_those_of_the_paper(files: str, flags: str) -> None:
    found, _ = parse(train_parser(), ["--config", *files.split()])
    paper, said = parse(train_parser(), flags.split())
    if "-v0" in files:  # the light augmentation
        said.add("aa")
    assert {name: getattr(found, name) for name in said} == {
        name: getattr(paper, name) for name in said
    }


# ---------------------------------------------------------------- what it does


SMALLER = {
    "vit_": dict(depth=1, embed_dim=192),
    r"resnet(18|34|50)(\.|$)": dict(channels=[8, 16, 32, 64]),
    r"cifar_(resnet|vgg)|(resnet|vgg)\d": dict(depths=[1, 1, 1, 1, 1]),
    "cifar_shufflenet": dict(widths=[60, 120, 240]),
    "preact_resnet": dict(depths=[1, 1, 1, 1], widths=[8, 8, 16, 32, 64]),
}


class Images:
    """Generated images, made once for each number of classes; those of a hundred classes in a row differ."""

    def __init__(self, root: Path):
        self.root, rng = root, np.random.default_rng(0)
        self.pictures = []
        for _ in range(100):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            self.pictures.append(encoded(coarse.resize((48, 40)), "jpeg"))

    def tar(self, classes: int, count: int) -> Path:
        """``count`` images of each class in one tar file, which takes less time than thousands of folders."""
        file = self.root / f"{classes}-{count}.tar"
        if not file.exists():
            names = {10: CIFAR10, 100: CIFAR100}.get(classes) or [
                f"class{c:05}" for c in range(classes)
            ]
            write_tar(
                file,
                {
                    f"{name}/{number}.jpg": self.pictures[number % 100]
                    for number, name in enumerate(names * count)
                },
            )
        return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


def data_flags(args: object, images: Images) -> dict[str, object]:
    """Where generated data lie that take the place of a recipe's."""
    classes = class_count(args)
    return dict(
        dataset="", data_dir=str(images.tar(classes, 200 // classes if args.label_noise else 1))
    )


def smaller(name: str) -> dict[str, object]:
    """Constructor arguments that leave little of a large model."""
    return next((kwargs for pattern, kwargs in SMALLER.items() if re.match(pattern, name)), {})


def cheap(args: object) -> dict[str, object]:
    """Flags that bring a recipe down to two steps on a CPU; what the recipe is about stays."""
    flags = dict(
        device="cpu",
        workers=0,
        stop_epoch=1,
        pretrained=False,
        val_split="",
        no_teacher_eval=True,
        experiment="run",
        batch_size=2,
        train_slice="0:4",
        model_kwargs=smaller(args.model),
        teacher_kwargs=smaller(args.teacher or ""),
    )
    if args.label_noise:
        flags.update(
            train_slice=None,
            batch_size=16,
            clean_select=args.clean_select and "knn:1",
            img_size=16,
            teacher_img_size=16,
        )
    if args.img_size is None and not args.model.startswith("vit"):
        flags.update(img_size=64)
    return flags


def write_weights(
    path: str, name: str, classes: int, channels: int, size: int | None, published: bool
) -> None:
    """Weights for a flag that names a file or a run folder; as ``published``, without classifier."""
    model = create_model(
        "--model",
        name,
        pretrained=False,
        inputs=dict(in_chans=channels, img_size=size),
        num_classes=classes,
        **smaller(name),
    )
    state = model.state_dict()
    if published:
        state = {k: v for k, v in state.items() if not k.startswith(("head.", "fc."))}
    file = Path(path) if Path(path).suffix else Path(path) / "last.pth.tar"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state} if published else {"state_dict": state}, file)


@pytest.mark.parametrize("argv", TRAINED, ids=[COMMANDS[argv] for argv in TRAINED])
def test_two_steps(argv: tuple[str, ...], here: Callable[..., Done], images: Images) -> None:  # noqa: F811
    args = resolve(*argv)
    classes, channels = class_count(args), args.in_chans or 3
    flags = {**cheap(args), **data_flags(args, images)}
    size = flags.get("img_size", args.img_size)
    weights = args.teacher_checkpoint or ("hub.pth" if args.teacher else None)
    if weights:
        flags["teacher_checkpoint"] = weights
        teacher_size = flags.get(
            "teacher_img_size", size if args.teacher.startswith("vit") else None
        )
        flags["teacher_img_size"] = teacher_size
        write_weights(weights, args.teacher, classes, channels, teacher_size, published=False)
    for path in (args.finetune, args.initial_checkpoint):
        if path:
            write_weights(
                path, args.model, classes, channels, size, published=path == args.finetune
            )
    Path("cheap.yaml").write_text(yaml.safe_dump(flags))
    typed = [f for f in argv if f not in ("DATA", "DIR", "--data-dir", "--dataset-download")]
    here(*typed, "--config", "cheap.yaml", "--experiment", "run").ok()
    run = Path("output/train/run")
    trained = [e for e in read_lines(run / "metrics.jsonl") if e["event"] == "train"]
    assert trained[-1]["update"] >= 1
    terms = set(trained[-1]["terms"]) - {"loss"}
    if args.teacher:
        assert len(terms - {"task"}) > 0 and ("task" in terms) == (args.task_loss_weight != 0)
    config = yaml.safe_load((run / "export" / "config.json").read_text())
    assert config["num_classes"] == classes


def test_the_ceiling_of_the_recipe_is_trained_as_direct() -> None:
    """With true labels, as the student is that learns from the user's own; and those who use the recipe get it."""
    _, _, direct, *_ = yaml.safe_load(SHIPPED["weak-labels-plus-few-true"].read_text())
    ceiling = yaml.safe_load(SHIPPED["weak-labels-ceiling"].read_text())
    own = ("name", "tune_by", "unlabeled", "teacher", "val_interval")
    assert ceiling == {flag: value for flag, value in direct.items() if flag not in own}
    args, _ = parse(train_parser(), ["--config", "weak-labels", "--teacher", "resnet18"])
    assert args.ceiling_config == ["weak-labels-ceiling"]


def test_candidates_are_the_recipe_for_other_parts() -> None:
    """Each of them but the probe."""
    _, *others, usual, student, end = yaml.safe_load(SHIPPED["weak-labels-candidates"].read_text())
    recipe = yaml.safe_load(SHIPPED["weak-labels"].read_text())
    own = ("name", "tune", "lr", "epochs", "for_transformers", "ceiling_config")
    same = {flag: value for flag, value in recipe.items() if flag not in own}
    last = others[0]
    half = dict(select_split=0.5, select="last", val_interval=30)
    for stage in others:
        assert {flag: value for flag, value in stage.items() if flag not in own} == same | half
    assert [last[flag] for flag in own[1:4]] == [recipe[flag] for flag in own[1:4]]
    # who learns all labels is the recipe itself until the others have measured themselves
    assert student.pop("tune_by") == ["last", "adapters", "all"]
    del student["name"], recipe["ceiling_config"]
    assert student == recipe == without(usual, ["name", "unless_same"])
    assert (usual["name"], usual["unless_same"]) == ("recipe", "student")
    assert end == {"audit": ["probe", "last", "adapters", "all", "recipe", "student"]}
    # beside few true labels it stands too, without them
    _, _, _, alone, _ = yaml.safe_load(SHIPPED["weak-labels-plus-few-true"].read_text())
    assert alone == {"name": "recipe", "unless_same": "student", **recipe}
