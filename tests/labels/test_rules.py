"""The rules by which a table of labels is understood, numbered as in docs/labels.md.

In the tables of cases a table's rows stand between strokes; or there is how often each label is given, as in ``cat*3``.
Behind it the classes of the data stand in brackets, if they are known.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import assert_refused, flags_in, lines, read_label_table
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.labels.given import GivenLabels
from w2s_plugins.labels.samples import SampleLabels, labels_of_samples, most_likely
from w2s_plugins.labels.table import LabelRows

NAMES = ["cat", "dog"]


@pytest.fixture
def read(tmp_path: Path):
    """Reads a table with some content."""

    def read(
        content: str, names: list[str] | None = None, name: str = "t.csv", missing: str = "error"
    ) -> LabelRows:
        (tmp_path / name.partition("#")[0]).write_text(content)
        return read_label_table(tmp_path / name, names, missing=missing)

    return read


def brought(
    table: LabelRows, samples: list[str], names: list[str] = NAMES, combine: str | None = None
) -> SampleLabels:
    keys = SampleKeys("filename", samples, range(len(samples)))
    return labels_of_samples(table, keys, names, combine, "x")


def shares(labels: SampleLabels) -> list[list[float]]:
    logits = labels(torch.arange(len(labels.keys.values)), torch.device("cpu"))
    return [[round(share, 4) for share in row] for row in logits.softmax(1).tolist()]


def labels_of(counts: dict[str, int]) -> str:
    said = [label for label, count in counts.items() for _ in range(count)]
    return "filename,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(said))


def rows_of(case: str) -> str:
    if "," in case:
        return case.replace(" / ", "\n") + "\n"
    return labels_of({label: int(n) for label, n in (word.split("*") for word in case.split())})


def table_and_names(case: str) -> tuple[str, list[str] | None]:
    """The content of a table, and the classes of the data."""
    rows, _, names = case.partition("  [")
    return rows_of(rows.strip()), names.removesuffix("]").split() if names else None


WIDE = "photo,anna,bob,note\na,cat,dog,hm\nb,dog,,hm\nc,cat,cat,\n"
NUMBERS = "photo,anna,bob\na,1,1\nb,0,1\nc,1,0\n"
ODD = {"Apple": 19, "aple": 13, "appel": 1, "appls": 1, "apples": 1, "NA": 2, "?": 1}

REFUSED = r"""
# 1: two columns for one thing
filename,Label,label / 0,0,0  ->  which column is the label, .* or .*
filename,class,given / 0,0,0  ->  which column is the label, .* or .*
path,image,label / 0,0,0  ->  which column is the filename, .* or .*
id,ID,label / 0,0,0  ->  which column is the id, .* or .*
# 2: columns of unknown people and classes
photo,anna,bob / a,cat,dog / b,dog, / c,cat,cat  ->  column anna is not all numbers .* FILE#anna,bob
photo,note / a,hm  [cat dog]  ->  no labels; .* FILE#COLUMN,COLUMN; it has photo, note
photo,anna,bob / a,cat,dog / b,dgo, / c,cat,cat  [cat dog]  ->  row 2, column anna: 'dgo' is no .* 1 of 5 \('dgo' 1 \(near
# 5: numbers of classes or of votes, or of something else
photo,anna,bob / a,1,1 / b,0,1  ->  are its columns anna, bob classes of .* votes for one, or numbers of .* FILE#anna,bob
photo,anna,bob / a,1,2 / b,0,1  ->  are its columns anna, bob classes\? .*, or numbers of .* --class-names, .* FILE#anna,bob
filename,votes.cat,votes.dog / a,1,0.5  ->  row 1: its values are no votes, which are whole numbers, one of them at least 1
photo,anna,bob / a,1,1 / b,0,1  [cat dog]  ->  its class 'anna' is none of the 2 classes of the data; if col.* FILE#anna,bob
filename,a,b,fold / x,0.3,0.7,2 / y,0.9,0.1,4  ->  no probabilities
filename,a,b,fold / x,-0.3,4.7,2  ->  no probabilities
# 4, 6: what may be another class
filename,top_k / a,cat:0.5;cat:0.3  [cat dog]  ->  row 1: top_k has a class twice
filename,top_k / a,cat:0.5;Cat:0.5  [cat dog]  ->  row 1: top_k has a class twice
filename,1,01 / a,0.5,0.5  [01 02]  ->  it has a class twice, by two names; it has 1, 01
filename,cat,Cat / a,0.25,0.75  [cat dog]  ->  it has a class twice, by two names; it has cat, Cat
filename,cat,doog,hen / a,7,2,1  [cat dog hen]  ->  its column 'doog' is no class \(nearest: dog
filename,label / a,0 / b,1  [01 02]  ->  row 1: '0' is no class
filename,label / a,1 / b,1  [01 001]  ->  row 1: '1' is no class
filename,label / a,cat / b,1  [cat dog]  ->  row 2: '1' is no class; expected the name of one or, in all rows, its n
filename,label / a,0 / b,2  [cat dog ?]  ->  '2' is no class; .* below 2;
CAT*1  [cat Cat]  ->  row 1: 'CAT' is no class
NA*1 cat*1  [na cat]  ->  row 1: 'NA' is no class
# 6: what is no class is counted
apple*20 Apple*19 aple*13 appel*1 NA*2 ?*1  [apple pear]  ->  row 40: 'aple' .*\('aple' 13 \(nearest: apple\), 'NA' 2
?*1 lime*2 Lime*3  ->  row 1: '\?' .* 3 of 6 \('lime' 2 \(nearest: Lime\), '\?' 1\); .*, or list all .* by --class-names
filename,label / a,1 / b,0 / c,NA  [cat dog]  ->  row 3: 'NA' is no class.* 1 of 3 \('NA' 1\); correct them, or leave
NA*1 ?*1  ->  row 1: 'NA' is no class; .* 2 of 2 \('NA' 1, '\?' 1\); correct
filename,label / a, / b,  ->  its column label is empty
filename,top_k / a,NA:1  ->  row 1: 'NA' is no class; .* 1 of 1 \('NA' 1\); correct
Banana*3 NA*2  ->   2 of 5 \('NA' 2\); correct
Red-Beet*3 RedBeet*2  ->   2 of 5 \('RedBeet' 2 \(nearest: Red-Beet\)\); correct
kiwi*9 a*1 b*1 c*1 d*1 e*1 f*1 g*1 h*1 i*1 j*1  [kiwi lime]  ->  'g' 1, 'h' 1 and 2 more\); correct
filename,top_k / a,cat:0.9;catt:0.1 / b,cat:1 / c,cat:1  ->  row 1: 'catt' is no class.* 1 of 3 \('catt' 1
filename,top_k / a,cat:1 / b,Dog:1;hen:0 / c,cat:1  [cat dog]  ->  row 2: 'hen' is no class; .* 1 of 3 \('hen' 1\)
filename;label / a;0,1 / b;0 / c;1  ->  row 1: '0,1' holds several labels; .* 1 of 3 \('0,1' 1
a;b*1 b;c*1 a;c*1  ->  row 1: 'a;b' holds several labels; .* 3 of 3 \('a;b' 1.*, 'b;c' 1
# 6: counted from 1, or beside names that are numbers
0*1 5*1 9*1  [1 5 9]  ->  row 1: '0' is no class; expected the name of one
1*1 2*1 -1*1  [cat dog]  ->  its classes are 1 to 2; expected positions
"""


@pytest.mark.parametrize("table, message", lines(REFUSED))
def test_refused(read, table, message):
    assert_refused(message, read, *table_and_names(table), missing=None)


LEFT_OUT = r"""
filename,cat,dog / a,0.5,0.5 / b,nan,1  ->  row 2: its values are no probabilities
filename,cat,dog / a,3,-5 / b,1,-4 / c,inf,1  ->  row 3: its values are not finite; answers like it: 1 of 3
filename,cat,dog / a,2,0 / b,0,0  ->  row 2: its values are no probabilities that sum to 1, and no votes
filename,cat,dog / a,0.5,0.5 / b,0,1 / c,5,-3  ->  answers like it: 1 of 3
filename,label / a,cat / b,dgo  ->  row 2: 'dgo' is no class; .* \('dgo' 1 \(nearest: dog\)
"""


@pytest.mark.parametrize("rows, message", lines(LEFT_OUT))
def test_what_says_nothing_is_left_out_as_far_as_asked(read, rows, message):
    content = rows_of(rows)
    assert_refused(message, read, content, NAMES)
    samples = [row.split(",")[0] for row in content.splitlines()[1:]]
    bad = "b" if "row 2" in message else "c"
    assert read(content, NAMES, missing="skip").keys == [key for key in samples if key != bad]


UNDERSTOOD = """
# 2: a confidence is that of a label and not of shares
filename,cat,dog,confidence / a,0.7,0.3,0.9  [cat dog]  ->  probabilities [[0.7, 0.3]]
# 4: the fullest answer counts, as predictions have it; other numbers beside a label are no classes
filename,label,confidence,cat,dog / a,cat,0.75,0.75,0.25  ->  probabilities [[0.75, 0.25]]
filename,label,top_k / a,cat,cat:0.9;dog:0.1  ->  probabilities [[0.9, 0.1]]
filename,label,width,height / a,cat,3,4  ->  hard [0]
# 1: a comma begins the decimals of numbers behind semicolons
filename;cat;dog / a;0,75; 0,25  [cat dog]  ->  probabilities [[0.75, 0.25]]
filename;label / a;1,0 / b;0,0  ->  hard [1, 0]
id;label / 0,0;cat / 1,0;dog  ->  hard [0, 1]
# 1, 4: numbers of rows in a column without a name, and columns with nothing in them
,filename,label / 0,a,dog / 1,b,cat  ->  hard [1, 0]
filename,label,, / a,dog,, / b,cat,,  ->  hard [1, 0]
,filename,cat,dog / 0,a,0,1 / 1,b,1,0  ->  probabilities [[0, 1], [1, 0]]
Unnamed: 0,filename,cat,dog / 0,a,0,1 / 1,b,1,0  ->  probabilities [[0, 1], [1, 0]]
# 4: the best classes leave the rest to the others
filename,top_k / a,cat:0.9;dog:0.05  [hen cat cow dog]  ->  probabilities [[0.025, 0.9, 0.025, 0.05]]
filename,top_k / a,cat:0.9;dog:0  [hen cat dog]  ->  probabilities [[0.1, 0.9, 0]]
# 5: what the numbers are
filename,cat,dog / a,19,8 / b,1,0  [cat dog]  ->  probabilities [[0.7037037, 0.2962963], [1, 0]]
filename,cat,dog / a,0,1 / b,1,0  ->  probabilities [[0, 1], [1, 0]]
filename,votes.cat,votes.dog / a,1,1 / b,1,0  ->  probabilities [[0.5, 0.5], [1, 0]]
filename,votes.dog,votes.cat / a,1,1 / b,1,3  [cat dog]  ->  probabilities [[0.5, 0.5], [0.75, 0.25]]
filename,label,votes.up,votes.down / a,cat,1,1 / b,dog,3,0  ->  hard [0, 1]
filename,cat,dog / a,19,-8 / b,1,0  [cat dog]  ->  logits [[19, -8], [1, 0]]
filename,cat,dog / a,0.51,0.5 / b,1,0  [cat dog]  ->  probabilities [[0.51, 0.5], [1, 0]]
photo,anna,bob / a,1,3 / b,4,0  ->  probabilities [[0.25, 0.75], [1, 0]]
# 6: a number is the class of that name, as of a spreadsheet that has dropped zeros; an audit has an answer ?
filename,label / a,1 / b,2  [01 02 03]  ->  hard [0, 1]
filename,1,2 / a,0.25,0.75  [01 02]  ->  probabilities [[0.25, 0.75]]
filename,top_k / a,2:0.75  [01 02]  ->  probabilities [[0.25, 0.75]]
filename,label / a,10 / b,2  [10 2 5]  ->  hard [0, 1]
filename,label / a,1 / b,?  [01 02 ?]  ->  hard [0, 2]
# 6: capitals
Cat*1  [cat Cat]  ->  hard [1]
filename,Cat,DOG,label,Hen / a,0.25,0.75,cat,0  [cat dog hen]  ->  probabilities [[0.25, 0.75, 0]]
filename,cat,DOG,label,Hen / a,0.25,0.75,cat,0  [cat dog hen]  ->  probabilities [[0.25, 0.75, 0]]
filename,cat,dog,label,Hen / a,0.25,0.75,cat,0  [cat dog hen]  ->  probabilities [[0.25, 0.75, 0]]
filename,a,b,Label / x,0.25,0.75,b  [a b label]  ->  probabilities [[0.25, 0.75, 0]]
"""


@pytest.mark.parametrize("table, expected", lines(UNDERSTOOD))
def test_understood(read, table, expected):
    kind, _, answers = expected.partition(" ")
    found = read(*table_and_names(table))
    assert found.kind == kind and np.allclose(found.answers, json.loads(answers))
    assert found.confidence is None


CLASSES_OF = """
filename,label / a,01 / b,10  ->  01 10
v1.0*9 v10*9 c++*9 c*9  ->  c c++ v1.0 v10
"""


@pytest.mark.parametrize("table, names", lines(CLASSES_OF))
def test_classes_that_are_all_meant(read, table, names):
    assert read(*table_and_names(table)).class_names == names.split()


# ---------------------------------------------------------------- 1, 2: which column says what


def test_the_plain_name_counts_and_what_is_not_read_is_said(read, caplog):
    caplog.set_level(logging.INFO)
    table = read("filename,path,label,class,width\na,b,cat,dog,3\n")
    assert table.keys == ["a"] and table.class_names == ["cat"]
    assert "columns that are not read: class, path, width" in caplog.text


def test_a_key_that_a_row_has_twice_is_refused(read):
    row = '{"file": "a", "label": "cat", "label": "dog"}\n'
    assert_refused("a row has the key 'label' twice", read, row, name="t.jsonl")


def test_a_column_that_is_named_is_meant_alone(read):
    content = "filename,worker1,worker10,label\na,cat,dog,dog\n"
    assert read(content, NAMES, "t.csv#worker1").answers.tolist() == [0]
    message = r"has no column 'worker' \(nearest: worker1.*it has filename, worker1"
    assert_refused(message, read, content, NAMES, "t.csv#worker1,worker")


@pytest.mark.parametrize(
    ("name", "names", "likely"),
    [
        ("t.csv", NAMES, None),
        ("t.csv", None, NAMES),
        ("t.csv#anna,bob", None, None),
        ("t.csv#bob, anna", NAMES, None),
    ],
)
def test_annotators_may_have_a_column_each(read, tmp_path, caplog, name, names, likely):
    """They are named, or hold the names of known classes; an empty cell is no answer."""
    (tmp_path / "t.csv").write_text(WIDE)
    table = read_label_table(tmp_path / name, names, likely=likely)
    said = zip(table.keys, table.annotators, [table.class_names[i] for i in table.answers])
    expected = "a anna cat | a bob dog | b anna dog | c anna cat | c bob cat"
    assert " | ".join(sorted(map(" ".join, said))) == expected
    left_out = (
        "1 of 6 answers have no label and are left out, the first of them in row 2, column bob"
    )
    assert left_out in caplog.text


def test_columns_of_annotators_are_known_by_classes_in_capitals(read):
    table = read(WIDE.replace("dog", "DOG").replace("cat", "Cat"), NAMES)
    said = sorted(f"{key}{answer}" for key, answer in zip(table.keys, table.answers))
    assert said == ["a0", "a1", "b1", "c0", "c0"]


def test_a_column_of_notes_with_one_class_in_it_is_no_annotator(read):
    """Most of what a column says has to be classes, of what it says at all."""
    table = read("photo,anna,note\na,cat,cat\nb,dog,blurred\nc,cat,\n", NAMES)
    assert (table.annotators, table.answers.tolist()) == (None, [0, 1, 0])
    table = read("photo,anna,bob\na,cat,cat\nb,dog,\nc,cat,\n", NAMES)
    assert {*table.annotators} == {"anna", "bob"}


@pytest.mark.parametrize("column", ["image_id", "Image ID", "photo", "img-path"])
def test_names_of_files_have_many_names(read, column):
    assert read(f"id,{column},label\n7,a.jpg,cat\n").keys == ["a.jpg"]
    assert read(f"path,{column},label\nb.jpg,7,cat\n").keys == ["b.jpg"]  # which is surely a path


# ---------------------------------------------------------------- 3: names and positions of samples


FILES = "cat/1.jpg cat/2.jpg dog/1.jpg dog/3.png"
OF_SAMPLES = rf"""
filename,label / 0.png,cat / 1.png,cat  |  one.tar/x/0.png two.tar/y/0.png two.tar/y/1.png  ->  names '0.png', but several
filename,label / /1.jpg,cat / cat/2.jpg,cat  |  {FILES}  ->  several files have that name; expected paths, such as cat/1.jpg
filename,label / 1.jpg,cat / cat/2.jpg,cat  |  {FILES}  ->  several files have that name; expected paths, such as cat/1.jpg
filename,label / 1,cat / cat/2.jpg,cat  |  {FILES}  ->  several files have that name; expected paths, such as cat/1.jpg
filename,label / 4,cat  |  4.jpg 4.png  ->  several files have that name
# one of the two paths is the end of the other, or they are two images
filename,label / test/a/1.png,cat  |  train/a/1.png  ->  is about other data
filename,label / /data/test/a/1.png,cat  |  train/a/1.png  ->  is about other data
filename,label / C:\test\a\1.png,cat  |  train/a/1.png  ->  is about other data
filename,label / test/a/1,cat  |  train/a/1.png  ->  is about other data
filename,label / c,cat  |  a  ->  is about other data: none of its 1 answers names one of the 1 samples
id,label / 3,cat / 1,cat / 2,dog  |  a b c  ->  its ids are 1 to 3; expected positions, which begin with 0
"""


@pytest.mark.parametrize("case, message", lines(OF_SAMPLES))
def test_refused_about_these_samples(read, case, message):
    rows, samples = case.split("  |  ")
    assert_refused(message, brought, read(rows_of(rows), NAMES), samples.split())


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (["cat/1", "2", "dog\\3.png"], [1, 1, 0, 1]),
        ([r"C:\Users\Bob\my photos\dog\1.jpg", "//nas/photos/cat/2", "dog/3.png"], [0, 1, 1, 1]),
        (["/2.jpg", "/home/anna/3.png"], [0, 1, 0, 0]),
        (
            [
                f"/anna/{name}.jpg"
                for name in ("train/cat/1", "val/dog/2", "val/dog/9", "train/dog/1")
            ],
            [1, 0, 1, 0],
        ),
        (["all/cat/1.jpg", "all/dog/2.jpg", "all/hen/3.png"], [1, 0, 0, 0]),
        (["cat/1.jpg", "hen/2.jpg", "a/dog/3.png"], [1, 0, 0, 0]),
    ],
)
def test_names_of_another_machine(read, said, known):
    """That of a whole path; 2.jpg below the folder of the images is none of another folder there."""
    table = read("filename,label\n" + "".join(f"{name},cat\n" for name in said), NAMES)
    assert brought(table, FILES.split()).known.int().tolist() == known


@pytest.mark.parametrize(
    "name", ["train/a/1.png", "/data/train/a/1.png", r"C:\train\a\1.png", "train/a/1"]
)
@pytest.mark.parametrize("sample", ["train/a/1.png", "a/1.png"])
def test_the_end_of_a_path_is_enough(read, name, sample):
    assert brought(read(f"filename,label\n{name},cat\n", NAMES), [sample]).known.all()


def test_the_end_of_a_path_names_a_sample_where_only_one_has_it(read):
    files = ["one.tar/x/0.png", "two.tar/y/0.png", "two.tar/y/1.png"]
    table = read("filename,label\n/x/0.png,cat\ny/0.png,dog\n1.png,dog\n", NAMES)
    assert shares(brought(table, files)) == [[1, 0], [0, 1], [0, 1]]


def test_what_is_about_no_sample(read, caplog):
    labels = brought(read("filename,label\nb,dog\nc,cat\na,cat\n", NAMES), ["a", "b"])
    assert shares(labels) == [[1, 0], [0, 1]]
    assert "1 of 3 answers are about none of these samples, such as c" in caplog.text


def test_positions_begin_with_0(read):
    labels = brought(read("id,label\n2,cat\n3,dog\n", NAMES), [*"abcd"])
    assert labels.known.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "ids", [[1, 2, 4, 6, 7, 10], [3, 10], [1, 2, 4, 6, 7, 8, 11], [1, 2, 4, 6, 7]], ids=str
)
def test_positions_from_1_may_have_gaps(read, ids):
    """The last one is just behind the end, or the first is 1 and most are there."""
    content = "id,label\n" + "".join(f"{i},cat\n" for i in ids)
    message = f"its ids are {ids[0]} to {ids[-1]}; expected positions, which begin with 0"
    assert_refused(message, brought, read(content, NAMES), [*"abcdefghij"])
    labels = brought(read(content + "0,dog\n", NAMES), [*"abcdefghij"])
    assert labels.classes()[:2].tolist() == [1, 0 if 1 in ids else -1]


def test_positions_beyond_the_end_are_of_other_data(read):
    table = read("id,label\n5,cat\n17,cat\n", NAMES)
    assert brought(table, [*"abcdefghij"]).known.sum() == 1


STUDIO = """annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at
1,1,cat,2026-01-01T00:00:00Z,17,/data/upload/3/8a7b3c1d-IMG_000.jpg,1.5,2026-01-01T00:00:00Z
2,2,dog,2026-01-01T00:00:00Z,17,/data/upload/3/8a7b3c1d-IMG_000.jpg,1.5,2026-01-01T00:00:00Z
3,1,dog,2026-01-01T00:00:00Z,2,http://localhost:8080/data/upload/00000000-b.jpg,2.5,2026-01-01T00:00:00Z
4,1,dog,2026-01-01T00:00:00Z,1,data/local-files/?d=photos/my%20dir/c.jpg,2.5,2026-01-01T00:00:00Z
5,1,cat,2026-01-01T00:00:00Z,0,/data/local-files/?d=photos%5Cmy%20dir%5Cd.jpg,,
"""


def test_label_studio(read):
    """Its id is that of a task, and its names of files are those that it has made of them."""
    table = read(STUDIO)
    assert (table.keyed_by, table.class_names, table.annotators) == ("filename", NAMES, [*"12111"])
    files = ["IMG_000.jpg", "x/b.jpg", "my dir/c.jpg", "my dir/d.jpg"]
    assert shares(brought(table, files)) == [[0.5, 0.5], [0, 1], [0, 1], [1, 0]]
    assert_refused("several files have that name", brought, table, [*files, "y/b.jpg"])
    both = read("filename,label\n8a7b3c1d-b.jpg,cat\nb.jpg,cat\n")
    assert brought(both, ["b.jpg"], ["cat"]).known.all()
    kept = ["upload/8a7b3c1d-IMG.jpg", "IMG.jpg"]  # who has taken the files from there
    table = read("filename,label\nupload/8a7b3c1d-IMG.jpg,cat\n")
    assert brought(table, kept, ["cat"]).known.tolist() == [True, False]


@pytest.mark.parametrize("name", [" a.png", "b .png ", "\u00a0d/a.png"])
def test_a_file_name_may_begin_or_end_with_a_space(read, name):
    labels = brought(read(f"filename,label\n{name},cat\n c.png ,dog\n", NAMES), [name, "c.png"])
    assert labels.classes().tolist() == [0, 1]
    table = read(f"filename,label\n{name},cat\n", NAMES)
    assert_refused("several files have that name", brought, table, [name, name.strip()])


# ---------------------------------------------------------------- 4: which answer counts


@pytest.mark.parametrize("name", ["id", "confidence", "annotator", "label", "class"])
def test_a_class_may_have_the_name_of_another_column(read, name):
    table = read(f"filename,cat,{name}\na,0.25,0.75\n", ["cat", name])
    assert (table.kind, table.answers.tolist(), table.keys) == (
        "probabilities",
        [[0.25, 0.75]],
        ["a"],
    )
    line = json.dumps({"file": "a", "probabilities": {"cat": 0.25, name: 0.75}, "confidence": 0.5})
    assert read(line, name="t.jsonl").answers.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("order", [1, -1])
def test_probabilities_count_before_logits(read, order):
    said = [("logits", {"cat": 5, "dog": -1}), ("probabilities", {"cat": 0.25, "dog": 0.75})]
    table = read(json.dumps({"filename": "a", **dict(said[::order])}), NAMES, name="t.jsonl")
    assert (table.kind, table.answers.tolist()) == ("probabilities", [[0.25, 0.75]])


@pytest.mark.parametrize("rows", ["x,0.3,0.7,2\ny,0.9,0.1,4", "x,-0.3,4.7,2"])
def test_a_number_of_something_else_is_no_class_where_classes_are_named(read, rows):
    """The table has what it has of them."""
    answers = read("filename,a,b,fold\n" + rows, ["b", "c", "a"]).answers
    assert (answers[:, 1] == answers.min()).all() and answers[0, 0] > answers[0, 2]


@pytest.mark.parametrize(
    "numbers", ["0.3,0.7", "3,-4", "2,1"], ids=["probabilities", "logits", "votes"]
)
def test_a_class_without_a_column_gets_almost_no_probability(read, numbers):
    names = ["cat", "cow", "dog"]
    labels = brought(read(f"filename,dog,cat\na,{numbers}\n", names), ["a"], names)
    cat, cow, dog = labels(torch.tensor([0]), torch.device("cpu")).softmax(dim=1)[0].tolist()
    assert cow < 1e-6 < min(cat, dog)


# ---------------------------------------------------------------- 5: what the numbers are


def test_whole_numbers_are_numbers_of_classes_or_votes(read, caplog):
    """As is said, or as many in each row; whoever publishes a table need not know."""
    caplog.set_level(logging.INFO)
    table = read(NUMBERS, name="t.csv#anna,bob")
    assert table.annotators == ["anna"] * 3 + ["bob"] * 3
    assert table.answers.tolist() == [1, 0, 1, 1, 1, 0]
    read("photo,anna,bob\na,1,3\nb,4,0\n")
    taken = "its columns of classes are taken for votes; if columns are annotators, name them"
    assert taken in caplog.text
    numbers = NUMBERS.replace("a,1,1", "a,2,2")
    assert read(numbers, missing="keep").answers.tolist() == [[0.5, 0.5], [0, 1], [1, 0]]


def test_ties_of_logits_are_said_and_stay(read, caplog):
    """They are what a teacher has said, to the last bit: the first class counts."""
    caplog.set_level(logging.INFO)
    labels = brought(read("filename,cat,dog\na,-3,-3\nb,-3,-3\nc,4,2\n", NAMES), [*"abc"])
    assert labels.answers.tolist() == [[-3, -3], [-3, -3], [4, 2]]
    assert labels.classes().tolist() == [0, 0, 0]
    assert "x: 2 of 3 samples are ties" in caplog.text
    assert "where one class is needed the first counts" in caplog.text


@pytest.mark.parametrize("names", [NAMES, ["1", "0"]])
def test_a_file_may_say_that_its_numbers_are_logits(tmp_path, names):
    np.savez(tmp_path / "t.npz", filename=["a"], logits=[[19, 8]], class_names=names)
    table = read_label_table(tmp_path / "t.npz")
    assert (table.kind, table.answers.tolist(), table.class_names) == ("logits", [[19, 8]], names)


# ---------------------------------------------------------------- 6: names and numbers of classes


def test_numbers_are_positions_of_classes_that_have_names(read, caplog):
    caplog.set_level(logging.INFO)
    assert read("filename,label\na,1\nb,0\n", NAMES).answers.tolist() == [1, 0]
    assert "numbers for classes, which are taken for those of the data in its order" in caplog.text


def test_what_may_be_misspelt_becomes_no_class(read, caplog):
    """It is asked about, however little it is, with counts."""
    content = labels_of({"apple": 20, **ODD, "pear": 400, "bear": 300, "lot 1": 300, "lot 2": 1})
    message = (
        r"row 21: 'Apple' is no class; expected a name, always "
        r".* 38 of \d+ \('Apple' 19 .*, 'aple' 13 .*, 'NA' 2, .*--class-names"
    )
    assert_refused(message, read, content, missing=None)
    assert_refused(message, read, content, missing="error")
    classes = ["apple", "bear", "lot 1", "lot 2", "pear"]
    assert read(content, missing="skip").class_names == classes
    assert "'?' 1); left out" in caplog.text
    everything = [*classes, *ODD]  # whoever says so is believed
    assert read(content, everything).num_classes == len(everything)
    kept = read(content.replace("NA", "pear").replace("?", "pear"), missing="keep")
    assert {*kept.class_names} > {"aple", "Apple"}


def test_all_classes_are_shown_and_rare_ones_pointed_at(read, caplog):
    caplog.set_level(logging.INFO)
    counts = {"cat": 3, "dog": 3000, "hen": 4}
    brought(read(labels_of(counts)), [*map(str, range(3007))], [*counts])
    assert "x: 3007 samples in 3 classes: dog (3000), hen (4), cat (3)\n" in caplog.text
    rare = "x: hardly any sample is of 1 of the 3 classes: cat (3); are they misspelt"
    assert f"WARNING: {rare}" in caplog.text
    many = {f"{i:03}": 1 + (i > 0) for i in range(1000)}  # of which each has a thousandth
    caplog.clear()
    brought(read(labels_of(many)), [*map(str, range(1999))], [*many])
    assert "WARNING" not in caplog.text and all(f"{name} " in caplog.text for name in many)


POLAR, COFFEE = "polar bear", "caf\u00e9"
UNSEEN = [
    "cat",
    "\ufeffcat",
    "c\u200bat",
    "cat\u2060 ",
    "cat\ufe0f",
    "c\u034fat",
    "\u3164cat",
    "cat\x7f",
]


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_nobody_sees_makes_no_class(read, suffix, names):
    """Nor a column, nor an image, where one file was put behind another or a cell was copied from a page."""
    rows = [dict(filename=f"{i}\u200b", label=label) for i, label in enumerate([*UNSEEN, "dog"])]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".csv":
        lines = [",".join(row.values()) + "\n" for row in rows]
        content = "".join(["\ufeff\ufefffilename,label\n", *lines])
    table = read(content, names, f"t{suffix}", missing="keep")
    assert (table.class_names, table.answers.tolist()) == (["cat", "dog"], [0] * len(UNSEEN) + [1])
    assert brought(table, ["0", "1\u200b", "2"]).known.all()


def test_a_turkish_capital(read):
    said = labels_of({"İstanbul": 3, "istanbul": 1, "ISTANBUL": 1})
    assert read(said, ["Istanbul", "Izmir"]).answers.tolist() == [0] * 5
    assert_refused("'istanbul' 1 .nearest: İstanbul", read, said)


OTHERWISE = {"Polar Bear": 3, "polar  bear": 2, "polar\u00a0bear": 1, "CAFE\u0301": 1}


@pytest.mark.parametrize("form", ["label", "top_k"])
@pytest.mark.parametrize("likely", [False, True])
def test_what_differs_from_a_known_class_in_capitals_or_unicode_is_that_class(
    read, tmp_path, caplog, form, likely
):
    """Said once, with counts; all labels may be written so."""
    caplog.set_level(logging.INFO)
    cells = {f"{name}:1" if form == "top_k" else name: count for name, count in OTHERWISE.items()}
    (tmp_path / "t.csv").write_text(labels_of(cells).replace("filename,label", f"filename,{form}"))
    known = [COFFEE, POLAR]
    table = read_label_table(tmp_path / "t.csv", None if likely else known, likely=known)
    assert table.class_names == known
    assert most_likely(table.answers).tolist() == 6 * [1] + [0]
    assert caplog.text.count("written otherwise") == 1
    assert "'Polar Bear' 3 (polar bear), 'polar  bear' 2" in caplog.text


def test_one_text_has_many_forms(read):
    """Of Unicode, and of a space; the most frequent one names the class, also where the classes are not known."""
    table = read(labels_of({"polar  bear": 1, POLAR: 3, "cafe\u0301": 2, COFFEE: 1}))
    assert table.class_names == ["cafe\u0301", POLAR]
    assert table.answers.tolist() == 4 * [1] + 3 * [0]
    assert read(labels_of({"a  b": 1, "c": 1})).class_names == ["a  b", "c"]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@pytest.mark.parametrize("odd", ["Cats", "cat.", '"cat', "(cat)", "c.at"])
def test_marks_and_letters_may_be_slips(read, odd):
    content = labels_of({"cat": 9, "cats": 9 if odd == "Cats" else 0, quoted(odd): 1, "dog": 4})
    message = r"is no class; expected a name.* 1 of \d+ \(.* 1 \(nearest: cats?\)\)"
    assert_refused(message, read, content)


SEVERAL = """
cat,dog | dog;cat | cat / dog | cat;hen | ["cat", "dog"] | ['hen', 'cow'] | {"choices":["cat","dog"]}
"""


@pytest.mark.parametrize("cell", [*flags_in(SEVERAL), "cat|dog"])
def test_several_labels_in_a_cell_are_asked_about(read, cell):
    content = labels_of({"cat": 3, "dog": 4, quoted(cell): 2})
    message = (
        r"row 8: '.*' holds several labels; expected one, or --task multilabel; answers like it: 2 of 9 "
        r"\('.*' 2.*or list all classes"
    )
    assert_refused(message, read, content, missing=None)
    assert read(content, missing="skip").class_names == NAMES
    message = "holds several labels; expected one, or --task multilabel; .* 2 of 9"
    assert_refused(message, read, content, NAMES, missing=None)
    believed = read(labels_of({"cat": 3, quoted(cell): 2}), ["cat", cell])
    assert believed.answers.tolist() == [0, 0, 0, 1, 1]


def test_a_name_with_a_comma_is_one_class(read):
    names = ["tench, Tinca tinca", "missile", "projectile, missile", "Washington, D.C."]
    names += ["animal|cat", "animal|dog"]
    content = labels_of({quoted(name): 1 for name in names})
    assert read(content).class_names == sorted(names)


def test_whoever_computes_probabilities_misspells_nothing(read):
    """Of the tables that this program writes, too: a label beside a confidence with all of its digits."""
    rng = np.random.default_rng(0)
    names = ["shirt"] * 9 + ["skirt", "Shirt"]
    rows = (f"{i},{name},{np.float32(rng.uniform(0.3, 1))}\n" for i, name in enumerate(names))
    content = "filename,label,confidence\n" + "".join(rows)
    assert read(content).class_names == ["Shirt", "shirt", "skirt"]
    best = content.replace("label,confidence", "top_k").replace("t,0", "t:0")
    assert read(best).class_names == ["Shirt", "shirt", "skirt"]
    typed = labels_of({"shirt,0.9": 9, "skirt,0.6666667": 1, "hat,0.3333333": 9})
    # as shares of votes are
    typed = typed.replace("label", "label,confidence")
    assert_refused("'skirt' is no class", read, typed)


WORDS = [f"class {number}" for number in range(110)]
BESIDE = (
    "row 1: '0' is no class, though all may be positions from 0, and the others wrong without these; expected names; "
    "answers like it: 1 of 110"
)
FROM_1 = "its classes are 1 to 110; expected positions, which begin with 0, or names"


@pytest.mark.parametrize(
    ("labels", "names", "missing", "message"),
    [
        (range(110), [str(number) for number in range(1, 111)], None, BESIDE),
        (range(1, 111), WORDS, "skip", FROM_1),
        ([3, 50, 110], WORDS, None, "its classes are 3 to 110; expected positions"),
    ],
    ids=["positions beside names that are numbers", "counted from 1", "counted from 1, with gaps"],
)
def test_numbers_of_classes_are_never_shifted(read, labels, names, missing, message):
    content = labels_of(dict.fromkeys(labels, 1))
    assert_refused(message, read, content, names, missing=missing)
    assert read(content + "x,0\n", WORDS, missing="skip").answers.max() <= 109  # 0 is counted from


# ---------------------------------------------------------------- 7: confidence


@pytest.mark.parametrize("combine", [None, "majority", "mean"])
def test_confidence_of_one_answer_does_not_depend_on_other_samples(read, combine):
    rows = "filename,label,annotator,confidence\na,cat,x,0.6\nb,dog,x,0.7\n"
    alone = brought(read(rows, NAMES), ["a", "b"])
    table = read(f"{rows}c,cat,x,0.9\nc,cat,y,0.7\n", NAMES)
    beside = brought(table, ["a", "b", "c"], combine=combine)
    assert shares(beside)[:2] == shares(alone) == [[0.6, 0.4], [0.3, 0.7]]
    assert shares(beside)[2] == [0.8, 0.2]


def test_confidences_sum_to_one_and_one_below_chance_makes_no_other_class_likelier(read):
    names = [*NAMES, "hen"]
    table = read("filename,label,confidence\na,cat,0.1\nb,dog,0.8\n", names)
    labels = brought(table, ["a", "b"], names)
    assert shares(labels) == [[0.3333] * 3, [0.1, 0.8, 0.1]]
    assert np.allclose(labels.answers.sum(1), 1)


# ---------------------------------------------------------------- 8, 9: several answers


CROWD = "filename,cat,dog,annotator\na,0.9,0.1,x\na,0.4,0.6,y\na,0.4,0.6,z\nb,1,0,x\n"


@pytest.mark.parametrize(
    ("combine", "said", "recorded"),
    [
        (None, [0.5667, 0.4333], "mean"),
        ("mean", [0.5667, 0.4333], "mean"),
        ("majority", [0.4, 0.6], "majority"),
    ],
)
def test_annotators_who_give_probabilities_are_combined_as_asked(read, combine, said, recorded):
    labels = brought(read(CROWD), ["a", "b"], combine=combine)
    assert shares(labels) == [said, [1, 0]] and labels.manifest.who["combine"] == recorded
    assert labels.manifest.who["annotators"] == 3


def test_what_was_not_combined_is_not_said_to_be(read):
    alone = brought(read("filename,label\na,cat\n"), ["a"], ["cat"], "mean")
    assert alone.manifest.who["combine"] is None


def test_dawid_skene_knows_people_by_what_they_say_of_other_images(read):
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=60)
    rows = [
        f"{i},p{person},{NAMES[truth[i] if rng.random() < (0.95, 0.6, 0.4)[person] else 1 - truth[i]]}"
        for i in range(60)
        for person in range(3)
    ]
    images = [str(i) for i in range(60)]

    def combined(rows: list[str], names: list[str]) -> SampleLabels:
        table = read("\n".join(["filename,annotator,label", *rows, ""]), NAMES)
        return brought(table, names, combine="dawid-skene")

    some = combined(rows, images[50:])
    assert shares(some) == shares(combined(rows, images))[50:]
    # what contradicts itself there is none of these samples
    assert len(combined([*rows, "x,p0,cat", "x,p0,dog"], images).known) == 60
    assert shares(combined(rows[150:], images[50:])) != shares(some)


def test_dawid_skene_of_probabilities_is_that_of_their_classes(read):
    hard = "filename,label,annotator\na,cat,x\na,dog,y\na,dog,z\nb,cat,x\n"
    one, other = (brought(read(text), ["a", "b"], combine="dawid-skene") for text in (CROWD, hard))
    assert shares(one) == shares(other) and one.manifest.who["combine"] == "dawid-skene"


def test_a_tie_is_shared_and_counts_in_part(read):
    """Of two annotators one is always right, the other on half: a quarter is wrong, whichever class comes first."""
    rows = [f"{i},{NAMES[i % 2]},x\n{i},{NAMES[i // 2 % 2]},y\n" for i in range(8)]
    table = read("filename,label,annotator\n" + "".join(rows), NAMES)
    labels = brought(table, [str(i) for i in range(8)])
    assert shares(labels)[:3] == [[1, 0], [0.5, 0.5], [0.5, 0.5]]
    # whoever needs a class takes them in turn, and all take the same
    found = labels(torch.arange(8), torch.device("cpu")).argmax(dim=1).tolist()
    assert found == labels.classes().tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert labels.of(SampleKeys("filename", [*"7654321"])).classes().tolist() == found[:0:-1]
    assert GivenLabels("t.csv", labels, None).compared_with([i % 2 for i in range(8)]).wrong == 0.25
    best = most_likely(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.4, 0.4], [0.1, 0.1, 0.8]]))
    assert best.tolist() == [0, 1, 1, 2]  # they take turns


TWICE = """
filename,label,confidence / a,cat,0.75 / b,dog,0.5 / c,cat,1  ->  a,cat,0.7
filename,cat,dog / a,3,-1 / b,0.5,7 / c,1,-1  ->  a,3,-2
filename,label,annotator,confidence / a,cat,x,0.7 / a,dog,y,0.1 / b,dog,y,0.2 / a,dog,z,0.3 / c,cat,x,1  ->  a,dog,x,0.7
"""


@pytest.mark.parametrize("table, other", lines(TWICE))
def test_a_row_given_twice_changes_nothing(read, table, other):
    """Nor does the order of rows: the hash of what is said is the same. To say two things is an error."""
    header, *rows = table.split(" / ")
    found = []
    for given in (rows, [rows[2], *rows[::-1]]):
        labels = brought(read("\n".join([header, *given]), NAMES), [*"abc"], combine="mean")
        found.append((labels.manifest.kind, labels.manifest.who["answers"], shares(labels)))
    assert found[0] == found[1]
    contradicting = read("\n".join([header, *rows, other]), NAMES)
    message = r"1 answer\(s\) say something else of a sample than one before, such as of a"
    assert_refused(message, brought, contradicting, [*"abc"])


# ---------------------------------------------------------------- 10, 11: what is left out, and what is warned of


def test_rows_without_a_label_are_left_out(read, caplog):
    """As pandas writes them, which turns the other numbers into 1.0; also of a line that ends early."""
    table = read("filename,label,annotator\na,1.0,x\nb,,y\nc,0.0,z\nd\n")
    assert table.answers.tolist() == [1, 0]
    assert (table.keys, table.annotators) == (["a", "c"], ["x", "z"])
    left_out = "2 of 4 answers have no label and are left out, the first of them in row 2"
    assert left_out in caplog.text


def test_labels_of_one_class_are_warned_of(read, caplog):
    brought(read("filename,label\na,cat\nb,cat\n", NAMES), ["a", "b"])
    assert "WARNING: x: all of its 2 labels are the class 'cat'" in caplog.text
