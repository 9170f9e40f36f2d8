"""docs/losses.md: every loss is there, and its examples run."""

import re
from pathlib import Path

import pytest
import torch

from w2s_plugins.errors import UserError
from w2s_plugins.losses import create_loss, describe_losses, list_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.registry import load_plugins

from .common import make_inputs

TEXT = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_has_a_place(name):
    assert re.search(rf"^(###.*|\| )`{name}`", TEXT, flags=re.MULTILINE), f"docs/losses.md does not describe {name}"
    for kwarg in LOSSES.get(name).defaults:
        assert re.search(rf"`{kwarg}[`=]", TEXT), f"docs/losses.md does not mention {kwarg} of {name}"


def test_first_example():
    inputs = make_inputs(4, 3)
    scope = {"z": inputs.student_logits, "w": inputs.teacher_logits}
    exec(blocks("python")[0], scope)
    assert set(scope["terms"]) == {"kd", "self"} and inputs.student_logits.grad is not None


def test_plugin_example(tmp_path):
    (tmp_path / "my_loss.py").write_text(next(b for b in blocks("python") if "@register_loss" in b))
    for _ in range(2):  # every run of a protocol asks for it
        load_plugins([str(tmp_path / "my_loss.py")])
    try:
        inputs = make_inputs(4, 3)
        expected = 0.5 * torch.nn.functional.mse_loss(inputs.student_logits, inputs.teacher_logits)
        torch.testing.assert_close(create_loss("logit_mse", scale=0.5)(inputs)["mse"], expected)
        assert "logit_mse(scale=1.0)" in describe_losses()
        with pytest.raises(UserError, match="expected a number > 0"):
            create_loss("logit_mse+kd", **{"logit_mse.scale": -1.0})
    finally:
        LOSSES._items.pop("logit_mse")
