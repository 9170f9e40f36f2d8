"""The card of labels on the Hub: who said it, of what, how many, and the command that trains on them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..errors import UserError
from ..files import file_sha256
from ..hub.card import card_environment, dataset_id
from ..hub.markdown import plain
from .answers import folder_columns
from .samples import label_names
from .store import Manifest
from .table import LabelTable

MOST_CLASSES = 1000  # that the card lists


@dataclass(frozen=True)
class Described:
    """What the card says of labels.

    Args:
        keyed_by: what samples are known by, ``filename`` or ``index``.
        classes: how often each is the most likely one, by name.
        who: who said it, by names of values; None where one is not known.
        seen: what they saw, likewise, and the number of samples.
    """

    keyed_by: str
    classes: Counter
    who: dict[str, object]
    seen: dict[str, object]


def describe_folder(folder: Path, manifest: Manifest, record: dict | None = None) -> Described:
    """Read a folder of labels for its card.

    Args:
        folder: of the labels.
        manifest: what it holds.
        record: of the run whose teacher has said so, which knows where that is from.

    Raises:
        UserError: it is damaged, or of no use to others.
    """
    if manifest.views > 1 or manifest.seen.get("student_views"):
        raise UserError(f"{folder}: its answers are about the views of one student, which others do not see; expected "
                        "answers about images: --teacher-targets cached")
    # a few bytes may name any number of classes: they are counted when there are answers of so many
    classes: Counter = Counter()
    for columns in folder_columns(folder):
        classes.update(columns["label"])
    names = manifest.class_names or map(str, range(manifest.num_classes))
    classes.update(dict.fromkeys(names, 0))
    data = manifest.seen.get("data")
    who = {"kind of label": f"{manifest.kind}, {manifest.content['dtype']}",
           "architecture": manifest.who.get("architecture"),
           "SHA-256": manifest.who.get("sha256"),
           "computed in": manifest.who.get("dtype")}
    seen = {"samples": classes.total(),
            "fingerprint of the data": data.get("fingerprint") if isinstance(data, dict) else None,
            "transform": manifest.seen.get("transform")}
    if record is not None:
        source = record["teacher"]["models"][0]["source"] or {}  # its file is left out, which may be a local path
        who |= {"repository of the model": source.get("repo"), "its revision": source.get("revision")}
        seen["dataset"] = dataset_id(record)
    return Described(manifest.keyed_by, classes, who, seen)


def describe_table(table: LabelTable) -> Described:
    """Say what a table holds for its card."""
    who = {"kind of label": table.kind, "table": table.path.name, "SHA-256": file_sha256(table.path),
           "rows": len(table), "annotators": None if table.annotators is None else len({*table.annotators})}
    classes = Counter(dict.fromkeys(table.class_names or (), 0))
    classes.update(label_names(table))
    return Described(table.keyed_by, classes, who, {"samples": len({*table.keys})})


def labels_card(about: Described, name: str, license: str | None) -> str:
    """Return the README.md of published labels; what is not known is left out.

    Args:
        about: the labels.
        name: by which ``--teacher labels:`` finds them.
        license: of the labels; None says nothing of it.
    """
    data = DatasetCardData(
        license=plain(license) if license else None, task_categories=["image-classification"],
        tags=["weak-to-strong", "w2s_plugins"])
    body = card_environment().get_template("labels.md.jinja").render(
        about=about, name=name, most=MOST_CLASSES, total=max(1, about.classes.total()))
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"))
