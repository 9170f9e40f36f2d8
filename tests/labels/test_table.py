"""Tables of labels: what is read and what is refused, whatever a file holds, and what is written comes back."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts import calm, read_label_table, refusal, write_folder
from w2s_plugins.data import create_dataset, hold_out
from w2s_plugins.data.keys import sample_keys
from w2s_plugins.data.slices import Subset, take_slice
from w2s_plugins.errors import UserError
from w2s_plugins.files import WRITTEN
from w2s_plugins.labels.answers import TableForm, answer_columns
from w2s_plugins.labels.names import read_class_names
from w2s_plugins.labels.samples import labels_of_samples
from w2s_plugins.labels.table import LabelTable
from w2s_plugins.labels.table_writer import WRITABLE, check_writable, write_label_table
from w2s_plugins.predictions.run import check_form


def read(
    tmp_path: Path, content: str | bytes, suffix: str = ".csv", names: list[str] | None = None
) -> LabelTable:
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label_table(path, names)


@pytest.mark.parametrize(
    "content",
    [
        "\ufefffilename,label\r\na.png,cat\r\n\r\nb.png,dog",
        "\n label , filename \ncat, a.png\n\ndog,./b.png\n,\n",
        'Path,Class,width\n"a.png","cat",3\n"b.png","dog",4\n',
        'file;"label, or class";label\na.png;x,y;cat\nb.png;;dog\n',
        "\nphoto\tlabel\na.png\tcat\nb.png\tdog\n",
    ],
    ids=["of Excel", "empty lines", "quotes and more columns", "semicolons", "tabs"],
)
def test_tables_of_people(tmp_path, content):
    table = read(tmp_path, content)
    assert (table.keys, table.class_names, table.kind) == (
        ["a.png", "b.png"],
        ["cat", "dog"],
        "hard",
    )
    assert table.answers.tolist() == [0, 1]


def test_texts_of_windows(tmp_path, caplog):
    """In its own encoding, and with decimals as most of Europe writes them; what was taken is said."""
    caplog.set_level(logging.INFO)
    content = "image;label;confidence\nÄ 1.png;Küken;0,75\nb.png;“1,5” €;1\n"
    for encoding, said in (
        ("cp1252", "Latin-1 (Windows-1252)"),
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
    ):
        caplog.clear()
        table = read(tmp_path, content.encode(encoding))
        assert (table.keys, table.class_names) == (["Ä 1.png", "b.png"], ["Küken", "“1,5” €"])
        assert table.confidence.tolist() == [0.75, 1]
        assert caplog.messages == [f"table.csv: is {said}, with ';' between columns"]


def test_excel(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        [],
        ["Photo", "label", "annotator", "confidence"],
        ["a", "01", 7, 0.5],
        ["b", 3, None, 1],
    ):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    table = read_label_table(tmp_path / "t.xlsx", ["01", "2", "3"])
    assert (table.keys, table.answers.tolist(), table.annotators) == (["a", "b"], [0, 2], ["7", ""])
    assert table.confidence.tolist() == [0.5, 1]
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    assert "holds no labels" in refusal(read_label_table, tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "xlsx needs a package: pip install openpyxl" in refusal(
        read_label_table, tmp_path / "t.xlsx"
    )


def test_other_forms(tmp_path):
    lines = [{"id": 0, "label": 2}, {"id": 1, "label": 0, "annotator": "x"}]
    table = read(tmp_path, "\n".join(map(json.dumps, lines)), ".jsonl")
    assert (table.keys, table.answers.tolist(), table.annotators) == ([0, 1], [2, 0], ["", "x"])
    table = read(
        tmp_path, json.dumps({"file": "a", "probabilities": {"dog": 0.25, "cat": 0.75}}), ".ndjson"
    )
    assert table.class_names == ["dog", "cat"] and table.answers.tolist() == [[0.25, 0.75]]
    table = read(tmp_path, "filename\tcat\tdog\na\t3\t-1\nb\t0\t7\n", ".tsv", ["dog", "cat", "hen"])
    assert table.kind == "logits" and table.answers.tolist() == [[-1, 3, -21], [7, 0, -21]]
    np.savez(
        tmp_path / "z.npz",
        filename=["a", "b"],
        probabilities=[[0.5, 0.5], [1, 0]],
        class_names=["x", "y"],
    )
    table = read_label_table(tmp_path / "z.npz")
    assert (table.kind, table.class_names, table.keys) == ("probabilities", ["x", "y"], ["a", "b"])


def test_positions_are_those_of_the_whole_split(tmp_path):
    """Of files as of other samples, whatever part of them is trained on or held out."""
    write_folder(tmp_path / "data", {"train": 30}, size=(8, 8))
    images = create_dataset("", str(tmp_path / "data"), "train")
    said = torch.randint(3, (len(images),))
    np.save(tmp_path / "a.npy", said.numpy())
    table = read_label_table(tmp_path / "a.npy")
    train, held_out = hold_out(take_slice(images, "10:26", 0), 0.25, 0)
    for part in (train, held_out, Subset(images, [*range(29, 19, -1)])):
        found = labels_of_samples(table, sample_keys(part), [*"abc"], None, "x").classes()
        assert (
            found.tolist()
            == said[[images.filenames().index(name) for name in part.filenames()]].tolist()
        )


@pytest.mark.parametrize(
    "content, suffix, message",
    [
        (b"\x89PNG\r\n\x1a\n\0\0\xff", ".csv", "cannot be read as csv"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", ".jsonl", "cannot be read as jsonl"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", ".parquet", "cannot be read as parquet"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", ".xlsx", "cannot be read as xlsx"),
        (b"\x81\x8d", ".csv", "cannot be read as csv"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", ".npz", "cannot be read as npz"),
        ("filename,label\na,b\n", ".cvs", r"of an unknown kind \(nearest: .csv"),
        ("", ".csv", "cannot be read as csv: No columns"),
        ("filename,label\n\n", ".csv", "holds no labels"),
        ("filename,label,label\na,b,c\n", ".csv", "it has a column twice"),
        ("filename,label\na,b,c\n", ".csv", "Expected 2 fields in line 2, saw 3"),
        ('filename,label\n"a,b\n', ".csv", "cannot be read as csv: .*EOF inside string"),
        (
            "a.png,cat\nb.png,dog\n",
            ".csv",
            "no column says which sample a row is about.*it has a.png, cat",
        ),
        ("filenam,label\na,b\n", ".csv", r"expected filename or id \(nearest: filenam\)"),
        ("filename,note\na,b\n", ".csv", "no labels; expected a column label"),
        ("filename,label\na,\nb,\n", ".csv", "its column label is empty"),
        ("filename,top_k\na,;\nb,;\n", ".csv", "its column top_k is empty"),
        ("filename,label\n,cat\n", ".csv", "row 1: '' names no sample"),
        ("id,label\n1.5,cat\n", ".csv", "row 1: '1.5' names no sample"),
        (
            "id,label\n0,99999999\n",
            ".csv",
            "by the highest number: 100000000 are more than the 1 that stand behind",
        ),
        ("id,label\n0,-1\n", ".csv", "row 1: '-1' is no class"),
        ("filename,cat,dog\na,30.5,69.5\nb,99,1\n", ".csv", "its values are no probabilities"),
        ("filename,cat,dog\na,0.5,high\n", ".csv", "column dog is not all numbers"),
        ("filename,top_k\na,cat:5;dog:-2\n", ".csv", "its values are no probabilities"),
        ("filename,top_k\na,cat\n", ".csv", "expected pairs such as cat:0.9"),
        ("filename,top_k\na,999999:1\n", ".csv", "are more than"),
        (
            "filename,label,confidence\na,cat,1.5\n",
            ".csv",
            "confidence: expected probabilities from 0 to 1",
        ),
        (
            "filename,label,confidence\na,cat,nan\n",
            ".csv",
            "confidence: expected probabilities from 0 to 1",
        ),
        ("[1]", ".jsonl", "cannot be read as jsonl"),
        ('{"file": "a", "x": 1%s, "y": 0}' % ("0" * 400), ".jsonl", "column x is not all num"),
        ("[" * 100_000, ".jsonl", "cannot be read as jsonl"),
    ],
)
def test_one_line_each(tmp_path, content, suffix, message):
    assert re.search(message, refusal(read, tmp_path, content, suffix))


def test_no_file_and_names_that_are_none(tmp_path):
    with pytest.raises(UserError, match="the class 'cat' is named twice"):
        read(tmp_path, "filename,label\na,cat\n", names=["cat", "dog", "cat"])
    with pytest.raises(UserError, match="no such file"):
        read_label_table(tmp_path / "none.csv")
    np.savez(tmp_path / "z.npz", filename=["a", "b"], label=[1])
    with pytest.raises(UserError, match="must be of the same length"):
        read_label_table(tmp_path / "z.npz")


HEADERS = ["filename", "id", "label", "top_k", "annotator", "confidence", "cat", "dog", "0", "1"]
CELLS = st.one_of(
    st.sampled_from(
        [
            "a.png",
            "0",
            "1",
            "cat",
            "dog",
            "0.5",
            "-1",
            "nan",
            "",
            "1e999",
            "cat:0.9;dog:0.1",
            '{"cat": 1}',
            "[[1]]",
            "[1",
            '"',
            "\u0661",
        ]
    ),
    st.text(max_size=5),
)
VALUES = st.one_of(
    CELLS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.lists(CELLS, max_size=2),
    st.dictionaries(CELLS, st.floats(), max_size=2),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_anything_is_a_table_or_one_line(tmp_path, data):
    header = data.draw(st.lists(st.sampled_from(HEADERS), min_size=1, max_size=5, unique=True))
    suffix = data.draw(st.sampled_from([".csv", ".jsonl", ".bytes"]))
    if suffix == ".csv":
        rows = data.draw(
            st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), max_size=4)
        )
        content = "\n".join(",".join(row) for row in [header, *rows])
    elif suffix == ".jsonl":
        rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(header, VALUES)), max_size=4))
        content = "\n".join(map(json.dumps, rows))
    else:
        suffix, content = (
            data.draw(st.sampled_from([".csv", ".jsonl", ".npz"])),
            data.draw(st.binary(max_size=80)),
        )
    names = data.draw(st.sampled_from([None, ["cat", "dog"], ["1", "0", "cat"]]))
    content = content.encode(errors="replace") if isinstance(content, str) else content
    table = calm(read, tmp_path, content, suffix, names)
    if table is None:
        return
    assert len(table.answers) == len(table.keys) > 0 and np.isfinite(table.answers).all()
    if table.kind == "hard":
        assert table.answers.min() >= 0 and table.answers.max() < table.num_classes
    if table.kind == "probabilities":
        assert np.allclose(table.answers.sum(axis=1), 1, atol=0.03)


# ---------------------------------------------------------------- what is written


NAMES = ["cat", "a, b", 'the "c"', "semi;colon", "[x]", "ünder:score", "7"]


@pytest.mark.parametrize("names", [NAMES, None], ids=["names", "numbers"])
@pytest.mark.parametrize("keyed_by", ["filename", "index"])
@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_is_written_comes_back(tmp_path, suffix, keyed_by, names):
    """In parts; probabilities to the last bit, where all of them are there."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    shares = np.random.default_rng(0).dirichlet([0.05] * 7, 50).astype(np.float32)
    keys = (
        [f'dir {i}/ä,"{i}\n.png' for i in range(50)]
        if keyed_by == "filename"
        else list(range(3, 53))
    )
    for form in (TableForm(), TableForm(top_k=3), TableForm(every=True)):
        names = names and [name.replace(";", "_") if form.top_k else name for name in NAMES]
        path = tmp_path / f"t{suffix}"
        parts = (
            answer_columns(keys[i : i + 20], keyed_by, shares[i : i + 20], names, form)
            for i in range(0, 50, 20)
        )
        assert write_label_table(path, parts) == 50
        table = read_label_table(path, names)
        assert table.keys == keys and table.class_names == names
        if form == TableForm():
            assert (table.answers == shares.argmax(1)).all() and (
                table.confidence == shares.max(1)
            ).all()
        elif form.every:
            assert (table.answers == shares).all()
        else:
            best = np.argsort(-shares, axis=1)[:, :3]
            assert (
                np.take_along_axis(table.answers[:, :7], best, 1)
                == np.take_along_axis(shares, best, 1)
            ).all()
    assert {*tmp_path.iterdir()} == {path, tmp_path / WRITTEN}


