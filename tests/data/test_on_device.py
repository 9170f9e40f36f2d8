"""`--decoder nvjpeg` without a GPU: on a CPU the views are those of `--decoder torchvision`, to the bit."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from tests.data.test_decoding import CONFIG, CPU, FAST, FILES, PHOTOGRAPHS
from tests.parts import train_args, train_loader, write_folder
from w2s_plugins.build.device import check_nvjpeg
from w2s_plugins.build.loaders import loader_settings, refuse_for_streams, train_views
from w2s_plugins.data import (
    LoaderSettings,
    TrainLoader,
    create_dataset,
    create_eval_loader,
    create_train_loader,
    on_device,
)
from w2s_plugins.data.loaders import Batch
from w2s_plugins.data.on_device import EncodedBatch
from w2s_plugins.data.unlabeled import NO_LABEL, open_unlabeled
from w2s_plugins.data.unreadable import Blanked, UnreadableSample
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.errors import UserError
from w2s_plugins.labels.format import Part
from w2s_plugins.teachers.stored import PartKeys, Pass, label_images

MIXED = ("--mixup", "0.5", "--cutmix", "0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, in every kind of file that can be read."""
    root = write_folder(tmp_path_factory.mktemp("data"), {"train": 14, "validation": 9}, size=(120, 90))
    for split in ("train", "validation"):
        for case, (suffix, save) in FILES.items():
            if "truncated" not in case and case not in ("empty", "text"):
                save(Image.open(PHOTOGRAPHS[0]).resize((200, 150)), root / split / "class0" / f"{case}.{suffix}")
        Image.open(PHOTOGRAPHS[0]).resize((80, 80)).save(
            root / split / "class1" / "colours are RGB.jpg", keep_rgb=True)
    return root


def loader(root: Path, decoder: str, *flags: str, rank: int = 0, ranks: int = 1,
           dtype: torch.dtype = torch.float32) -> TrainLoader:
    args = train_args("--data-dir", str(root), "--num-classes", "3", "--batch-size", "4", "--color-jitter", "0",
                      *flags, dataset="")
    args.decoder = decoder  # nvjpeg is refused on a CPU
    return train_loader(
        create_dataset("", str(root), "train", flag="--train-split"), args, CONFIG, dtype, rank, ranks)


def assert_same(one: list[Batch], two: list[Batch], levels: float = 0.0) -> None:
    assert len(one) == len(two) > 0
    for a, b in zip(one, two):
        assert torch.equal(a.target, b.target) and torch.equal(a.index, b.index)
        assert (a.share is None) == (b.share is None) and (a.share is None or torch.equal(a.share, b.share))
        assert a.input.dtype == b.input.dtype and (a.input - b.input).abs().max() <= levels


@pytest.mark.parametrize("flags", [
    ("--workers", "2"), ("--no-aug",), ("--vflip", "0.5", "--train-interpolation", "bilinear"), ("--reprob", "0.7"),
    ("--aug-repeats", "2"), ("--data-errors", "skip:1")], ids=str)
def test_views_are_those_of_torchvision(folder: Path, flags: tuple[str, ...]) -> None:
    ours, theirs = (list(loader(folder, name, *flags).epoch(1)) for name in ("nvjpeg", "torchvision"))
    assert_same(ours, theirs)
    assert len({batch.input.numpy().tobytes() for batch in ours}) == len(ours)


@pytest.mark.parametrize("flags", [
    MIXED, (*MIXED, "--reprob", "0.7"), (*MIXED, "--mixup-off-epoch", "1"),
    (*MIXED, "--teacher", "w2s_cnn2", "--teacher-targets", "cached", "--loss", "kd")], ids=str)
def test_images_are_mixed_on_the_device(folder: Path, flags: tuple[str, ...]) -> None:
    """With the draws of the collate function, which rounds to whole levels."""
    ours, theirs = (list(loader(folder, name, *flags).epoch(1)) for name in ("nvjpeg", "torchvision"))
    assert_same(ours, theirs, levels=0.51)


