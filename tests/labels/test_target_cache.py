"""Cached targets: by which key they are found, what the teacher is shown, when they are refused."""

import dataclasses
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.parts import (
    Armed,
    assert_refused,
    flags_in,
    random_images,
    refusal,
    small_model,
    train_settings,
    write_folder,
)
from w2s_plugins.data import LoaderSettings, create_eval_loader
from w2s_plugins.distributed.world import World
from w2s_plugins.labels.store import Manifest
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.teachers import stored
from w2s_plugins.teachers.stored import CachedTargets
from w2s_plugins.teachers.teacher import Teacher
from w2s_plugins.training.data import build_data
from w2s_plugins.training.device import create_precision
from w2s_plugins.training.loaders import answer_store, build_loaders, student_views
from w2s_plugins.training.splits import Data
from w2s_plugins.training.student import build_student
from w2s_plugins.training.teacher import build_teacher, cached_targets

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- the key


@dataclasses.dataclass
class Parts:
    """What `build` makes of some flags."""

    settings: TrainSettings
    data: Data
    teacher: Teacher
    data_config: dict
    precision: object
    world: World

    def manifest(self) -> Manifest:
        """What is to be stored of the teacher, which is not asked."""
        stopped = pytest.raises(InterruptedError)
        with (
            mock.patch.object(stored, "ensure_labels", side_effect=InterruptedError) as store,
            stopped,
        ):
            self.targets()
        return store.call_args.args[1]

    def targets(self) -> CachedTargets:
        settings = self.settings
        views = student_views(settings, self.data_config, self.precision, self.world)
        store = answer_store(settings.data, settings.teacher.target_cache, self.world)
        return cached_targets(
            settings.teacher,
            self.teacher,
            self.data,
            "train",
            store,
            views,
        )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of weights of a w2s_cnn5 with its own batch norm statistics."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (1, 2):
        model = small_model(seed, "w2s_cnn5")
        model(random_images())
        torch.save(model.state_dict(), folder / f"{seed}.pth")
    return folder


@pytest.fixture
def make(weights: Path, tmp_path: Path):
    def make(*flags: object, rank: int = 0, size: int = 1, **kwargs: str) -> Parts:
        settings = train_settings(
            f"--teacher w2s_cnn5 --teacher-checkpoint {weights}/1.pth --model w2s_cnn2 --img-size 16",
            f"--batch-size 16 --target-cache {tmp_path}/targets --teacher-targets cached",
            *flags,
            **kwargs,
        )
        world = World(CPU, rank, size, size > 1)
        data = build_data(settings)
        student, data_config, *_ = build_student(settings, world, data.num_classes)
        precision = create_precision(settings.compute, world)
        teacher = build_teacher(settings, student, data_config, precision)
        return Parts(settings, data, teacher, data_config, precision, world)

    return make


VIEWS = "--teacher-targets cached-views:2"


OF_WHOLE_IMAGES = """
--train-slice 0:600 | --teacher-checkpoint {weights}/2.pth | --teacher-img-size 24 | --teacher-cache-dtype float32
"""


OF_VIEWS = """
--teacher-targets cached-views:3 | --seed 1 | --no-aug | --scale 0.5 1 | --ratio 1 1 | --hflip 0 | --vflip 0.1
--color-jitter 0.1 | --color-jitter-prob 0.5 | --grayscale-prob 0.1 | --gaussian-blur-prob 0.1 | --aa rand-m9
--train-interpolation bilinear | --train-crop-mode rkrc | --reprob 0.1 | --remode rand | --recount 2 | --mean 0.4
--std 0.4 | --img-size 8 | --no-prefetcher | --model-dtype bfloat16
"""


@pytest.mark.parametrize(
    "base, change",
    [
        *(("--seed 42", change) for change in [*flags_in(OF_WHOLE_IMAGES), VIEWS]),
        ("--train-slice 0:600", "--train-slice 597:"),
        *((VIEWS, change) for change in flags_in(OF_VIEWS)),
    ],
)
def test_key_changes_with(make, weights: Path, base: str, change: str) -> None:
    first, second = make(base), make(base, change.format(weights=weights))
    assert first.manifest().key == make(base).manifest().key
    assert first.manifest().key != second.manifest().key


@pytest.mark.parametrize(
    "flags, differ",
    [
        ("--reprob 0.1", True),
        ("--reprob 0.1 --remode rand", True),
        ("--reprob 0", False),
        ("--reprob 0.1 --remode const", False),
        ("--reprob 0.1 --no-prefetcher", False),
    ],
)
def test_key_changes_with_the_device_that_fills_erased_parts(
    make, flags: str, differ: bool
) -> None:
    here = make(VIEWS, flags)
    there = dataclasses.replace(here, world=World(torch.device("cuda"), 0, 1, False))
    assert (here.manifest().key != there.manifest().key) == differ


@pytest.mark.parametrize(
    "base, change",
    [
        (VIEWS, "--model w2s_cnn5 --loss kd --epochs 7 --lr 1 --batch-size 8"),
        ("--seed 42", "--seed 1 --hflip 0 --reprob 0.2 --img-size 8"),
    ],
)
def test_another_student_and_what_it_sees_find_the_same_cache(make, base: str, change: str) -> None:
    """What the student sees does not matter where the teacher is asked about whole images."""
    assert make(base).manifest().key == make(base, change).manifest().key


