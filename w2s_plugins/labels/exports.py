"""What tools for labelling export, as rows of a table: which is which is seen by what is in a file, not by its name.

- **COCO**, ``instances_*.json`` (https://cocodataset.org/#format-data): an image has the classes of its boxes; an image
  without any has none of the ``categories``.
- **Label Studio**, JSON (https://labelstud.io/guide/export.html): a list of tasks, whose ``annotations`` are one answer
  each of whoever they are ``completed_by``. What was skipped is none. Its JSON-MIN and CSV are tables with columns
  ``image``, ``choice`` and ``annotator``, of which a choice of several is an object ``{"choices": [...]}``.
- **CVAT for images**, XML 1.1 (https://docs.cvat.ai/docs/manual/advanced/xml_format/): an image has the classes of its
  tags and shapes; one without any has none of the ``labels`` of the task.
- **FiftyOne**, ``labels.json`` of its image classification datasets
  (https://docs.voxel51.com/user_guide/export_datasets.html): the class, or the list of classes, of each file.
- A list of objects of any other kind is a table in JSON, a row each.

Nothing in a file is executed. An XML file with a document type, and so with entities of its own, is refused.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from xml.etree import ElementTree

if TYPE_CHECKING:
    from pandas import DataFrame

EXPECTED = (
    "expected a list of rows, or what COCO, Label Studio or FiftyOne export (JSON lines are .jsonl)"
)
# what a shape of Label Studio is called by: choices, rectanglelabels, polygonlabels, ...
CHOICES, ENDING = "choices", "labels"


def read_json(path: Path) -> "DataFrame":
    """Read a JSON file. Raises `ValueError` for one of no such tool, or in which one thing contradicts another."""
    from pandas import json_normalize

    with path.open(encoding="utf-8-sig") as file:
        content = json.load(file, object_pairs_hook=distinct)
    if isinstance(content, dict):
        if {"images", "annotations", "categories"} <= content.keys():
            return _of_coco(content)
        if "labels" in content and "classes" in content:
            return _of_fiftyone(content["classes"], content["labels"])
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        keys = f"; it has {', '.join([*content][:6])}" if isinstance(content, dict) else ""
        raise ValueError(f"{EXPECTED}{keys}")

    # tasks have their data in an object of its own
    if content and all("data" in task and "annotations" in task for task in content):
        return _of_label_studio(content)
    # a choice of several stays one cell
    rows = [{name: _choices(value) for name, value in row.items()} for row in content]
    return json_normalize(rows, max_level=1)


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON, of whose keys the json module would take the last one where one stands twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"a row has the key '{key[:40]}' twice")
    return row


def _frame(
    files: Sequence[str],
    classes: Sequence[Sequence[str]],
    class_names: Sequence[str] | None = None,
    **columns: Sequence[object],
) -> "DataFrame":
    """Return rows with the classes of files: in a column ``labels``, or ``label`` where each has one. No cell has to be
    taken apart, which its attribute ``apart`` says.
    """
    from pandas import DataFrame

    # an export of one class an image is read without --task multilabel, too
    single = all(len(names) == 1 for names in classes)
    answers = {"label": [names[0] for names in classes]} if single else {"labels": list(classes)}
    frame = DataFrame({"filename": list(files), **answers, **columns})
    frame.attrs["apart"] = True
    if class_names is not None:
        frame.attrs["class_names"] = list(class_names)
    return frame


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)


def _field(row: object, name: str, what: str) -> object:
    """Return a value of an object of JSON. Raises `ValueError` where it is no object, or lacks it."""
    if not isinstance(row, Mapping) or row.get(name) is None:
        raise ValueError(f"{what} has no {name}")
    return row[name]


def _rows(value: object, what: str) -> list[object]:
    return value if isinstance(value, list) else _refuse(f"its {what} are no list")


# ---------------------------------------------------------------- COCO


def _of_coco(content: Mapping[str, object]) -> "DataFrame":
    names: dict[object, str] = {}
    for category in _rows(content["categories"], "categories"):
        number = str(_field(category, "id", "a category"))
        names[number] = str(_field(category, "name", "a category"))
    files: dict[str, str] = {}
    for image in _rows(content["images"], "images"):
        files[str(_field(image, "id", "an image"))] = str(_field(image, "file_name", "an image"))

    # a class of an image counts once, however many boxes it has
    classes: dict[str, dict[str, None]] = {number: {} for number in files}
    for annotation in _rows(content["annotations"], "annotations"):
        image = str(_field(annotation, "image_id", "an annotation"))
        category = str(_field(annotation, "category_id", "an annotation"))
        if image not in files:
            raise ValueError(f"an annotation is about image {image}, which is none of its images")
        if category not in names:
            raise ValueError(
                f"an annotation is of category {category}, which is none of its categories"
            )
        classes[image][names[category]] = None
    listed = [[*classes[number]] for number in files]
    return _frame([*files.values()], listed, [*names.values()])


# ---------------------------------------------------------------- Label Studio


def _choices(value: object) -> object:
    """Return the choices of JSON-MIN as a list; another value as it is."""
    is_choice = isinstance(value, Mapping) and value.keys() == {CHOICES}
    return value[CHOICES] if isinstance(value, Mapping) and is_choice else value


def _of_label_studio(tasks: Sequence[Mapping[str, object]]) -> "DataFrame":
    files: list[str] = []
    classes: list[list[str]] = []
    annotators: list[str] = []
    for task in tasks:
        file = _file_of_task(task["data"])
        for annotation in _rows(task["annotations"], "annotations"):
            if not isinstance(annotation, Mapping):
                raise ValueError("an annotation is no object")
            # who skips a task says nothing of it
            if annotation.get("was_cancelled"):
                continue
            results = _rows(annotation.get("result") or [], "results")
            names = dict.fromkeys(name for result in results for name in _names_of(result))
            files.append(file)
            classes.append([*names])
            annotators.append(_person(annotation.get("completed_by")))
    if not files:
        raise ValueError("none of its tasks has an annotation")
    said = dict(annotator=annotators) if any(annotators) else {}
    return _frame(files, classes, **said)


def _file_of_task(data: object) -> str:
    """Return what a task is about: its image, or the only text that it has."""
    if isinstance(data, Mapping):
        texts = [value for value in data.values() if isinstance(value, str)]
        image = data.get("image", texts[0] if len(texts) == 1 else None)
        if isinstance(image, str):
            return image
    raise ValueError("a task has no image")


def _names_of(result: object) -> list[str]:
    """Return the classes that a choice or a shape has."""
    value = result.get("value") if isinstance(result, Mapping) else None
    if not isinstance(value, Mapping):
        return []
    named = [
        names for key, names in value.items() if str(key) == CHOICES or str(key).endswith(ENDING)
    ]
    return [name for names in named if isinstance(names, list) for name in map(str, names)]


def _person(who: object) -> str:
    """Return who has completed an annotation: a number, or an object with an address."""
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("username") or who.get("id")
    return "" if who is None else str(who)


# ---------------------------------------------------------------- FiftyOne


def _of_fiftyone(class_names: object, labels: object) -> "DataFrame":
    if class_names is not None:
        class_names = [str(name) for name in _rows(class_names, "classes")]
    if not isinstance(labels, Mapping):
        raise ValueError("its labels are no object with a label for each file")

    # what has no label was not labelled, which is not to have none
    files = [str(file) for file, target in labels.items() if target is not None]
    targets = [target for target in labels.values() if target is not None]
    classes: list[list[str]] = []
    for file, target in zip(files, targets):
        several = target if isinstance(target, list) else [target]
        classes.append([_class_of(one, class_names, file) for one in several])
    shares = [
        target.get("confidence") if isinstance(target, Mapping) else None for target in targets
    ]
    sure = {"confidence": shares} if shares and None not in shares else {}
    return _frame(files, classes, class_names, **sure)


def _class_of(target: object, class_names: Sequence[str] | None, file: str) -> str:
    """Return the name of a class that is given by it, by its place, or in an object."""
    if isinstance(target, Mapping):
        target = target.get("label")
    if isinstance(target, int) and not isinstance(target, bool) and class_names is not None:
        if not 0 <= target < len(class_names):
            raise ValueError(
                f"'{file[:40]}' has the class {target}, but there are {len(class_names)}"
            )
        return class_names[target]
    if not isinstance(target, (str, int)) or isinstance(target, bool):
        raise ValueError(f"the label of '{file[:40]}' is neither a name nor a number")
    return str(target)


# ---------------------------------------------------------------- CVAT


class _NoDocumentType(ElementTree.TreeBuilder):
    """Builds a tree of XML, but refuses a document type: entities of a file can grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a document type; expected XML without")


def read_xml(path: Path) -> "DataFrame":
    """Read annotations of CVAT. Raises `ValueError` for other XML."""
    parser = ElementTree.XMLParser(target=_NoDocumentType())
    root = ElementTree.parse(path, parser).getroot()
    if root is None or root.tag != "annotations" or root.find("image") is None:
        raise ValueError("expected annotations with images, as CVAT exports them 'for images'")
    files: list[str] = []
    classes: list[list[str]] = []
    for image in root.iterfind("image"):
        files.append(image.get("name") or _refuse("an image has no name"))
        # tags, boxes and other shapes have a label each
        names = [child.get("label") for child in image]
        classes.append([*dict.fromkeys(name for name in names if name)])

    # of a task, a job or a project; what is in an image is one of them
    labels = [label.findtext("name") for label in root.iterfind("meta/*/labels/label")]
    names = [name for name in labels if name]
    odd = next((name for of_image in classes for name in of_image if name not in names), None)
    if names and odd is not None:
        raise ValueError(f"an image has the label '{odd[:40]}', which is none of its labels")
    return _frame(files, classes, names or None)
