"""Flags that are given together, drawn from their declarations: some of what `benchmarks/attacks.py` draws."""

from pathlib import Path

import pytest

from benchmarks import attacks
from w2s_plugins.cli import train_parser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("attacks") / "runs"
    attacks.train_weak(place)
    return place


@pytest.mark.parametrize("seed", range(12))
def test_any_flags_train_or_end_in_one_line(folder: Path, seed: int) -> None:
    assert attacks.attack(folder, seed) is None


def test_a_failure_is_found_and_made_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three flags: ``--debug`` shows the traceback of what a wrong one ends in."""
    flags = [["--seed", "1"], ["--val-slice", "0:9999"], ["--debug"]]
    monkeypatch.setattr(attacks, "draw_flags", lambda seed: (attacks.BASE, flags))
    told = attacks.attack(folder, 10 ** 6)
    assert told is not None and told.startswith("1000000: --val-slice 0:9999 --debug: exit code 2: "), told


def test_what_is_drawn_is_declared() -> None:
    declared = train_parser().by_dest().keys()
    assert attacks.LEFT_OUT | attacks.TEXTS.keys() <= declared
    drawn = {flag[0] for seed in range(2000) for flag in attacks.draw_flags(seed)[1]}
    assert len(drawn) > 0.9 * len(declared - attacks.LEFT_OUT)
