"""``python -m w2s_plugins.labels``: tables checked, merged, exported, and what is published."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from tests.e2e.conftest import Done
from tests.parts import assert_refused, flags_in, lines, read_label_table, store_labels
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.files import file_sha256
from w2s_plugins.labels.__main__ import main
from w2s_plugins.labels.answers import TableForm, answer_columns, write_arrays
from w2s_plugins.labels.card import labels_card
from w2s_plugins.labels.commands import read_tables
from w2s_plugins.labels.forecast import MODELS
from w2s_plugins.labels.table_writer import write_label_table
from w2s_plugins.target_kind import SEVERAL_CLASSES


@pytest.fixture
def labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable
) -> Callable[..., Done]:
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: Done(*command(main, "labels", *words))


@pytest.fixture
def data(labels) -> Path:
    """Six images in folders of two classes."""
    for i in range(6):
        path = Path("data") / ("cat" if i < 3 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return Path("data")


def write(name: str, *rows: str) -> Path:
    Path(name).write_text("\n".join(rows) + "\n")
    return Path(name)


def test_export_of_what_a_teacher_said(labels, tmp_path):
    """To the last bit, without what nobody could be asked about."""
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    keys = SampleKeys("filename", [f"b\udcff{i}.png" for i in range(40)])
    folder = store_labels(tmp_path / "folder", logits, keys, missing=[7], class_names=[*"abcde"])
    assert (
        "logits of 40 samples in 5 classes"
        in labels("export", folder, "--output", "t.npz").ok().out
    )
    table = read_label_table(Path("t.npz"))
    del keys.values[7]
    assert (table.kind, table.class_names, table.keys) == ("logits", [*"abcde"], keys.values)
    assert table.answers.tolist() == [*logits[:7].tolist(), *logits[8:].tolist()]


# ---------------------------------------------------------------- check


def test_a_table_that_fits(labels, data, caplog):
    names = [f"{'cat' if i < 3 else 'dog'}/{i}.png" for i in range(6)]
    write("a.csv", "filename,label,annotator", *(f"{n},cat,{who}" for n in names for who in "xy"))
    done = labels("check", "a.csv", "--data-dir", data, "--class-names", "cat,dog").ok()
    about = "a.csv: 12 answers about 6 samples, known by filename, of 2 annotator(s); kind of labels: hard"
    fits = "a.csv: can be trained on: labels of 6 of the 6 samples in 2 classes"
    assert done.out.splitlines()[:2] == [about, fits]
    assert "a.csv: all of its 6 labels are the class 'cat'" in caplog.text
    assert labels("check", "a.csv").ok().out.splitlines() == [about]  # without images


def test_a_table_that_does_not_fit(labels, data):
    """What training would refuse, in its words."""
    write("a.csv", "filename,label", "0.png,cat", "1.png,catt", "1.png,catt", "2.png,cat")
    beside = "--data-dir", data, "--class-names", "cat,dog"
    message = "a.csv: row 2: 'catt' is no class; expected the name of one"
    labels("check", "a.csv", *beside).refused(message)
    done = labels("check", "a.csv?missing=skip&combine=mean", *beside).ok()
    fits = "missing=skip&combine=mean: can be trained on: labels of 2 of the 6 samples in 2 classes"
    assert fits in done.out
    labels("check", "a.csv?mising=skip").refused("unknown setting 'mising' (nearest: missing)")
    write("a.csv", "filename,label", "0.png,cat", "1.png,cat", "9.png,dog", "cat/2.png,dog")
    message = "3 of 6 training samples have no label, such as dog/3.png; ?missing=skip"
    labels("check", "a.csv", "--data-dir", data).refused(message)


def test_what_the_name_of_a_table_asks_for_goes_before_what_a_command_does(labels):
    write("a.csv", "filename,label", *(f"{i}.png,{'cat' if i else 'catt'}" for i in range(4)))
    assert_refused("'catt' is no class", read_tables, [["a.csv"]], ["cat", "dog"], "error")
    (table,), _, _ = read_tables([["a.csv?missing=skip"]], ["cat", "dog"], "error")
    assert table.keys == ["1.png", "2.png", "3.png"]


def test_where_two_tables_differ(labels, caplog):
    """In whatever form; what only one of them says something of is left out, and a tie is no label."""
    rows = "cat/0.png,cat,x", "cat/0.png,dog,y", "1.png,dog,x", "dog/3.png,dog,x"
    write("a.csv", "filename,label,annotator", *rows)
    said = zip(range(4), ("hen", "dog", "cat", "cat"), (0.8, 0.9, 0.7, 0.6))
    form = '{"image": "%d.png", "class": "%s", "confidence": %s}'
    write("b.jsonl", *(form % answer for answer in said))
    caplog.set_level("INFO")
    done = labels("check", "a.csv", "--against", "b.jsonl", "--output", "d.csv").ok()
    agree = "a.csv and b.jsonl agree on 33.33 % of the 3 samples that both label; they differ on 2"
    assert agree in done.out
    assert "a.csv: 1 of 3 samples are ties" in caplog.text
    assert Path("d.csv").read_text().splitlines() == [
        "filename,label,confidence,against_label,against_confidence",
        "cat/0.png,,0.5,hen,0.8",
        "dog/3.png,dog,1.0,cat,0.6",
    ]


def test_the_labels_of_a_crowd_as_a_table(labels, data):
    """As a training on the images takes them; of a tie there is none."""
    said = ["0,cat,cat,dog", "1,dog,cat,", "4,dog,dog,dog", "9,dog,dog,dog"]
    write("wide.csv", "image,anna,bob,carl", *said)
    crowd = "wide.csv#anna,bob,carl"
    done = labels("check", crowd, "--output", "all.csv").ok()
    assert done.out.splitlines()[1:] == ["all.csv: labels of 3 samples; 1 ties have none"]
    rows = ["0,cat,1.0", "4,dog,1.0", "9,dog,1.0"]
    assert Path("all.csv").read_text().splitlines() == ["filename,label,confidence", *rows]
    beside = "--data-dir", data, "--output", "mean.csv"
    labels("check", f"{crowd}?combine=mean&missing=skip", *beside).ok()
    assert Path("mean.csv").read_text().splitlines()[1] == "cat/0.png,cat,0.6667"


def test_the_tags_of_a_crowd_as_a_table(labels):
    """They come back as they were combined, with what nobody knows."""
    said = ["0,1,,x", "0,1,0,y", "0,0,0,z", "1,,1,x"]
    write("tags.csv", "image,cat,dog,annotator", *said)
    labels("check", "tags.csv", "--task", "multilabel", "--output", "all.csv").ok()
    rows = ["0,cat,0.6667,0.0", "1,dog,,1.0"]
    assert Path("all.csv").read_text().splitlines() == ["filename,labels,cat,dog", *rows]
    table = read_label_table(Path("all.csv"), target_kind=SEVERAL_CLASSES)
    np.testing.assert_allclose(table.answers, [[0.6667, 0], [np.nan, 1]])


@pytest.mark.parametrize("form", [TableForm(), TableForm(top_k=2), TableForm(every=True)])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_predictions_know_their_classes(labels, form, suffix):
    """However alike two of them are, and rare: also against the answers of a person, who has not seen all of them."""
    shares = np.random.default_rng(0).dirichlet([3, 1, 0.5], 40).astype(np.float32)
    keys, names = [f"{i}.png" for i in range(40)], ["shirt", "skirt", "T-shirt"]
    write_label_table(
        Path(f"student{suffix}"), [answer_columns(keys, "filename", shares, names, form)]
    )
    best = shares.argmax(axis=1)
    assert 0 < 2 * (best == 1).sum() < (best == 0).sum()
    write("answers.csv", "filename,label", *(f"{i}.png,{names[best[i]]}" for i in range(20)))
    done = labels("check", f"student{suffix}", "--against", "answers.csv").ok()
    assert "agree on 100.00 % of the 20 samples that both label" in done.out


@pytest.mark.parametrize(
    "crowd, other", [("wide.csv", "b.csv"), ("labels:wide.csv", "labels:b.csv?missing=skip")]
)
def test_a_table_lends_its_classes_to_a_wide_one(labels, crowd, other):
    answers = "0.png,cat,cat,dog", "1.png,dog,dog,dog", "2.png,hen,dog,hen"
    write("wide.csv", "image,anna,bob,carla", *answers)
    write("b.csv", "filename,label", "0.png,cat", "1.png,cat", "2.png,dog")
    done = labels("check", crowd, "--against", other).ok()
    assert "9 answers about 3 samples, known by filename, of 3 annotator(s)" in done.out
    assert "agree on 33.33 % of the 3 samples that both label; they differ on 2" in done.out
    assert labels("stats", f"{crowd},{other}").ok().out == labels("stats", crowd, other).ok().out


@pytest.mark.parametrize(
    "words", [("a.csv", "b.csv?missing=skip"), ("labels:b.csv?missing=skip", "a.csv")]
)
def test_two_tables_are_matched_as_a_table_and_images(labels, words):
    """Whichever of them has the whole names; and what one sets holds for both."""
    write("a.csv", "filename,label", *(f"{i}.png,cat" for i in range(3)), "3.png,dog")
    write("b.csv", "image,label", r"C:\x\0.png,cat", "1,cat", "/home/me/2.png,dog", "3.png,NA")
    done = labels("check", words[0], "--against", words[1]).ok()
    assert "agree on 66.67 % of the 3 samples that both label" in done.out


def test_names_of_labels_are_those_of_training(labels):
    write("wide.csv", "image,anna,bob", "0.png,cat,cat", "1.png,dog,cat")
    done = labels("check", "labels:wide.csv#anna,bob,labels:wide.csv#bob?combine=majority").ok()
    assert "6 answers about 2 samples, known by filename, of 3 annotator(s)" in done.out
    done = labels("stats", "wide.csv#anna,bob", "labels:wide.csv#bob").ok()
    assert "6 answers about 2 samples" in done.out
    message = (
        "combine=majorty: expected one of majority, mean, one-coin, dawid-skene, dawid-skene-pooled, auto "
        "(nearest: majority)"
    )
    labels("check", "wide.csv#anna,bob?combine=majorty").refused(message)
    labels("push", "labels:wide.csv#anna,bob", "me/x", "--dry-run").ok()


def test_several_classes_are_published(labels):
    """What is sent is the table; the card counts every class, and its command trains on several."""
    write("tags.csv", "filename,labels", "0.png,cat;dog", "1.png,cat", "2.png,[]", "3.png,hen;cat")
    done = labels("push", "tags.csv", "me/x", "--task", "multilabel", "--dry-run").ok()
    folder = Path(done.out.partition(": ")[0])
    card = DatasetCard.load(folder / "README.md").text
    assert "| `cat` | 3 | 75.00 % |" in card and "| `dog` | 1 | 25.00 % |" in card
    assert "Labels of 4 images in 3 classes" in card
    assert "--task multilabel --loss bce" in card and (folder / "tags.csv").exists()


SEVERAL = r"""
label / 0.png,"cat,dog" / 1.png,cat / 2.png,dog  ->  'cat,dog' holds several labels; expected one, or --task multilabel
label / 0.png,"[""cat""]" / 1.png,cat  ->  '["cat"]' is a list; expected one, or --task multilabel
label / 0.png,cat / 0.png,dog / 1.png,cat  ->  as of 0.png; leave one out, say in a column annotator who said what, or take
cat,dog / 0.png,1,1 / 1.png,1,0  ->  take --task multilabel if an image has several or, if they are votes, call them votes.cat
"""


@pytest.mark.parametrize("rows, message", lines(SEVERAL))
@pytest.mark.parametrize("words", ["push t.csv me/x --dry-run", "check t.csv", "stats t.csv"])
def test_several_labels_are_asked_about(labels, rows, message, words):
    """By every command that reads a table; none of them makes a class of a list."""
    header, *cells = rows.split(" / ")
    write("t.csv", f"filename,{header}", *cells)
    labels(*words.split()).refused(message)
    if "holds" in message:
        labels(*words.split(), "--class-names", "cat,dog").refused(message)
        write("names.txt", "cat", "dog", "cat,dog")
        labels(*words.split(), "--class-names", "names.txt").ok()


def test_what_may_be_a_list_is_said_once(labels, caplog):
    """Also where two tables are brought to the same classes."""
    write("a.csv", "filename,label", '0.png,"beach, dog"', "1.png,cat", "2.png,bird")
    write("b.csv", "filename,label", "0.png,cat", "1.png,cat", "2.png,bird")
    for words in ("check a.csv", "check a.csv --against b.csv", "stats a.csv"):
        caplog.clear()
        labels(*words.split()).ok()
        assert caplog.text.count("a.csv: taken for one class each: 'beach, dog'") == 1


ASKED = "stats wide.csv | check wide.csv | check wide.csv --data-dir photos | check labels:wide.csv?missing=skip"


ASKED_OF_TWO = "stats wide.csv other.csv | stats labels:other.csv,wide.csv | check other.csv --against=wide.csv"


@pytest.mark.parametrize("words", flags_in(f"{ASKED}\n{ASKED_OF_TWO}\nstats numbers.csv"))
def test_columns_of_annotators_are_asked_about_by_the_line_to_type(labels, words):
    """All of them at once, however many. It is typed as it stands, quotes included, and works."""
    people = {
        name: ",".join(f"{name} {i}" for i in range(40)) for name in ("wide", "other", "numbers")
    }
    Path("photos").mkdir()
    for name, (one, two) in dict(wide=["cat", "dog"], other=["dog", "cat"], numbers="27").items():
        answers = (f"{i}.png{f',{one}' * (39 - i)}{f',{two}' * (1 + i)}" for i in range(3))
        write(f"{name}.csv", f"filename,{people[name]}", *answers)
    for i in range(3):
        Image.new("RGB", (4, 4)).save(f"photos/{i}.png")
    done = labels(*words.split()).refused()
    before, line = done.err.strip().split("; if its columns are annotators, type: ")
    assert before.startswith("labels: error: ") and "annotators" not in before
    typed = shlex.split(line)
    assert typed[:3] == ["python", "-m", "w2s_plugins.labels"]
    asked = [f"{name}.csv#{columns}" for name, columns in people.items() if name in words]
    assert asked and all(table in line for table in asked)
    labels(*typed[3:]).ok()


@pytest.mark.parametrize(
    "words", flags_in("stats wide.csv | check wide.csv | check b.csv --against wide.csv")
)
def test_the_line_to_type_names_the_classes_if_people_write_them_in_several_ways(labels, words):
    rows = [f"{i}.png,starfish,{'STARFISH' if i % 4 else 'sea horse'},crab" for i in range(9)]
    write("wide.csv", "image,anna,bob,carl", *rows)
    write("b.csv", "image,label", *(f"{i}.png,{'eel' if i % 2 else 'moray'}" for i in range(9)))
    done = labels(*words.split()).refused()
    _, line = done.err.strip().split(
        "; if its columns are annotators, type, without names that are no classes: "
    )
    typed = shlex.split(line)
    of_another = ["eel", "moray"] if "b.csv" in words else []
    assert typed[-2] == "--class-names"
    assert sorted(typed[-1].split(",")) == sorted(["crab", "sea horse", "starfish", *of_another])
    labels(*typed[3:]).ok()


def test_a_comma_in_the_name_of_a_file(labels):
    """Two files, unless one of that whole name is there."""
    for name in ("a.csv", "b.csv", "a,b.csv"):
        rows = (f"{i}.png,{'dog' if i else 'cat'}" for i in range(4 + len(name)))
        write(name, "filename,label", *rows)
    assert labels("check", "a,b.csv").ok().out.startswith("a,b.csv: 11 answers about 11 samples")
    assert "1 answers: cat" in labels("stats", "labels:a,b.csv?missing=skip").ok().out
    assert "18 answers about 9 samples" in labels("stats", "a.csv,b.csv").ok().out
    done = labels("check", "a.csv", "--against", "a,b.csv").ok()
    assert "agree on 100.00 % of the 9 samples" in done.out


def test_who_is_how_reliable(labels):
    """What training would log of a crowd in several files, and how well its members agree."""
    said = dict(anna="ccccdddd", bob="ccccdddc", carla="dcdcdcdd")
    together = []
    for name, classes in said.items():
        rows = [f"{i},{'cat' if one == 'c' else 'dog'}" for i, one in enumerate(classes)]
        write(f"{name}.csv", "id,label", *rows)
        together += [f"{row},{name}.csv" for row in rows]
    write("all.csv", "id,label,annotator", *together)
    lines = labels("stats", *(f"{name}.csv" for name in said)).ok().out.splitlines()
    assert lines[:5] == [
        "24 answers about 8 samples, of 3 annotator(s)",
        "8 samples have 3 answer(s)",
        "12 answers: cat",
        "12 answers: dog",
        "Krippendorff's alpha: 0.3611",
    ]
    assert lines == labels("stats", "all.csv").ok().out.splitlines()
    table = [line.split() for line in lines[5:13]]
    assert table[4] == ["who", *(f"{name}.csv" for name in said)]
    assert table[0] == ["annotator", "images", "majority", "dawid-skene"]
    people = {name: [float(share) for share in shares] for name, *shares in table[1:4]}
    assert [people[f"{name}.csv"][:2] for name in said] == [[8, 1], [8, 0.875], [8, 0.625]]
    assert people["anna.csv"][2] > people["carla.csv"][2]
    agreement = "1.000 0.875 0.625", "0.875 1.000 0.500", "0.625 0.500 1.000"
    assert [row[1:] for row in table[-3:]] == [row.split() for row in agreement]
    assert lines[13:17] == [
        "anna.csv confuses nothing",
        "bob.csv takes dog for cat (1)",
        "carla.csv takes cat for dog (2), dog for cat (1)",
        "how well each way to combine answers forecasts 12 of them that were held out:",
    ]
    ways = [line.split() for line in lines[18:-1]]
    assert sorted(way[0] for way in ways) == sorted(MODELS) and len(ways[0]) == 2
    # the best one first, and how far each other one is from it
    assert [float(way[1]) for way in ways] == sorted((float(way[1]) for way in ways), reverse=True)
    assert all(float(way[2]) <= float(way[4]) for way in ways[1:])
    best = ways[0][0]
    assert lines[-1] == f"to train on them take ?combine={best}, or auto, which compares them anew"


def test_the_most_reliable_annotator_comes_first(labels):
    """Whoever has answered most; and it is said what to combine them by."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 300)
    right = dict(adam=0.6, berta=0.95, carl=0.8, dora=0.99)
    rows = [
        f"{i},{'cat' if (one == 1) == (rng.random() < share) else 'dog'},{name}"
        for name, share in right.items()
        for i, one in enumerate(truth[: 300 if name == "adam" else 280])
    ]
    write("all.csv", "id,label,annotator", *rows)
    lines = labels("stats", "all.csv").ok().out.splitlines()
    named = [line.strip().partition(" ")[0] for line in lines]
    first = named.index("annotator")
    ranking = ["dora", "berta", "carl", "adam"]
    assert named[first + 1 : first + 5] == named[first + 6 : first + 10] == ranking
    confused = re.fullmatch(
        r"adam takes (cat for dog|dog for cat) \((\d+)\), .* \((\d+)\)",
        next(line for line in lines if line.startswith("adam takes")),
    )
    assert 80 < int(confused[2]) + int(confused[3]) < 160
    # right on other shares, and alike of both classes
    assert lines[-1].startswith("to train on them take ?combine=one-coin, or auto")