def test_where_an_epoch_starts_on_which_rank_in_which_dtype(folder: Path) -> None:
    for settings in (dict(rank=1, ranks=2), dict(dtype=torch.bfloat16)):
        ours, theirs = (
            list(loader(folder, name, **settings).epoch(2, start=1)) for name in ("nvjpeg", "torchvision"))
        assert_same(ours, theirs)


@pytest.mark.parametrize("flags, labelled", [(("--task-loss-weight", "0.5"), True), (MIXED, False)], ids=str)
def test_images_without_labels(folder: Path, flags: tuple[str, ...], labelled: bool) -> None:
    """With some that have labels in every batch, and alone and mixed."""
    found = []
    for decoder in ("nvjpeg", "torchvision"):
        args = train_args(
            "--unlabeled", str(folder / "train"), "--data-dir", str(folder), "--teacher", "w2s_cnn2", "--num-classes",
            "3", "--batch-size", "4", "--color-jitter", "0", *flags, dataset="")
        args.decoder = decoder
        found.append(list(train_loader(
            open_unlabeled(args.unlabeled), args, CONFIG,
            labelled=create_dataset("", str(folder), "validation") if labelled else None).epoch(1)))
    assert_same(*found, levels=0.0 if labelled else 0.51)
    assert all((batch.target != NO_LABEL).any() == labelled for batch in found[0])


def test_views_of_which_a_teacher_is_asked_once(folder: Path) -> None:
    batches = []
    for decoder in ("nvjpeg", "torchvision"):
        args = train_args("--data-dir", str(folder), "--color-jitter", "0", dataset="")
        args.decoder = decoder
        settings = dataclasses.replace(
            loader_settings(args, Precision(CPU), World(CPU, 0, 1, False)), batch_size=4)
        keys = PartKeys([Part(1, 0, 7), Part(0, 3, 9)], 4)
        batches.append(list(create_train_loader(
            create_dataset("", str(folder), "train"), train_views(args, CONFIG, 3), CONFIG, settings, keys).epoch(0)))
    assert_same(*batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_evaluation(folder: Path, workers: int, mode: str) -> None:
    dataset, found = create_dataset("", str(folder), "validation"), []
    for decoder in ("nvjpeg", "torchvision"):
        found.append(list(create_eval_loader(
            dataset, {**CONFIG, "crop_mode": mode}, LoaderSettings(4, workers, CPU, decoder=decoder))))
    for (images, labels), (theirs, their_labels) in zip(*found, strict=True):
        assert torch.equal(images, theirs) and torch.equal(labels, their_labels)


def test_which_files_are_for_the_device(folder: Path) -> None:
    """Those that torchvision decodes, but for the ones that nvJPEG might take for something else."""
    inner = loader(folder, "nvjpeg", "--batch-size", "14").loader.loader
    names = {Path(file.name).stem for images, _ in inner for file in images.files}
    assert {case for case in FILES if case in names} == {*FAST} - {"rubbish at the end"}
    assert "colours are RGB" not in names and len(names) == 14 + 5


def test_no_file_is_for_the_device(tmp_path: Path) -> None:
    """A batch of PNG files leaves its worker decoded."""
    (tmp_path / "train" / "class0").mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (30, 40), (30 * number, 0, 0)).save(tmp_path / "train" / "class0" / f"{number}.png")
    ours, theirs = (list(loader(tmp_path, name, "--workers", "1").epoch(0)) for name in ("nvjpeg", "torchvision"))
    assert_same(ours, theirs)


def test_unreadable_files_are_met_by_workers(folder: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 12}, size=(60, 50))
    path = root / "train" / "class1" / "004.jpg"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UnreadableSample, match=r"class1/004.jpg: cannot be read"):
        list(loader(root, "nvjpeg").epoch(0))
    ours, theirs = (list(loader(root, name, "--data-errors", "skip:1").epoch(0)) for name in ("nvjpeg", "torchvision"))
    assert_same(ours, theirs)


