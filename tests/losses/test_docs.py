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

TEXT = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("name", own_losses())
def test_every_loss_has_a_row_with_its_defaults(name):
    row = re.search(rf"^\| `{name}` \|.*$", TEXT, flags=re.MULTILINE)
    assert row, f"docs/losses.md does not list {name}"
    for kwarg, parameter in LOSSES.get(name).defaults.items():
        if kwarg == "logit_standardization":  # said once, for all of them
            continue
        said = re.search(rf"`{kwarg}(?:=([^`]*))?`", row[0])
        assert said, f"docs/losses.md does not mention {kwarg} of {name}"
        assert same(said[1], parameter.default), f"docs/losses.md: default of {kwarg} of {name}"


def same(text, default):
    if text is None or default is None:
        return (text, default) == (None, None)
    if isinstance(default, float):
        return float(text) == default
    value = yaml.safe_load(text)
    return value == (list(default) if isinstance(default, tuple) else default)


def test_plugin_example(tmp_path, monkeypatch):
    plugin, test = blocks("python")
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
