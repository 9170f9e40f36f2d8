"""Runs of train_w2s.py for the scripts of the evidence: each is a fork after the imports, and runs once."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import train_w2s
from w2s_plugins.cli import parse, train_parser


def train(place: Path, flags: str) -> None:
    """Run train_w2s.py in a folder, if that is not done, and note the seconds of the processor in seconds.json."""
    if (place / "seconds.json").exists():
        return
    words = shlex.split(f"{flags} --output {place.parent} --experiment {place.name} --resume auto")
    print(time.strftime("%H:%M:%S"), "train_w2s.py", shlex.join(words), flush=True)
    before = os.times()
    child = os.fork()
    if child == 0:
        log = os.open(place.parent / f"{place.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["train_w2s.py", *words]
        train_w2s.run_main(lambda: train_w2s.main(parse(train_parser())), "train_w2s.py")
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"failed, see {place}.log")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    (place / "seconds.json").write_text(json.dumps(seconds))
