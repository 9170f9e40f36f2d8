"""What tools for labelling export, in the form that their documents give."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts import assert_refused, calm, lines
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.labels.samples import labels_of_samples
from w2s_plugins.labels.table import LabelRows, open_table
from w2s_plugins.target_kind import ONE_CLASS, SEVERAL_CLASSES

NAN = float("nan")
NAMES = ["dog", "beach", "crane, bird"]


def read(tmp_path: Path, content: object, file: str = "labels.json", **how: object) -> LabelRows:
    path = tmp_path / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return open_table(path, file).labels(target_kind=SEVERAL_CLASSES, **how)


def said(table: LabelRows) -> dict[str, list[str]]:
    """The classes of each row."""
    assert ((table.answers == 0) | (table.answers == 1)).all()
    names = [[table.names[i] for i in row.nonzero()[0]] for row in table.answers]
    return dict(zip(table.keys, names))


# ---------------------------------------------------------------- COCO


def coco(**changes: object) -> dict[str, object]:
    """Three images, as of ``instances_val2017.json``: two boxes of a dog and a beach, a crowd of birds, and nothing."""
    box = dict(bbox=[1.0, 2.0, 3.0, 4.0], area=12.0, segmentation=[[1, 2, 3, 4, 5, 6]], iscrowd=0)
    about = [(1, 397133, 44), (2, 397133, 44), (3, 397133, 67), (4, 37777, 1)]
    images = {397133: "000000397133.jpg", 37777: "000000037777.jpg", 252219: "000000252219.jpg"}
    return (
        dict(
            info=dict(description="COCO 2017 Dataset", year=2017),
            licenses=[dict(id=1, name="Attribution License", url="http://example.org")],
            images=[
                dict(id=n, file_name=name, height=427, width=640) for n, name in images.items()
            ],
            annotations=[dict(box, id=n, image_id=image, category_id=c) for n, image, c in about],
            categories=[
                dict(id=number, name=name, supercategory="thing")
                for number, name in zip((44, 67, 1, 90), [*NAMES, "toothbrush"])
            ],
        )
        | changes
    )


def test_coco(tmp_path):
    """Classes are its categories, in its order, also those that no image has; no annotation is no class."""
    table = read(tmp_path, coco(), "instances_val2017.json")
    assert table.class_names == [*NAMES, "toothbrush"]
    assert said(table) == {
        "000000397133.jpg": ["dog", "beach"],
        "000000037777.jpg": ["crane, bird"],
        "000000252219.jpg": [],
    }
    table = read(tmp_path, coco(), class_names=["beach", *NAMES[::2], "toothbrush", "hen"])
    assert said(table)["000000397133.jpg"] == ["beach", "dog"]
    path = tmp_path / "labels.json"
    assert_refused("several labels of an image; add --task multilabel", open_table(path).labels)
    assert_refused("'dog' is no class", read, tmp_path, coco(), class_names=["beach", "hen"])


# ---------------------------------------------------------------- Label Studio


def task(file: str, *answers: object, person: object = 1, **more: object) -> dict[str, object]:
    """A task with an annotation of each list of choices, None for one that was skipped."""
    annotations = [
        dict(
            id=1001 + number,
            completed_by=person,
            was_cancelled=names is None,
            ground_truth=False,
            lead_time=4.288,
            result=[
                dict(
                    id="Dx_aB91ISN",
                    from_name="choice",
                    to_name="image",
                    type="choices",
                    origin="manual",
                    value=dict(choices=names),
                )
            ]
            * bool(names),
        )
        for number, names in enumerate(answers)
    ]
    return dict(
        dict(id=1, data=dict(image=file), annotations=annotations, predictions=[], project=83),
        **more,
    )


def test_label_studio(tmp_path):
    uploaded = "/data/upload/3/8b2b1f5c-1.png"
    tasks = [
        task(uploaded, ["dog", "beach"]),
        task("2.png", ["crane, bird"], person=dict(id=7, email="a@example.org")),
        task("3.png", [], None),
    ]
    table = read(tmp_path, tasks)
    assert table.class_names == ["beach", "crane, bird", "dog"]
    assert table.annotators == ["1", "a@example.org", "1"]
    assert said(table) == {uploaded: ["beach", "dog"], "2.png": ["crane, bird"], "3.png": []}
    keys = SampleKeys("filename", ["1.png", "2.png"])
    labels = labels_of_samples(table, keys, table.names, None, "x", target_kind=SEVERAL_CLASSES)
    assert labels.classes().tolist() == [[1, 0, 1], [0, 1, 0]]
    box = dict(type="rectanglelabels", value=dict(x=1.0, rectanglelabels=["dog"]))
    boxes = dict(id=5, completed_by=2, result=[box, box])
    assert said(read(tmp_path, [task("1.png") | dict(annotations=[boxes])])) == {"1.png": ["dog"]}


def test_label_studio_of_one_class(tmp_path):
    tasks = [task("1.png", ["crane, bird"]), task("2.png", ["dog"])]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(tasks))
    table = open_table(path).labels()
    assert (table.class_names, table.answers.tolist()) == (["crane, bird", "dog"], [0, 1])
    assert table.annotators == ["1", "1"]
    assert said(read(tmp_path, tasks)) == {"1.png": ["crane, bird"], "2.png": ["dog"]}


CSV = """annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at
1,1,"{""choices"":[""dog"",""beach""]}",2024-03-09T21:52:49Z,1,/data/upload/3/8b2b1f5c-1.png,4.2,2024-03-09T22:16:08Z
2,2,dog,2024-03-09T21:52:49Z,1,/data/upload/3/8b2b1f5c-1.png,1.2,2024-03-09T22:16:08Z
3,1,hen,2024-03-09T21:52:49Z,2,/data/upload/3/9b2b1f5c-2.png,3.0,2024-03-09T22:16:08Z
4,2,,2024-03-09T21:52:49Z,2,/data/upload/3/9b2b1f5c-2.png,3.0,2024-03-09T22:16:08Z
"""


@pytest.mark.parametrize("form", ["csv", "json"])
def test_label_studio_as_a_table(tmp_path, form):
    """CSV and JSON-MIN have the same columns."""
    content: object = CSV
    if form == "json":
        from pandas import read_csv

        (tmp_path / "t.csv").write_text(CSV)
        content = read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False).to_dict("records")
        content[0]["choice"] = json.loads(content[0]["choice"])
    table = read(tmp_path, content, f"project-1.{form}")
    assert table.class_names == ["beach", "dog", "hen"] and table.annotators == ["1", "2", "1"]
    keys = SampleKeys("filename", ["1.png", "2.png"])
    labels = labels_of_samples(table, keys, table.names, None, "x", target_kind=SEVERAL_CLASSES)
    assert labels.answers.tolist() == [[0.5, 1, 0], [0, 0, 1]]


# ---------------------------------------------------------------- FiftyOne


@pytest.mark.parametrize(
    "labels",
    [
        {"000001": ["dog", "beach"], "000002": ["crane, bird"], "000003": [], "000004": None},
        {"000001": [0, 1], "000002": [2], "000003": []},
        {
            "000001": [{"label": "dog", "confidence": 0.9}, {"label": "beach", "attributes": {}}],
            "000002": {"label": "crane, bird"},
            "000003": [],
        },
    ],
    ids=["names", "numbers", "objects"],
)
def test_fiftyone(tmp_path, labels):
    table = read(tmp_path, dict(classes=NAMES, labels=labels))
    assert table.class_names == NAMES
    expected = {"000001": ["dog", "beach"], "000002": ["crane, bird"], "000003": []}
    assert said(table) == expected
    keys = SampleKeys("filename", ["data/000002.jpg", "data/000003.jpg"])
    found = labels_of_samples(table, keys, NAMES, None, "x", target_kind=SEVERAL_CLASSES)
    assert found.classes().tolist() == [[0, 0, 1], [0, 0, 0]]


def test_fiftyone_of_one_class(tmp_path):
    path = tmp_path / "labels.json"
    labels = {"1": {"label": "dog", "confidence": 0.75}, "2": {"label": "cat", "confidence": 1.0}}
    path.write_text(json.dumps(dict(classes=None, labels=labels)))
    table = open_table(path).labels(target_kind=ONE_CLASS)
    assert (table.class_names, table.answers.tolist()) == (["cat", "dog"], [1, 0])
    assert table.confidence.tolist() == [0.75, 1]
    table = open_table(path).labels(target_kind=SEVERAL_CLASSES)
    np.testing.assert_array_equal(table.answers, np.float32([[0, 0.75], [1, 0]]))


# ---------------------------------------------------------------- CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id>
      <name>coast</name>
      <size>3</size>
      <mode>annotation</mode>
      <labels>
        <label><name>dog</name><color>#2080c0</color><type>any</type><attributes></attributes></label>
        <label><name>beach</name><color>#c06060</color><type>tag</type><attributes></attributes></label>
        <label><name>crane, bird</name><attributes></attributes></label>
      </labels>
    </task>
    <dumped>2024-03-09 22:16:08</dumped>
  </meta>
  <image id="0" name="coast/1.png" width="640" height="480">
    <tag label="beach" source="manual"></tag>
    <box label="dog" source="manual" occluded="0" xtl="1.0" ytl="2.0" xbr="3.0" ybr="4.0" z_order="0">
      <attribute name="breed">hound</attribute>
    </box>
    <box label="dog" source="manual" occluded="0" xtl="5.0" ytl="2.0" xbr="9.0" ybr="4.0" z_order="0"></box>
  </image>
  <image id="1" name="coast/2.png" width="640" height="480">
    <polygon label="crane, bird" occluded="0" points="1,2;3,4;5,6" z_order="0"></polygon>
  </image>
  <image id="2" name="coast/3.png" width="640" height="480"></image>
</annotations>
"""


