"""Tables of several labels an image: every form that they are written in, and what is said of those that are none."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.data.loader import fast_collate
from torch import Tensor

from tests.parts import assert_refused, calm, lines, write_digits
from w2s_plugins.data.datasets import class_names_of, labels_of
from w2s_plugins.data.keys import SampleKeys, describe
from w2s_plugins.data.map_style import classes_of_samples
from w2s_plugins.data.slices import Subset, take_slice
from w2s_plugins.labels.answers import TableForm, answer_columns
from w2s_plugins.labels.combine import combine_classes
from w2s_plugins.labels.crowd import join_tables
from w2s_plugins.labels.samples import SampleLabels, labels_of_samples
from w2s_plugins.labels.several import ListForm
from w2s_plugins.labels.table import LabelRows, open_table
from w2s_plugins.labels.table_writer import write_label_table
from w2s_plugins.labels.truth import open_with_table
from w2s_plugins.settings.forms import parse_labels
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.training.classes import by_name

NAN = float("nan")
NAMES = ["beach", "cat", "dog"]


def read(
    tmp_path: Path,
    content: str | bytes,
    suffix: str = ".csv",
    names: list[str] | None = None,
    **form: str,
) -> LabelRows:
    path = tmp_path / f"tags{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path).labels(names, target_kind=SEVERAL_CLASSES, lists=ListForm(**form))


def matched(table: LabelRows, combine: str | None = None, confidence: float = 1) -> SampleLabels:
    """The labels of the samples that a table names."""
    keys = SampleKeys(table.keyed_by, list(dict.fromkeys(table.keys)))
    return labels_of_samples(
        table, keys, table.names, combine, "x", confidence, target_kind=SEVERAL_CLASSES
    )


def probabilities(labels: SampleLabels) -> list[list[float]]:
    logits = labels(torch.arange(len(labels.known)), torch.device("cpu"))
    return SEVERAL_CLASSES.probabilities(logits).tolist()


def same(found: np.ndarray | Tensor | list, expected: list) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected, float), atol=1e-5)


# ---------------------------------------------------------------- lists

LISTS = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "content",
    [
        'image,labels\na,"beach,dog"\nb,cat\nc,[]\n',
        'image,tags\na,"beach, dog"\nb,cat,\nc,[]\n'.replace("cat,\n", '"cat,"\n'),
        "image,label\na,beach;dog\nb,cat\nc,[]\n",
        "image,classes\na,dog | beach\nb,cat\nc,[]\n",
        'image;labels\na;beach,dog\nb;cat\nc;"[]"\n',
        'image,labels\na,"[""beach"", ""dog""]"\nb,"[""cat""]"\nc,[]\n',
        "image,labels\na,\"['beach', 'dog']\"\nb,['cat']\nc,[]\n",
        'image,labels\na,"[beach, dog]"\nb,[cat]\nc,[]\n',
        'image,choice\na,"{""choices"": [""beach"", ""dog""]}"\nb,cat\nc,"{""choices"": []}"\n',
    ],
    ids=["commas", "slips", "semicolons", "bars", "of Europe", "json", "python", "bare", "choices"],
)
@pytest.mark.parametrize("names", [None, NAMES])
def test_lists_in_cells(tmp_path, content, names):
    table = read(tmp_path, content, names=names)
    assert (table.keys, table.class_names, table.kind) == ([*"abc"], NAMES, "probabilities")
    assert table.answers.dtype == np.float32
    same(table.answers, LISTS)


def test_lists_of_json_and_parquet(tmp_path):
    rows = [dict(file="a", labels=["beach", "dog"]), dict(file="b", labels=["cat"])]
    rows += [dict(file="c", labels=[]), dict(file="d", labels=None)]
    table = read(tmp_path, "\n".join(map(json.dumps, rows)), ".jsonl")
    assert table.keys == [*"abc"] and table.class_names == NAMES
    same(table.answers, LISTS)
    pytest.importorskip("pyarrow")
    from pandas import DataFrame

    path = tmp_path / "t.parquet"
    DataFrame(rows).to_parquet(path)
    same(open_table(path).labels(target_kind=SEVERAL_CLASSES).answers, LISTS)


def test_classes_are_in_the_order_of_people(tmp_path):
    table = read(tmp_path, "image,labels\na,class 10;class 2\nb,class 1\n")
    assert table.class_names == ["class 1", "class 2", "class 10"]
    same(table.answers, [[0, 1, 1], [1, 0, 0]])
    for column in ("labels", "label", "tag"):
        table = read(tmp_path, f"image;{column}\na;0,2\nb;1\n", names=NAMES)
        same(table.answers, [[1, 0, 1], [0, 1, 0]])


def test_names_with_a_delimiter(tmp_path):
    """They are kept where they are known; else the user says what stands between labels."""
    content = 'image,labels\na,"dog,crane, bird"\nb,"Crane,  bird"\nc,dog\n'
    known = ["crane, bird", "dog"]
    same(read(tmp_path, content, names=known).answers, [[1, 1], [1, 0], [0, 1]])
    mixed = 'image,labels\na,"dog;crane, bird"\nb,"crane, bird"\nc,dog\n'
    same(read(tmp_path, mixed, names=known).answers, [[1, 1], [1, 0], [0, 1]])
    assert_refused(
        "between the labels of a cell, , or ;. .*delimiter=comma or .delimiter=semicolon",
        read,
        tmp_path,
        mixed,
    )
    for delimiter in ("semicolon", ";"):
        assert read(tmp_path, mixed, delimiter=delimiter).class_names == known
    table = read(tmp_path, mixed.replace(";", ", "), delimiter="none")
    assert table.class_names == ["crane, bird", "dog", "dog, crane, bird"]
    spaces = "image,tags\na,haze primary\nb,clear\n"
    assert read(tmp_path, spaces, delimiter="space").class_names == ["clear", "haze", "primary"]


def test_settings_behind_the_name():
    files, found = parse_labels("labels:a.csv?unlisted=unknown&delimiter=semicolon,resnet18")
    assert files == ["a.csv"]
    assert ListForm.of(found) == ListForm("unknown", "semicolon")


def test_what_a_list_does_not_name(tmp_path, caplog):
    """It is no, unless it is unknown: one label an image is then all that is known."""
    caplog.set_level(logging.INFO)
    content = "image,label\na,dog\nb,cat\nc,beach\n"
    same(read(tmp_path, content).answers, [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert "3 rows name 1.00 classes each, of 3; those that an image is not said to" in caplog.text
    table = read(tmp_path, content, unlisted="unknown")
    same(table.answers, [[NAN, NAN, 1], [NAN, 1, NAN], [1, NAN, NAN]])
    same(matched(table).classes(), [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]])


def test_one_class_asks_for_the_task(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('image,label\na,"beach,dog"\nb,beach\nc,dog\n')
    table = open_table(path)
    assert_refused("holds several labels; expected one, or --task multilabel", table.labels)
    message = "unlisted= is about several labels an image; .* or take --task multilabel"
    assert_refused(message, table.labels, lists=ListForm("unknown"))
    path.write_text('image,labels\na,"beach,dog"\n')
    assert_refused(
        "column labels may have several labels .*; add --task multilabel", open_table(path).labels
    )


COULD_BE_EITHER = r"""
# a column for each class
image,beach,dog / a,1,1 / b,0,1  ->  take --task multilabel if an image has several or, if they are votes, call them votes
image,beach,dog,cat / a,1,1,0 / b,0,1,1  ->  are its columns .* votes for one, .* 2 of 2 rows more than one 1; take --task mul
image,beach,dog / a,1,0 / b,0,0  ->  list the classes by --class-names, .*, take --task multilabel if an image has several or
image,beach,dog / a,1,0 / b,,1 / c,1,  ->  empty, or yes and no; take --task multilabel if an image has several or, if col
image,beach,dog / a,yes,no / b,no,?  ->  take --task multilabel if an image has several or, if columns are annotators
image,beach,dog / a,0.9,0.8 / b,0.1,0.7  ->  no votes \(take --task multilabel if an image has several\); answers like it: 2
# several rows an image
image,label / a,beach / a,dog / b,cat  ->  annotator who said what, or take --task multilabel if an image has several
image,label,annotator / a,beach,x / a,dog,x / b,cat,y  ->  as of a; leave one out, or take --task multilabel if an image
# several names in a cell
image,label / a,"beach, dog" / b,dog / c,cat  ->  'beach, dog' holds several labels; expected one, or --task multilabel
image,label / a,"['beach']" / b,['dog']  ->  '\['beach'\]' is a list; expected one, or --task multilabel; answers like it: 2
image,label / a,[] / b,dog / c,cat  ->  '\[\]' is a list; expected one, or --task multilabel; answers like it: 1 of 3
image,label / a,[0] / b,[1]  ->  '\[0\]' is a list; expected one, or --task multilabel; answers like it: 2 of 2
image,choice / a,"{""choices"":[""cat""]}" / b,dog  ->  "\]}' is a list; expected one, or --task multilabel; answers like
image,label / a,beach dog / b,dog / c,beach / d,dog beach  ->  'beach dog' holds several labels; .* --task multilabel
image,tags / a,haze / b,clear primary  ->  column tags may have several labels .*; add --task multilabel
"""


@pytest.mark.parametrize("rows, message", lines(COULD_BE_EITHER))
def test_what_could_be_one_class_or_several_asks_for_the_task(tmp_path, rows, message):
    path = tmp_path / "t.csv"
    path.write_text(rows.replace(" / ", "\n") + "\n")

    def of_samples():
        table = open_table(path).labels()
        labels_of_samples(table, SampleKeys("filename", [*"abcd"]), table.names, None, "x")

    assert_refused(message, of_samples)
    delimiter = ListForm(delimiter=None if '"' in rows else "space")
    matched(open_table(path).labels(target_kind=SEVERAL_CLASSES, lists=delimiter))


SEVERAL_1S = "image,beach,cat,dog\na,1,0,1\nb,0,1,0\nc,0,0,1\n"


@pytest.mark.parametrize("names", [None, NAMES, ["dog", "hen", "cat", "beach"]])
def test_columns_of_0_and_1_are_asked_about(tmp_path, names):
    """Whether the classes are known or not: several 1s in a row are classes of an image, or votes for one."""
    path = tmp_path / "t.csv"
    path.write_text(SEVERAL_1S)
    message = (
        "votes for one.* They hold 0 and 1, and 1 of 3 rows more than one 1; take --task multilabel if an image "
        "has several or, if they are votes, call them votes.beach and so on"
    )
    for missing in ("error", "keep", "skip", None):
        assert_refused(message, open_table(path).labels, names, missing)
    assert (
        open_table(path).labels(names, target_kind=SEVERAL_CLASSES).answers[0].tolist().count(1)
        == 2
    )
    # that they are votes can be said, and votes of several people for a class say it themselves
    path.write_text(SEVERAL_1S.replace(",beach,cat,dog", ",votes.beach,votes.cat,votes.dog"))
    same(open_table(path).labels(names).answers.max(axis=1), [0.5, 1, 1])
    message = "has votes for one class an image; of several expected columns with 0, 1 or"
    assert_refused(message, open_table(path).labels, names, target_kind=SEVERAL_CLASSES)
    path.write_text(SEVERAL_1S.replace("a,1,0,1", "a,2,0,1"))
    same(open_table(path).labels(names or NAMES).answers.max(axis=1), [2 / 3, 1, 1])
    path.write_text(SEVERAL_1S.replace("a,1,0,1", "a,1,0,0"))
    same(open_table(path).labels(names).answers.max(axis=1), [1, 1, 1])


def test_matrix_of_votes(tmp_path):
    np.savez(tmp_path / "t.npz", votes=[[1, 0, 1], [0, 1, 0]], class_names=NAMES)
    same(open_table(tmp_path / "t.npz").labels().answers, [[0.5, 0, 0.5], [0, 1, 0]])
    np.savez(tmp_path / "t.npz", votes=[3, 4], label=["cat", "dog"])  # of an image, not of a class
    assert open_table(tmp_path / "t.npz").labels(NAMES).answers.tolist() == [1, 2]


def test_a_row_of_0_may_be_an_image_without_any_class(tmp_path):
    """It is asked about however rare it is, among votes only if it isn't."""
    path = tmp_path / "t.csv"
    rows = [f"{i},{i % 2},{(i + 1) % 2}" for i in range(200)]
    path.write_text("\n".join(["image,cat,dog", *rows, "x,0,0"]))
    message = "row 201: .* no votes .take --task multilabel if an image has several.; .* 1 of 201; .*missing=skip"
    for missing in ("error", None):
        assert_refused(message, open_table(path).labels, ["cat", "dog"], missing)
    assert len(open_table(path).labels(["cat", "dog"], "skip")) == 200
    path.write_text("\n".join(["image,cat,dog", *rows, "x,0,0", "y,2,1"]))
    assert len(open_table(path).labels(["cat", "dog"], None)) == 201