def test_tables_that_cannot_be_written(tmp_path):
    for name, message in (
        ("t.xlsx", "of an unknown kind"),
        ("no/t.csv", "or in none that is there"),
    ):
        with pytest.raises(UserError, match=message):
            check_writable(tmp_path / name)
    with pytest.raises(
        UserError, match="the class 'Label' has the name of another column; take --top-k 2"
    ):
        check_form(TableForm(every=True), ["cat", "Label"], 2)
    with pytest.raises(UserError, match="--top-k 3: there are 2 classes"):
        check_form(TableForm(top_k=3), None, 2)
    with pytest.raises(
        UserError, match="--top-k 1: the class 'a;b' has a semicolon in its name; take --all"
    ):
        check_form(TableForm(top_k=1), ["cat", "a;b"], 2)


def test_names_of_classes(tmp_path):
    (tmp_path / "n.txt").write_text("\ufeffcat\r\n\r\na dog\n")
    (tmp_path / "n.json").write_text('["cat", "a dog"]')
    for text in (str(tmp_path / "n.txt"), str(tmp_path / "n.json"), "cat, a dog"):
        assert read_class_names(text) == ["cat", "a dog"]
    many = [f"class {number}" for number in range(81)]  # as a text longer than any name of a file
    assert read_class_names(",".join(many)) == many
    (tmp_path / "junk").write_bytes(b"\xff\xfe\0")
    for text, message in (
        ("cat", "no such file"),
        ("c" * 299, "no such file"),
        ("a,b,a", "'a' is named twice"),
        ("a,,b", "a name is empty"),
        (str(tmp_path / "junk"), "expected a text file with one name a line"),
    ):
        with pytest.raises(UserError, match=message):
            read_class_names(text)
