"""Labels in their own format: what is stored, by which keys it is read, how it is written, damaged, gone on with."""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parts import store_labels, store_targets, write_folder
from w2s_plugins.data import create_dataset
from w2s_plugins.data.keys import SampleKeys, sample_keys
from w2s_plugins.data.slices import Subset, take_slice
from w2s_plugins.errors import UserError
from w2s_plugins.labels.samples import to_logits
from w2s_plugins.labels.store import (
    DTYPES,
    KINDS,
    Answers,
    LabelReader,
    Manifest,
    Part,
    ensure_labels,
    missing_parts,
    read_manifest,
    write_part,
)
from w2s_plugins.teachers.stored import CachedTargets, PartKeys
from w2s_plugins.teachers.teacher import combine

CPU = torch.device("cpu")


def logits_of(*shape: int, scale: float = 5.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def manifest_of(count: int, classes: int, **settings: object) -> Manifest:
    return Manifest(count, classes, {}, {}, **settings)


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    answers, names = logits_of(700, 12), [f"class {i}" for i in range(12)]
    who = {"architecture": "crowd", "sha256": "0123"}
    folder = store_labels(
        tmp_path / "labels", answers, kind=kind, dtype=dtype, who=who, seen={"transform": {"mean": (0.5,) * 3}},
        class_names=names)
    manifest = read_manifest(folder)
    assert (manifest.kind, manifest.class_names, manifest.who, manifest.dtype) == (kind, names, who, dtype)
    assert manifest.seen == {"transform": {"mean": [0.5] * 3}}
    read, index = LabelReader(folder), torch.randperm(700)
    found = read(index, CPU)
    assert found.dtype == torch.float32 and read.has(index).all() and read.complete
    error = 0.04 if dtype == torch.bfloat16 else 2e-3 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(found, answers[index], rtol=error, atol=error)
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(found, answers[index])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 1e4), st.integers(0, 99))
def test_float16_is_within_its_rounding(classes: int, scale: float, seed: int) -> None:
    logits = logits_of(7, classes, scale=scale, seed=seed)
    half = manifest_of(7, classes)
    found = half.encode(logits).float()
    error = (logits.abs() * 2.0 ** -11).clamp(min=2.0 ** -25)  # half a unit in the last of 11 places; or subnormal
    assert ((found - logits).abs() <= error).all()
    assert half.encode(torch.tensor([[1e6, -1e6, -1e4]])).tolist() == [[65504.0, -65504.0, -1e4]]


def test_classes_and_probabilities_of_a_table_are_finite_logits() -> None:
    sure = to_logits(torch.tensor([0]), "hard", 3), to_logits(torch.tensor([[1.0, 0, 0]]), "probabilities", 3)
    assert all(logits.isfinite().all() and logits.softmax(1)[0, 0] == 1 for logits in sure)
    unsure = to_logits(torch.tensor([1]), "hard", 3, 0.9).softmax(1)
    torch.testing.assert_close(unsure, torch.tensor([[0.05, 0.9, 0.05]]))


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    members = logits_of(2, 1000, 10)
    targets = store_targets(tmp_path, members)
    index = torch.tensor([999, 0, 256, 255, 700, 3, 256, 511])
    assert torch.equal(targets.by_member(index), members[:, index])
    assert torch.equal(targets(index), combine(list(members))[index])


# ---------------------------------------------------------------- by key