RARE = r"""
beach, dog / beach / dog / tench, Tinca tinca / goldfish, Carassius auratus / cat  ->  'beach, dog' holds several
beach, dog, sun / beach / dog / tench, Tinca tinca / goldfish, Carassius auratus  ->  'beach, dog, sun' holds several
beach, dog / dog / cat / bird  ->  'beach, dog' holds several labels
beach; dog / dog / cat / bird / hen  ->  'beach; dog' holds several labels
"""


@pytest.mark.parametrize("cells, message", lines(RARE))
def test_one_list_among_single_names(tmp_path, cells, message):
    """It's one where its parts are names of their own, however many rows have one name, and is asked about."""
    path = tmp_path / "t.csv"
    names = cells.split(" / ")
    labels = [names[0], *(100 * names[1:])]
    path.write_text("image,label\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(labels)))
    message = f"row 1: {message}.*; answers like it: 1 of {len(labels)} "
    for missing in ("error", "keep", None):
        assert_refused(message, open_table(path).labels, None, missing)
    assert open_table(path).labels(None, "skip").class_names == sorted(names[1:])
    assert open_table(path).labels(names).class_names == names  # whoever lists it means it


def test_names_that_are_no_lists(tmp_path, caplog):
    """Of one class an image: what may be a list all the same is warned of."""
    path = tmp_path / "t.csv"
    names = ["polar bear", "bear", "maple tree", "oak tree"]
    path.write_text("image,label\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names)))
    assert open_table(path).labels().class_names == sorted(names) and not caplog.text
    path.write_text('image,label\na,"crane, bird"\nb,dog\nc,"1,5"\n')
    assert open_table(path).labels().class_names == ["1,5", "crane, bird", "dog"]
    said = "taken for one class each: 'crane, bird'; if these are several labels, take --task multi"
    assert said in caplog.text
    caplog.clear()
    path.write_text("image,label\na,0;2\nb,dog\nc,[unsure]\n")
    assert open_table(path).labels().class_names == ["0;2", "[unsure]", "dog"]
    assert "taken for one class each: '0;2'; if" in caplog.text


@pytest.mark.parametrize(("mark", "name"), [(" ", "space"), ("/", "slash")])
def test_marks_that_may_be_part_of_a_name_are_asked_about(tmp_path, mark, name):
    """As the tags of satellite images are written: the same words stand in several cells."""
    content = "image,tags\na,haze primary\nb,clear primary water\nc,clear primary\nd,clear\n"
    content = content.replace(" ", mark)
    words = ["clear", "haze", "primary", "water"]
    for names in (None, words):
        message = f"is '.*' one label, or several.*delimiter=none or .delimiter={name}$"
        assert_refused(message, read, tmp_path, content, names=names)
        for delimiter in (mark, name):
            table = read(tmp_path, content, names=names, delimiter=delimiter)
            assert table.class_names == words
            same(table.answers, [[0, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]])
    assert read(tmp_path, content, delimiter="none").num_classes == 4
    # words that stand nowhere else are of one name
    alone = f"image,tags\na,traffic{mark}light\nb,stop{mark}sign\nc,car\n"
    assert read(tmp_path, alone).num_classes == 3


@pytest.mark.parametrize("name", ["labels", "tags", "confidence", "logits.a", "truth"])
def test_a_class_called_as_a_column(tmp_path, name):
    """Its probabilities stand beside the tags, and not in their place."""
    shares = np.array([[0.75, 0.25], [0.125, 0.5]], np.float32)
    path = tmp_path / "all.csv"
    form = TableForm(every=True)
    write_label_table(
        path, [answer_columns(["a", "b"], "filename", shares, [name, "x"], form, SEVERAL_CLASSES)]
    )
    with path.open() as file:
        assert [row["labels"] for row in csv.DictReader(file)] == [name, "x"]
    same(open_table(path).labels([name, "x"], target_kind=SEVERAL_CLASSES).answers, shares)


# ---------------------------------------------------------------- a column for each class


@pytest.mark.parametrize(
    "content",
    [
        "image,beach,cat,dog\na,1,0,1\nb,,1,0\nc,0,?,0\n",
        "image,beach,cat,dog\na,yes,no,Yes\nb,,yes,no\nc,no,n/a,no\n",
        "image,beach,cat,dog\na,TRUE,FALSE,TRUE\nb,,true,F\nc,n,,0.0\n",
        "image,probabilities.beach,probabilities.cat,probabilities.dog\na,1,0,1\nb,,1,0\nc,0,,0\n",
    ],
    ids=["digits", "words", "of Excel", "named"],
)
def test_a_column_for_each_class(tmp_path, content):
    """Empty is unknown, 0 is no."""
    table = read(tmp_path, content)
    assert table.class_names == NAMES
    same(table.answers, [[1, 0, 1], [NAN, 1, 0], [0, NAN, 0]])


def test_probabilities_and_logits(tmp_path):
    """They need not sum to 1; of classes without a column nothing is known."""
    content = "image,dog,beach\na,0.9,0.8\nb,,0.25\n"
    table = read(tmp_path, content, names=NAMES)
    same(table.answers, [[0.8, NAN, 0.9], [0.25, NAN, NAN]])
    same(probabilities(matched(table)), [[0.8, NAN, 0.9], [0.25, NAN, NAN]])
    table = read(tmp_path, content.replace("dog", "logits.dog").replace("beach", "logits.beach"))
    assert (table.kind, table.class_names) == ("logits", ["beach", "dog"])
    same(table.answers, [[0.8, 0.9], [0.25, NAN]])
    logits = matched(table)(torch.tensor([1]), torch.device("cpu"))
    same(logits, [[0.25, NAN]])
    same(matched(table).classes(), [[1, 1], [1, -1]])


def test_matrices(tmp_path):
    values = np.array([[0.5, 1, 0.75], [0, NAN, 1]], np.float32)
    for kind in ("probabilities", "logits"):
        np.savez(tmp_path / "m.npz", **{kind: values}, class_names=NAMES, filename=["a", "b"])
        table = open_table(tmp_path / "m.npz").labels(target_kind=SEVERAL_CLASSES)
        assert (table.kind, table.class_names) == (kind, NAMES)
        same(table.answers, values.tolist())


def test_one_question_alone(tmp_path):
    table = read(tmp_path, "image,dog\na,1\nb,0\nc,\nd,1\n")
    assert table.keys == ["a", "b", "d"]
    same(table.answers, [[1], [0], [1]])


def test_the_best_classes(tmp_path):
    table = read(tmp_path, "image,top_k\na,dog:0.9;beach:0.8\nb,cat:0.4\n", unlisted="unknown")
    same(table.answers, [[0.8, NAN, 0.9], [NAN, 0.4, NAN]])


def test_a_list_beside_columns(tmp_path):
    """The fuller answer counts, as a table of predictions has both."""
    table = read(tmp_path, 'image,labels,beach,dog\na,"beach,dog",0.9,0.6\nb,[],0.1,0.2\n')
    same(table.answers, [[0.9, 0.6], [0.1, 0.2]])


BAD = r"""
image,labels / a, / b,  ->  its column labels is empty
image,labels / a,"," / b,dog  ->  ',' names no class; expected \[\] for none; answers like it: 1 of 2
image,labels / a,[] / b,[]  ->  its column labels names no class
image,labels / a,dog;cat / b,dgo / c,dog / d,cat  ->  row 2: 'dgo' is no class.*'dgo' 1 \(nearest: dog\)
image,beach,dog / a,1,2 / b,0,1  ->  row 1: its values are not from 0 to 1; expected 0, 1 or empty
image,beach,dog / a,1,-1 / b,0,1  ->  row 1: its values are not from 0 to 1
image,beach,dog / a,1,maybe / b,0,1  ->  row 1: column dog is 'maybe'; expected 0, 1, yes, no, empty or a prob
image,beach,dog / a,, / b,,  ->  says nothing of any class
image,logits.dog,logits.cat / a,inf,1 / b,1,1  ->  its values are not finite
image,note / a,beach  ->  column note is 'beach'; expected 0, 1.*FILE#note
image,labels / a,"[[1], [2]]" / b,dog  ->  '\[\[1\], \[2\]\]' is a list of other things than names
image,labels / a,"[""beach"", dog" / b,dog  ->  '\["beach", dog' begins like a list, and is none; correct it
image,labels / a,"[true, null]" / b,dog  ->  is a list of other things than names
image,top_k / a,dog:7 / b,cat:0.1  ->  its values are not from 0 to 1
image / a  ->  no labels; expected
"""


@pytest.mark.parametrize("rows, message", lines(BAD))
def test_one_line_each(tmp_path, rows, message):
    assert_refused(message, read, tmp_path, rows.replace(" / ", "\n") + "\n")


def test_labels_that_are_no_class_of_the_data(tmp_path):
    content = 'image,labels\na,"beach,hen"\nb,dog\n'
    message = r"row 1: 'hen' is no class; expected the name.*answers like it: 1 of 2 \('hen' 1"
    assert_refused(message, read, tmp_path, content, names=NAMES)


CELLS = st.sampled_from(
    ["", "dog", "cat", "a,b", "[]", '["a"]', "{", "[x", "1", "0", "-1", "x;y|z"]
)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_anything_is_a_table_or_one_line(tmp_path, data):
    headers = ["filename", "labels", "label", "top_k", "annotator", "confidence", "cat", "dog"]
    header = data.draw(st.lists(st.sampled_from(headers), min_size=1, max_size=5, unique=True))
    cells = CELLS | st.text(max_size=4)
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(header, cells)), max_size=4))
    names = data.draw(st.sampled_from([None, ["cat", "dog"], ["a", "1", "cat"]]))
    content = "\n".join(map(json.dumps, rows))
    table = calm(lambda: read(tmp_path, content, ".jsonl", names))
    if table is None:
        return
    assert table.answers.shape == (len(table.keys), table.num_classes) and len(table) > 0
    known = table.answers[~np.isnan(table.answers)]
    assert ((known >= 0) & (known <= 1)).all() and not np.isnan(table.answers).all(axis=1).any()
    labels = calm(matched, table)
    assert labels is None or labels.classes().shape == (len(labels.known), table.num_classes)


