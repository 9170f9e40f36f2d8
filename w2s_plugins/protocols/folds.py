"""What models say of labelled samples that they have not learned (``--folds K``).

The training slice is cut into K parts. K ordinary runs follow one another, each trained on all parts but one, which is
its validation split and which it labels at the end. So each sample gets the probabilities of a model that has not seen
it: what says how far a teacher that is trained on all of them can be trusted on others, which its answers about its own
training samples do not.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch.distributed as dist

from ..build.data import build_data
from ..build.device import join_group
from ..cli.declare import Parser
from ..data.datasets import known_labels
from ..data.keys import sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError
from ..files import write_json
from ..labels.answers import TableForm, answer_columns
from ..labels.table_writer import write_label_table
from ..monitor import format_table
from ..teachers.clean_select import outputs_of
from ..teachers.stored import Pass
from ..teachers.teacher import StudentInput, TeacherModel, TeacherSettings, load_frozen_model
from ..tokens import say
from .planning import folder_of_runs, runs_of_folds
from .w2s import Stages

TABLE = "out_of_fold.csv"
TRUTH = "truth"  # the column of the true class, beside that of the label


def run_folds(
        given: Mapping[str, object],
        parser: Parser,
        train: Callable[[dict[str, object]], dict],
) -> dict | None:
    """Train the models of ``--folds``, and write what each says of the part that it has not seen as a table of labels;
    return what is in ``result.json``.

    Args:
        given: flags that were set by hand.
        parser: knows the flags.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go with it.
    """
    folder = folder_of_runs(given, "--folds")
    stages = Stages(given, parser, folder, train, go_on=bool(given.get("resume")), flag="--folds")
    for run in runs_of_folds(given, parser):
        stages.plan(run)
    for name in stages.flags:
        splits = stages.run(name)["data"]["splits"]
        count = sum(splits[part]["num_samples"] for part in ("train", "val", "select") if splits[part])
        if count < len(stages.flags):  # known when the data was opened
            raise UserError(f"--folds {len(stages.flags)}: there are {count} samples; expected as many or more")
    right: list[bool] = []
    table = list(_columns(stages, right))
    if dist.is_initialized() and dist.get_rank() > 0:
        return None
    write_label_table(folder / TABLE, table)
    top1 = 100 * sum(right) / len(right)
    record = dict(stages=stages.done, out_of_fold=dict(samples=len(right), top1=top1))
    write_json(folder / "result.json", record)
    rows = [[name, done["metrics"]["top1"], done["seconds"]] for name, done in stages.done.items()]
    print(format_table([*rows, ["all", top1, None]], ["out of fold", "top-1", "seconds"]))
    say(f"* what each model says of the part that it has not seen: {folder / TABLE}")
    return record


def _columns(stages: Stages, right: list[bool]) -> Iterator[Mapping[str, Sequence]]:
    """Yield the columns of each part; ``right`` gets for each sample whether its model is. All ranks take part."""
    for name in stages.flags:
        args = argparse.Namespace(**stages.resolved(name))
        world = join_group(args.device, args.dist_timeout)
        held_out = build_data(args).val
        model, config, source = load_frozen_model(
            f"local-dir:{stages.folders[name] / 'export'}", None, None, TeacherSettings())
        student = StudentInput(config["mean"], config["std"], config["input_size"][0], None)  # sees what the model sees
        member = TeacherModel(model, config, student, source=source).to(world.device)
        logits = outputs_of(member, config, without_transform(held_out), Pass(
            world, args.validation_batch_size or args.batch_size, args.workers, args.decoder))
        labels, keys = known_labels(held_out, "--folds"), sample_keys(held_out)
        right += [said == label for said, label in zip(logits.argmax(dim=1).tolist(), labels)]
        names = getattr(held_out, "classes", None) or range(logits.shape[1])
        columns = answer_columns(
            keys.values, keys.by, logits.softmax(dim=1).numpy(), names, TableForm(top_k=logits.shape[1]))
        yield {**columns, TRUTH: [names[label] for label in labels]}