def test_labels_by_file_name_serve_a_slice_another_order_and_a_renamed_root(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", {"train": 300}, size=(8, 8))
    whole = create_dataset("", str(tmp_path / "data"), "train")
    keys, logits = sample_keys(whole), logits_of(300, 3)
    assert keys.by == "filename" and keys.values[0] == "class0/000.jpg"
    folder = store_labels(tmp_path / "labels", logits, keys)
    assert LabelReader(folder, keys).rows is None  # nothing to look up
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = create_dataset("", str(tmp_path / "moved"), "train")
    for part in (moved, take_slice(moved, "0.2:0.7", 3), Subset(moved, list(range(299, -1, -1)))):
        read, index = LabelReader(folder, sample_keys(part)), torch.randperm(len(part))
        where = [keys.values.index(name) for name in part.filenames()]
        assert read.has(index).all() and torch.equal(read(index, CPU), logits[where][index])


def test_labels_of_some_samples(tmp_path: Path) -> None:
    """What a slice has labels of, opened for the whole: by position, as these samples are no files."""
    digits = create_dataset("w2s/digits", None, "train")
    part = take_slice(digits, "0:500", 0)
    logits = logits_of(500, 10)
    folder = store_labels(tmp_path / "labels", logits, sample_keys(part))
    read = LabelReader(folder, sample_keys(digits))
    labelled = torch.zeros(len(digits), dtype=torch.bool)
    labelled[part.indices] = True
    assert torch.equal(read.has(torch.arange(len(digits))), labelled)
    assert torch.equal(read(torch.tensor(part.indices), CPU), logits)
    unlabelled = (~labelled).nonzero().flatten()[:5]
    with pytest.raises(UserError, match=f"has no label of {unlabelled[0]}, "):
        read(torch.tensor([part.indices[0], int(unlabelled[0])]), CPU)
    whole = LabelReader(store_labels(tmp_path / "whole", torch.zeros(len(digits), 10)), sample_keys(digits))
    mean = CachedTargets([read, whole], CPU)  # of a batch of which one of them knows nothing
    assert torch.allclose(mean(unlabelled).softmax(1), torch.full((5, 10), 0.1))
    with pytest.raises(UserError, match="its labels are known by index, the samples of the data by filename"):
        LabelReader(folder, SampleKeys("filename", ["a.jpg"]))


def test_file_names_that_are_not_utf8_or_have_line_breaks(tmp_path: Path) -> None:
    keys, logits = SampleKeys("filename", ["b\udcff.jpg", 'a\n".jpg', "ä/ö.jpg"]), logits_of(3, 4)
    read = LabelReader(store_labels(tmp_path / "labels", logits, keys), SampleKeys("filename", keys.values[::-1]))
    assert torch.equal(read(torch.arange(3), CPU), logits.flip(0))


# ---------------------------------------------------------------- damaged, or of others


@pytest.mark.parametrize("change", [
    {"format": 1}, {"kind": "hard"}, {"dtype": "float8"}, {"num_samples": "40"}, {"num_samples": 1.5}, {"views": None},
    {"topk": 3}, {"class_names": "abcd"}, {"keys_sha256": 1}, {"who": "me"}, {"seen": []}, {"more": 1}])
def test_a_manifest_of_anything_else_is_refused(tmp_path: Path, change: dict) -> None:
    folder = store_labels(tmp_path / "labels", logits_of(40, 4))
    content = json.loads((folder / "labels.json").read_text())
    for text in (json.dumps({**content, **change}), json.dumps([change]), "{", ""):
        (folder / "labels.json").write_text(text)
        with pytest.raises(UserError, match=r"labels\.json: no manifest of labels in format 2") as error:
            LabelReader(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[", "{}", '["a", "b"]', "[1, 2, 3]", None])
def test_damaged_keys(tmp_path: Path, text: str | None) -> None:
    folder = store_labels(tmp_path / "labels", logits_of(3, 4), SampleKeys("filename", ["a", "b", "c"]))
    (folder / "keys.json").write_text(text) if text else (folder / "keys.json").unlink()
    with pytest.raises(UserError, match=r"keys\.json: damaged"):
        LabelReader(folder, SampleKeys("filename", ["b"]))


def test_a_whole_file_of_impossible_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever publishes labels writes their checksum as well."""
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "encode", lambda manifest, answers: answers / 0)
        folder = store_labels(tmp_path / "labels", logits_of(5, 4))
    with pytest.raises(UserError, match="a value is not finite"):
        LabelReader(folder)


def test_samples_without_an_answer_are_never_given_one(tmp_path: Path) -> None:
    manifest, logits = Manifest(600, 3, {"test": 2}, {}, dtype=torch.float32), logits_of(600, 3)
    keys = SampleKeys("index", range(600))
    folder = ensure_labels(tmp_path / "labels", manifest, keys, lambda parts: (
        Answers(logits[p.first:p.stop], [i for i in (2, 3, 300) if p.first <= i < p.stop]) for p in parts))
    read = LabelReader(folder)
    others = torch.tensor([i for i in range(600) if i not in (2, 3, 300)])
    assert torch.equal(read(others, CPU), logits[others])
    assert read.has(torch.arange(600)).sum() == 597 and not read.has(torch.tensor([2, 3, 300])).any()
    with pytest.raises(UserError, match="has no label of 300, which may not have been readable"):
        read(torch.tensor([5, 300, 7]), CPU)
    reverse = LabelReader(folder, SampleKeys("index", range(599, -1, -1)))
    assert not reverse.has(torch.tensor([299])) and torch.equal(reverse(torch.tensor([0]), CPU), logits[599:])
    write_part(folder, manifest, manifest.parts(0)[1], logits[256:512])
    assert torch.equal(LabelReader(folder)(torch.tensor([300]), CPU), logits[300:301])


# ---------------------------------------------------------------- many writers, dying writers


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60000), st.integers(1, 3), st.integers(1, 700))
def test_parts_cover_every_row_of_every_view_once(samples: int, views: int, batch: int) -> None:
    manifest = manifest_of(samples, 10, views=views)
    parts = [part for view in range(views) for part in manifest.parts(view)]
    assert [row for p in manifest.parts(0) for row in range(p.first, p.stop)] == list(range(samples))
    assert len(manifest.parts(0)) <= 64 and len({part.file for part in parts}) == len(parts)
    keys = PartKeys(parts[:3], batch)
    rows = list(keys)
    assert len(rows) == len(keys) and len(rows) % batch == 0
    assert {key.index for key in rows} == {row for p in parts[:3] for row in range(p.first, p.stop)}


class Slow:
    """Answers with functions of the rows' numbers, taking its time over each part."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def __call__(self, parts: Sequence[Part]) -> Iterator[Answers]:
        for part in parts:
            time.sleep(self.seconds)
            index = part.view * 10000 + torch.arange(part.first, part.stop)
            yield Answers((index[:, None] * torch.arange(1, 6)).sin())


NAMES = SampleKeys("filename", [f"{i}.jpg" for i in range(1500)])
MANIFEST = Manifest(1500, 5, {"test": 1}, {}, views=2, keyed_by="filename", keys_sha256=NAMES.sha256)


def ensure(folder: Path, labeller: Slow | None, **kwargs: object) -> Path:
    return ensure_labels(folder, MANIFEST, NAMES, labeller, **kwargs)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_on_two(rank: int, root: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    folder = ensure(Path(root) / "two", Slow(), distributed=True)
    assert ensure(folder, None, distributed=True) == folder
    torch.distributed.destroy_process_group()


def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    mp.start_processes(write_on_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    one = contents(ensure(tmp_path / "one", Slow()))
    assert one == contents(tmp_path / "two") and len(one) == 2 + 2 * 6


def start_writer(folder: Path) -> mp.Process:
    writer = mp.get_context("fork").Process(target=ensure, args=(folder, Slow(0.2)))
    writer.start()
    return writer


def wait_for_parts(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(folder.glob("*.safetensors"))) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def test_killed_writer_leaves_whole_parts_which_the_next_one_keeps(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    writer = start_writer(folder)
    wait_for_parts(folder, 2)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 2 <= len(kept) < 12 and len(missing_parts(folder, MANIFEST)) == 12 - len(kept)
    ensure(folder, Slow())
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(folder) == contents(ensure(tmp_path / "whole", Slow()))


def test_two_runs_at_once_write_labels_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "labels"
    other = start_writer(folder)
    wait_for_parts(folder, 1)
    assert ensure(folder, None) == folder  # with nobody to ask: it could write nothing itself
    other.join()
    assert other.exitcode == 0 and not missing_parts(folder, MANIFEST)
    assert "Another run is writing the teacher targets" in caplog.text