# ---------------------------------------------------------------- several rows an image


def test_rows_with_a_label_each_are_one_list(tmp_path):
    """Of the same annotator; with how sure somebody is of each."""
    table = read(tmp_path, "image,label,confidence\na,beach,0.9\na,dog,0.6\nb,cat,1\nb,cat,1\n")
    labels = matched(table)
    same(probabilities(labels), [[0.9, 0, 0.6], [0, 1, 0]])
    table = read(tmp_path, "image,label\na,beach\na,dog\nb,cat\n", unlisted="unknown")
    same(matched(table).classes(), [[1, -1, 1], [-1, 1, -1]])


def test_lists_that_contradict_each_other(tmp_path):
    for second in ("beach;cat", "[]", "dog"):
        table = read(tmp_path, f"image,labels\na,beach;dog\na,{second}\nb,cat\n")
        assert_refused(
            "1 answer.s. say something else of a sample .* such as of a;", matched, table
        )
    table = read(tmp_path, "image,beach,dog\na,1,\na,,0\nb,1,1\n")
    same(matched(table).classes(), [[1, 0], [1, 1]])  # each says what the other leaves open


@pytest.mark.parametrize("unlisted", ["no", "unknown"])
def test_a_tag_twice_with_another_confidence_contradicts(tmp_path, unlisted):
    rows = "image,tag,confidence\na,cat,0.9\nb,dog,0.5\na,dog,0.2\na,cat,0.{}\n"
    twice = read(tmp_path, rows.format(1), unlisted=unlisted)
    assert_refused("1 answer.s. say something else of a sample .* such as of a;", matched, twice)
    again = probabilities(matched(read(tmp_path, rows.format(9), unlisted=unlisted)))
    same(again[0], [0.9, 0.2])


