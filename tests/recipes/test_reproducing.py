"""docs/evidence/fashion-and-digits.md: its loops are run with stand-ins for programs, and their commands checked."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import ROOT
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.losses import create_loss, list_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.study import planning
from w2s_plugins.training.flags import resolve_train_args

TEXT = (ROOT / "docs/evidence/fashion-and-digits.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"^```\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
          if "torchrun" in block or "python" in block]
STAND_IN = '#!/bin/bash\n{ printf "%s\\t" "${0##*/}" "$@"; echo; } >> "$COMMANDS"\n'


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Command lines that the blocks of the page come to."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in ("torchrun", "python"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    script, written = "set -e\n" + "\n".join(BLOCKS), folder / "commands"
    subprocess.run(["bash", "-c", script], env={"PATH": f"{folder}{os.pathsep}/usr/bin:/bin", "COMMANDS": str(written)},
                   check=True, cwd=folder)
    return [line.split("\t")[:-1] for line in written.read_text().splitlines()]


def trainings(commands: list[list[str]]) -> Iterator[list[str]]:
    for _, *argv in commands:
        if "train_w2s.py" in argv:
            yield argv[argv.index("train_w2s.py") + 1:]


def test_trainings_are_valid(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for argv in trainings(commands):
        args, given = parse(train_parser(), argv)
        if args.protocol:
            planning.make_plan({name: getattr(args, name) for name in given})
            args.protocol = args.ceiling_checkpoint = None
        resolve_train_args(args, given)
        if args.teacher:
            create_loss(args.loss, **args.loss_kwargs)


def test_every_confidence_and_robust_loss_is_compared(
        commands: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    wanted = {name for name in list_losses()
              if LOSSES.get(name).factory.__module__.rpartition(".")[2] in ("confidence", "robust")} | {"kd"}
    for data, seeds in (("fashion", 3), ("digits", 5)):
        runs = [parse(train_parser(), argv)[0] for argv in trainings(commands)]
        runs = [args for args in runs if args.protocol and args.output == f"output/{data}"]
        assert {args.loss for args in runs} == wanted
        assert {args.seed for args in runs} == {args.slice_seed for args in runs} == set(range(seeds))
        for args in runs:
            shared = f"output/{data}/hard-{args.seed}"
            given = (args.teacher_checkpoint, args.ceiling_checkpoint)
            assert given == ((None, None) if args.loss == "hard" else (f"{shared}/weak", f"{shared}/ceiling"))
        assert len({args.experiment for args in runs}) == len(runs) == seeds * (len(wanted) + 1)
