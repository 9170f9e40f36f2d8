"""Cached targets: what is stored, by which key it is found, how it is written, refused and read."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parts import random_images, small_model, store_targets, train_args, write_folder
from w2s_plugins.build.data import build_data
from w2s_plugins.build.device import create_precision
from w2s_plugins.build.loaders import build_loaders
from w2s_plugins.build.student import build_student
from w2s_plugins.build.teacher import build_teacher, cache_spec, cached_targets
from w2s_plugins.data import LoaderSettings, create_eval_loader
from w2s_plugins.distributed.world import World, agree
from w2s_plugins.errors import UserError
from w2s_plugins.labels.cache import (
    CachedTargets,
    CacheSpec,
    Labelled,
    Part,
    PartKeys,
    TargetReader,
    ensure_cache,
    missing_parts,
    readable,
    write_part,
)
from w2s_plugins.labels.splits import Data
from w2s_plugins.teachers.teacher import Teacher, combine

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def logits_of(*shape: int, scale: float = 5.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- what is stored


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 1e4), st.integers(0, 99))
def test_float32_is_exact_and_float16_within_its_rounding(classes: int, scale: float, seed: int) -> None:
    logits = logits_of(7, classes, scale=scale, seed=seed)
    exact = CacheSpec({}, 7, classes, dtype=torch.float32)
    assert torch.equal(exact.decode(exact.encode(logits)), logits)
    half = CacheSpec({}, 7, classes)
    found = half.decode(half.encode(logits))
    error = (logits.abs() * 2.0 ** -11).clamp(min=2.0 ** -25)  # half a unit in the last of 11 places; or subnormal
    assert ((found - logits).abs() <= error).all()
    bound = (2 * error.max()).expm1() + 1e-6  # logits off by e change a probability by a factor of exp(2 e) at most
    assert (found.softmax(1) - logits.softmax(1)).abs().max() <= bound


def test_logits_beyond_half_precision_stay_finite() -> None:
    spec = CacheSpec({}, 1, 3)
    assert spec.decode(spec.encode(torch.tensor([[1e6, -1e6, -1e4]]))).tolist() == [[65504.0, -65504.0, -1e4]]


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 40), st.integers(1, 39), st.integers(0, 99))
def test_topk_keeps_the_largest_probabilities_and_spreads_the_rest(classes: int, k: int, seed: int) -> None:
    k = min(k, classes - 1)
    logits = logits_of(6, classes, seed=seed)
    spec = CacheSpec({}, 6, classes, dtype=torch.float32, topk=k)
    found, expected = spec.decode(spec.encode(logits)).softmax(1), logits.softmax(1)
    for row, whole in zip(found, expected):
        order = whole.argsort(descending=True)
        torch.testing.assert_close(row[order[:k]], whole[order[:k]], rtol=1e-5, atol=1e-7)
        rest = whole[order[k:]]
        torch.testing.assert_close(row[order[k:]], rest.mean().expand_as(rest), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes, dtype", [(32768, torch.int16), (32769, torch.int32)])
def test_indices_of_many_classes(classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, classes)
    logits[0, -1] = 9.0
    spec = CacheSpec({}, 1, classes, topk=1)
    tensors = spec.encode(logits)
    assert tensors["indices"].dtype == dtype
    assert spec.decode(tensors).argmax() == classes - 1


@pytest.mark.parametrize("k", [0, -1, 10, 11])
def test_topk_out_of_range(k: int) -> None:
    with pytest.raises(UserError, match=f"--teacher-topk {k}: expected 1 to 9"):
        CacheSpec({}, 5, 10, topk=k)


@pytest.mark.parametrize("settings", [{}, {"topk": 4}, {"dtype": torch.float16}, {"dtype": torch.float16, "topk": 4}])
def test_size_that_is_announced_is_the_size_of_the_files(tmp_path: Path, settings: dict) -> None:
    targets = store_targets(tmp_path, logits_of(1, 700, 30), **settings)
    (reader,) = targets.readers
    found = sum(path.stat().st_size for path in reader.folder.glob("*.safetensors"))
    assert 0 <= found - 700 * reader.spec.row_bytes < 3 * 600  # a header for each of three files


@pytest.mark.parametrize("topk", [None, 3])
def test_rows_are_read_in_the_order_asked_for(tmp_path: Path, topk: int | None) -> None:
    members = logits_of(2, 1000, 10)
    targets = store_targets(tmp_path, members, topk=topk)
    spec = targets.readers[0].spec
    expected = torch.stack([spec.decode(spec.encode(logits)) for logits in members])
    index = torch.tensor([999, 0, 256, 255, 700, 3, 256, 511])
    assert torch.equal(targets.by_member(index), expected[:, index])
    assert torch.equal(targets(index), combine(list(expected))[index])
    (one,) = store_targets(tmp_path / "one", members[:1]).readers
    assert torch.equal(CachedTargets([one], CPU)(index), members[0, index])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_files_are_mapped_not_copied(tmp_path: Path) -> None:
    def own_kilobytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    store_targets(tmp_path, torch.zeros(1, 50000, 400))
    spec = CacheSpec({"member": 0}, 50000, 400, dtype=torch.float32)  # 80 MB
    before, files = own_kilobytes(), len(os.listdir("/proc/self/fd"))
    reader = TargetReader(tmp_path / "0", spec)
    for start in range(0, 50000, 10000):
        reader(torch.arange(start, start + 100), CPU)
    assert own_kilobytes() - before < 10000
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(reader.parts) > 50


# ---------------------------------------------------------------- the key


@dataclass
class Parts:
    """What `build` makes of some flags."""

    args: object
    data: Data
    teacher: Teacher
    data_config: dict
    precision: object
    world: World

    def spec(self) -> CacheSpec:
        return cache_spec(self.args, self.teacher.members[0], self.data, self.data_config, self.precision)

    def targets(self) -> CachedTargets:
        return cached_targets(self.args, self.teacher, self.data, self.data_config, self.precision, self.world)


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
        args = train_args(
            "--teacher", "w2s_cnn5", "--teacher-checkpoint", str(weights / "1.pth"), "--model", "w2s_cnn2",
            "--img-size", "16", "--batch-size", "16", "--target-cache", str(tmp_path / "targets"), "--teacher-targets",
            "cached", *map(str, flags), **kwargs)
        world = World(CPU, rank, size, size > 1)
        data = build_data(args)
        student, data_config, _ = build_student(args, world)
        precision = create_precision(args, world)
        return Parts(args, data, build_teacher(args, student, data_config, precision, world), data_config,
                     precision, world)
    return make


VIEWS = ("--teacher-targets", "cached-views:2")


@pytest.mark.parametrize("base, change", [
    ((), ("--train-slice", "0:600")),
    (("--train-slice", "0:600"), ("--train-slice", "597:")),
    ((), ("--teacher-checkpoint", "{weights}/2.pth")),
    ((), ("--teacher-img-size", "24")),
    ((), ("--teacher-dtype", "bfloat16")),
    ((), ("--teacher-class-map", "{weights}/map.json")),
    ((), ("--teacher-cache-dtype", "float32")),
    ((), ("--teacher-topk", "3")),
    (("--teacher-topk", "3"), ("--teacher-topk", "4")),
    ((), VIEWS),
    (VIEWS, ("--teacher-targets", "cached-views:3")),
    *((VIEWS, change) for change in (
        ("--seed", "1"), ("--no-aug",), ("--scale", "0.5", "1"), ("--ratio", "1", "1"), ("--hflip", "0"),
        ("--vflip", "0.1"), ("--color-jitter", "0.1"), ("--color-jitter-prob", "0.5"), ("--grayscale-prob", "0.1"),
        ("--gaussian-blur-prob", "0.1"), ("--aa", "rand-m9"), ("--train-interpolation", "bilinear"),
        ("--train-crop-mode", "rkrc"), ("--reprob", "0.1"), ("--remode", "rand"), ("--recount", "2"),
        ("--mean", "0.4"), ("--std", "0.4"), ("--img-size", "8"), ("--no-prefetcher",), ("--model-dtype", "bfloat16"))),
])
def test_key_changes_with(make, weights: Path, base: tuple, change: tuple) -> None:
    (weights / "map.json").write_text(json.dumps([1, 0, *range(2, 10)]))
    first, second = make(*base), make(*base, *(part.format(weights=weights) for part in change))
    assert first.spec().key == make(*base).spec().key
    assert first.spec().key != second.spec().key


@pytest.mark.parametrize("base", [("--teacher-targets", "cached"), VIEWS])
@pytest.mark.parametrize("change", [
    ("--model", "w2s_cnn5"), ("--loss", "kd"), ("--epochs", "7"), ("--lr", "1"), ("--batch-size", "8"),
    ("--workers", "1"), ("--task-loss-weight", "0"), ("--opt", "adamw")])
def test_another_loss_or_student_finds_the_same_cache(make, base: tuple, change: tuple) -> None:
    assert make(*base).spec().key == make(*base, *change).spec().key


@pytest.mark.parametrize("change", [("--seed", "1"), ("--hflip", "0"), ("--reprob", "0.2"), ("--img-size", "8")])
def test_labels_of_whole_images_do_not_depend_on_the_views(make, change: tuple) -> None:
    assert make().spec().key == make(*change).spec().key


def test_key_changes_with_the_pixels_of_files_of_the_same_names(make, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"train": 30, "validation": 30}, classes=10)
    flags = ("--data-dir", tmp_path / "a")
    first = make(*flags, dataset="").spec()
    (tmp_path / "a").rename(tmp_path / "b")
    assert make("--data-dir", tmp_path / "b", dataset="").spec().key == first.key  # moved
    one, other = (tmp_path / "b" / "train" / "class3" / f"{i:03}.jpg" for i in (3, 13))
    one.write_bytes(other.read_bytes())
    assert make("--data-dir", tmp_path / "b", dataset="").spec().key != first.key


def test_the_same_weights_in_another_file_are_the_same_teacher(make, tmp_path: Path, weights: Path) -> None:
    state = torch.load(weights / "1.pth", weights_only=True)
    torch.save({"state_dict": state}, tmp_path / "copy.pth.tar")
    assert make("--teacher-checkpoint", tmp_path / "copy.pth.tar").spec().key == make().spec().key


# ---------------------------------------------------------------- what the teacher is shown


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_labelled_once_through_the_teachers_own_transform(make, workers: int) -> None:
    parts = make("--teacher-cache-dtype", "float32", "--workers", workers, "--train-slice", "0:300",
                 "--teacher-img-size", 24)
    parts.data.train.transform = before = object()
    targets = parts.targets()
    assert parts.data.train.transform is before
    (member,) = parts.teacher.members
    loader = create_eval_loader(
        parts.data.train, member.data_config, LoaderSettings(batch_size=16, workers=0, device=CPU))
    expected = torch.cat([member(images) for images, _ in loader])
    assert expected.std(dim=0).min() > 0
    index = torch.randperm(300)
    found = targets(index)

    torch.testing.assert_close(found, expected[index], rtol=0, atol=1e-5)


CASES = {
    "crop and flip": (),
    "colour": ("--aa", "rand-m9-mstd0.5-inc1", "--color-jitter-prob", "0.5"),
    "erasing": ("--reprob", "0.7", "--remode", "pixel"),
    "erasing in the workers": ("--reprob", "0.7", "--no-prefetcher"),
    "workers": ("--workers", "2", "--reprob", "0.5"),
    "channels_last": ("--channels-last",),
}


@pytest.mark.parametrize("case", CASES)
def test_cached_views_are_what_a_teacher_beside_the_student_says(make, case: str) -> None:
    """To the last bit, in the epochs that were cached and in those that repeat them."""
    parts = make(*VIEWS, "--teacher-cache-dtype", "float32", "--train-slice", "0:300", *CASES[case])
    targets = parts.targets()
    loader = build_loaders(parts.args, parts.data, parts.data_config, parts.precision, parts.world)["train"]
    orders, views = [], []
    for epoch in range(4):
        targets.set_epoch(epoch)
        seen = {}
        for batch in loader.epoch(epoch):
            images = batch.input
            if parts.args.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            assert torch.equal(targets(batch.index), parts.teacher(images))
            seen.update(zip(batch.index.tolist(), images))
        orders.append(list(seen))
        views.append(seen)
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    for first, second, same in ((0, 2, True), (1, 3, True), (0, 1, False)):
        common = views[first].keys() & views[second].keys()
        assert len(common) > 200
        assert all(torch.equal(views[first][i], views[second][i]) for i in common) == same


def test_several_teachers_have_a_cache_each(make, weights: Path) -> None:
    alone = make("--teacher-cache-dtype", "float32").targets()
    parts = make("--teacher-cache-dtype", "float32", "--teacher", "w2s_cnn5,w2s_cnn5", "--teacher-checkpoint",
                 f"{weights / '2.pth'},{weights / '1.pth'}")
    both = parts.targets()
    assert both.record[1] == alone.record[0] != both.record[0]
    index = torch.tensor([5, 0, 1100])
    members = both.by_member(index)
    assert torch.equal(members[1], alone(index)) and not torch.equal(members[0], members[1])
    torch.testing.assert_close(both(index).softmax(1), members.softmax(2).mean(0))


# ---------------------------------------------------------------- found again, refused, made anew


def test_error_and_size_are_logged_and_a_second_run_finds_the_cache(make, caplog, tmp_path: Path) -> None:
    caplog.set_level("INFO")
    parts = make("--teacher-topk", 3)
    first = parts.targets()
    assert "1197 images, 10 classes, top 3, float16: 16.8 kB to write" in caplog.text and " free)" in caplog.text
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 5
    exact = make("--teacher-cache-dtype", "float32").targets()
    index = torch.arange(1197)
    difference = (exact(index).softmax(1) - first(index).softmax(1)).abs().double()
    largest, mean = first.readers[0].errors[0]
    assert largest == pytest.approx(difference.max().item(), rel=1e-5)
    assert mean == pytest.approx(difference.mean().item(), rel=1e-5)
    assert 0 < mean < largest
    assert exact.readers[0].errors[0] == (0.0, 0.0)
    assert f"differ from the teacher's by {largest:.2g} at most, {mean:.2g} in the mean" in caplog.text
    caplog.clear()
    again = make("--teacher-topk", 3, "--loss", "kd", "--model", "w2s_cnn5").targets()
    assert f"Teacher targets found in {again.readers[0].folder}: the teacher need not run" in caplog.text
    assert torch.equal(again(index), first(index))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def refused(parts: Parts) -> str:
    with pytest.raises(UserError) as error:
        parts.targets()
    assert "\n" not in str(error.value)
    return str(error.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def damage(how: str, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped bit":
        content[-5] ^= 1
    elif how == "truncated":
        content = content[:-100]
    elif how == "empty":
        content = b""
    elif how == "pickle":
        content = pickle.dumps(Bomb())
    elif how == "torch pickle":
        return torch.save(Bomb(), file)
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "empty", "pickle", "torch pickle"])
def test_damaged_part_is_refused_never_unpickled_and_made_anew_once_deleted(
        make, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = make()
    expected = parts.targets()(torch.arange(1197))
    file = sorted(tmp_path.rglob("*.safetensors"))[2]
    damage(how, file)
    message = refused(parts)
    assert str(file) in message and "delete this file" in message
    assert ("checksum" in message) == (how == "flipped bit")
    assert not Path("ran").exists()
    file.unlink()
    assert torch.equal(parts.targets()(torch.arange(1197)), expected)


def test_damage_of_a_later_view_is_found_before_it_is_used(make, tmp_path: Path) -> None:
    targets = make(*VIEWS).targets()
    file = sorted(tmp_path.rglob("view001*.safetensors"))[0]
    damage("flipped bit", file)
    targets.set_epoch(2)
    with pytest.raises(UserError, match=f"{file.name}: its checksum"):
        targets.set_epoch(1)


def test_parts_of_another_cache_are_refused(make, tmp_path: Path) -> None:
    one, other = (make("--teacher-checkpoint", f) for f in make_two(make))
    (first,), (second,) = one.targets().readers, other.targets().readers
    name = Part(0, 256, 512).file
    (first.folder / name).write_bytes((second.folder / name).read_bytes())
    assert f"of the cache {second.spec.key}, expected [0, 256, 512] of {first.spec.key}" in refused(one)
    (first.folder / name).write_bytes((first.folder / Part(0, 512, 768).file).read_bytes())
    assert "is part [0, 512, 768]" in refused(one)


def make_two(make) -> list[str]:
    file = Path(make().args.teacher_checkpoint)
    return [str(file), str(file.with_name("2.pth"))]


@pytest.mark.parametrize("name, change", [
    ("samples", 1196), ("classes", 9), ("dtype", "float32"), ("topk", 5), ("views", 4), ("format", 0),
    ("data.fingerprint", "0123"), ("data.pixels", "0123"), ("teacher.sha256", "0123"), ("teacher.class_map", [0]),
    ("transform.crop_pct", 0.5)])
def test_cache_of_something_else_is_refused_with_what_differs(make, name: str, change: object) -> None:
    parts = make()
    (reader,) = parts.targets().readers
    path = reader.folder / "cache.json"
    content = json.loads(path.read_text())
    *outer, last = name.split(".")
    owner = content[outer[0]] if outer else content
    assert owner[last] != change
    owner[last] = change
    path.write_text(json.dumps(content))
    message = refused(parts)
    assert str(reader.folder) in message and f"was made for {name} {change}" in message


def test_broken_cache_json(make) -> None:
    parts = make()
    (reader,) = parts.targets().readers
    for text in ("{", "[1]"):
        (reader.folder / "cache.json").write_text(text)
        assert "cache.json" in refused(parts) or "was made for" in refused(parts)


def test_no_room_on_the_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    spec = CacheSpec({}, 10 ** 15, 10)
    with pytest.raises(UserError, match=r"2e\+04 TB|20000 TB|2e\+4"):
        ensure_cache(tmp_path, spec, None)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == []


def test_folder_that_cannot_be_written_to(make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--target-cache" in refused(make("--target-cache", tmp_path / "file"))


def test_readable() -> None:
    assert [readable(n) for n in (0, 999, 1000, 2.56e9, 2.3e12)] == ["0 B", "999 B", "1 kB", "2.56 GB", "2.3 TB"]


# ---------------------------------------------------------------- many writers, dying writers


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60000), st.integers(1, 3), st.integers(1, 700), st.integers(1, 4))
def test_parts_cover_every_row_of_every_view_once(samples: int, views: int, batch: int, ranks: int) -> None:
    spec = CacheSpec({}, samples, 10, views=views)
    parts = [part for view in range(views) for part in spec.parts(view)]
    assert [row for p in spec.parts(0) for row in range(p.first, p.stop)] == list(range(samples))
    assert len(spec.parts(0)) <= 64 and len({part.file for part in parts}) == len(parts)
    keys = PartKeys(parts[:3], batch)
    rows = list(keys)
    assert len(rows) == len(keys) and len(rows) % batch == 0
    assert {key.index for key in rows} == {row for p in parts[:3] for row in range(p.first, p.stop)}
    shares = [parts[rank::ranks] for rank in range(ranks)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Slow:
    """Labels rows with their numbers, taking its time. Stands for the teacher where only the writing is tested."""

    batch_size = 100

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def batches(self, keys):
        rows = list(keys)
        for start in range(0, len(rows), self.batch_size):
            time.sleep(self.seconds)
            index = torch.tensor([[k.epoch * 10000 + k.index] for k in rows[start:start + self.batch_size]])
            yield Labelled((index * torch.arange(1, 6)).sin(), torch.ones(len(index), dtype=torch.bool))


SPEC = CacheSpec({"test": 1}, 1500, 5, views=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_on_two(rank: int, root: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    folder = ensure_cache(Path(root) / "two", SPEC, Slow(), distributed=True)
    assert not agree(missing_parts(folder, SPEC), True)
    assert ensure_cache(Path(root) / "two", SPEC, None, distributed=True) == folder
    torch.distributed.destroy_process_group()


def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    mp.start_processes(write_on_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    one, two = ensure_cache(tmp_path / "one", SPEC, Slow()), tmp_path / "two" / SPEC.key
    assert contents(one) == contents(two)
    assert len(contents(one)) == 1 + 2 * 6


def test_killed_writer_leaves_whole_parts_which_the_next_one_keeps(tmp_path: Path) -> None:
    code = "from tests.labels.test_target_cache import *; ensure_cache(Path({!r}), SPEC, Slow(0.05))".format(
        str(tmp_path / "killed"))
    for count in (2, 5):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        folder = tmp_path / "killed" / SPEC.key
        deadline = time.monotonic() + 30
        while len(list(folder.glob("*.safetensors"))) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    (folder / f".{Part(1, 1280, 1500).file}.tmp").write_bytes(b"half of a part")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 5 <= len(kept) < 12
    assert len(missing_parts(folder, SPEC)) == 12 - len(kept)
    ensure_cache(tmp_path / "killed", SPEC, Slow())
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(folder) == contents(ensure_cache(tmp_path / "whole", SPEC, Slow()))


def test_two_runs_at_once_write_a_cache_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    code = f"from tests.labels.test_target_cache import *; ensure_cache(Path({str(tmp_path)!r}), SPEC, Slow(0.05))"
    folder = tmp_path / SPEC.key
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as other:
        deadline = time.monotonic() + 30
        while not list(folder.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert ensure_cache(tmp_path, SPEC, None) == folder  # without a labeller: it could write nothing itself
        assert other.wait() == 0
    assert "Another run is writing the teacher targets" in caplog.text
    assert "another run has made them meanwhile" in caplog.text
    assert not missing_parts(folder, SPEC)


def test_the_lock_is_free_when_its_holder_has_failed(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        ensure_cache(tmp_path, SPEC, None)
    done = []
    thread = threading.Thread(target=lambda: done.append(ensure_cache(tmp_path, SPEC, Slow())), daemon=True)
    thread.start()
    thread.join(30)
    assert done


def test_part_is_the_same_file_whatever_was_there_before(tmp_path: Path) -> None:
    part, logits = SPEC.parts(0)[0], logits_of(256, 5)
    write_part(tmp_path / "a", SPEC, part, logits)
    (tmp_path / "b").write_bytes(b"something")
    write_part(tmp_path / "b", SPEC, part, logits)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_samples_without_an_answer_are_never_given_one(tmp_path: Path) -> None:
    spec, logits = CacheSpec({"test": 2}, 600, 3, dtype=torch.float32), logits_of(600, 3)
    for part in spec.parts(0):
        missing = [i for i in (2, 3, 300) if part.first <= i < part.stop]
        write_part(tmp_path / part.file, spec, part, logits[part.first:part.stop], missing)
    read = TargetReader(tmp_path, spec)
    others = torch.tensor([i for i in range(600) if i not in (2, 3, 300)])
    assert torch.equal(read(others, CPU), logits[others])
    file = tmp_path / spec.parts(0)[1].file
    with pytest.raises(UserError, match=rf"{file}: has no targets of sample 300, .*; delete this file"):
        read(torch.tensor([5, 300, 7]), CPU)
    write_part(file, spec, spec.parts(0)[1], logits[256:512])
    assert torch.equal(TargetReader(tmp_path, spec)(torch.tensor([300]), CPU), logits[300:301])
    for wrong in ([700], ["2"], [256.5]):
        write_part(file, spec, spec.parts(0)[1], logits[256:512], wrong)
        with pytest.raises(UserError, match="says that it lacks the samples"):
            TargetReader(tmp_path, spec)