def test_labels_for_samples(tmp_path, caplog):
    """Those that somebody gives have no share of what others say, and may be less than sure."""
    table = read(tmp_path, "image,beach,cat,dog\na,1,0,\nb,,,\nc,0,1,1\n", names=NAMES)
    caplog.set_level(logging.INFO)
    labels = labels_of_samples(
        table,
        SampleKeys("filename", ["c", "a", "z"]),
        NAMES,
        None,
        "x",
        0.9,
        target_kind=SEVERAL_CLASSES,
    )
    assert labels.known.tolist() == [True, True, False]
    same(labels.classes(), [[0, 1, 1], [1, 0, -1], [-1, -1, -1]])
    logits = labels(torch.tensor([0, 1]), torch.device("cpu"))
    same(SEVERAL_CLASSES.probabilities(logits), [[0.1, 0.9, 0.9], [0.9, 0.1, NAN]])
    same(labels.best(torch.tensor([1])), [[1, 0, 0]])
    truth = torch.tensor([[0, 1, 0], [1, NAN, 1]])
    same(labels.correctness(torch.tensor([0, 1]), truth), [2 / 3, 1])
    assert "2 samples, 1.50 of 3 classes each; of 16.7 % nothing is known" in caplog.text
    assert "says no of no class" not in caplog.text


