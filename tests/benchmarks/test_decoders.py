"""The benchmark of the decoders prints what each of them changes."""

import pytest

from benchmarks import decoders
from benchmarks.measure import write_photographs


def test_a_row_for_each_decoder_and_kind_of_view(tmp_path, capsys: pytest.CaptureFixture):
    decoders.main([str(write_photographs(tmp_path, 6) / "train"), "--enlarge", "500", "--size", "64"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[:2] for row in rows] == [[v, d] for v in ("evaluation", "training") for d in ("torchvision", "fast")]
    for _, decoder, smaller, difference, _ in rows:
        assert (float(smaller) > 0) == (decoder == "fast") and 0 < float(difference) < 10
