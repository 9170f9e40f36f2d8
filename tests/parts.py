"""Small real objects that several tests share."""

import io
import json
import random
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.data import TrainLoader, create_dataset, create_train_loader
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.errors import UserError
from w2s_plugins.labels.store import Answers, LabelReader, Manifest, ensure_labels
from w2s_plugins.labels.table import LabelRows, open_table
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.teachers.stored import CachedTargets
from w2s_plugins.training.loaders import loader_settings, train_views

SPECIES = ["Acris crepitans", "Bufo bufo", "Hyla arborea", "Rana dalmatina"]


def words(*flags: object) -> list[str]:
    """The words of a command line; a text that begins with a flag is flags with their values, as they are typed."""
    return [
        word
        for flag in flags
        for word in (shlex.split(str(flag)) if re.match(r"--[\w-]+ ", str(flag)) else [str(flag)])
    ]


def train_settings(*argv: object, dataset: str = "w2s/digits") -> TrainSettings:
    """The settings of train_w2s.py on a CPU."""
    flags = words("--device cpu --workers 0 --dataset", dataset, *argv)
    return resolve_train_args(*parse(train_parser(), flags))


def default_settings(**flags: object) -> TrainSettings:
    """The settings that flags come to as they are, beside defaults for all others."""
    return TrainSettings.from_flags(train_parser().defaults() | flags)


def train_loader(
    dataset: Dataset,
    settings: TrainSettings,
    data_config: dict,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
    labelled: Dataset | None = None,
) -> TrainLoader:
    """The training loader of a run with these flags, on a CPU."""
    world = World(torch.device("cpu"), rank, world_size, world_size > 1)
    return create_train_loader(
        dataset,
        train_views(settings, data_config, settings.data.num_classes),
        data_config,
        loader_settings(settings.data, Precision(world.device, dtype), world),
        labelled_set=labelled,
    )


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    """The one line that a call ends with."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_says(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


def assert_refused(
    message: str, call: Callable[..., object], *args: object, **kwargs: object
) -> None:
    """A call ends with one line in which a regular expression is found."""
    said = refusal(call, *args, **kwargs)
    assert re.search(message, said), said


def read_label_table(path: Path, *args: object, **kwargs: object) -> LabelRows:
    """What a file of labels says; arguments as of `TableFile.labels`."""
    return open_table(path).labels(*args, **kwargs)


def calm(call: Callable[..., object], *args: object) -> object:
    """What a call returns, None where it ends in one line; anything else is an error of the test."""
    try:
        return call(*args)
    except UserError as error:
        assert str(error) and "\n" not in str(error), error
        return None


def data_config(size: int, **changes: object) -> dict:
    """timm's configuration of a model's input."""
    return (
        dict(
            input_size=(3, size, size),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            interpolation="bilinear",
            crop_pct=1.0,
            crop_mode="center",
        )
        | changes
    )


def change_json(path: Path, **changes: object) -> None:
    """Change a file; a mapping is merged into what is there."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = (
            {**content[key], **value} if isinstance(value, dict) and key in content else value
        )
    path.write_text(json.dumps(content))


class Armed:
    """Makes a file when it is unpickled."""

    def __init__(self, file: str | Path):
        self.file = Path(file)

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def small_model(seed: int = 0, name: str = "w2s_cnn2", num_classes: int = 10) -> nn.Module:
    """A network of a few thousand parameters, with batch norm."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes)


def random_images(count: int = 8, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def student_and_teacher() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Two networks in eval mode, a batch of images and its labels."""
    return tuple(small_model(seed, "test_resnet").eval() for seed in (0, 1)) + (
        random_images(),
        torch.arange(8),
    )


def write_folder(
    root: Path, counts: dict[str, int], classes: int = 3, size: tuple[int, int] = (48, 40)
) -> Path:
    """A folder of coloured JPEGs: ``counts`` images in each split, their classes in turn."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            folder = root / split / f"class{i % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)
    return root


def write_digits(count: int, place: Callable[[int, int], Path | None]) -> None:
    """Write digits as images, each into the folder that there is for its number and label."""
    digits = create_dataset("w2s/digits", None, "train")
    for number in range(count):
        image, label = digits[number]
        if folder := place(number, label):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def write_list(root: Path, file: str, folder: str, /, **changes: object) -> dict:
    """A list in iNaturalist's form, with all its fields, of the images in the class folders of ``folder``."""
    paths = sorted(p.relative_to(root).as_posix() for p in (root / folder).rglob("*.jpg"))
    random.Random(0).shuffle(paths)
    content = dict(
        info=dict(year=2018),
        licenses=[],
        images=[
            dict(
                id=900 + i,
                width=48,
                height=40,
                file_name=p,
                license=1,
                rights_holder="x",
                latitude=float("nan"),
                date="2018-01-01",
            )
            for i, p in enumerate(paths)
        ],
        annotations=[
            dict(id=i, image_id=900 + i, category_id=int(p.split("/")[-2][-1]))
            for i, p in reversed(list(enumerate(paths)))
        ],
        categories=[
            dict(id=i, name=n, supercategory="Amphibia")
            for i, n in reversed(list(enumerate(SPECIES)))
        ],
    )
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps({**content, **changes}))
    return content


def store_targets(root: Path, members: Tensor, **settings: object) -> CachedTargets:
    """Write the logits (M, N, C) of some models, and open them."""
    folders = [
        store_labels(root / str(number), logits, who={"member": number}, **settings)
        for number, logits in enumerate(members)
    ]
    return CachedTargets([LabelReader(folder) for folder in folders], torch.device("cpu"))


def store_labels(
    folder: Path,
    answers: Tensor,
    keys: SampleKeys | None = None,
    classes: int | None = None,
    missing: Sequence[int] = (),
    **settings: object,
) -> Path:
    """Write the answers (N, ...) of somebody about the samples with some keys."""
    keys = keys or SampleKeys("index", range(len(answers)))
    manifest = Manifest(
        len(answers),
        classes or answers.shape[1],
        keyed_by=keys.by,
        keys_sha256=keys.sha256,
        **{"who": {}, "seen": {}, "dtype": torch.float32, **settings},
    )
    ensure_labels(
        folder,
        manifest,
        keys,
        lambda parts: (
            Answers(answers[p.first : p.stop], [i for i in missing if p.first <= i < p.stop])
            for p in parts
        ),
    )
    return folder


def lines(table: str) -> list[tuple[str, str]]:
    """Return what is wrong, and what is said of it, of each line of a table."""
    rows = [line for line in table.splitlines() if line and not line.startswith("#")]
    return [tuple(part.strip() for part in row.split("  ->  ")) for row in rows]


def flags_in(text: str) -> list[str]:
    """Return the commands of a text, several on a line with | between them."""
    return [flags.strip() for line in text.strip().splitlines() for flags in line.split(" | ")]
