"""Studies with generated predictions: what the statistics read, without training."""

import json
from pathlib import Path

import numpy as np
import yaml

from w2s_plugins.study.layout import PLAN, StudyRun, load_plan, save_plan

SAMPLES, CLASSES = 400, 5


def answers(
    accuracy: float, rng: np.random.Generator, target: np.ndarray, ease: np.ndarray
) -> np.ndarray:
    """Predicted classes (N,) of a model that is right on about the easiest share ``accuracy`` of the samples."""
    right = ease + rng.normal(0, 0.1, len(target)) > 1 - accuracy
    return np.where(right, target, (target + rng.integers(1, CLASSES, len(target))) % CLASSES)


def write_folder(folder: Path, record: dict, args: dict, columns: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    lines = [
        ",".join(columns),
        *(",".join(map(str, row)) for row in np.stack(list(columns.values()), axis=1).tolist()),
    ]
    (folder / "predictions_last.csv").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps(record))


def write_run(
    root: Path,
    name: str,
    seed: int,
    student: float,
    *,
    kwargs: dict | None = None,
    weak: float = 0.5,
    ceiling: float | None = 0.9,
    samples: int = SAMPLES,
    kind: str = "student",
    controls: tuple[str, ...] = (),
    labels: dict[str, str] | None = None,
    **flags: object,
) -> Path:
    """Write a student, and its ceiling unless that is None, of given accuracies, into the study ``root``, in whose plan
    they have ``labels``; return the student's folder.

    Teacher and ceiling of a seed are the same whatever the loss, test samples always; a seed moves the student by 2 %.
    """
    shared = np.random.default_rng(0)
    target, ease = shared.integers(0, CLASSES, samples), shared.random(samples)
    models = [
        answers(share, np.random.default_rng([seed, i]), target, ease)
        for i, share in enumerate((weak, ceiling or 0))
    ]
    rng = np.random.default_rng([seed, len(name), len(str(kwargs))])
    own = answers(student + rng.normal(0, 0.02), rng, target, ease)
    args = {
        "teacher": "w2s_cnn2",
        "model": "w2s_cnn5",
        "seed": seed,
        "loss": name,
        "workers": seed,
        **flags,
    }
    record = {
        "model": {"architecture": "w2s_cnn5"},
        "teacher": {"name": "w2s_cnn2"},
        "seed": seed,
        "loss": {"name": name, "kwargs": kwargs or {}},
        "data": {"fingerprint": "f"},
        "selected": {"rule": "last"},
    }
    plan = load_plan(root) if (root / PLAN).is_file() else []
    labels = dict(weak="w2s_cnn2", strong="w2s_cnn5", loss=name, protocol="") | (labels or {})
    needs = [] if ceiling is None else [f"ceiling{len(plan)}"]
    plan += [
        StudyRun(needed, "ceiling", None, labels["strong"], None, None, seed, [])
        for needed in needs
    ]
    student = StudyRun(
        f"{kind}-{name}-{len(plan)}",
        kind,
        **labels,
        seed=seed,
        argv=[],
        needs=needs,
        controls=[*controls],
    )
    root.mkdir(parents=True, exist_ok=True)
    save_plan(root, [*plan, student])
    for needed in needs:
        write_folder(
            root / "runs" / needed,
            {**record, "teacher": None},
            args,
            {"target": target, "student": models[1]},
        )
    folder = root / "runs" / student.name
    write_folder(folder, record, args, {"target": target, "student": own, "teacher": models[0]})
    return folder
