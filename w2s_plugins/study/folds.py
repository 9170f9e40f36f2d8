"""What models say of labelled samples that they have not learned (``--folds K``).

The training slice is cut into K parts. K ordinary runs follow one another, each trained on all parts but one, which is
its validation split and which it labels at the end. So each sample gets the probabilities of a model that has not seen
it: what says how far a teacher that is trained on all of them can be trusted on others, which its answers about its own
training samples do not.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence

import torch.distributed as dist

from ..build.data import build_data, open_train_split
from ..build.device import join_group
from ..data import take_slice
from ..data.datasets import known_labels
from ..data.keys import sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError
from ..labels.answers import TableForm, answer_columns
from ..labels.table_writer import write_label_table
from ..monitor import format_table
from ..teachers.clean_select import outputs_of
from ..teachers.kinds import open_teacher
from ..teachers.openers import Request
from ..teachers.stored import Pass
from ..teachers.teacher import open_alone
from .runs import Runs
from .same_data import check_made_of

TABLE = "out_of_fold.csv"
TRUTH = "truth"  # the column of the true class, beside that of the label


def prepare(runs: Runs) -> None:
    """Raise a `UserError` where there are fewer samples than parts."""
    first = argparse.Namespace(**runs.resolved("fold1"))
    count = sum(len(take_slice(open_train_split(first), part, first.slice_seed))
                for part in (first.train_slice, first.val_slice))
    if count < len(runs.plan.runs):
        raise UserError(f"--folds {len(runs.plan.runs)}: there are {count} samples; expected as many or more")


def finish(runs: Runs) -> tuple[dict, str]:
    """Write what each model says of the part that it has not seen as a table of labels; return the record of each run
    with the accuracy of all, and the table that ``--folds`` ends with. All ranks take part.
    """
    right: list[bool] = []
    columns = list(_columns(runs, right))
    file, top1 = runs.plan.folder / TABLE, 100 * sum(right) / len(right)
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_label_table(file, columns)
    rows = [[name, done["metrics"]["top1"], done["seconds"]] for name, done in runs.done.items()]
    table = format_table([*rows, ["all", top1, None]], ["out of fold", "top-1", "seconds"])
    return dict(stages=runs.done, out_of_fold=dict(samples=len(right), top1=top1)), (
        f"{table}\n* what each model says of the part that it has not seen: {file}")


def _columns(runs: Runs, right: list[bool]) -> Iterator[Mapping[str, Sequence]]:
    """Yield the columns of each part; ``right`` gets for each sample whether its model is. All ranks take part."""
    for name in runs.flags:
        args = argparse.Namespace(**runs.resolved(name))
        world = join_group(args.device, args.dist_timeout)
        data = build_data(args)
        check_made_of(runs.done[name], data.sources, f"--folds: {runs.folders[name]}")
        held_out = data.val
        exported = f"local-dir:{runs.folders[name] / 'export'}"
        member = open_alone(exported, open_teacher(exported, Request(in_chans=None)), world.device)
        logits = outputs_of(member, member.data_config, without_transform(held_out), Pass(
            world, args.validation_batch_size or args.batch_size, args.workers, args.decoder))
        labels, keys = known_labels(held_out, "--folds"), sample_keys(held_out)
        right += [said == label for said, label in zip(logits.argmax(dim=1).tolist(), labels)]
        names = getattr(held_out, "classes", None) or range(logits.shape[1])
        columns = answer_columns(
            keys.values, keys.by, logits.softmax(dim=1).numpy(), names, TableForm(top_k=logits.shape[1]))
        yield {**columns, TRUTH: [names[label] for label in labels]}
