"""Losses against other people's implementations: value, terms and gradient of every case in golden_losses.json."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from w2s_plugins.losses import LossInputs, create_loss
from w2s_plugins.losses.features import hierarchical_context_loss
from w2s_plugins.losses.logits import ofa_per_sample

CASES = json.loads((Path(__file__).parents[1] / "data" / "golden_losses.json").read_text())["cases"]
# how their kwargs are called here, and the defaults of the released training script
OURS = yaml.safe_load("""
adaptconf: {superalignment_threshold: temperature, kd_temperature: kd_temperature}
augconf: {superalignment_threshold: alpha, superalignment_rate: ramp, kd_temperature: kd_temperature}
kd: {kd_temperature: temperature}
bkd: {}
dkd: {dkd_alpha: alpha, dkd_beta: beta, dkd_temperature: temperature,
      alpha: alpha, beta: beta, temperature: temperature}
""")
DEFAULTS = {"dkd": {"alpha": 1.0, "beta": 2.0, "temperature": 1.0}}


def tensor(values: list) -> torch.Tensor:
    """Classes as they are, numbers in float64."""
    found = torch.tensor(values)
    return torch.tensor(values, dtype=torch.float64) if found.is_floating_point() else found


def inputs_of(case: dict) -> tuple[LossInputs, dict[str, torch.Tensor]]:
    """The inputs of a case, and its leaves under the names that the gradients have."""
    given = case["inputs"]
    features = {}
    for side in ("student", "teacher"):
        single = [given[f"{side}_feature"]] if f"{side}_feature" in given else []
        features[side] = [tensor(one) for one in given.get(f"{side}_features", single)]
    logits = [
        tensor(given.get(f"{side}_logits", [[0.0, 0.0]] * 2)) for side in ("student", "teacher")
    ]
    inputs = LossInputs(
        *logits,
        target=tensor(given["target"]) if "target" in given else None,
        student_features=features["student"],
        teacher_features=features["teacher"],
        progress=given.get("progress", given.get("epoch", 0) / given.get("epochs", 1)),
    )
    leaves = {"student_logits": inputs.student_logits}
    for number, feature in enumerate(inputs.student_features):
        leaves |= {"student_feature": feature, f"student_features.{number}": feature}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return inputs, leaves


def compute(case: dict, inputs: LossInputs) -> dict[str, torch.Tensor]:
    """Our terms, by their names where they have several."""
    name, kwargs = case["loss"], case["kwargs"]
    if name in OURS:
        weight = kwargs.get("kd_loss_weight", 1.0)
        given = {OURS[name][key]: value for key, value in kwargs.items() if key in OURS[name]}
        terms = create_loss(name, **{**DEFAULTS.get(name, {}), **given})(inputs)
        named = {"loss_kd": weight * sum(value for term, value in terms.items() if term != "self")}
        if "self" in terms:
            named["loss_align"] = weight * terms["self"]
        task = kwargs.get("gt_loss_weight", 1.0) * F.cross_entropy(
            inputs.student_logits, inputs.target
        )
        return {**named, "loss_gt": task}
    if name == "kd_logit_std":  # without the factor T^2
        t = kwargs["temperature"]
        return {
            "loss_kd": create_loss("kd", temperature=t, logit_standardization=True)(inputs)["kd"]
            / t**2
        }
    if name == "logconf_binary":
        loss = create_loss(
            "logconf",
            aux_coef=kwargs["aux_coef"],
            warmup=kwargs["warmup_frac"],
            original_warmup=True,
        )
        return {"loss_kd": sum(loss(inputs).values())}
    if name == "reviewkd_hcl":
        return {
            "loss_kd": hierarchical_context_loss(inputs.student_features, inputs.teacher_features)
        }
    if name == "ofa_logit":
        return {
            "loss_kd": ofa_per_sample(
                inputs.student_logits, inputs.teacher_logits, inputs.target, **kwargs
            ).mean()
        }
    return {"loss_kd": sum(create_loss(name, **kwargs)(inputs).values())}


@pytest.mark.parametrize(
    "number", [number for number, case in enumerate(CASES) if case["loss"] != "vanilla"]
)
def test_equals_their_code(number: int) -> None:
    """The code of logconf computes in float32 whatever it is given, so its values are good to 1e-7 and no better."""
    case = CASES[number]
    atol = 1e-7 if case["loss"] == "logconf_binary" else 1e-10
    inputs, leaves = inputs_of(case)
    terms = compute(case, inputs)
    assert terms.keys() == case["terms"].keys()
    of_loss = {name: value.item() for name, value in terms.items() if name != "loss_gt"}
    assert of_loss == pytest.approx({name: case["terms"][name] for name in of_loss}, abs=atol)
    total = sum(terms.values())
    assert total.item() == pytest.approx(case["total"], abs=atol)
    total.backward()
    gradients = {name: leaves[name].grad for name in case["grads"]}
    expected = {name: tensor(values) for name, values in case["grads"].items()}
    torch.testing.assert_close(gradients, expected, rtol=0, atol=atol)