def test_a_table_that_never_says_no(tmp_path, caplog):
    """All that a student could learn of it is yes."""
    for rows in ("image,beach,cat,dog\na,1,,1\nb,,1,\n", "image,beach,cat,dog\na,1,0,1\nb,,1,\n"):
        caplog.clear()
        table = read(tmp_path, rows, names=NAMES)
        keys = SampleKeys("filename", ["a", "b"])
        labels_of_samples(table, keys, NAMES, None, "x", target_kind=SEVERAL_CLASSES)
        warned = "x: it says no of no class" in caplog.text and "--loss an, wan" in caplog.text
        assert warned == ("0" not in rows)


def test_images_without_a_tag(tmp_path, caplog):
    read(tmp_path, 'image,tags\na,"beach,dog"\nb,\nc,"cat,dog"\n')
    assert "1 of 3 answers have no tags" in caplog.text and "write []" in caplog.text


# ---------------------------------------------------------------- crowds


def test_a_crowd_by_class(tmp_path, caplog):
    """The share of those who answered for a class; nobody's answer is unknown."""
    caplog.set_level(logging.INFO)
    rows = "a,1,0,,x / a,1,1,,y / a,0,,,z / b,0,1,1,x / b,,1,0,y"
    table = read(tmp_path, "image,beach,cat,dog,annotator\n" + rows.replace(" / ", "\n"))
    labels = matched(table)
    same(probabilities(labels), [[2 / 3, 0.5, NAN], [0, 1, 0.5]])
    record = labels.manifest.who
    assert record["combine"] == "majority"
    people = {row["annotator"]: row for row in record["reliability"]}
    # x: yes for a beach, half of the cat; no beach, the cat, half of the dog
    assert people["x"]["images"] == 2
    assert people["x"]["majority"] == pytest.approx(((1 + 0.5) / 2 + 2.5 / 3) / 2, abs=1e-4)
    assert people["z"]["majority"] == 0
    shares = "a,0.9,0.2,,x / a,0.5,,,y / b,0,1,1,x"
    table = read(tmp_path, "image,beach,cat,dog,annotator\n" + shares.replace(" / ", "\n"))
    same(probabilities(matched(table)), [[0.7, 0.2, NAN], [0, 1, 1]])
    same(probabilities(matched(table, "majority")), [[1, 0, NAN], [0, 1, 1]])