def test_cvat(tmp_path):
    table = read(tmp_path, CVAT, "annotations.xml")
    assert table.class_names == NAMES
    expected = {"coast/1.png": ["dog", "beach"], "coast/2.png": ["crane, bird"], "coast/3.png": []}
    assert said(table) == expected
    job = read(tmp_path, CVAT.replace("task>", "job>"), "annotations.xml")
    assert job.class_names == NAMES and said(job) == expected


def test_unlisted_is_unknown_in_exports_too(tmp_path):
    table = read(tmp_path, CVAT, "annotations.xml")
    from w2s_plugins.labels.several import ListForm

    table = read(tmp_path, CVAT, "annotations.xml", lists=ListForm("unknown"))
    np.testing.assert_array_equal(table.answers, np.float32([[1, 1, NAN], [NAN, NAN, 1]]))


# ---------------------------------------------------------------- what is none of these


def test_rows_in_json(tmp_path):
    rows = [dict(image="a", labels=["dog", "beach"]), dict(image="b", labels=[])]
    assert said(read(tmp_path, rows)) == {"a": ["beach", "dog"], "b": []}
    rows = [dict(image="a", dog=1, beach=None), dict(image="b", dog=0, beach=True)]
    table = read(tmp_path, rows)
    assert table.class_names == ["beach", "dog"]
    np.testing.assert_array_equal(table.answers, np.float32([[NAN, 1], [1, 0]]))


