"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..cli.forms import LABELS, parse_labels
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import PublicFormatter, quietly, say, shorten
from .answers import write_arrays
from .combine import krippendorff_alpha
from .crowd import join_tables, read_alike
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import check_gaps, labels_of_samples, most_likely
from .table import LabelTable
from .table_writer import check_writable, write_label_table

MOST_PAIRED = 10  # annotators whose agreement is shown pair by pair


def export(folder: Path, output: Path) -> None:
    """Write a folder of labels as a table."""
    manifest = write_arrays(folder, output)
    say(f"{output}: logits of {manifest.num_samples} samples in {manifest.num_classes} classes")


def push(path: str, repo_id: str, **how: object) -> None:
    """Publish labels on the Hub."""
    say(push_labels(Path(path.removeprefix(LABELS)), repo_id, **how))


def check(
        file: str, data_dir: str | None, class_names: str | None, against: str | None, output: Path | None) -> None:
    """Say what a table holds, and read it as a training on some images would; list where another one differs.

    Raises:
        UserError: the training would refuse it.
    """
    # what is in it
    if output is not None:
        check_writable(output)
    tables, names, how = read_tables([[name] for name in (file, against) if name], _names(class_names))
    table = tables[0]
    people = len({*(table.annotators or [file])})
    say(f"{file}: {len(table)} answers about {len({*table.keys})} samples, known by {table.keyed_by}, of {people} "
        f"annotator(s); kind of labels: {table.kind}")

    # brought to the images, as for training, or to those that it names, or the other one if that has the fuller names
    fullest = min(tables, key=lambda one: sum("\\" in key or not Path(key).suffix for key in map(str, one.keys)))
    keys = sample_keys(open_images(data_dir)) if data_dir else _keys_of(fullest)
    # without combine a training takes the mean of several files
    found, *others = [
        labels_of_samples(one, keys, names, how["combine"] or ("mean" if one.more else None), name)
        for name, one in zip((file, against), tables)]
    if data_dir is not None:
        check_gaps(found.known, keys, how["missing"], file)
        say(f"{file}: can be trained on: labels of {int(found.known.sum())} of the {len(keys.values)} samples in "
            f"{len(names)} classes")

    # the samples of which the other one says something else
    for other in others:
        both = found.known & other.known
        rows = (both & torch.from_numpy(found.classes() != other.classes())).nonzero().flatten()
        count = int(both.sum())
        say(f"{file} and {against} agree on {100 - 100 * len(rows) / max(1, count):.2f} % of the {count} samples that "
            f"both label; they differ on {len(rows)}")
        if output is None:
            continue
        columns = {keys.by: [keys.values[row] for row in rows]}
        for name, own in (("", found), ("against_", other)):
            columns[f"{name}label"] = [  # of a tie none
                names[i] if count == 1 else "" for i, count in zip(own.classes()[rows], own.best(rows).sum(dim=1))]
            columns[f"{name}confidence"] = own(rows, torch.device("cpu")).softmax(dim=1).amax(dim=1).numpy().round(4)
        write_label_table(output, [columns])


def stats(files: Sequence[str], class_names: str | None) -> None:
    """Say what a crowd has answered, who of it is how reliable, and how well its members agree.

    Raises:
        UserError: a table cannot be read, or contradicts itself.
    """
    from pandas import DataFrame, crosstab

    # every answer of anybody once
    (table,), names, _ = read_tables([files], _names(class_names))
    with quietly(logging.INFO):
        found = labels_of_samples(table, _keys_of(table), names, "dawid-skene", files[0])
    answers = DataFrame(dict(sample=table.keys, who=table.annotators or files[0], label=most_likely(table.answers)))
    answers = answers.drop_duplicates(["sample", "who"])
    votes = crosstab(answers["sample"], answers["label"])
    say(f"{len(answers)} answers about {len(votes)} samples, of {answers['who'].nunique()} annotator(s)",
        *(f"{count} samples have {many} answer(s)" for many, count in votes.sum(axis=1).value_counts().items()),
        *(f"{count} answers: {shorten(names[i])}" for i, count in votes.sum().sort_values(ascending=False).items()))

    # who is how reliable, and who agrees with whom
    people = DataFrame(found.manifest.who.get("reliability", ()))
    if len(people):
        wide = answers.pivot(index="sample", columns="who", values="label")[people["annotator"].head(MOST_PAIRED)]
        alike = wide.corr(lambda one, other: (one == other).mean(), min_periods=1).rename_axis(None)
        say(f"Krippendorff's alpha: {krippendorff_alpha(votes.to_numpy()):.4f}",
            *people.to_string(index=False).split("\n"), *alike.round(4).to_string().split("\n"))


def _keys_of(table: LabelTable) -> SampleKeys:
    """Return the samples that a table is about, where nothing else says which there are."""
    return SampleKeys(table.keyed_by, list(dict.fromkeys(table.keys)))


def _names(class_names: str | None) -> Sequence[str] | None:
    return read_class_names(class_names) if class_names else None


def read_tables(
        crowds: Sequence[Sequence[str]], names: Sequence[str] | None,
) -> tuple[list[LabelTable], Sequence[str], dict[str, object]]:
    """Read the files of each crowd as one table, all in terms of the same classes; return the tables, the classes, and
    what the names set. What a training would log is shown.
    """
    logging.basicConfig(level=logging.INFO)
    for handler in logging.root.handlers:
        handler.setFormatter(PublicFormatter("%(message)s"))

    # a name may be that of --teacher, labels:FILE?missing=skip, or the file alone
    said = [",".join(LABELS + name.removeprefix(LABELS) for name in crowd) for crowd in crowds]
    all_files, how = parse_labels(",".join(said), True)
    found = read_alike({file: local_labels(file, file).path for file in all_files}, names, how["missing"])
    parsed = (parse_labels(text, True) for text in said)
    tables = [join_tables([found[file] for file in files], " ".join(files)) for files, _ in parsed]
    return tables, names or tables[0].names, how
