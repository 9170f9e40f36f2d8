"""Every benchmark runs with --quick and prints its table; how large the figures are is not tested."""

import importlib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import attacks, recipe
from tests.parts import encoded, write_tar
from tests.processes import python
from w2s_plugins.data.digits import Digits

PAIR = "w2s_cnn2<-w2s_cnn2"
PIXELS = [[str(margin), f"1/{scale}"] for margin in (1, 1.5, 2) for scale in (2, 4, 8)]
PIXELS.append(["2", "1/1"])


@pytest.mark.parametrize(
    ("command", "heads"),
    [
        ("throughput step", [[PAIR]]),
        ("throughput teacher", [[PAIR]]),
        ("throughput step --flags '--amp --amp-dtype bfloat16 --channels-last'", [[PAIR]]),
        ("loader", [["500x375:96", "1", name] for name in ("timm", "pil", "fast")]),
        ("pixels", PIXELS),
        ("predict", [["loop"], ["pass, pil"], ["predict, pil"], ["pass, fast"], ["predict, fast"]]),
        ("losses --losses hard elr", [["`cross-entropy`"], ["`kd`"], ["`hard`"], ["`elr`"]]),
    ],
)
def test_a_row_for_each(
    command: str, heads: list[list[str]], capsys: pytest.CaptureFixture
) -> None:
    name, *words = shlex.split(command)
    importlib.import_module(f"benchmarks.{name}").main([*words, "--quick"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[: len(heads[0])] for row in rows] == heads
    cells = [" ".join(row[len(heads[0]) :]) for row in rows]
    figures = [[float(word) for word in re.findall(r"-?[\d.]+", text)] for text in cells]
    assert min(map(len, figures)) >= 3 and min(found[0] for found in figures) >= 0


def test_attacks(capsys: pytest.CaptureFixture) -> None:
    attacks.main(["--quick"])
    assert "12 drawn, 0 failed" in capsys.readouterr().out


def test_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(command: Sequence[str], env: Mapping[str, str], **kwargs: object) -> None:
        done = python(*command[1:], env=env, cwd=tmp_path)  # which has torch already
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(recipe, "subprocess", SimpleNamespace(run=run))
    tars = []
    for split in ("train", "validation"):
        digits = enumerate(itertools.islice(Digits(split), 120))
        images = {f"{label}/{number}.png": encoded(image) for number, (image, label) in digits}
        tars.append(str(tmp_path / f"{split}.tar"))
        write_tar(tars[-1], images)
    recipe.main([*tars, "--quick", "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["teacher", "adaptconf", "ceiling"]