def test_answers_of_a_teacher_that_are_stored(folder: Path) -> None:
    """Of plain images, a black one in the place of a file that cannot be read."""
    answers = []
    for decoder in ("nvjpeg", "torchvision"):
        dataset = create_dataset("", str(folder), "validation")
        dataset.reader.samples[2] = (str(folder / "no such.jpg"), 0)
        how = Pass(World(CPU, 0, 1, False), 4, decoder=decoder)
        answers.append(list(label_images(
            lambda images: images.mean((2, 3)), CONFIG, Blanked(dataset), how, [Part(0, 0, 10), Part(0, 10, 14)])))
    for ours, theirs in zip(*answers, strict=True):
        assert torch.equal(ours.values, theirs.values) and ours.missing == theirs.missing
    assert answers[0][0].missing == [2] and not answers[0][1].missing


def test_a_file_that_nobody_decodes(tmp_path: Path) -> None:
    """Its header and its end are sound, its scan is of a colour that there is not."""
    root = write_folder(tmp_path, {"train": 4}, size=(60, 50))
    path = root / "train" / "class1" / "001.jpg"
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xda") + 5] = 9
    path.write_bytes(content)
    for decoder in ("nvjpeg", "torchvision"):
        with pytest.raises(UnreadableSample, match=r"class1/001.jpg: cannot be read") as error:
            list(loader(root, decoder).epoch(0))
        assert "\n" not in str(error.value)


def test_a_file_that_the_device_refuses(
        folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A device called cpu:0 stands for one that knows no progressive files, and says so of a whole batch."""
    def on_one_that_knows_less(files: list[Tensor], mode: object, device: torch.device) -> list[Tensor]:
        if device.index == 0 and any(b"\xff\xc2" in bytes(file.tolist()) for file in files):
            raise RuntimeError("Failed to decode jpeg stream: 4\nat some place")
        return decode_jpeg(files, mode, device)

    monkeypatch.setattr(on_device, "decode_jpeg", on_one_that_knows_less)
    on_device._warn.cache_clear()
    batches = [images for images, _ in loader(folder, "nvjpeg", "--batch-size", "14").loader.loader]
    refused = [file.name for images in batches for file in images.files if "progressive" in file.name]
    assert refused and all(isinstance(images, EncodedBatch) for images in batches)
    for images in 2 * batches:
        assert torch.equal(images.to(torch.device("cpu:0")), images.to(CPU))
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "WARNING: --decoder nvjpeg: files that the device does not decode are left to the CPU: Failed to decode jpeg "
        "stream: 4 at some place"]


@pytest.mark.parametrize("flags, message", [
    (("--color-jitter", "0.4"), r"--decoder nvjpeg: .* ColorJitter \(off with --color-jitter 0\) needs Pillow; use "
                                "--decoder auto"),
    (("--no-prefetcher",), "because of --no-prefetcher"),
])
def test_what_it_cannot_do(folder: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        loader(folder, "nvjpeg", *flags)
    assert "\n" not in str(error.value)


def test_data_that_are_not_files() -> None:
    args = train_args("--color-jitter", "0", "--batch-size", "4", "--num-classes", "10")
    args.decoder = "nvjpeg"
    with pytest.raises(UserError, match="the data are not image files"):
        train_loader(create_dataset("w2s/digits", None, "train"), args, CONFIG)
    with pytest.raises(UserError, match="--decoder nvjpeg needs a dataset that can be indexed"):
        refuse_for_streams(args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torchvision here may be built with nvJPEG")
def test_torchvision_without_nvjpeg() -> None:
    with pytest.raises(UserError, match=r"cuda:0 decodes no JPEG files: .*not compiled with nvJPEG") as error:
        check_nvjpeg(torch.device("cuda:0"))
    assert "\n" not in str(error.value)
