"""Lives of a run, drawn: some of what `benchmarks/attacks.py --lives` leads."""

import os

import pytest

from benchmarks import life


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1")
def test_every_life_ends_as_an_undisturbed_one_or_in_one_line() -> None:
    counts = life.lead(2, drawn_anew=False)
    assert counts["lives"] >= 2 and counts["programs"] > 6
