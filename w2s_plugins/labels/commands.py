"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import PublicFormatter, UserError, quietly, say, shorten, typed
from ..no_label import NO_LABEL
from ..settings.forms import LABELS_PREFIX, parse_labels
from ..settings.values import split_names
from ..target_kind import ONE_CLASS, SEVERAL_CLASSES, TargetKind, kind_of_task
from .answers import TableForm, answer_columns, write_arrays
from .by_class import compare_classes, mistakes, most_exchanged, most_together
from .combine import count_votes, krippendorff_alpha, votes_of_classes
from .crowd import join_tables, read_tables_alike
from .forecast import advise
from .names import names_to_type, read_class_names
from .published import Terms, local_labels, push_labels
from .samples import SampleLabels, check_gaps, labels_of_samples, most_likely
from .several import ListForm, are_several
from .table import LabelRows, file_of, open_table
from .table_writer import check_writable, write_label_table

if TYPE_CHECKING:
    from pandas import DataFrame

CLASS_NAMES, WITH_CLASS_NAMES = "--class-names", ("check", "stats")  # a flag, of these commands
MOST_PAIRED = 10  # annotators whose agreement is shown pair by pair, those with the most answers
MOST_CONFUSED = 3  # pairs of classes that are shown of an annotator


def export(folder: Path, output: Path) -> None:
    """Write a folder of labels as a table."""
    manifest = write_arrays(folder, output)
    say(f"{output}: logits of {manifest.num_samples} samples in {manifest.num_classes} classes")


def push(
    path: str,
    repo_id: str,
    task: str = ONE_CLASS.task,
    class_names: str | None = None,
    **how: Any,
) -> None:
    """Publish labels on the Hub; further arguments are those of `push_labels`. ``task`` is timm's word for the kind of
    target.
    """
    terms = Terms(kind_of_task(task), _names(class_names))
    say(push_labels(Path(path.removeprefix(LABELS_PREFIX)), repo_id, terms=terms, **how))


def check(
    file: str,
    data_dir: str | None,
    class_names: str | None,
    against: str | None,
    output: Path | None,
    task: str = ONE_CLASS.task,
) -> None:
    """Say what a table holds, and read it as a training on some images would; write what it then says, or where another
    one differs. ``task`` is timm's word for the kind of target.

    Raises:
        UserError: the training would refuse it.
    """
    # what is in it
    typed_names = [file] if against is None else [file, against]
    if output is not None:
        files = [name for text in typed_names for name in parse_labels(text, alone=True)[0]]
        inputs = [file_of(Path(name))[0] for name in files]
        check_writable(output, [*inputs, Path(class_names or "")])
    target_kind = kind_of_task(task)
    tables, names, how = read_tables(
        [[name] for name in typed_names], _names(class_names), target_kind=target_kind
    )
    table = tables[0]
    people = len({*(table.annotators or [file])})
    say(
        f"{file}: {len(table)} answers about {len({*table.keys})} samples, known by {table.keyed_by}, of {people} "
        f"annotator(s); kind of labels: {table.kind}"
    )

    # brought to the images, as for training, or to those that it names, or the other one if that has the fuller names
    keys = _keys_of(min(tables, key=_count_short_names))
    if data_dir:
        keys = sample_keys(open_images(data_dir))
    labels: list[SampleLabels] = []
    for name, one in zip(typed_names, tables):
        # without combine a training takes the mean of several files
        combine = how["combine"] or ("mean" if one.more else None)
        labels.append(labels_of_samples(one, keys, names, combine, name, target_kind=target_kind))
    known = labels[0].known
    if data_dir is not None:
        check_gaps(known, keys, how["missing"], file)
        say(
            f"{file}: can be trained on: labels of {int(known.sum())} of the {len(keys.values)} samples in "
            f"{len(names)} classes"
        )
    if against is None:
        if output is not None:
            found = known.nonzero().flatten()
            # a row without a label would be no label for who reads the table
            ties = torch.zeros(len(found), dtype=torch.bool)
            if not are_several(target_kind):
                ties = labels[0].best(found).sum(dim=1) > 1
            found = found[~ties]
            write_label_table(output, [_said_of(labels[0], found, names, are_several(target_kind))])
            left_out = f"; {int(ties.sum())} ties have none" if ties.any() else ""
            say(f"{output}: labels of {len(found)} samples{left_out}")
        return

    # the samples of which the other one says something else
    both = known & labels[1].known
    rows = torch.from_numpy(labels[0].differs(labels[1])).nonzero().flatten()
    count = int(both.sum())
    pair = [torch.from_numpy(of_table.classes())[both] for of_table in labels]
    if are_several(target_kind):
        agreement = 100 * float(target_kind.agreement(*pair).sum()) / max(1, count)
        of_what = "of the classes of which both say something, of"
    else:
        agreement, of_what = 100 - 100 * len(rows) / max(1, count), "of"
    say(
        f"{file} and {against} agree on {agreement:.2f} % {of_what} the {count} samples that both label; they differ "
        f"on {len(rows)}"
    )
    if are_several(target_kind):
        one, other = (decisions.numpy() for decisions in pair)
        say(
            f"images with each class, in both, or in only the first or second; precision and recall as if {against} were "
            "true:",
            *compare_classes(one, other, names).to_string(index=False, na_rep="-").split("\n"),
            f"exchanged most often: {most_exchanged(one, other, names) or 'nothing'}",
        )
    if output is None:
        return
    columns, others = (_said_of(of_table, rows, names) for of_table in labels)
    key = next(iter(columns))
    columns |= {f"against_{name}": cells for name, cells in others.items() if name != key}
    write_label_table(output, [columns])


