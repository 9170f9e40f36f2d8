"""Tables of labels: what is read and what is refused, whatever a file holds, and what is written comes back."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts import assert_refused, calm, lines, read_label_table, write_folder
from w2s_plugins.data import create_dataset, hold_out
from w2s_plugins.data.keys import sample_keys
from w2s_plugins.data.slices import Subset, take_slice
from w2s_plugins.files import WRITTEN
from w2s_plugins.labels.answers import TableForm, answer_columns
from w2s_plugins.labels.names import read_class_names
from w2s_plugins.labels.samples import labels_of_samples
from w2s_plugins.labels.table import LabelRows
from w2s_plugins.labels.table_writer import WRITABLE, check_writable, write_label_table
from w2s_plugins.predictions.run import check_form


def read(
    tmp_path: Path, content: str | bytes, suffix: str = ".csv", names: list[str] | None = None
) -> LabelRows:
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


@pytest.mark.parametrize(
    "encoding, said",
    [("cp1252", "Latin-1 (Windows-1252)"), ("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8")],
)
def test_texts_of_windows(tmp_path, caplog, encoding, said):
    """In its own encoding, and with decimals as most of Europe writes them; what was taken is said."""
    caplog.set_level(logging.INFO)
    content = "image;label;confidence\nÄ 1.png;Küken;0,75\nb.png;“1,5” €;1\n"
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
    file = tmp_path / "t.xlsx"
    book.save(file)
    table = read_label_table(file, ["01", "2", "3"])
    assert (table.keys, table.answers.tolist(), table.annotators) == (["a", "b"], [0, 2], ["7", ""])
    assert table.confidence.tolist() == [0.5, 1]
    openpyxl.Workbook().save(file)
    assert_refused("holds no labels", read_label_table, file)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert_refused("xlsx needs a package: pip install openpyxl", read_label_table, file)


def test_other_forms(tmp_path):
    lines = '{"id": 0, "label": 2}\n{"id": 1, "label": 0, "annotator": "x"}'
    table = read(tmp_path, lines, ".jsonl")
    assert (table.keys, table.answers.tolist(), table.annotators) == ([0, 1], [2, 0], ["", "x"])
    line = '{"file": "a", "probabilities": {"dog": 0.25, "cat": 0.75}}'
    table = read(tmp_path, line, ".ndjson")
    assert table.class_names == ["dog", "cat"] and table.answers.tolist() == [[0.25, 0.75]]
    table = read(tmp_path, "filename\tcat\tdog\na\t3\t-1\nb\t0\t7\n", ".tsv", ["dog", "cat", "hen"])
    assert table.kind == "logits" and table.answers.tolist() == [[-1, 3, -21], [7, 0, -21]]
    columns = dict(filename=["a", "b"], probabilities=[[0.5, 0.5], [1, 0]], class_names=["x", "y"])
    np.savez(tmp_path / "z.npz", **columns)
    table = read_label_table(tmp_path / "z.npz")
    assert (table.kind, table.class_names, table.keys) == ("probabilities", ["x", "y"], ["a", "b"])


def test_positions_are_those_of_the_whole_split(tmp_path):
    """Of files as of other samples, whatever part of them is trained on or held out."""
    write_folder(tmp_path / "data", {"train": 30}, size=(8, 8))
    images = create_dataset("", str(tmp_path / "data"), "train")
    said = torch.randint(3, (len(images),)).numpy()
    np.save(tmp_path / "a.npy", said)
    table = read_label_table(tmp_path / "a.npy")
    expected = dict(zip(images.filenames(), said.tolist()))
    train, held_out = hold_out(take_slice(images, "10:26", 0), 0.25, 0)
    for part in (train, held_out, Subset(images, [*range(29, 19, -1)])):
        found = labels_of_samples(table, sample_keys(part), [*"abc"], None, "x").classes()
        assert found.tolist() == [expected[name] for name in part.filenames()]


JUNK = b"\x89PNG\r\n\x1a\n\0\0\xff"


BAD = r"""
filename,label / a,b,c  ->  Expected 2 fields in line 2, saw 3
filename,label /   ->  holds no labels
filename,label,label / a,b,c  ->  it has a column twice
filename,label / "a,b  ->  cannot be read as csv: .*EOF inside string
a.png,cat / b.png,dog  ->  no column says which sample a row is about.*it has a.png, cat
filenam,label / a,b  ->  expected filename or id \(nearest: filenam\)
filename,note / a,b  ->  no labels; expected a column label
filename,label / a, / b,  ->  its column label is empty
filename,top_k / a,; / b,;  ->  its column top_k is empty
filename,label / ,cat  ->  row 1: '' names no sample
id,label / 1.5,cat  ->  row 1: '1.5' names no sample
id,label / 0,99999999  ->  by the highest number: 100000000 are more than the 1 that stand behind
id,label / 0,-1  ->  row 1: '-1' is no class
filename,cat,dog / a,30.5,69.5 / b,99,1  ->  its values are no probabilities
filename,cat,dog / a,0.5,high  ->  column dog is not all numbers
filename,top_k / a,cat:5;dog:-2  ->  its values are no probabilities
filename,top_k / a,cat  ->  expected pairs such as cat:0.9
filename,top_k / a,999999:1  ->  are more than
filename,label,confidence / a,cat,1.5  ->  confidence: expected probabilities from 0 to 1
filename,label,confidence / a,cat,nan  ->  confidence: expected probabilities from 0 to 1
"""


@pytest.mark.parametrize("rows, message", lines(BAD))
def test_one_line_each(tmp_path, rows, message):
    assert_refused(message, read, tmp_path, rows.replace(" / ", "\n") + "\n")


def test_no_file_and_names_that_are_none(tmp_path):
    assert_refused(
        "the class 'cat' is named twice",
        read,
        tmp_path,
        "filename,label\na,cat\n",
        names=["cat", "dog", "cat"],
    )
    assert_refused("no such file", read_label_table, tmp_path / "none.csv")
    np.savez(tmp_path / "z.npz", filename=["a", "b"], label=[1])
    assert_refused("must be of the same length", read_label_table, tmp_path / "z.npz")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "xlsx", "npz"])
def test_junk(tmp_path, suffix):
    assert_refused(f"cannot be read as {suffix}", read, tmp_path, JUNK, f".{suffix}")


@pytest.mark.parametrize(
    "content, suffix, message",
    [
        (b"\x81\x8d", ".csv", "cannot be read as csv"),
        ("filename,label\na,b\n", ".cvs", r"of an unknown kind \(nearest: .csv"),
        ("", ".csv", "cannot be read as csv: No columns"),
        ("[1]", ".jsonl", "cannot be read as jsonl"),
        # an older pandas cannot read it
        (
            '{"file": "a", "x": 1%s, "y": 0}' % ("0" * 400),
            ".jsonl",
            "column x is not all num|cannot be read as jsonl",
        ),
        ("[" * 100_000, ".jsonl", "cannot be read as jsonl"),
    ],
    ids=["no text", "unknown kind", "empty", "no object", "400 digits", "100,000 levels"],
)
def test_files_that_are_no_tables(tmp_path, content, suffix, message):
    assert_refused(message, read, tmp_path, content, suffix)


HEADERS = ["filename", "id", "label", "top_k", "annotator", "confidence", "cat", "dog", "0", "1"]
ODD = 'a.png 0 1 cat dog 0.5 -1 nan 1e999 cat:0.9;dog:0.1 {"cat":1} [[1]] [1 " \u0661'


CELLS = st.one_of(st.sampled_from([*ODD.split(), ""]), st.text(max_size=5))
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
COLUMNS = ["labels", "Label", "tags", "confidence", "filename", "annotator", "top k"]


@pytest.mark.parametrize("form", [TableForm(), TableForm(top_k=3), TableForm(every=True)], ids=str)
@pytest.mark.parametrize("names", [NAMES, COLUMNS, None], ids=["names", "columns", "numbers"])
@pytest.mark.parametrize("keyed_by", ["filename", "index"])
@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_is_written_comes_back(tmp_path, suffix, keyed_by, names, form):
    """In parts; probabilities to the last bit, where all of them are there."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    shares = np.random.default_rng(0).dirichlet([0.05] * 7, 50).astype(np.float32)
    keys = (
        [f'dir {i}/ä,"{i}\n.png' for i in range(50)] if keyed_by == "filename" else [*range(3, 53)]
    )
    if names and form.top_k:
        names = [name.replace(";", "_") for name in names]
    path = tmp_path / f"t{suffix}"
    parts = (
        answer_columns(keys[i : i + 20], keyed_by, shares[i : i + 20], names, form)
        for i in range(0, 50, 20)
    )
    assert write_label_table(path, parts) == 50
    table = read_label_table(path, names)
    assert table.keys == keys and table.class_names == names
    if form.every:
        assert (table.answers == shares).all()
    elif form.top_k:
        best = np.argsort(-shares, axis=1)[:, :3]
        written = np.take_along_axis(table.answers[:, :7], best, 1)
        assert (written == np.take_along_axis(shares, best, 1)).all()
    else:
        assert (table.answers == shares.argmax(1)).all()
        assert (table.confidence == shares.max(1)).all()
    assert {*tmp_path.iterdir()} == {path, tmp_path / WRITTEN}