ADVICE = {
    "id,label 0,cat 1,dog": "no sample has several answers",
    "id,label,annotator,confidence 0,cat,x,0.9 0,dog,y,0.6 1,dog,x,0.8": "to train on them take ?combine=mean: ",
}


@pytest.mark.parametrize("rows, advice", ADVICE.items(), ids=["one", "sure"])
def test_what_to_combine_them_by(labels, rows, advice):
    write("t.csv", *rows.split())
    assert labels("stats", "t.csv").ok().out.splitlines()[-1].startswith(advice)


AGAIN = "check a.csv --against b.csv --output"


OVERWRITTEN = f"""
{AGAIN} a.csv  ->  --output a.csv: is one of the files that
check labels:a.csv?missing=skip --against b.csv#label --output ./b.csv  ->  is one of
check e.csv --against b.csv --output e.csv  ->  --output e.csv: is one of the files that
{AGAIN} mine.csv  ->  --output mine.csv: is there already, and not as this program has written it
{AGAIN} link.csv  ->  --output link.csv: is there already
{AGAIN} d.csv  ->  --output d.csv: is there already, and not as this program has written it
"""


@pytest.mark.parametrize("words, message", lines(OVERWRITTEN))
def test_a_file_that_somebody_else_has_written_is_left_alone(labels, words, message):
    """What is read is not overwritten, nor what was not written here, or was changed since."""
    write("a.csv", "filename,label", "0.png,cat", "1.png,cat")
    write("b.csv", "filename,label", "0.png,cat", "1.png,dog")
    labels(*f"{AGAIN} d.csv".split()).ok()
    Path("mine.csv").write_text("hours of work")
    Path("link.csv").symlink_to("mine.csv")
    Path("e.csv").write_bytes(Path("d.csv").read_bytes())  # its own table, which is read here
    with Path("d.csv").open("a") as file:
        file.write("corrected by hand\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    labels(*words.split()).refused(message)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_two_annotators_agree_or_not(labels):
    answers = dict(anna=["cat", "dog", "cat", "dog"], bob=["cat", "dog", "dog", "dog"])
    rows = [f"{i},{label},{who}" for who, all in answers.items() for i, label in enumerate(all)]
    write("two.csv", "id,label,annotator", *rows)
    lines = labels("stats", "two.csv").ok().out.splitlines()
    # 3 answers are cat, 5 are dog, and one pair of four differs
    assert f"Krippendorff's alpha: {1 - 7 * 2 / (2 * 3 * 5):.4f}" in lines
    rows = [["anna", "1.00", "0.75"], ["bob", "0.75", "1.00"]]
    assert [line.split() for line in lines if line.startswith(("anna ", "bob "))][:2] == rows


BAD = """
check a.csv --against a.csv --output d.txt  ->  --output d.txt: of an unknown kind
stats a.csv b.csv  ->  a.csv b.csv: one crowd names its samples in one way
export featres --output x.npz  ->  featres: no such folder of labels (nearest: features)
export features --output x.npz  ->  features: holds features, not labels
export features --output x.csv  ->  --output x.csv: expected the name of a new file that ends in .npz
check a.csv --data-dir none  ->  none: no such folder or tar file
"""


def test_what_this_program_has_written_is_written_again(labels):
    write("a.csv", "filename,label", "0.png,cat", "1.png,cat")
    write("b.csv", "filename,label", "0.png,cat", "1.png,dog")
    again = f"{AGAIN} d.csv".split()
    labels(*again).ok()
    first = Path("d.csv").read_text()
    labels(*again).ok()  # the same again, and what it wrote before
    write("b.csv", "filename,label", "0.png,dog", "1.png,dog")
    labels(*again).ok()
    assert Path("d.csv").read_text() != first


@pytest.mark.parametrize("words, message", lines(BAD))
def test_bad_input_is_one_line(labels, words, message):
    write("a.csv", "filename,label", "x,cat")
    write("b.csv", "id,label", "0,cat")
    store_labels(Path("features"), torch.randn(4, 3), kind="features")
    labels(*words.split()).refused(message)
    assert not [*Path().glob("x*"), *Path().glob(".x*")]


# ---------------------------------------------------------------- push


UNPUBLISHED = """
none.csv me/x  ->  none.csv: no such file
. me/x  ->  labels.json: no manifest of labels
features me/x  ->  features: holds features, not labels
views me/x  ->  views: its answers are about the views of one student
damaged me/x  ->  its checksum is not that of its content
local me/x  ->  local: names its samples by paths of this machine, such as /home/me/x.png
secret.csv me/x  ->  secret.csv: holds an access token or a password; it is not published
secret.npz me/x  ->  secret.npz: holds an access token or a password; it is not published
secret.parquet me/x  ->  secret.parquet: holds an access token or a password; it is not published
a.csv m!e/x  ->  not a Hub id:
odd.csv me/x  ->  its values are no probabilities that sum to 1, and no votes (take --task multilabel if an image has several)
"""


@pytest.mark.parametrize("words, message", lines(UNPUBLISHED))
def test_what_is_not_published(labels, words, message):
    """All of it is seen before anything is sent."""
    write("a.csv", "filename,label", "x,cat")
    write("odd.csv", "filename,cat,dog", "x,0.9,0.3", "y,0.5,0.5")
    store_labels(Path("local"), torch.randn(1, 3), SampleKeys("filename", ["/home/me/x.png"]))
    secret = dict(filename=["x"], label=["cat"], note=[f"hf_{'aB3' * 8}"])
    write("secret.csv", ",".join(secret), *map(",".join, zip(*secret.values())))
    np.savez("secret.npz", **secret)
    if "parquet" in words:
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.table(secret), "secret.parquet")
    store_labels(Path("features"), torch.randn(4, 3), kind="features")
    store_labels(Path("views"), torch.randn(4, 3), seen={"student_views": {"seed": 1}})
    (part,) = store_labels(Path("damaged"), torch.randn(4, 3)).glob("*.safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = labels("push", *words.split(), "--dry-run")
    assert done.code == 2 and done.err.startswith("labels: error: ") and message in done.err
    assert (
        done.err.count("\n") == 1 and "?missing" not in done.err
    )  # which this command does not take


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b"filename,label\n/home/me/x.png,cat",
            "t.csv: names its samples by paths of this machine, such as /home/me/x",
        ),
        (
            b"filename,path,label\n..x.png,x.png,cat\ny~/z:1.png,../me/x.png,cat",
            "such as ../me/x.png",
        ),
        (b"filename,label\nC:\\me\\x.png,cat", "such as C:\\me\\x.png"),
        (b"filename,label\n~/x.png,cat", "such as ~/x.png"),
        (b"filename,label\nfile:///x.png,cat", "such as file:///x.png"),
        (
            b"filename,label\n\xff\0.png,cat",
            "cannot be read as csv: 'utf-8' codec can't decode byte 0xff",
        ),
    ],
)
def test_a_table_that_is_not_published(labels, content, message):
    Path("t.csv").write_bytes(content)
    done = labels("push", "t.csv", "me/x", "--dry-run")
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_no_value_breaks_out_of_the_card(tmp_path):
    names = ["`a` | <b>", "# c", "d\n---\nlicense: mit"]
    folder = store_labels(
        tmp_path / "x", torch.eye(3), class_names=names, who={"architecture": "`|<script>\n# x"}
    )
    manifest = write_arrays(folder, tmp_path / "x.npz")
    card = DatasetCard(
        labels_card(
            read_label_table(tmp_path / "x.npz"), "hf://datasets/me/x", "mit\nowned: true", manifest
        )
    )
    assert card.data.to_dict() == {
        "license": "mit owned: true",
        "tags": ["weak-to-strong", "w2s_plugins"],
        "task_categories": ["image-classification"],
    }
    tokens = MarkdownIt().enable("table").parse(card.text)
    parts = [part for token in tokens for part in token.children or ()]
    assert [t.type for t in tokens if t.type in ("heading_open", "html_block")] == [
        "heading_open"
    ] * 5
    assert {part.content for part in parts if part.type != "text"} == {
        "w2s_plugins",
        "logits",
        "x.npz",
        file_sha256(tmp_path / "x.npz"),
        "3",
        "# c",
        "d --- license: mit",
        "<code>",
        "</code>",
    }
    texts = "".join(part.content for part in parts)
    assert all(text in texts for text in ("`a` | <b>", "`|<script> # x"))
    assert texts.count("33.33 %") == 3


