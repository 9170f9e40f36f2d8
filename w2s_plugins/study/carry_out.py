"""``--protocol w2s``, ``--stages`` and ``--folds``: a list of runs, one after the other, and what comes of them."""

import logging
from collections.abc import Callable, Mapping

import torch.distributed as dist

from ..cli.declare import Parser
from ..errors import say
from ..files import write_json
from . import chain, folds, w2s
from .planning import make_plan
from .runs import Runs
from .w2s import show_controls

_logger = logging.getLogger(__name__)

PREPARE = {"--protocol w2s": w2s.prepare, "--folds": folds.prepare}  # checks before the first run
# what comes of the runs: the record of all, and the table that the command ends with
FINISH = {"--protocol w2s": w2s.finish, "--stages": chain.finish, "--folds": folds.finish}
BY_ALL_RANKS = ("--folds",)  # whose models label images at the end


def carry_out(
        given: Mapping[str, object],
        parser: Parser,
        train: Callable[[dict[str, object]], dict],
) -> dict | None:
    """Make the runs that the flags ask for, write ``result.json`` beside them, and return what is in it, on the first
    rank only.

    Args:
        given: flags that were set by hand.
        parser: knows the flags.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go together, or runs that cannot be compared.
    """
    plan = make_plan(given, parser)
    runs = Runs(plan, given, parser, train)
    if plan.flag in PREPARE:
        PREPARE[plan.flag](runs)
    for run in plan.runs:
        runs.make(run.name)
    secondary = dist.is_initialized() and dist.get_rank() > 0
    if secondary and plan.flag not in BY_ALL_RANKS:
        return None
    record, table = FINISH[plan.flag](runs)
    if secondary:
        return None
    write_json(plan.folder / "result.json", record)
    if record.get("controls"):
        show_controls(runs, record["controls"])
    for warning in record.get("warnings", ()):
        _logger.warning(f"WARNING: {warning}")
    say(*table.splitlines())
    return record
