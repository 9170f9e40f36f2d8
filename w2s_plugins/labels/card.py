"""The card of labels on the Hub: who said it, of what, how many, and the command that trains on them."""

from collections import Counter

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from ..files import file_sha256
from ..hub.markdown import plain
from ..hub.model_card import card_environment
from ..target_kind import ONE_CLASS, TargetKind
from .samples import most_likely
from .several import are_several
from .store import Manifest
from .table import LabelRows, file_of

MOST_CLASSES = 1000  # that the card lists


def labels_card(
    table: LabelRows,
    name: str,
    license: str | None,
    manifest: Manifest | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> str:
    """Return the README.md of published labels; what is not known is left out.

    Args:
        table: of labels.
        name: by which ``--teacher labels:`` finds them.
        license: of the labels; None says nothing of it.
        manifest: of the stored answers that the table was written from.
        target_kind: what a label is; of several classes an image each counts that is more likely than not.
    """
    # who said it, and what they saw, by names of values
    who = {
        "kind of label": table.kind,
        "table": table.path.name,
        "SHA-256 of the table": file_sha256(file_of(table.path)[0]),
        "rows": len(table),
        "annotators": None if table.annotators is None else len({*table.annotators}),
    }
    # what a model has said of each sample is known by more than a table tells
    seen: dict[str, object] = {"samples": len({*table.keys})}
    if manifest is not None:
        who |= {
            "architecture": manifest.who.get("architecture"),
            "SHA-256": manifest.who.get("sha256"),
            "computed in": manifest.who.get("dtype"),
        }
        data = manifest.seen.get("data")
        seen |= {
            "fingerprint of the data": data.get("fingerprint") if isinstance(data, dict) else None,
            "transform": manifest.seen.get("transform"),
        }

    # how often each class is the most likely one, or one of those that are said
    names = list(table.names)
    classes = Counter(dict.fromkeys(names, 0))
    if are_several(target_kind):
        said = np.nan_to_num(table.answers) > (0 if table.kind == "logits" else 0.5)
        classes.update(dict(zip(names, said.sum(axis=0).tolist())))
    else:
        classes.update([names[i] for i in most_likely(table.answers).tolist()])
    # what is typed by others goes into YAML, and through a writer of YAML
    header = DatasetCardData(
        license=plain(license) if license else None,
        task_categories=["image-classification"],
        tags=["weak-to-strong", "w2s_plugins"],
    )
    body = (
        card_environment()
        .get_template("labels.md.jinja")
        .render(
            keyed_by=table.keyed_by,
            who=who,
            seen=seen,
            classes=classes,
            name=name,
            most=MOST_CLASSES,
            several=are_several(target_kind),
        )
    )
    return str(DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{body.strip()}\n"))
