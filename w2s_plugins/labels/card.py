"""The card of labels on the Hub: who said it, of what, how many, and the command that trains on them."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..errors import UserError
from ..files import file_sha256
from ..hub.card import dataset_id
from ..hub.markdown import code, fenced, markdown_table, plain
from .agreement import label_names
from .answers import folder_columns
from .format import Manifest
from .table import LabelTable

MOST_CLASSES = 1000  # that the card lists
# what a manifest says of whoever gave the answers, and of what they saw, and what the card calls it
WHO = {"architecture": "architecture", "sha256": "SHA-256", "dtype": "computed in"}


@dataclass(frozen=True)
class Described:
    """What the card says of labels.

    Args:
        kind: of the answers.
        samples: with a label.
        keyed_by: what samples are known by, ``filename`` or ``index``.
        classes: how often each is the most likely one, by name.
        who: who said it, as pairs of a name and a value.
        seen: what they saw, likewise.
    """

    kind: str
    samples: int
    keyed_by: str
    classes: Counter
    who: dict[str, object]
    seen: dict[str, object]


def describe_folder(folder: Path, manifest: Manifest) -> Described:
    """Read a folder of labels for its card. Raises `UserError` where it is damaged, or of no use to others."""
    if manifest.kind == "features":
        raise UserError(f"{folder}: holds features, not labels")
    if manifest.views > 1 or manifest.seen.get("student_views"):
        raise UserError(f"{folder}: its answers are about the views of one student, which others do not see; expected "
                        "answers about images: --teacher-targets cached")
    names = manifest.class_names or [*map(str, range(manifest.num_classes))]
    classes, samples = Counter(dict.fromkeys(names, 0)), 0
    for columns in folder_columns(folder, manifest):
        classes.update(map(str, columns["label"]))
        samples += len(columns["label"])
    kind = f"{manifest.kind}, {manifest.content['dtype']}{f', top {manifest.topk}' if manifest.topk else ''}"
    data = manifest.seen.get("data")
    return Described(
        kind, samples, manifest.keyed_by, classes,
        {shown: manifest.who.get(name) for name, shown in WHO.items()},
        {"fingerprint of the data": data.get("fingerprint") if isinstance(data, dict) else None,
         "transform": manifest.seen.get("transform")})


def describe_table(table: LabelTable) -> Described:
    """Say what a table holds for its card."""
    classes = Counter(dict.fromkeys(table.class_names or (), 0))
    classes.update(label_names(table)[0])
    annotators = None if table.annotators is None else len(set(table.annotators))
    return Described(
        table.kind, len(set(table.keys)), "filename" if table.keyed_by == "filename" else "index", classes,
        {"table": table.path.name, "SHA-256": file_sha256(table.path), "rows": len(table), "annotators": annotators},
        {})


def add_record(about: Described, record: dict) -> Described:
    """Return what the card says of the answers of a teacher of a run, whose record knows where that teacher is from."""
    source = record["teacher"]["models"][0]["source"] or {}  # its file is left out, which may be a local path
    model = {"repository of the model": source.get("repo"), "its revision": source.get("revision")}
    return replace(about, who={**about.who, **model}, seen={"dataset": dataset_id(record), **about.seen})


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
    total = max(1, about.classes.total())
    command = (f"python train_w2s.py --data-dir DATA --teacher labels:{name} --task-loss-weight 0 --loss kd "
               "--model MODEL --pretrained")
    rows = [(code(label), str(count), f"{100 * count / total:.2f} %")
            for label, count in about.classes.most_common(MOST_CLASSES)]
    more = len(about.classes) - len(rows)
    known_by = "file, relative to the folder of the split" if about.keyed_by == "filename" else "position in the split"
    parts = [
        f"# Labels of {about.samples} images in {len(about.classes)} classes",
        "What somebody, or a model, has said of images, as a teacher for `w2s_plugins`. The images are not part of it: "
        f"each is known by its {known_by}.",
        f"## Use\n\n{fenced(command, 'sh')}",
        f"## Who said it\n\n{_pairs({'kind of label': about.kind, **about.who})}",
        f"## Of what\n\n{_pairs({'samples': about.samples, **about.seen})}",
        f"## Classes\n\n{markdown_table(('most likely class', 'labels', 'share'), rows)}"
        + (f"\n\n{more} more are rarer." if more > 0 else ""),
    ]
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _pairs(values: dict[str, object]) -> str:
    return markdown_table(("", ""), [(shown, code(value)) for shown, value in values.items() if value is not None])
