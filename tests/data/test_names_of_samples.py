"""What names a sample: files, positions, shards and the commit of a dataset on the Hub."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from PIL import Image, ImageOps

from tests.hub_server import File, HubServer, Repo
from tests.parts import refusal, train_settings, write_folder
from w2s_plugins.data.class_splits import keep_classes
from w2s_plugins.data.digits import Digits
from w2s_plugins.data.keys import describe, positions_in_split, sample_keys
from w2s_plugins.data.slices import Subset
from w2s_plugins.data.unlabeled import expand, find_shards
from w2s_plugins.hub.fetch import find_hub_shards
from w2s_plugins.training.data import open_splits


def test_positions_of_a_part_with_a_class_list_are_those_in_the_whole_split() -> None:
    """So that labels by position fit whatever classes a run is about."""
    whole = Digits("train")
    expected = [i for i, label in enumerate(whole.targets) if label in (3, 7)]
    listed = keep_classes(Digits("train"), [whole.classes[7], whole.classes[3]], "--class-list x")
    part = Subset(listed, range(5, 20))
    keys = sample_keys(part)
    assert (keys.by, list(keys.values)) == ("index", expected[5:20])
    assert list(positions_in_split(part)) == list(range(5, 20))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a-{0..12}.tar", [f"a-{number}.tar" for number in range(13)]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}-{9..10}", ["a-9", "a-10", "b-9", "b-10"]),
        ("a.tar", ["a.tar"]),
    ],
)
def test_braces_are_expanded_as_in_a_shell(text: str, expected: list[str]) -> None:
    assert list(expand(text)) == expected


@pytest.mark.parametrize("text", ["x{0..99999999999}.tar", "/".join(["{a,b}" * 40] * 30) + ".tar"])
def test_braces_that_stand_for_billions_are_refused(text: str) -> None:
    assert "its braces stand for more than 200000 shards; give their folder" in refusal(
        find_shards, f"wds/{text}"
    )


def test_a_dataset_of_the_hub_is_that_of_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server:
        repo = server.repos["datasets/org/digits"] = Repo("datasets/org/digits")
        first = repo.commit("main", {"train-0.tar": File(b"", False)}, "one")
        second = repo.commit("main", {f"train-{i}.tar": File(b"", False) for i in range(2)}, "two")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(  # whose addresses are made when it is imported
            "w2s_plugins.hub.fetch.snapshot_download",
            lambda name, revision, **_: tmp_path / repo.resolve(revision),
        )
        for name, commit, files in (
            ("org/digits", second, ["train-0.tar", "train-1.tar"]),
            (f"org/digits@{first}", first, ["train-0.tar"]),
            (f"org/digits:train@{first}", first, ["train-0.tar"]),
        ):
            shards = find_hub_shards(f"hfids/{name}")
            assert [shard.name for shard in shards] == files and {
                shard.parent.name for shard in shards
            } == {commit}


def test_images_are_known_by_content(tmp_path: Path) -> None:
    """Other pixels in files of the same names and sizes make other data; a copy makes the same."""
    write_folder(tmp_path / "one", {"train": 12})
    for file in (tmp_path / "one").rglob("*.jpg"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()

    def fingerprint(folder: str, part: slice | None = None) -> str | None:
        settings = train_settings(
            "--data-dir", str(tmp_path / folder), "--val-split", "", dataset=""
        )
        split = open_splits(settings.data, 3, 0)["train"]
        return describe(
            split if part is None else Subset(split, range(12)[part]), "", ""
        ).fingerprint

    before, of_part = fingerprint("one"), fingerprint("one", slice(0, 6))
    assert None not in (before, of_part) and before != of_part
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert (fingerprint("two"), fingerprint("two", slice(0, 6))) == (before, of_part)
    for file in (tmp_path / "two").rglob("*.bmp"):
        size = file.stat().st_size
        ImageOps.invert(Image.open(file)).save(file)
        assert file.stat().st_size == size
    assert fingerprint("two") != before and fingerprint("two", slice(0, 6)) != of_part
