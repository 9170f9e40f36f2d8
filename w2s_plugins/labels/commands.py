"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..cli.forms import LABELS_PREFIX, parse_labels
from ..cli.values import split_names
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import PublicFormatter, UserError, quietly, say, shorten, typed
from .answers import write_arrays
from .combine import choose_means, krippendorff_alpha
from .crowd import join_tables, read_alike
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import TableLabels, check_gaps, labels_of_samples, most_likely
from .table import LabelTable, file_of, infer_schema, open_table
from .table_writer import check_writable, write_label_table

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_PAIRED = 10  # annotators whose agreement is shown pair by pair, those with the most answers
MOST_CONFUSED = 3  # pairs of classes that are shown of an annotator


def export(folder: Path, output: Path) -> None:
    """Write a folder of labels as a table."""
    manifest = write_arrays(folder, output)
    say(f"{output}: logits of {manifest.num_samples} samples in {manifest.num_classes} classes")


def push(path: str, repo_id: str, **how: object) -> None:
    """Publish labels on the Hub."""
    say(push_labels(Path(path.removeprefix(LABELS_PREFIX)), repo_id, **how))


def check(
    file: str,
    data_dir: str | None,
    class_names: str | None,
    against: str | None,
    output: Path | None,
) -> None:
    """Say what a table holds, and read it as a training on some images would; list where another one differs.

    Raises:
        UserError: the training would refuse it.
    """
    # what is in it
    if output is not None:
        read = [one for name in (file, against) for one in parse_labels(name, alone=True)[0]]
        check_writable(output, [*(file_of(Path(one))[0] for one in read), Path(class_names or "")])
    tables, names, how = read_tables(
        [[name] for name in (file, against) if name], _names(class_names)
    )
    table = tables[0]
    people = len({*(table.annotators or [file])})
    say(
        f"{file}: {len(table)} answers about {len({*table.keys})} samples, known by {table.keyed_by}, of {people} "
        f"annotator(s); kind of labels: {table.kind}"
    )

    # brought to the images, as for training, or to those that it names, or the other one if that has the fuller names
    fullest = min(
        tables,
        key=lambda one: sum("\\" in key or not Path(key).suffix for key in map(str, one.keys)),
    )
    keys = sample_keys(open_images(data_dir)) if data_dir else _keys_of(fullest)
    # without combine a training takes the mean of several files
    found, *others = [
        labels_of_samples(one, keys, names, how["combine"] or ("mean" if one.more else None), name)
        for name, one in zip((file, against), tables)
    ]
    if data_dir is not None:
        check_gaps(found.known, keys, how["missing"], file)
        say(
            f"{file}: can be trained on: labels of {int(found.known.sum())} of the {len(keys.values)} samples in "
            f"{len(names)} classes"
        )

    # the samples of which the other one says something else
    for other in others:
        both = found.known & other.known
        rows = (both & torch.from_numpy(found.classes() != other.classes())).nonzero().flatten()
        count = int(both.sum())
        say(
            f"{file} and {against} agree on {100 - 100 * len(rows) / max(1, count):.2f} % of the {count} samples that "
            f"both label; they differ on {len(rows)}"
        )
        if output is None:
            continue
        columns = {keys.by: [keys.values[row] for row in rows]}
        for name, own in (("", found), ("against_", other)):
            classes, likeliest = own.classes()[rows.numpy()], own.best(rows).sum(dim=1)
            columns[f"{name}label"] = [  # of a tie none
                names[i] if count == 1 else "" for i, count in zip(classes, likeliest)
            ]
            columns[f"{name}confidence"] = (
                own(rows, torch.device("cpu")).softmax(dim=1).amax(dim=1).numpy().round(4)
            )
        write_label_table(output, [columns])


def stats(files: Sequence[str], class_names: str | None) -> None:
    """Say what a crowd has answered, who of it is how reliable, what each takes for what, how well its members agree,
    and how to combine their answers.

    Raises:
        UserError: a table cannot be read, or contradicts itself.
    """
    from pandas import DataFrame, crosstab

    # every answer of anybody once
    (table,), names, _ = read_tables([files], _names(class_names))
    with quietly(logging.INFO):
        found = labels_of_samples(table, _keys_of(table), names, "dawid-skene", files[0])
    answers = DataFrame(
        dict(sample=table.keys, who=table.annotators or files[0], label=most_likely(table.answers))
    )
    answers = answers.drop_duplicates(["sample", "who"])
    votes = crosstab(answers["sample"], answers["label"])
    say(
        f"{len(answers)} answers about {len(votes)} samples, of {answers['who'].nunique()} annotator(s)",
        *(
            f"{count} samples have {many} answer(s)"
            for many, count in votes.sum(axis=1).value_counts().items()
        ),
        *(
            f"{count} answers: {shorten(names[i])}"
            for i, count in votes.sum().sort_values(ascending=False).items()
        ),
    )

    # who is how reliable, the most reliable first, and who agrees with whom
    people = DataFrame(found.manifest.who.get("reliability", ()))
    if not len(people):
        say("no sample has several answers, so that ?combine changes nothing")
        return
    busiest = {*people["annotator"].head(MOST_PAIRED)}
    people = people.sort_values("dawid-skene", ascending=False, kind="stable")
    names_of_busiest = [name for name in people["annotator"] if name in busiest]
    wide = answers.pivot(index="sample", columns="who", values="label")[names_of_busiest]
    alike = wide.corr(lambda one, other: (one == other).mean(), min_periods=1).rename_axis(None)
    say(f"Krippendorff's alpha: {krippendorff_alpha(votes.to_numpy()):.4f}")
    if len(people) < answers["who"].nunique():
        say(f"the {len(people)} annotators with the most answers, the most reliable first:")
    say(*people.to_string(index=False).split("\n"), *alike.round(4).to_string().split("\n"))

    # what each takes for what, and what follows for a training
    say(*_confusions(answers, found, names, people["annotator"]))
    how, why = "mean", "the answers are more than a class alone"
    if table.kind == "hard" and table.confidence is None:
        counts = answers["who"].value_counts().to_numpy()
        how, why = choose_means(counts, people["dawid-skene"].to_numpy(), len(names))
    say(f"to train on them take ?combine={how}: {why}")


