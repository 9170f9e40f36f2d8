"""What names a sample: files, positions, shards and the commit of a dataset on the Hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from PIL import Image, ImageOps

from tests.hub_server import File, HubServer, Repo
from tests.parts import assert_refused, train_settings, write_folder
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
    message = "its braces stand for more than 200000 shards; give their folder"
    assert_refused(message, find_shards, f"wds/{text}")


@pytest.fixture(scope="module")
def revisions() -> Iterator[tuple[HubServer, dict[str, str]]]:
    """A Hub with a data set of two commits, by their names."""
    with HubServer() as server:
        repo = server.repos["datasets/org/digits"] = Repo("datasets/org/digits")
        shards = [{f"train-{i}.tar": File(b"", False) for i in range(count)} for count in (1, 2)]
        yield (
            server,
            {
                name: repo.commit("main", shards[i], name)
                for i, name in enumerate(("first", "second"))
            },
        )


@pytest.mark.parametrize(
    "name, commit, count",
    [
        ("org/digits", "second", 2),
        ("org/digits@{first}", "first", 1),
        ("org/digits:train@{first}", "first", 1),
    ],
)
def test_a_dataset_of_the_hub_is_that_of_its_revision(
    revisions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, commit: str, count: int
) -> None:
    server, commits = revisions
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    repo = server.repos["datasets/org/digits"]
    monkeypatch.setattr(  # whose addresses are made when it is imported
        "w2s_plugins.hub.fetch.snapshot_download",
        lambda name, revision, **_: tmp_path / repo.resolve(revision),
    )
    shards = find_hub_shards(f"hfids/{name.format(**commits)}")
    assert shards == [tmp_path / commits[commit] / f"train-{i}.tar" for i in range(count)]


def test_images_are_known_by_content(tmp_path: Path) -> None:
    """Other pixels in files of the same names and sizes make other data; a copy makes the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    write_folder(one, {"train": 12})
    for file in one.rglob("*.jpg"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()

    def fingerprints(folder: Path) -> list[str | None]:
        """Of the whole and of a part."""
        settings = train_settings(f"--data-dir {folder} --val-split ''", dataset="")
        split = open_splits(settings.data, 3, 0)["train"]
        return [describe(part, "", "").fingerprint for part in (split, Subset(split, range(6)))]

    before = fingerprints(one)
    assert None not in before and before[0] != before[1]
    shutil.copytree(one, two)
    assert fingerprints(two) == before
    for file in two.rglob("*.bmp"):
        size = file.stat().st_size
        ImageOps.invert(Image.open(file)).save(file)
        assert file.stat().st_size == size
    assert not {*fingerprints(two)} & {*before}