def _said_of(
    labels: SampleLabels, rows: torch.Tensor, names: Sequence[str], every: bool = False
) -> dict[str, Sequence | np.ndarray]:
    """Return the columns of a table with the labels of samples ``rows`` (n,), and with ``every`` probability; of a tie no
    class is written.
    """
    kind = labels.target_kind
    shares = kind.probabilities(labels(rows, torch.device("cpu"))).numpy()
    keys = [labels.keys.values[row] for row in rows.tolist()]
    said = answer_columns(keys, labels.keys.by, shares, names, TableForm(every=every), kind)
    columns = {
        name: cells.round(4) if isinstance(cells, np.ndarray) else cells
        for name, cells in said.items()
    }
    if not are_several(kind):
        is_clear = (labels.best(rows).sum(dim=1) == 1).tolist()
        columns["label"] = [
            name if clear else "" for name, clear in zip(columns["label"], is_clear)
        ]
    return columns


def _count_short_names(table: LabelRows) -> int:
    """Return how many names of a table may lack a part: a folder, since they are of Windows, or the suffix."""
    return sum("\\" in key or not Path(key).suffix for key in map(str, table.keys))


def stats(files: Sequence[str], class_names: str | None, task: str = ONE_CLASS.task) -> None:
    """Say what a crowd has answered, who of it is how reliable, what each takes for what, how well its members agree,
    and how to combine their answers. ``task`` is timm's word for the kind of target.

    Raises:
        UserError: a table cannot be read, or contradicts itself.
    """
    from pandas import DataFrame, crosstab

    # every answer of anybody once
    target_kind = kind_of_task(task)
    (table,), names, _ = read_tables([files], _names(class_names), target_kind=target_kind)
    if are_several(target_kind):
        _stats_of_classes(table, names, files[0])
        return
    with quietly(logging.INFO):
        combined = labels_of_samples(table, _keys_of(table), names, "dawid-skene", files[0])
    people = table.annotators or [files[0]] * len(table)
    answers = DataFrame(dict(sample=table.keys, who=people, label=most_likely(table.answers)))
    answers = answers.drop_duplicates(["sample", "who"])
    votes = crosstab(answers["sample"], answers["label"])
    say(
        f"{len(answers)} answers about {len(votes)} samples, of {len({*people})} annotator(s)",
        *(
            f"{count} samples have {many} answer(s)"
            for many, count in votes.sum(axis=1).value_counts().items()
        ),
    )
    of_classes = votes.sum().sort_values(ascending=False)
    for label, count in zip(of_classes.index.tolist(), of_classes.tolist()):
        say(f"{count} answers: {shorten(names[label])}")

    # who is how reliable, the most reliable first, and who agrees with whom
    reliability = DataFrame(combined.manifest.who.get("reliability", ()))
    if not len(reliability):
        say("no sample has several answers, so that ?combine changes nothing")
        return
    busiest = {*reliability["annotator"].head(MOST_PAIRED)}
    reliability = reliability.sort_values("dawid-skene", ascending=False, kind="stable")
    ranked: list[str] = reliability["annotator"].tolist()
    wide = answers.pivot(index="sample", columns="who", values="label")
    wide = wide.loc[:, [name for name in ranked if name in busiest]]
    alike = wide.corr(lambda one, other: (one == other).mean(), min_periods=1).rename_axis(None)
    say(f"Krippendorff's alpha: {krippendorff_alpha(votes.to_numpy()):.4f}")
    if len(ranked) < len({*people}):
        say(f"the {len(ranked)} annotators with the most answers, the most reliable first:")
    say(*reliability.to_string(index=False).split("\n"), *alike.round(4).to_string().split("\n"))

    # what each takes for what, and what follows for a training
    say(*_confusions(answers, combined, names, ranked))
    # probabilities say more of an annotator than how often the class is right, and their mean keeps that
    if table.kind != "hard" or table.confidence is not None:
        say("to train on them take ?combine=mean: the answers are more than a class alone")
        return
    samples, who = (answers[column].factorize()[0] for column in ("sample", "who"))
    say(*advise([count_votes(samples, who, answers["label"].to_numpy(), len(names))]))