# ---------------------------------------------------------------- several classes an image


def test_a_table_of_several_classes_that_fits(labels, data):
    rows = [f'{i}.png,"cat,dog",{who}' for i in range(6) for who in "xy"]
    write("a.csv", "filename,labels,annotator", *rows)
    beside = "--data-dir", data, "--class-names", "cat,dog,hen"
    done = labels("check", "a.csv", *beside, "--task", "multilabel").ok()
    about = "a.csv: 12 answers about 6 samples, known by filename, of 2 annotator(s); kind of labels: probabilities"
    fits = "a.csv: can be trained on: labels of 6 of the 6 samples in 3 classes"
    assert done.out.splitlines()[:2] == [about, fits]
    labels("check", "a.csv", *beside).refused("--task multilabel")
    named = "a.csv?delimiter=none&unlisted=unknown"
    labels("check", named, *beside, "--task", "multilabel").refused("'cat,dog' is no class")
    labels("check", named, *beside).refused("?unlisted= is about several labels an image")
    labels("check", "a.csv?unlisted=perhaps").refused("one of no, unknown")


def test_classes_that_two_tables_exchange(labels):
    write("a.csv", "filename,labels", *(f"{i}.png,cat" for i in range(5)), "5.png,hen;dog")
    write(
        "b.csv",
        "filename,labels",
        *(f"{i}.png,dog" for i in range(4)),
        "4.png,hen;cat",
        "5.png,hen",
    )
    done = labels("check", "a.csv", "--against", "b.csv", "--task", "multilabel").ok()
    assert done.out.endswith("exchanged most often: cat for dog (4)\n")


