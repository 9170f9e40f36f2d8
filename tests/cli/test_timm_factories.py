"""What timm's factories read has a flag here with timm's default, but for what is about several labels an image."""

import inspect
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from tests.parts import lines, train_settings
from w2s_plugins.cli import train_parser
from w2s_plugins.training.create_task import create_criterion
from w2s_plugins.training.optimisation import create_schedule

# arguments that the training sets, and no flag: what it trains, by which measure, with how many updates an epoch
SET_HERE = {
    create_scheduler_v2: {"optimizer", "plateau_mode", "updates_per_epoch"},
    create_optimizer_v2: {"model_or_params", "param_group_fn", "kwargs"},
    create_classification_loss: {"multi_label", "soft_targets"},
}
# docs/limits.md: several labels an image
SEVERAL_LABELS = {
    "asl_clip",
    "asl_reduction",
    "poly_gamma",
    "poly_alpha",
    "twoway_tp",
    "twoway_tn",
    "class_counts",
    "num_samples",
    "db_neg_scale",
    "db_init_bias",
    "db_focal_gamma",
}
BY_OPT_KWARGS = {"foreach", "filter_bias_and_bn", "fallback_list", "fallback_no_weight_decay"}
# the flag of an argument that has another name
FLAGS = yaml.safe_load("""
{num_epochs: epochs, noise: lr_noise, noise_pct: lr_noise_pct, noise_std: lr_noise_std, noise_seed: seed,
 cycle_mul: lr_cycle_mul, cycle_decay: lr_cycle_decay, cycle_limit: lr_cycle_limit, k_decay: lr_k_decay,
 decay_fn: lr_decay_fn, stable_timescale: lr_stable_timescale, step_on_epochs: sched_on_updates, loss_type: task_loss,
 class_weight: loss_class_weight, pos_weight: loss_pos_weight, jsd_splits: aug_splits}
""")
# timm's own scripts have other defaults than its factories for these
OTHER_DEFAULTS = {
    "decay_epochs",
    "warmup_epochs",
    "cycle_decay",
    "weight_decay",
    "smoothing",
    "loss_type",
    "step_on_epochs",
    "class_weight",
    "pos_weight",
    "decay_milestones",
}


@pytest.mark.parametrize("factory", SET_HERE)
def test_every_argument_of_a_factory_has_a_flag_with_its_default(factory: object) -> None:
    flags = train_parser().by_dest()
    parameters = inspect.signature(factory).parameters
    covered = {
        name: FLAGS.get(name, name)
        for name in parameters
        if name not in SET_HERE[factory] | BY_OPT_KWARGS
        and not (factory is create_classification_loss and name in SEVERAL_LABELS)
    }
    assert [name for name, flag in covered.items() if flag not in flags] == []
    for name, flag in covered.items():
        if name not in OTHER_DEFAULTS:
            assert flags[flag].default == parameters[name].default, name


@pytest.mark.parametrize("read", [scheduler_kwargs, optimizer_kwargs])
def test_every_flag_that_timm_reads_is_one_here(read: object) -> None:
    asked = set()

    class Watched(Namespace):
        def __getattribute__(self, name: str) -> object:
            if not name.startswith("_"):
                asked.add(name)
            return super().__getattribute__(name)

    read(Watched(**train_settings().flags))
    # the last two are what --opt-kwargs says
    assert asked - train_parser().by_dest().keys() <= {"opt_foreach", "opt_args"}


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--sched wsd", dict(sched="wsd")),
        (
            "--sched rsqrt --lr-stable-timescale 3 --lr-decay-fn exp",
            dict(sched="rsqrt", stable_timescale=3.0, decay_fn="exp"),
        ),
    ],
)
def test_wsd_and_rsqrt_are_those_of_timm(flags: str, expected: dict) -> None:
    settings = train_settings(
        "--lr", "0.1", "--epochs", "20", "--warmup-epochs", "2", *flags.split()
    )
    theirs = dict(num_epochs=20, warmup_epochs=2, warmup_lr=1e-5, **expected)
    rates = []
    for make in (
        lambda optimizer: create_schedule(settings.optim, optimizer, 5, seed=0).scheduler,
        lambda optimizer: create_scheduler_v2(optimizer, **theirs)[0],
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = make(optimizer)
        rates.append([])
        for epoch in range(1, 20):
            scheduler.step(epoch)
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] and len(set(rates[0])) > 3


STATS = json.dumps(dict(pos_counts=[2, 4, 4], num_samples=10))


CRITERIA = """
--loss asl --asl-gamma-pos 0 --asl-gamma-neg 2  ->  {loss_type: asl, asl_gamma_pos: 0.0, asl_gamma_neg: 2.0}
--loss poly --poly-epsilon -1  ->  {loss_type: poly, poly_epsilon: -1.0}
--loss bce --loss-class-weight 1,2,3  ->  {loss_type: bce, class_weight: [1.0, 2.0, 3.0]}
--loss bce --bce-pos-weight 2  ->  {loss_type: bce, pos_weight: 2.0}
--loss bce --class-stats stats.json --loss-pos-weight neg_pos --loss-weight-power 0.5  ->  \
{loss_type: bce, pos_weight: [2.0, 1.224744871391589, 1.224744871391589]}
"""


@pytest.mark.parametrize("flags, expected", lines(CRITERIA))
def test_criteria_are_those_of_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stats.json").write_text(STATS)
    logits, target = (
        torch.randn(8, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(8) % 3,
    )
    expected = yaml.safe_load(expected)
    settings = train_settings(*flags.split())
    ours = create_criterion(settings.loss, settings.views, 3)(logits, target)
    assert ours == create_classification_loss(smoothing=0.1, **expected)(logits, target)
    assert ours != create_classification_loss(expected["loss_type"], smoothing=0.1)(logits, target)