def _stats_of_classes(table: LabelRows, names: Sequence[str], flag: str) -> None:
    """Say what a crowd has answered of several classes an image: each is a question of its own, of yes and no."""
    from pandas import DataFrame

    # one answer of each annotator, whether it is in a row or in one for each class
    keys, target_kind = _keys_of(table), SEVERAL_CLASSES
    with quietly(logging.INFO):
        combined = labels_of_samples(
            table, keys, names, "dawid-skene", flag, target_kind=target_kind
        )
    people = sorted({*(table.annotators or [flag])})
    one_each: list[np.ndarray] = []
    for person in people:
        rows = [i for i, who in enumerate(table.annotators or ()) if who == person]
        own = table if table.annotators is None else table.take(rows)
        with quietly(logging.WARNING):
            labels = labels_of_samples(own, keys, names, None, flag, target_kind=target_kind)
        one_each.append(labels.classes())
    decisions = np.stack(one_each)
    # by sample and class, of who says yes and of who says no
    votes = np.stack([(decisions == 0).sum(axis=0), (decisions == 1).sum(axis=0)], axis=2)
    answered = (decisions != NO_LABEL).any(axis=2)
    say(
        f"{answered.sum()} answers about {answered.any(axis=0).sum()} samples, of {len(people)} annotator(s), "
        f"{votes.sum()} of yes or no about a class"
    )
    with np.errstate(invalid="ignore"):
        alphas = [krippendorff_alpha(votes[:, number]) for number in range(len(names))]
    most_first: list[int] = np.argsort(-votes[:, :, 1].sum(axis=0), kind="stable").tolist()
    for number in most_first:
        no, yes = votes[:, number].sum(axis=0).tolist()
        # of one annotator there is none
        alpha = alphas[number]
        how_alike = "" if np.isnan(alpha) else f", Krippendorff's alpha {alpha:.4f}"
        say(f"{yes} yes, {no} no{how_alike}: {shorten(names[number])}")
    truth = combined.classes()
    say(f"together most often: {most_together(truth, names) or 'none'}")

    # who is how reliable, the most reliable first
    reliability = DataFrame(combined.manifest.who.get("reliability", ()))
    if not len(reliability):
        say("no sample has several answers, so that ?combine changes nothing")
        return
    reliability = reliability.sort_values("dawid-skene", ascending=False, kind="stable")
    say(*reliability.to_string(index=False).split("\n"))
    # of a tie nobody is wrong
    truth[combined.ties.numpy()] = NO_LABEL
    ranked: list[str] = reliability["annotator"].tolist()
    places = [people.index(person) for person in ranked]
    say(*mistakes(decisions[places], truth, ranked, names))
    is_plain = np.isin(table.answers, (0, 1)).all(where=~np.isnan(table.answers))
    if table.kind != "probabilities" or not is_plain:
        say("to train on them take ?combine=mean: the answers are more than yes and no")
        return
    # people are known by what they say of each class by itself
    who, samples = answered.nonzero()
    shares = np.where(decisions == NO_LABEL, np.nan, decisions)[who, samples]
    say(*advise([votes for _, _, votes in votes_of_classes(samples, who, shares)]))


def _confusions(
    answers: "DataFrame", combined: SampleLabels, names: Sequence[str], people: Iterable[str]
) -> Iterator[str]:
    """Yield a line for each annotator with the classes that are taken for others most often.

    Args:
        answers: ``sample``, ``who`` and ``label`` of each.
        combined: the label of each sample; of a tie there is none.
        names: of the classes.
        people: annotators, in the order of the lines.
    """
    # a majority that is a tie says of nobody that they are wrong
    rows = combined.known.nonzero().flatten()
    clear = rows[combined.best(rows).sum(dim=1) == 1].tolist()
    classes = combined.classes().tolist()
    truth = {combined.keys.values[row]: classes[row] for row in clear}
    confused: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for sample, who, label in answers[["sample", "who", "label"]].to_numpy().tolist():
        if truth.get(sample, label) != label:
            confused[who][truth[sample], label] += 1

    # of pairs that are as frequent the first classes come first
    for person in people:
        pairs = sorted(confused[person].items(), key=lambda pair: (-pair[1], pair[0]))
        if not pairs:
            yield f"{person} confuses nothing"
            continue
        texts = [
            f"{names[true]} for {names[label]} ({count})"
            for (true, label), count in pairs[:MOST_CONFUSED]
        ]
        yield f"{person} takes {', '.join(texts)}"


