"""What models say of labelled samples that they have not learned (``--folds K``).

The training slice is cut into K parts. K ordinary runs follow one another, each trained on all parts but one, which is
its validation split and which it labels at the end. So each sample gets the probabilities of a model that has not seen
it: what says how far a teacher that is trained on all of them can be trusted on others, which its answers about its own
training samples do not.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data.datasets import known_labels, labels_unknown
from ..data.keys import sample_keys
from ..data.map_style import classes_of_samples
from ..data.wrapper import without_transform
from ..labels.answers import TRUTH, TableForm, answer_columns
from ..labels.table_writer import Columns, write_label_table
from ..metrics.evaluator import create_evaluator
from ..metrics.figures import HEADINGS, figure_of_few, headline_of
from ..monitor import format_table
from ..settings.teacher_name import TeacherName
from ..target_kind import ONE_CLASS, TargetKind
from ..teachers.clean_select import outputs_of
from ..teachers.kinds import open_classifier
from ..teachers.openers import Request
from ..teachers.teacher import open_alone
from ..training.data import build_data
from ..training.device import join_group
from ..training.loaders import whole_pass
from .planning import LocalPlan
from .scores import gather_warnings


def summary_of_folds(plan: LocalPlan) -> tuple[dict, str]:
    """Write what each model says of the part that it has not seen as a table of labels; return the record of each run
    with the accuracy of all, or their mAP, and the table that ``--folds`` ends with. All ranks take part.
    """
    parts: list[_Part] = []
    columns = list(_columns(plan, parts))
    file = plan.folder / "out_of_fold.csv"
    kind = parts[0].kind
    value = _headline_of_all(parts)
    # all ranks have asked the models, one of them writes
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_label_table(file, columns)
    # a row for each model, and one for all parts together
    records = plan.records()
    rows = [
        [name, figure_of_few(done["metrics"].get(kind.headline), len(part.logits)), done["seconds"]]
        for (name, done), part in zip(records.items(), parts)
    ]
    heads = ["out of fold", HEADINGS[kind.headline], "seconds"]
    images = sum(len(part.logits) for part in parts)
    table = format_table([*rows, ["all", figure_of_few(value, images), None]], heads)
    warnings = gather_warnings(records)
    measured = {"samples": images, kind.headline: value}
    record = dict(stages=records, out_of_fold=measured, warnings=warnings)
    return record, f"{table}\n* what each model says of the part that it has not seen: {file}"


class _Part(NamedTuple):
    """Logits (N, C) of the model that has not seen a part, and its true labels."""

    kind: TargetKind
    logits: Tensor
    truth: Tensor


def _headline_of_all(parts: list[_Part]) -> float | None:
    """Return the figure of all parts together, in percent; None: not measured."""
    kind = parts[0].kind
    if kind.name == ONE_CLASS.name:
        right = [kind.score(kind.decide(part.logits), part.truth) for part in parts]
        hits = torch.cat(right).tolist()
        return 100 * sum(hits) / len(hits)
    evaluator = create_evaluator(kind, torch.device("cpu"), None)
    for part in parts:
        evaluator.update(part.logits, part.truth)
    return headline_of(evaluator.compute())


def _columns(plan: LocalPlan, parts: list[_Part]) -> Iterator[Columns]:
    """Yield the columns of each part; ``parts`` gets what they are made of. All ranks take part."""
    for run in plan.runs:
        # the part that it has not seen is its validation split
        settings = run.settings
        world = join_group(settings.compute.device)
        data = build_data(settings)
        part, kind = data.val, data.target_kind
        if part is None or isinstance(part, IterableDataset):
            raise labels_unknown("--folds")
        # the model as it is exported, which sees images as it does by itself
        exported = TeacherName.parse(f"local-dir:{run.folder / 'export'}")
        member = open_alone(
            exported, open_classifier(exported, Request(in_chans=None)), world.device
        )
        asked = whole_pass(settings.data, world)
        logits = outputs_of(member, member.data_config, without_transform(part), asked)
        # its answers, with the true class beside them
        keys, several = sample_keys(part), classes_of_samples(part)
        truth = torch.tensor(known_labels(part, "--folds")) if several is None else several
        parts.append(_Part(kind, logits, truth))
        names = [str(name) for name in getattr(part, "classes", None) or range(logits.shape[1])]
        # pairs are read back whatever the classes are called, but for a semicolon
        paired = not any(";" in name for name in names)
        form = TableForm(top_k=logits.shape[1]) if paired else TableForm(every=True)
        shares = kind.probabilities(logits).numpy()
        columns = answer_columns(keys.values, keys.by, shares, names, form, kind)
        yield {**columns, **truth_columns(kind, truth, names)}


def truth_columns(kind: TargetKind, truth: Tensor, names: Sequence[str]) -> Columns:
    """Return the true class of each sample by name; of several the classes that it has, and those nobody knows of."""
    if kind.name == ONE_CLASS.name:
        return {TRUTH: [names[int(label)] for label in truth]}
    cells = {TRUTH: truth.numpy(), f"{TRUTH}_unknown": truth.isnan().float().numpy()}
    return {name: kind.columns(has, names)["labels"] for name, has in cells.items()}
