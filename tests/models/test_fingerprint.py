"""Who a model is: everything that its answers depend on is in its fingerprint, and nothing else."""

import pytest
import timm
import torch

from w2s_plugins.models.fingerprint import digest, fingerprint, hash_tensors
from w2s_plugins.students.adapters import Adapters, add_adapters
from w2s_plugins.teachers.outside import OutsideClassifier


def vit(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"global_pool": "avg"}, {"global_pool": "avg", "pool_include_prefix": True}],
    ids=str,
)
def test_arguments_of_the_constructor_that_no_weight_and_no_module_tells(arguments: dict) -> None:
    plain, other = vit(fc_norm=False), vit(fc_norm=False, **arguments)
    assert hash_tensors(plain.state_dict()) == hash_tensors(other.state_dict())
    assert repr(plain) == repr(other)
    assert fingerprint(plain) != fingerprint(other)
    assert fingerprint(other) == fingerprint(vit(fc_norm=False, **arguments))


def test_without_its_head_a_model_is_the_same_whatever_its_classes() -> None:
    one, other = vit(pool_include_prefix=True), vit(pool_include_prefix=True)
    other.reset_classifier(7)
    arguments = [fingerprint(model)["arguments"][""] for model in (one, other)]
    assert [known["pool_include_prefix"] for known in arguments] == [True, True]
    one.reset_classifier(0)
    other.reset_classifier(0)
    assert fingerprint(one) == fingerprint(other)


def test_within_a_wrapper_it_is_still_known() -> None:
    plain, other = (
        torch.nn.Sequential(vit(global_pool="avg", fc_norm=False, pool_include_prefix=value))
        for value in (False, True)
    )
    assert fingerprint(plain)["sha256"] == fingerprint(other)["sha256"]
    assert fingerprint(plain) != fingerprint(other)


def test_adapters_are_known_code(caplog: pytest.LogCaptureFixture) -> None:
    """Theirs is told by the version of PEFT; that nothing else tells how they are scaled is seen."""

    def adapted(**how: object) -> torch.nn.Module:
        model = vit()
        torch.manual_seed(0)
        add_adapters(model, Adapters(rank=2, **how), torch.zeros(1, 3, 160, 160), "test_vit")
        return model

    with caplog.at_level("INFO"):
        one, same, other = map(fingerprint, (adapted(), adapted(), adapted(alpha=8)))
    assert "plugin" not in one and "cache_identity" not in caplog.text
    assert one == same and one["sha256"] == other["sha256"] and one != other


def test_a_run_goes_on_with_the_same_model_in_another_dtype() -> None:
    own = dict(fingerprint(vit()), dtype="float32", class_map=None)
    assert digest([own]) == digest([{**own, "dtype": "bfloat16"}])


@pytest.mark.parametrize(
    "other",
    [{"sha256": "0"}, {"class_map": [1, 0, 2]}, {"arguments": {}}, {"plugin": "version 2"}],
    ids=str,
)
def test_a_run_goes_on_with_no_other_model(other: dict) -> None:
    own = dict(fingerprint(vit()), dtype="float32", class_map=None)
    assert digest([own]) != digest([{**own, **other}])


def code(*values: object) -> object:
    return values[-1]


def patched() -> torch.nn.Module:
    model = vit()
    model.blocks.forward = code
    return model


@pytest.mark.parametrize(
    "make", [lambda: OutsideClassifier("mine:code", code, 3), patched], ids=["function", "patched"]
)
def test_code_of_others_that_does_not_say_what_it_is_is_another_in_every_run(make) -> None:
    """A function as a teacher, and one in place of forward: state and classes tell nothing of them."""
    model = make()
    assert fingerprint(model)["plugin"] != fingerprint(model)["plugin"]


def test_code_of_others_that_says_what_it_is_is_the_same() -> None:
    named = OutsideClassifier("mine:code", code, 3, lambda: "version 1")
    assert fingerprint(named) == fingerprint(named) and fingerprint(named)["plugin"] == "version 1"
    assert "plugin" not in fingerprint(vit())