def _keys_of(table: LabelRows) -> SampleKeys:
    """Return the samples that a table is about, where nothing else says which there are."""
    return SampleKeys(table.keyed_by, list(dict.fromkeys(table.keys)))


def _names(class_names: str | None) -> list[str] | None:
    return read_class_names(class_names) if class_names else None


def read_tables(
    crowds: Sequence[Sequence[str]],
    names: Sequence[str] | None,
    missing: str | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> tuple[list[LabelRows], Sequence[str], dict[str, Any]]:
    """Read the files of each crowd as one table, all in terms of the same classes; return the tables, the classes, and
    what the names set, see `parse_labels`. What a training would log is shown. ``missing`` is as in `TableFile.labels`,
    if the names do not set it, and ``target_kind`` what a label is.
    """
    # lines of a log would have times and names of modules before them
    logging.basicConfig(level=logging.INFO)
    for handler in logging.root.handlers:
        handler.setFormatter(PublicFormatter("%(message)s"))

    # a name may be that of --teacher, labels:FILE?missing=skip, or the file alone
    files_of_crowd: list[list[str]] = []
    every_name: list[str] = []
    for crowd in crowds:
        prefixed = [LABELS_PREFIX + name.removeprefix(LABELS_PREFIX) for name in crowd]
        files_of_crowd.append(parse_labels(",".join(prefixed), alone=True)[0])
        every_name += prefixed
    all_files, how = parse_labels(",".join(every_name), alone=True)
    paths = {file: local_labels(file, file).path for file in all_files}
    try:
        opened = [open_table(path, file) for file, path in paths.items()]
        read = read_tables_alike(
            opened, names, how["missing"] or missing, target_kind, ListForm.of(how)
        )
    except UserError as error:
        # what to do about columns of annotators is said as a line that can be copied
        text, *advice = re.split("(?:;| or,) if columns are annotators", str(error))
        line = _line_with_annotators(paths) if advice else None
        if line is None:
            raise
        without = ", without names that are no classes" if CLASS_NAMES in line else ""
        raise UserError(f"{text}; if its columns are annotators, type{without}: {line}") from error
    tables = [
        join_tables([read[file] for file in files], " ".join(files)) for files in files_of_crowd
    ]
    return tables, names or tables[0].names, how


def _line_with_annotators(paths: Mapping[str, Path]) -> str | None:
    """Return the command line that was typed, with the columns of annotators behind each file that may have such; None
    where none may.

    Args:
        paths: of tables by their names on the command line.
    """
    # columns that are taken for classes, where nothing but the place of their names says so
    named = {}
    tables = {**paths}
    for name, path in paths.items():
        with suppress(UserError), quietly():
            schema = open_table(path, name).schema()
            if schema.answer == "classes" and schema.kind is None:
                columns = ",".join(schema.classes.values())
                named[name] = f"{name}#{columns}"
                tables[name] = Path(f"{path}#{columns}")
    if not named:
        return None

    # a word may have several names, and settings behind each
    words: list[str] = []
    for word in sys.argv[1:]:
        flag, equals, value = "", "", word
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
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
    if words[0] in WITH_CLASS_NAMES and CLASS_NAMES not in words:
        words += _names_to_type(tables)
    return f"{typed('labels')} {shlex.join(words)}"


def _names_to_type(paths: Mapping[str, Path]) -> list[str]:
    """Return the flag with the classes that some tables name, as they are written most often, if it takes that for them to
    be read: people write names in several ways.
    """
    with quietly():
        try:
            read_tables_alike([open_table(path, name) for name, path in paths.items()], None)
            return []
        except UserError:
            counts: Counter[str] = Counter()
            with suppress(UserError):
                for name, path in paths.items():
                    table = open_table(path, name).labels(None, "keep")
                    numbers: list[int] = most_likely(table.answers).tolist()
                    counts.update(table.names[number] for number in numbers)
    listed = names_to_type(counts)
    return [CLASS_NAMES, listed] if listed else []