def test_a_crowd_with_a_label_a_row(tmp_path):
    rows = "a,beach,x / a,dog,x / a,dog,y / b,cat,x / b,[],y"
    table = read(tmp_path, "image,choice,annotator\n" + rows.replace(" / ", "\n"))
    same(probabilities(matched(table)), [[0.5, 0, 1], [0, 0.5, 0]])


def test_files_are_a_crowd(tmp_path):
    names = ["cat", "dog"]
    first = read(tmp_path, "image,labels\na,cat\na,dog\nb,cat\n", names=names)
    second = read(tmp_path, "image,logits.cat,logits.dog\na,0,-9\nb,9,\n", names=names)
    joined = join_tables([first, second], "x")
    same(
        probabilities(matched(joined, "mean")),
        [[0.5 + 0.25, 0.5 + 0.5 / (1 + np.exp(9))], [0.5 + 0.5 / (1 + np.exp(-9)), 0]],
    )


def test_dawid_skene_is_that_of_crowd_kit_class_by_class():
    crowdkit = pytest.importorskip("crowdkit.aggregation")
    from pandas import DataFrame

    rng = np.random.default_rng(0)
    truth = rng.random((300, 3)) < [0.5, 0.3, 0.6]
    people = np.tile(np.arange(5), 300)
    samples = np.repeat(np.arange(300), 5)
    wrong = rng.random((1500, 3)) < np.array([0.02, 0.05, 0.1, 0.15, 0.25])[people][:, None]
    shares = (truth[samples] ^ wrong).astype(np.float32)
    shares[rng.random((1500, 3)) < 0.1] = NAN
    found = combine_classes(samples, people, shares, "dawid-skene")
    for column in range(3):
        answers = DataFrame(dict(task=samples, worker=people, label=shares[:, column])).dropna()
        model = crowdkit.DawidSkene(n_iter=200, tol=-np.inf).fit(answers)
        expected = model.probas_[1.0].reindex(range(300)).to_numpy()
        np.testing.assert_allclose(found[:, column], expected, atol=2e-3)


