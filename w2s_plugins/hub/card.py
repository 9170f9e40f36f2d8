"""The model card of an exported student: the Hub's YAML metadata, and what the run measured in words and tables.

The words stand in ``templates/card.md.jinja``; here are the metadata, and the filters that keep a value from being
taken for markup.
"""

import math
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import jinja2
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .markdown import code, fenced, markdown_table, plain

MODEL_ID = "hf-hub:ORG/NAME"  # stands in the card until the model is pushed
EVAL_RESULTS = ".eval_results/w2s_plugins.yaml"

_HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
_INIT = {
    "random": "random weights",
    "pretrained": "pretrained weights",
    "checkpoint": "a checkpoint file",
}
_TARGETS = {
    "online": "the teacher predicts on every training view",
    "cached": "the teacher labels each training image once, before training",
    "cached-views": "the teacher labels the training views of some epochs before training; then the views repeat",
}
_CONTROLS = {  # by the first word of the name
    "direct": "this model trained on true labels alone",
    "same": "the teacher's model on the same weak labels",
    "strong": "this model on weak labels of the one of direct",
}
_MOST_NAMES = 100  # classes that the card lists
_WORD = re.compile(r"'[^']*'|[^\s']+")  # as the shell has it, perhaps with spaces
_PATH = re.compile(r"""(?:(?<![^\s=,:;'"(\[{])|(?<=wds/))(?:~[\w.-]*)?/(?!/)[^,'"]+""")  # an absolute one, in a word


class RecordUndefined(jinja2.ChainableUndefined):
    """A value that the record does not have; so is anything below it."""

    def __iter__(self) -> Any:
        return iter(())


def model_card(record: dict) -> str:
    """Return the README.md of an exported student; all figures come from ``record`` and unknown ones are left out.

    Where files lie on this machine is not said.

    Args:
        record: Content of a run's ``result.json``. Every key may be missing or None. Accuracies and agreement are in
            percent, PGR is a fraction. Strings may hold anything: none of them can break out of the YAML or add
            markup.

    Returns:
        YAML metadata followed by Markdown. `MODEL_ID` stands for the id on the Hub.
    """
    record = _without_places(record)
    template = card_environment().get_template("card.md.jinja")
    body = template.render(
        r=record,
        name=_name(record),
        data_name=_data_name(record),
        plugin_module=_plugin_module(record),
        model_id=MODEL_ID,
        controls=_CONTROLS,
        targets_of=_TARGETS,
        init_of=_INIT,
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return str(ModelCard(f"---\n{_metadata(record).to_yaml()}\n---\n\n{body}\n"))


def card_environment() -> jinja2.Environment:
    """Return what the template is read and filled by."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("w2s_plugins.hub"),
        undefined=RecordUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is no HTML; the filters leave no markup
    )
    environment.filters |= dict(
        code=_code_or_nothing,
        several_codes=_several_codes,
        percent=_percent,
        count=_count,
        fenced=fenced,
        is_number=is_number,
        pairs=_pairs,
        shapes=_shapes,
    )
    environment.tests["has_figures"] = lambda row: any(row[1:])
    environment.globals |= dict(table=markdown_table, named=_named)
    return environment


def _code_or_nothing(value: Any) -> str:
    missing = value is None or value == "" or isinstance(value, jinja2.Undefined)
    return "" if missing else code(value)


def _several_codes(names: Any) -> str:
    """Return names in their order, the first ones of many."""
    if not isinstance(names, (list, tuple)):
        return ""
    shown = [code(name) for name in names[:_MOST_NAMES]]
    more = ["..."] if len(names) > _MOST_NAMES else []
    return ", ".join(shown + more)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any) -> str:
    return f"{value:.2f}" if is_number(value) else ""


def _count(value: Any) -> str:
    return f"{value:,.0f}" if is_number(value) else ""


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _shapes(figures: Any) -> list[str]:
    """Return the kinds of episodes that were measured, such as ``5x1``."""
    return [key for key, _ in _pairs(figures) if re.fullmatch(r"\d+x\d+", str(key))]


def _named(rows: Iterable[tuple[str, str]], header: tuple[str, str] = ("", "")) -> str:
    """Return a table of names and values, without rows that have none."""
    return markdown_table(header, [row for row in rows if row[1]])


def _name(record: dict) -> str:
    """Return the name of the model, without the tag of weights that it did not start from."""
    if lookup(record, "model", "init") in ("random", "checkpoint"):
        architecture = lookup(record, "model", "architecture")
        if architecture:
            return architecture
    return lookup(record, "model", "name") or "student"


def _data_name(record: dict) -> Any:
    return lookup(record, "data", "name") or lookup(record, "data", "dataset")


def _plugin_module(record: dict) -> str | None:
    """Return what has to be imported for an architecture that is not timm's."""
    module = lookup(record, "model", "plugin_module")
    if not module:
        return None
    is_name = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(module))
    return str(module) if is_name else "w2s_plugins"


