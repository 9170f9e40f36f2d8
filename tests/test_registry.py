"""The registry, and plugins from files and modules."""

import sys

import pytest

from tests.parts import refusal
from w2s_plugins.errors import UserError
from w2s_plugins.losses import list_losses
from w2s_plugins.registry import Registry, load_plugins

PLUGIN = """
from w2s_plugins.losses import LossInputs, register_loss


@register_loss("{name}", summary="mean squared error of the logits")
def mse(inputs: LossInputs, *, scale: float = 1.0):
    return {{"mse": scale * (inputs.student_logits - inputs.teacher_logits).square().mean()}}
"""


@pytest.fixture
def restored(monkeypatch):
    """Put the registry of losses and the imported modules back as they were."""
    from w2s_plugins.losses.base import LOSSES

    monkeypatch.setattr(LOSSES, "_items", dict(LOSSES._items))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_are_found_and_unknown_ones_have_the_nearest():
    items = Registry("animal")
    for name, value in (("horse", 1), ("house cat", 2), ("dog", 3)):
        assert items.register(name, value) is value
    assert items.get("dog") == 3
    assert items.names() == ["dog", "horse", "house cat"]
    assert "dog" in items and "cow" not in items
    assert (
        refusal(items.get, "hors")
        == "unknown animal 'hors' (nearest: horse); known: dog, horse, house cat"
    )


def test_a_name_is_taken_once():
    items = Registry("animal")
    item = object()
    items.register("dog", item)
    items.register("dog", item)  # a module that is imported twice
    with pytest.raises(UserError, match="animal 'dog' is registered twice"):
        items.register("dog", object())


def test_plugin_from_a_module(tmp_path, restored, monkeypatch):
    (tmp_path / "plugin_module_of_a_test.py").write_text(PLUGIN.format(name="plugin_of_a_module"))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["plugin_module_of_a_test"])
    assert "plugin_of_a_module" in list_losses()


@pytest.mark.parametrize(
    "content, message",
    [
        ("raise RuntimeError('two\\nlines')", "cannot be imported: two lines"),
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("def broken(:", "cannot be imported"),
        (PLUGIN.format(name="kd"), "loss 'kd' is registered twice"),
    ],
)
def test_plugin_that_fails(tmp_path, restored, content, message):
    (tmp_path / "bad.py").write_text(content)
    assert message in refusal(load_plugins, [str(tmp_path / "bad.py")])


def test_plugin_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--plugins .*absent.py: no such file"):
        load_plugins([str(tmp_path / "absent.py")])
    with pytest.raises(UserError, match="--plugins absent_module: cannot be imported"):
        load_plugins(["absent_module"])