# ---------------------------------------------------------------- true labels


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images in a folder without class folders, and a table of their classes."""
    monkeypatch.chdir(tmp_path)
    write_digits(6, lambda number, _: tmp_path / "data/images")
    rows = ["0,beach;dog", "1,cat", "2,[]", "3,dog", "4,dog;cat", "5,beach"]
    Path("tags.csv").write_text("\n".join(["image,labels", *rows]))
    return tmp_path


def opened(table: str = "tags.csv", known: list[str] | None = None):
    return open_with_table(
        table, known, "data", "images", flag="--val-split", target_kind=SEVERAL_CLASSES
    )


TRUTH = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]]


def test_true_labels(root):
    dataset = opened()
    assert class_names_of(dataset) == NAMES and labels_of(dataset) is None
    same(classes_of_samples(dataset), TRUTH)
    labels = [dataset[i][1] for i in range(6)]
    assert {(label.dtype, label.shape) for label in labels} == {(torch.float32, (3,))}
    same(torch.stack(labels), TRUTH)
    _, batch = fast_collate([(np.zeros((3, 2, 2), np.uint8), label) for label in labels])
    same(batch, TRUTH)


def test_all_classes_that_are_known_are_there(root):
    dataset = opened(known=["dog", "hen", "cat", "beach"])
    assert class_names_of(dataset) == ["dog", "hen", "cat", "beach"]
    same(classes_of_samples(dataset)[0], [1, 0, 0, 1])
    assert_refused(
        "'beach' is no class; .*'beach' 2.*, or if these are further classes, list all by --class-names$",
        opened,
        known=["dog", "cat"],
    )


def test_gaps_and_ties(root, caplog):
    """An image without a row, or with nothing but empty cells and ties, has no label."""
    caplog.set_level(logging.INFO)
    rows = ["0,1,,x", "1,0,1,x", "1,1,1,y", "2,,,x", "3,0,,x", "3,1,,y", "4,1,1,x"]
    Path("wide.csv").write_text("\n".join(["image,beach,cat,annotator", *rows]))
    assert_refused("3 of 6 'images' samples have no label, such as 2.png", opened, "wide.csv")
    dataset = opened("wide.csv?missing=skip")
    assert dataset.filenames() == ["0.png", "1.png", "4.png"]
    same(classes_of_samples(dataset), [[1, NAN], [NAN, 1], [1, 1]])
    assert "3 of 6 images have no label, and are left out" in caplog.text


def test_one_answer_of_a_half_is_no_tie(root):
    """A logit of 0.5 is yes, as everywhere; nobody says the opposite."""
    for head, one in (("logits.beach,logits.cat", "-1"), ("beach,cat", "0.1")):
        rows = [f"{i},0.5,{one}" for i in range(6)]
        Path("shares.csv").write_text("\n".join([f"image,{head}", *rows]))
        same(classes_of_samples(opened("shares.csv")), [[1, 0]] * 6)


def test_parts_of_a_split(root):
    dataset = opened()
    part = Subset(dataset, [4, 0])
    same(classes_of_samples(part), [TRUTH[4], TRUTH[0]])
    same(classes_of_samples(Subset(part, [1])), [TRUTH[0]])
    same(part[0][1], TRUTH[4])
    halves = [take_slice(dataset, text, 0) for text in ("0:0.5", "0.5:1.0")]
    files = [name for half in halves for name in half.filenames()]
    assert sorted(files) == dataset.filenames()


def test_classes_of_splits_are_numbered_alike(root):
    """Of classes that a split lacks nothing is known; who it is does not depend on their order."""
    dataset = opened()
    names = ["dog", "hen", "beach", "cat"]
    numbered = by_name(dataset, names, "images", "the training set")
    assert class_names_of(numbered) == names
    same(classes_of_samples(numbered)[0], [1, NAN, 1, 0])
    same(numbered[1][1], [0, NAN, 0, 1])
    assert describe(numbered, "", "") != describe(dataset, "", "")  # it has more classes
    assert describe(numbered, "", "").fingerprint == describe(dataset, "", "").fingerprint
    message = "'beach' of 'images' is none of the 1 of the table .cat., nor dog; .* --class-names"
    assert_refused(message, by_name, dataset, ["cat"], "images", "the table")
    other = opened(known=["cat", "beach", "dog"])
    assert describe(other, "", "") == describe(dataset, "", "")
    Path("tags.csv").write_text(Path("tags.csv").read_text().replace("5,beach", "5,cat"))
    assert describe(opened(), "", "").fingerprint != describe(dataset, "", "").fingerprint