BAD = r"""
{"a": 1}  ->  expected a list of rows, or what COCO, Label Studio or FiftyOne export .*; it has a
[1, 2]  ->  expected a list of rows
[]  ->  holds no labels
{"images": [], "annotations": [], "categories": []}  ->  holds no labels
{"images": 1, "annotations": [], "categories": []}  ->  its images are no list
{"images": [{"id": 1}], "annotations": [], "categories": []}  ->  an image has no file_name
{"images": [], "annotations": [{"image_id": 1, "category_id": 1}], "categories": []}  ->  is about image 1, which is none
{"images": [], "annotations": [], "categories": [3]}  ->  a category has no id
{"classes": ["a"], "labels": {"x": 3}}  ->  'x' has the class 3, but there are 1
{"classes": ["a"], "labels": {"x": [[]]}}  ->  the label of 'x' is neither a name nor a number
{"classes": ["a"], "labels": ["x"]}  ->  its labels are no object
{"classes": ["a"], "labels": {"x": "a", "x": "b"}}  ->  has the key 'x' twice
{"classes": ["a"], "labels": {"x": "b"}}  ->  'b' is no class
[{"data": {}, "annotations": [{"result": []}]}]  ->  a task has no image
[{"data": {"image": "a"}, "annotations": []}]  ->  none of its tasks has an annotation
[{"data": {"image": "a"}, "annotations": [7]}]  ->  an annotation is no object
"""


@pytest.mark.parametrize("content, message", lines(BAD))
def test_one_line_each(tmp_path, content, message):
    assert_refused(message, read, tmp_path, content)


BAD_XML = r"""
<a>  ->  cannot be read as xml: no element found
<annotations/>  ->  expected annotations with images, as CVAT exports them
<a><image/></a>  ->  expected annotations with images
<annotations><image/></annotations>  ->  an image has no name
<annotations><track id="0"/></annotations>  ->  expected annotations with images
"""


@pytest.mark.parametrize("content, message", lines(BAD_XML))
def test_one_line_for_each_xml(tmp_path, content, message):
    assert_refused(message, read, tmp_path, content, "a.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(tmp_path, encoding):
    """Those that grow without bound, and those that read a file of this machine, in any encoding."""
    for entity in ('"lol"', 'SYSTEM "file:///etc/hostname"'):
        bomb = f"<!DOCTYPE x [<!ENTITY a {entity}>]><annotations><image name='&a;'/></annotations>"
        path = tmp_path / "a.xml"
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'.encode(encoding))
        assert_refused("cannot be read as xml: has a document type", open_table, path)


def test_a_label_that_the_task_does_not_have(tmp_path):
    odd = CVAT.replace('tag label="beach"', 'tag label="hen"')
    assert_refused("the label 'hen', which is none of its labels", read, tmp_path, odd, "a.xml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["images", "annotations", "categories", "id", "name", "file_name", "classes"]
                + ["labels", "data", "image", "result", "value", "choices", "image_id", "label"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(JSON, st.sampled_from(["", "images", "annotations", "categories", "classes", "labels"]))
def test_anything_is_a_table_or_one_line(tmp_path, content, part):
    if part in ("classes", "labels"):
        content = dict(classes=NAMES, labels={"a": "dog"}) | {part: content}
    elif part:
        content = coco(**{part: content})
    table = calm(read, tmp_path, content)
    assert table is None or len(table) == len(table.keys) > 0