def _confusions(
    answers: "DataFrame", found: TableLabels, names: Sequence[str], people: Iterable[str]
) -> Iterator[str]:
    """Yield a line for each annotator with the classes that are taken for others most often.

    Args:
        answers: ``sample``, ``who`` and ``label`` of each.
        found: the label of each sample; of a tie there is none.
        names: of the classes.
        people: annotators, in the order of the lines.
    """
    rows = found.known.nonzero().flatten()
    clear = rows[found.best(rows).sum(dim=1) == 1].numpy()
    labels = dict(zip([found.keys.values[row] for row in clear], found.classes()[clear]))
    wrong = answers.assign(truth=answers["sample"].map(labels)).dropna(subset=["truth"])
    wrong = wrong[wrong["truth"] != wrong["label"]]
    counts = (
        wrong.groupby(["who", "truth", "label"]).size().sort_values(ascending=False, kind="stable")
    )
    for person in people:
        if person not in counts:
            yield f"{person} confuses nothing"
            continue
        pairs = counts[person].head(MOST_CONFUSED).items()
        texts = (
            f"{names[int(truth)]} for {names[label]} ({count})" for (truth, label), count in pairs
        )
        yield f"{person} takes {', '.join(texts)}"


def _keys_of(table: LabelTable) -> SampleKeys:
    """Return the samples that a table is about, where nothing else says which there are."""
    return SampleKeys(table.keyed_by, list(dict.fromkeys(table.keys)))


def _names(class_names: str | None) -> Sequence[str] | None:
    return read_class_names(class_names) if class_names else None


def read_tables(
    crowds: Sequence[Sequence[str]],
    names: Sequence[str] | None,
) -> tuple[list[LabelTable], Sequence[str], dict[str, object]]:
    """Read the files of each crowd as one table, all in terms of the same classes; return the tables, the classes, and
    what the names set. What a training would log is shown.
    """
    logging.basicConfig(level=logging.INFO)
    for handler in logging.root.handlers:
        handler.setFormatter(PublicFormatter("%(message)s"))

    # a name may be that of --teacher, labels:FILE?missing=skip, or the file alone
    said = [
        ",".join(LABELS_PREFIX + name.removeprefix(LABELS_PREFIX) for name in crowd)
        for crowd in crowds
    ]
    all_files, how = parse_labels(",".join(said), True)
    paths = {file: local_labels(file, file).path for file in all_files}
    try:
        found = read_alike(paths, names, how["missing"])
    except UserError as error:
        text, *advice = re.split("(?:;| or,) if columns are annotators", str(error))
        line = _line_with_annotators(paths) if advice else None
        if line is None:
            raise
        raise UserError(f"{text}; if its columns are annotators, type: {line}") from error
    parsed = (parse_labels(text, True) for text in said)
    tables = [join_tables([found[file] for file in files], " ".join(files)) for files, _ in parsed]
    return tables, names or tables[0].names, how


def _line_with_annotators(paths: Mapping[str, Path]) -> str | None:
    """Return the command line that was typed, with the columns of annotators behind each file that may have such; None
    where none may.

    Args:
        paths: of tables by their names on the command line.
    """
    # columns that are taken for classes, where nothing but the place of their names says so
    named = {}
    for name, path in paths.items():
        with suppress(UserError), quietly():
            schema = infer_schema(open_table(path, name).frame, None, name)
            if schema.answer == "classes" and schema.kind is None:
                named[name] = f"{name}#{','.join(schema.classes.values())}"
    if not named:
        return None

    # a word may have several names, and settings behind each
    words = []
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        parts = split_names(value)
        files = [part.removeprefix(LABELS_PREFIX).partition("?")[0] for part in parts]
        if {*files} & named.keys():
            prefix = LABELS_PREFIX if len(parts) > 1 else ""  # ends the columns of the file before
            parts = [
                prefix + part.removeprefix(prefix).replace(file, named.get(file, file), 1)
                for part, file in zip(parts, files)
            ]
            value = ",".join(parts)
        words.append(flag + equals + value)
    return f"{typed('labels')} {shlex.join(words)}"
