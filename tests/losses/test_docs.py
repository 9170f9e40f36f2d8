"""docs/losses.md: every loss is there with its defaults, and the example of a loss of one's own works."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.parts import assert_refused
from w2s_plugins.losses import create_loss, describe_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.registry import load_plugins

from .common import own_losses

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "losses.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


DEFAULTS = [
    (name, kwarg)
    for name in own_losses()
    for kwarg in LOSSES.get(name).defaults
    if kwarg != "logit_standardization"  # said once, for all of them
]


def row_of(name):
    row = re.search(rf"^\| `{name}` \|.*$", TEXT, flags=re.MULTILINE)
    assert row, f"docs/losses.md does not list {name}"
    return row[0]


def test_how_many_there_are():
    assert f"There are {len(own_losses())} losses." in TEXT


@pytest.mark.parametrize("name", own_losses())
def test_every_loss_has_a_row(name):
    assert name in row_of(name)


@pytest.mark.parametrize("name, kwarg", DEFAULTS)
def test_a_row_has_the_defaults(name, kwarg):
    said = re.search(rf"`{kwarg}(?:=([^`]*))?`", row_of(name))
    assert said and same(said[1], LOSSES.get(name).defaults[kwarg].default)


def same(text, default):
    if text is None or default is None:
        return (text, default) == (None, None)
    if isinstance(default, float):
        return float(text) == default
    value = yaml.safe_load(text)
    return value == (list(default) if isinstance(default, tuple) else default)


def test_plugin_example(tmp_path, monkeypatch):
    (plugin,) = blocks("python")
    test = (ROOT / "examples/test_my_loss.py").read_text()
    (tmp_path / "my_loss.py").write_text(plugin)
    for _ in range(2):  # every run of a protocol asks for it
        load_plugins([str(tmp_path / "my_loss.py")])
    try:
        assert "logit_mse(scale=1.0)" in describe_losses()
        assert_refused(
            "expected a number > 0", create_loss, "logit_mse+kd", **{"logit_mse.scale": -1.0}
        )
        LOSSES._items.pop("logit_mse")

        # its test imports it on its own
        monkeypatch.syspath_prepend(tmp_path)
        scope = {}
        exec(test, scope)
        scope["test_logit_mse"]()
    finally:
        LOSSES._items.pop("logit_mse", None)
        sys.modules.pop("my_loss", None)