def _without_places(value: Any) -> Any:
    """Return a part of a record with the last parts alone of absolute paths, and the last two of a local model's."""
    if isinstance(value, dict):
        return {key: part if key == "class_names" else _without_places(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(part) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith("local-dir:"):
        return "/".join(PurePath(value.removeprefix("local-dir:")).parts[-2:])
    return _WORD.sub(lambda word: _PATH.sub(lambda path: f".../{PurePath(path[0]).name}", word[0]), value)


def with_license(card: str, license: str) -> str:
    """Return a card whose metadata name another licence."""
    changed = ModelCard(card)
    changed.data.license = plain(license)
    return str(changed)


def eval_results(record: dict) -> str | None:
    """Return the YAML of the Hub's ``.eval_results/``, or None unless the student was measured on a Hub dataset."""
    top1 = lookup(record, "metrics", "top1")
    dataset = dataset_id(record)
    if not is_number(top1) or dataset is None:
        return None
    split = lookup(record, "data", "val_split")
    notes = "top-1 accuracy in %" + (f", split {plain(split)}" if split else "")
    entry = EvalResultEntry(dataset_id=dataset, task_id="default", value=top1, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def _metadata(record: dict) -> ModelCardData:
    """Return what the Hub reads of a card."""
    loss, license = lookup(record, "loss", "name"), lookup(record, "license")
    dataset, split = dataset_id(record), lookup(record, "data", "val_split")
    results = []
    for name, key in (("Top-1 accuracy (%)", "top1"), ("Top-5 accuracy (%)", "top5")):
        value = lookup(record, "metrics", key)
        if is_number(value):
            results.append(EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=dataset or "custom",
                dataset_name=plain(_data_name(record) or "custom"),
                dataset_split=plain(split) if split else None,
                metric_type="accuracy",
                metric_name=name,
                metric_value=value,
            ))
    tags = ["timm", "image-classification", "weak-to-strong", "knowledge-distillation"]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=plain(license) if license else None,
        tags=tags + ([plain(loss)] if loss else []),
        base_model=_repo_id(lookup(record, "model", "source", "repo")),
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"] if results else None,
        model_name=plain(_name(record)) if results else None,
        eval_results=results or None,
    )


def lookup(record: Any, *keys: str) -> Any:
    """Return a value that lies deep in a record, None where it is not there."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _repo_id(value: Any) -> str | None:
    try:
        validate_repo_id(value or "")
    except HFValidationError:
        return None
    return value


def dataset_id(record: dict) -> str | None:
    """Id on the Hub of the dataset, for timm's ``hfds/`` and ``hfids/`` names and for well-known ones."""
    reader, _, name = str(lookup(record, "data", "dataset") or "").partition("/")
    if reader in ("hfds", "hfids"):
        return _repo_id(name)
    return _HUB_DATASETS.get(name) if reader in ("torch", "tfds") else None
