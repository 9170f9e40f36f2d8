"""Training from Python gives what the script gives, and leaves the process as it was."""

import json
import logging
import sys
from pathlib import Path

import pytest

from w2s_plugins.api import train
from w2s_plugins.errors import UserError

SMALL = dict(config=["w2s:digits/base"], img_size=8, train_slice="0:64", batch_size=16, epochs=1, val_interval=1,
             model="w2s_cnn2")


def test_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv, handlers = sys.argv, logging.getLogger().handlers[:]
    train(**SMALL, experiment="weak")
    student = train(**SMALL, experiment="student", loss="kd", loss_kwargs={"temperature": 2.0}, teacher="w2s_cnn2",
                    teacher_checkpoint="output/train/weak")
    assert "teacher" in student and student == json.loads(Path("output/train/student/result.json").read_text())
    assert student["command"].startswith("w2s-train --img-size 8 ")
    assert (sys.argv, logging.getLogger().handlers) == (argv, handlers)


@pytest.mark.parametrize("flags, message", [
    (dict(epohcs=1), "w2s.train: unknown key 'epohcs' .nearest: epochs"),
    (dict(epochs="many"), "w2s.train: epochs: 'many' is a str, expected int"),
    (dict(config=["w2s:digits/bas"]), "--config w2s:digits/bas: no such recipe"),
])
def test_errors_are_exceptions(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(**flags)
