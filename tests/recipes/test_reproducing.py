"""docs/evidence/fashion-and-digits.md: its loops are run with stand-ins for programs, and their commands checked."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.losses import create_loss
from w2s_plugins.settings.flags import resolve_train_args
from w2s_plugins.study import planning

TEXT = (ROOT / "docs/evidence/fashion-and-digits.md").read_text(encoding="utf-8")
BLOCKS = [
    block
    for block in re.findall(r"^```\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    if "torchrun" in block or "python" in block
]
STAND_IN = '#!/bin/bash\n{ printf "%s\\t" "${0##*/}" "$@"; echo; } >> "$COMMANDS"\n'


def test_trainings_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("torchrun", "python"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COMMANDS": str(tmp_path / "commands")}
    subprocess.run(
        ["bash", "-c", "set -e\n" + "\n".join(BLOCKS)], env=env, check=True, cwd=tmp_path
    )
    commands = [line.split("\t")[:-1] for line in (tmp_path / "commands").read_text().splitlines()]
    trainings = [
        argv[argv.index("train_w2s.py") + 1 :] for argv in commands if "train_w2s.py" in argv
    ]
    assert len(trainings) > 100
    for argv in trainings:
        args, given = parse(train_parser(), argv)
        if args.protocol:
            planning.plan_runs({name: getattr(args, name) for name in given})
            args.protocol = args.ceiling_checkpoint = None
        settings = resolve_train_args(args, given)
        if settings.teacher.teacher:
            create_loss(settings.loss.loss, **settings.loss.loss_kwargs)
