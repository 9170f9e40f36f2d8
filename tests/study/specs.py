"""A small study on digits, for the tests."""

import copy
from pathlib import Path

import yaml

from w2s_plugins.study.layout import StudyRun

BASE = {
    "dataset": "w2s/digits",
    "img_size": 8,
    "batch_size": 32,
    "epochs": 1,
    "lr": 0.1,
    "warmup_epochs": 0,
    "workers": 0,
    "train_slice": "0:160",
    "weak_fraction": 64,
    "teacher_targets": "cached",
}
SMALL = {
    "base": BASE,
    "weak": [{"name": "a", "flags": {"model": "w2s_cnn2"}}],
    "strong": [{"name": "s", "flags": {"model": "w2s_cnn5"}}],
    "losses": ["hard", "kd"],
}


def changed(**changes: object) -> dict:
    """Return the small study with some keys changed."""
    return {**copy.deepcopy(SMALL), **changes}


def changed_by(text: str) -> dict:
    """Return the small study with the keys of a YAML mapping; its base lies over the study's."""
    changes = yaml.safe_load(text)
    return changed(**{**changes, "base": {**BASE, **changes.get("base", {})}})


def arg(run: StudyRun, name: str) -> str | None:
    """Return the value that the command of a run gives a flag."""
    return dict(zip(run.argv, run.argv[1:])).get(name)


def write(folder: Path, content: object) -> Path:
    """Write a specification and return its path."""
    path = folder / "small.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return path