def test_key_changes_with_the_pixels_of_files_of_the_same_names(make, tmp_path: Path) -> None:
    def key(folder: str) -> str:
        return make(f"--data-dir {tmp_path / folder}", dataset="").manifest().key

    write_folder(tmp_path / "a", {"train": 30, "validation": 30}, classes=10)
    first = key("a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert key("b") == first  # moved
    one, other = (tmp_path / "b" / "train" / "class3" / f"{i:03}.jpg" for i in (3, 13))
    one.write_bytes(other.read_bytes())
    assert key("b") != first


def test_the_same_weights_in_another_file_are_the_same_teacher(
    make, tmp_path: Path, weights: Path
) -> None:
    copy = tmp_path / "copy.pth.tar"
    torch.save({"state_dict": torch.load(weights / "1.pth", weights_only=True)}, copy)
    assert make(f"--teacher-checkpoint {copy}").manifest().key == make().manifest().key


# ---------------------------------------------------------------- what the teacher is shown


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_labelled_once_through_the_teachers_own_transform(
    make, workers: int
) -> None:
    parts = make(
        "--teacher-cache-dtype float32 --train-slice 0:300 --teacher-img-size 24 --workers", workers
    )
    parts.data.train.transform = before = object()
    targets = parts.targets()
    assert parts.data.train.transform is before
    (member,) = parts.teacher.members
    settings = LoaderSettings(batch_size=16, workers=0, device=CPU)
    loader = create_eval_loader(parts.data.train, member.data_config, settings)
    expected = torch.cat([member(images) for images, _ in loader])
    assert expected.std(dim=0).min() > 0
    index = torch.randperm(300)
    torch.testing.assert_close(targets(index), expected[index], rtol=0, atol=1e-5)


CASES = {
    "crop and flip": "--seed 42",
    "colour": "--aa rand-m9-mstd0.5-inc1 --color-jitter-prob 0.5",
    "erasing": "--reprob 0.7 --remode pixel",
    "erasing in the workers": "--reprob 0.7 --no-prefetcher",
    "workers": "--workers 2 --reprob 0.5",
    "channels_last and another size": "--teacher-img-size 24",
}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_cached_views_are_what_a_teacher_beside_the_student_says(make, flags: str) -> None:
    """To the last bit, in the epochs that were cached and in those that repeat them, in any memory layout."""
    parts = make(VIEWS, "--teacher-cache-dtype float32 --train-slice 0:300", flags)
    layout = torch.channels_last if "size" in flags else torch.contiguous_format
    targets = parts.targets()
    loader = build_loaders(
        parts.settings, parts.data, parts.data_config, parts.precision, parts.world
    )["train"]
    views = []
    for epoch in range(4):
        targets.set_epoch(epoch)
        seen = {}
        for batch in loader.epoch(epoch):
            images = batch.input.contiguous(memory_format=layout)
            assert torch.equal(targets(batch.index), parts.teacher(images))
            seen.update(zip(batch.index.tolist(), images))
        views.append(seen)
    assert len({tuple(seen) for seen in views}) == 4  # orders of their own

    def same(first: int, second: int) -> bool:
        common = views[first].keys() & views[second].keys()
        assert len(common) > 200
        return all(torch.equal(views[first][i], views[second][i]) for i in common)

    assert same(0, 2) and same(1, 3) and not same(0, 1)


def test_several_teachers_have_a_cache_each(make, weights: Path) -> None:
    alone = make("--teacher-cache-dtype float32").targets()
    both = make(
        "--teacher-cache-dtype float32 --teacher w2s_cnn5,w2s_cnn5",
        f"--teacher-checkpoint {weights}/2.pth,{weights}/1.pth",
    ).targets()
    assert both.record[1] == alone.record[0] != both.record[0]
    index = torch.tensor([5, 0, 1100])
    members = both.by_member(index)
    assert torch.equal(members[1], alone(index)) and not torch.equal(members[0], members[1])
    torch.testing.assert_close(both(index).softmax(1), members.softmax(2).mean(0))


# ---------------------------------------------------------------- found again, refused, made anew


def test_error_and_size_are_logged_and_a_second_run_finds_the_cache(
    make, caplog, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    first = make().targets()
    assert "logits of 1197 images in 1 view(s) are computed; 5 part(s) to write" in caplog.text
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 5
    exact = make("--teacher-cache-dtype float32").targets()
    index = torch.arange(1197)
    difference = (exact(index).softmax(1) - first(index).softmax(1)).abs().double()
    assert 0 < difference.max() < 2e-3
    caplog.clear()
    again = make("--loss kd --model w2s_cnn5").targets()
    found = f"Teacher targets found in {again.readers[0].folder}: the teacher need not run"
    assert found in caplog.text
    assert torch.equal(again(index), first(index))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def damage(how: str, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped bit":
        content[-5] ^= 1
    elif how == "truncated":
        content = content[:-100]
    elif how == "torch pickle":
        return torch.save(Armed("ran"), file)
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "torch pickle"])
def test_damaged_part_is_refused_never_unpickled_and_made_anew_once_deleted(
    make, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = make()
    expected = parts.targets()(torch.arange(1197))
    file = sorted(tmp_path.rglob("*.safetensors"))[2]
    damage(how, file)
    message = refusal(parts.targets)
    assert str(file) in message and "delete this file" in message
    assert ("checksum" in message) == (how == "flipped bit")
    assert not Path("ran").exists()
    file.unlink()
    assert torch.equal(parts.targets()(torch.arange(1197)), expected)


def test_damage_of_a_later_view_is_found_before_it_is_used(make, tmp_path: Path) -> None:
    targets = make(VIEWS).targets()
    file = sorted(tmp_path.rglob("view001*.safetensors"))[0]
    damage("flipped bit", file)
    targets.set_epoch(2)
    assert_refused(f"{file.name}: .*its checksum", targets.set_epoch, 1)