def test_one_table_of_several_classes_alone(labels):
    write("a.csv", "filename,labels", "0.png,cat;dog", "1.png,cat;dog", "2.png,hen;dog")
    done = labels("stats", "a.csv", "--task", "multilabel").ok()
    assert done.out.splitlines()[1:] == [
        "3 yes, 0 no: dog",
        "2 yes, 1 no: cat",
        "1 yes, 2 no: hen",
        "together most often: cat and dog (2), dog and hen (1)",
        "no sample has several answers, so that ?combine changes nothing",
    ]


def test_where_two_tables_of_several_classes_differ(labels):
    write("a.csv", "filename,cat,dog", "0.png,1,1", "1.png,,0", "2.png,0,0")
    write("b.csv", "filename,labels", "0.png,cat", "1.png,cat", "2.png,dog;cat", "3.png,dog")
    beside = "--against", "b.csv", "--output", "d.csv", "--task", "multilabel"
    done = labels("check", "a.csv", *beside).ok()
    agree = "agree on 50.00 % of the classes of which both say something, of the 3 samples that both label; they differ"
    assert f"a.csv and b.csv {agree} on 2" in done.out
    assert [" ".join(line.split()) for line in done.out.splitlines()[-4:-1]] == [
        "class both first second precision recall agree",
        "dog 0 1 1 0.0 0.0 33.3",
        "cat 1 0 1 100.0 50.0 50.0",
    ]
    assert done.out.endswith("exchanged most often: nothing\n")
    assert Path("d.csv").read_text().splitlines() == [
        "filename,labels,against_labels",
        '0.png,"cat,dog",cat',
        '2.png,[],"cat,dog"',
    ]


