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

from tests.parts import assert_refused, store_labels, store_targets
from tests.processes import wait_until
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.data.order import StretchBatches
from w2s_plugins.data.views import ViewKey
from w2s_plugins.labels.store import (
    DTYPES,
    KINDS,
    Answers,
    LabelReader,
    Manifest,
    Part,
    ensure_labels,
    missing_parts,
    read_keys,
    read_manifest,
    write_part,
)
from w2s_plugins.target_kind import ONE_CLASS

CPU = torch.device("cpu")


def logits_of(*shape: int, scale: float = 5.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def manifest_of(count: int, classes: int, **settings: object) -> Manifest:
    return Manifest(count, classes, {}, {}, **settings)


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    answers = logits_of(700, 12)
    about = dict(
        kind=kind,
        dtype=dtype,
        who={"architecture": "crowd", "sha256": "0123"},
        class_names=[f"class {i}" for i in range(12)],
    )
    seen = {"transform": {"mean": (0.5,) * 3}}
    folder = store_labels(tmp_path / "labels", answers, seen=seen, **about)
    manifest = read_manifest(folder)
    assert {name: getattr(manifest, name) for name in about} == about
    assert manifest.seen == {"transform": {"mean": [0.5] * 3}}
    read, index = LabelReader(folder), torch.randperm(700)
    found = read(index, CPU)
    assert found.dtype == torch.float32 and read.has(index).all() and read.complete
    error = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(found, answers[index], rtol=error, atol=error)
    assert torch.equal(found, answers[index]) == (dtype == torch.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 1e4), st.integers(0, 99))
def test_float16_is_within_its_rounding(classes: int, scale: float, seed: int) -> None:
    logits = logits_of(7, classes, scale=scale, seed=seed)
    half = manifest_of(7, classes)
    found = half.encode(logits).float()
    error = (logits.abs() * 2.0**-11).clamp(
        min=2.0**-25
    )  # half a unit in the last of 11 places; or subnormal
    assert ((found - logits).abs() <= error).all()
    assert half.encode(torch.tensor([[1e6, -1e6, -1e4]])).tolist() == [[65504.0, -65504.0, -1e4]]


def test_classes_and_probabilities_of_a_table_are_finite_logits() -> None:
    classes = ONE_CLASS.of_decisions(torch.tensor([0]), 3)
    shares = ONE_CLASS.from_probabilities(torch.tensor([[1.0, 0, 0]]))
    both = torch.cat([classes, shares])
    assert both.isfinite().all() and (both.softmax(1)[:, 0] == 1).all()
    unsure = ONE_CLASS.of_decisions(torch.tensor([1]), 3, 0.9).softmax(1)
    torch.testing.assert_close(unsure, torch.tensor([[0.05, 0.9, 0.05]]))


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    members = logits_of(2, 1000, 10)
    targets = store_targets(tmp_path, members)
    index = torch.tensor([999, 0, 256, 255, 700, 3, 256, 511])
    assert torch.equal(targets.by_member(index), members[:, index])
    assert torch.equal(targets(index), ONE_CLASS.average(list(members))[index])


# ---------------------------------------------------------------- damaged, or of others


CHANGES = [
    {"format": 1},
    {"kind": "hard"},
    {"dtype": "float8"},
    {"num_samples": "40"},
    {"topk": 3},
    {"more": 1},
]


@pytest.mark.parametrize("content", [*CHANGES, [{"format": 1}], "{", ""], ids=str)
def test_a_manifest_of_anything_else_is_refused(tmp_path: Path, content: object) -> None:
    folder = store_labels(tmp_path / "labels", logits_of(40, 4))
    manifest = folder / "labels.json"
    if isinstance(content, dict):
        content = json.loads(manifest.read_text()) | content
    manifest.write_text(content if isinstance(content, str) else json.dumps(content))
    assert_refused("labels.json: no manifest of labels in format 2", LabelReader, folder)


@pytest.mark.parametrize("text", ["[", '["a", "b"]', '["a", "b", "d"]', None])
def test_damaged_keys(tmp_path: Path, text: str | None) -> None:
    keys = SampleKeys("filename", ["a", "b", "c"])
    folder = store_labels(tmp_path / "labels", logits_of(3, 4), keys)
    (folder / "keys.json").write_text(text) if text else (folder / "keys.json").unlink()
    assert_refused(r"keys\.json: damaged", read_keys, folder, read_manifest(folder))


def test_a_part_of_other_labels_is_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        store_labels(folder, logits_of(5, 4), who={"member": folder.name})
    one, other = folders
    (part,) = other.glob("*.safetensors")
    (one / part.name).write_bytes(part.read_bytes())
    message = rf"is part \[0, 0, 5\] of the labels {read_manifest(other).key}"
    assert_refused(message, LabelReader, one)


def test_samples_without_an_answer_are_never_given_one(tmp_path: Path) -> None:
    logits, missing = logits_of(600, 3), [2, 3, 300]
    folder = store_labels(tmp_path / "labels", logits, missing=missing)
    read = LabelReader(folder)
    there = read.has(torch.arange(600))
    assert (~there).nonzero().flatten().tolist() == missing
    assert torch.equal(read(there.nonzero().flatten(), CPU), logits[there])
    message = "has no label of 300, which may not have been readable"
    assert_refused(message, read, torch.tensor([5, 300, 7]), CPU)
    write_part(folder, read.manifest, read.manifest.parts(0)[1], logits[256:512])
    assert torch.equal(LabelReader(folder)(torch.tensor([300]), CPU), logits[300:301])


# ---------------------------------------------------------------- many writers, dying writers


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60000), st.integers(1, 3), st.integers(1, 700))
def test_parts_cover_every_row_of_every_view_once(samples: int, views: int, batch: int) -> None:
    manifest = manifest_of(samples, 10, views=views)
    parts = [part for view in range(views) for part in manifest.parts(view)]
    assert [row for p in manifest.parts(0) for row in range(p.first, p.stop)] == list(
        range(samples)
    )
    assert len(manifest.parts(0)) <= 64 and len({part.file for part in parts}) == len(parts)
    batches = list(chosen := StretchBatches(parts[:3], batch))
    assert len(batches) == len(chosen) == sum(chosen.count(part) for part in parts[:3])
    assert [key for keys in batches for key in keys] == [
        ViewKey(part.view, row) for part in parts[:3] for row in range(part.first, part.stop)
    ]
    # no batch has rows of two parts
    stops = {part.stop for part in parts[:3]}
    assert all(len(keys) == batch or keys[-1].index + 1 in stops for keys in batches)


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
MANIFEST = Manifest(
    1500, 5, {"test": 1}, {}, views=2, keyed_by="filename", keys_sha256=NAMES.sha256
)


def ensure(folder: Path, labeller: Slow) -> Path:
    return ensure_labels(folder, MANIFEST, NAMES, labeller).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_writer_leaves_whole_parts_which_the_next_one_keeps(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    writer = mp.get_context("fork").Process(target=ensure, args=(folder, Slow(0.2)))
    writer.start()
    wait_until(lambda: len(list(folder.glob("*.safetensors"))) > 1)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 2 <= len(kept) < 12 and len(missing_parts(folder, MANIFEST)) == 12 - len(kept)
    ensure(folder, Slow())
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(folder) == contents(ensure(tmp_path / "whole", Slow()))
