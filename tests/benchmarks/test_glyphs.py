"""The set of glyphs, from the one font that Pillow brings along, in several sizes."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from benchmarks.make_glyphs import characters, find_fonts, main, split_of, write_set
from w2s_plugins.data import open_split
from w2s_plugins.errors import UserError, run_main

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture(scope="module")
def fonts() -> dict[str, ImageFont.FreeTypeFont]:
    return {f"default-{size}": ImageFont.load_default(size) for size in (16, 18, 20, 22, 24)}


def test_splits_of_different_characters(tmp_path: Path, fonts: dict) -> None:
    counts = write_set(tmp_path / "glyphs", fonts, [*LATIN, "A", " ", "\u10d0"], size=28, min_images=4)
    names = {}
    for split, (classes, images) in counts.items():
        dataset = open_split("", str(tmp_path / "glyphs"), split, None, flag="--split", input_img_mode="L")
        names[split] = set(dataset.reader.class_to_idx)
        assert (len(names[split]), len(dataset)) == (classes, images)
        assert {split_of(chr(int(name[1:], 16)), 0) for name in names[split]} == {split}
        image, _ = dataset[0]
        assert image.size == (28, 28) and image.mode == "L" and np.ptp(np.asarray(image)) > 200
    assert not names["base"] & names["novel"] | names["base"] & names["validation"]
    # small l and capital I are one stroke in this font; a space, a missing character and the second A are left out
    assert 55 <= sum(map(len, names.values())) <= len(LATIN)
    assert "u010d0" not in set.union(*names.values())
    with pytest.raises(UserError, match="is there already"):
        write_set(tmp_path / "glyphs", fonts, LATIN, 28, 4)


def test_a_character_that_looks_like_one_before_is_left_out(tmp_path: Path, fonts: dict) -> None:
    """Twice the same character stands for two that look the same."""
    counts = write_set(tmp_path / "glyphs", fonts, LATIN + LATIN, size=28, min_images=4)
    files = list((tmp_path / "glyphs").rglob("*.png"))
    assert len(files) == sum(images for _, images in counts.values())
    assert len({Image.open(f).tobytes() for f in files}) == len(files)


def test_some_of_the_characters(tmp_path: Path, fonts: dict) -> None:
    counts = write_set(tmp_path / "glyphs", fonts, LATIN, size=20, min_images=4, max_classes=30)
    assert sum(classes for classes, _ in counts.values()) == 30


def test_too_few(tmp_path: Path, fonts: dict) -> None:
    with pytest.raises(UserError, match="0 characters have 6 different images"):
        write_set(tmp_path / "glyphs", fonts, LATIN, size=28, min_images=6)
    with pytest.raises(UserError, match="apt-get install"):
        find_fonts([str(tmp_path)])


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["make_glyphs.py"])
    with pytest.raises(SystemExit, match="2"):
        run_main(main, "make_glyphs")
    assert capsys.readouterr().err == ("make_glyphs: error: the following arguments are required: OUT; see "
                                       "make_glyphs.py --help\n")


def test_candidates_are_of_several_scripts_and_can_be_seen() -> None:
    found = set(characters())
    assert {"A", "ß", "Ω", "Ж", "∑", "→", "9", "?"} <= found
    assert not found & {" ", "\u0301", "\u00ad"}