@pytest.mark.parametrize("form", [TableForm(), TableForm(top_k=3), TableForm(every=True)])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("names", [["cat", "dog", "hen"], ["crane, bird", "dog", "[x]"]])
def test_predictions_of_several_classes_come_back(tmp_path, form, suffix, names):
    """Who has none of the classes has none of them in the table, too; what is unknown of a class stays so."""
    shares = np.random.default_rng(0).random((20, 3), dtype=np.float32)
    shares[3] = 0.25
    if form.every or form.top_k:
        shares[5, 1] = np.nan
    keys, path = [f"{i}.png" for i in range(20)], tmp_path / f"t{suffix}"
    columns = answer_columns(keys, "filename", shares, names, form, SEVERAL_CLASSES)
    write_label_table(path, [columns])
    if suffix == ".jsonl":  # in which other programs know no NaN
        assert "NaN" not in path.read_text()
    table = read_label_table(path, names, target_kind=SEVERAL_CLASSES)
    assert table.keys == keys
    expected = shares if form.every or form.top_k else np.float32(shares >= 0.5)
    if form.top_k:
        expected = np.nan_to_num(shares)
    np.testing.assert_array_equal(table.answers, expected)


def test_a_crowd_of_several_classes(labels):
    """What each class was answered, and who is how reliable; an annotator may have a row for each label."""
    rows = []
    for i in range(80):
        truth = [name for name, every in (("cat", 2), ("dog", 3)) if i % every == 0]
        rows += [f"{i}.png,{';'.join(truth) or '[]'},anna"]
        rows += [f"{i}.png,{name},bob" for name in truth or ["[]"]]
        rows += [f"{i}.png,{'cat' if i % 3 else 'dog'},carl"]
    write("c.csv", "filename,label,annotator", *rows)
    done = labels("stats", "c.csv", "--task", "multilabel").ok()
    said = done.out.splitlines()
    assert (
        said[0] == "240 answers about 80 samples, of 3 annotator(s), 480 of yes or no about a class"
    )
    assert re.fullmatch(r"133 yes, 107 no, Krippendorff's alpha -?0\.\d{4}: cat", said[1])
    assert re.fullmatch(r"81 yes, 159 no, Krippendorff's alpha 1.0000: dog", said[2])
    assert said[3] == "together most often: cat and dog (14)"
    assert [line.split()[0] for line in said[4:8]] == ["annotator", "anna", "bob", "carl"]
    # carl says of every third image that it is a dog, which is right, and else a cat, as every second one is
    assert said[8:11] == [
        "anna is never wrong",
        "bob is never wrong",
        "carl adds cat (27), misses cat (14)",
    ]
    assert said[-1].startswith("to train on them take ?combine=dawid-skene, or auto")


def test_export_of_several_classes(labels, tmp_path):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    keys = SampleKeys("filename", [f"{i}.png" for i in range(6)])
    folder = store_labels(tmp_path / "folder", logits, keys, class_names=[*"abc"])
    labels("export", folder, "--output", "t.npz").ok()
    table = read_label_table(Path("t.npz"), target_kind=SEVERAL_CLASSES)
    assert (table.kind, table.class_names) == ("logits", [*"abc"])
    np.testing.assert_array_equal(table.answers, logits.numpy())