@pytest.mark.parametrize(
    "name, message",
    [("t.xlsx", "of an unknown kind"), ("no/t.csv", "or in none that is there")],
)
def test_files_that_cannot_be_written(tmp_path, name, message):
    assert_refused(message, check_writable, tmp_path / name)


@pytest.mark.parametrize(
    "form, names, message",
    [
        (TableForm(top_k=3), None, "--top-k 3: there are 2 classes"),
        (
            TableForm(top_k=1),
            ["cat", "a;b"],
            "--top-k 1: the class 'a;b' has a semicolon in its name; take --all",
        ),
    ],
)
def test_forms_that_do_not_fit_the_classes(form, names, message):
    assert_refused(message, check_form, form, names, 2)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A folder with files of names of classes."""
    monkeypatch.chdir(tmp_path)
    Path("n.txt").write_text("\ufeffcat\r\n\r\na dog\n")
    Path("n.json").write_text('["cat", "a dog"]')
    Path("junk").write_bytes(b"\xff\xfe\0")


@pytest.mark.parametrize("text", ["n.txt", "n.json", "cat, a dog"])
def test_names_of_classes(listed, text):
    assert read_class_names(text) == ["cat", "a dog"]


def test_names_of_classes_are_longer_together_than_any_name_of_a_file():
    many = [f"class {number}" for number in range(81)]
    assert read_class_names(",".join(many)) == many


NO_NAMES = f"""
cat  ->  no such file
{"c" * 299}  ->  no such file
a,b,a  ->  'a' is named twice
a,,b  ->  a name is empty
junk  ->  expected a text file with one name a line
"""


@pytest.mark.parametrize("text, message", lines(NO_NAMES))
def test_what_names_no_classes(listed, text, message):
    assert_refused(message, read_class_names, text)
