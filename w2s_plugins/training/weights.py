"""The files of weights that the flags of a run name, by content: known before a model is made of them."""

from collections.abc import Sequence
from pathlib import Path

from ..made_of import Ingredient, absolute_place, hash_of_place
from ..models.fingerprint import files_sha256, onnx_files
from ..models.loading import find_weights
from ..settings.concerns import LabelSettings, StudentSettings, WeakTeacherSettings
from ..settings.forms import parse_selection, parse_selection_model
from ..settings.teacher_name import TeacherName
from ..settings.values import split_names
from ..teachers.teacher import pair_checkpoints

START = ("finetune", "initial_checkpoint", "pretrained_path")  # of these flags the first one counts
IN_RUNS = ("export", "model.safetensors")  # names that each run folder has


def weights_of(
    teaching: WeakTeacherSettings,
    starting: StudentSettings,
    labelling: LabelSettings,
) -> list[Ingredient]:
    """Return the files on this disk whose weights, or whose selection of samples, a run would be made of now.

    What is on the Hub is known when a model has been made of it: see `run_files.ingredients`.

    Raises:
        UserError: there is no such file.
    """
    # one for each teacher
    made_of = []
    pairs = pair_checkpoints(teaching.models, split_names(teaching.teacher_checkpoint))
    for number, (name, checkpoint) in enumerate(pairs):
        flag = "--teacher" if checkpoint is None else "--teacher-checkpoint"
        what = f"the weights of {flag} {_short(checkpoint or name.rest)}"
        made_of += _ingredient(f"teacher {number}", what, _files_of_model(name, checkpoint, flag))

    # the student's first weights; the file that is named first is loaded last
    files_by_flag = {
        "--finetune": starting.finetune,
        "--initial-checkpoint": starting.initial_checkpoint,
        "--pretrained-path": starting.pretrained_path,
    }
    named = {flag: path for flag, path in files_by_flag.items() if path}
    model = TeacherName.parse(starting.model)
    if named:
        flag, path = next(iter(named.items()))
        files = [find_weights(path, flag) for flag, path in named.items()]
        made_of += _ingredient("start", f"the weights of {flag} {_short(path)}", files)
    elif starting.pretrained and model.kind == "local-dir":
        made_of += _ingredient(
            "start", "the weights of --pretrained", _files_of_model(model, None, "--model")
        )

    # what selects samples
    flag = "--clean-select-model"
    name, checkpoint = parse_selection_model(labelling.clean_select_model)
    rule, file = "", ""
    if labelling.clean_select:
        rule, _, file = parse_selection(labelling.clean_select)
    if rule == "file" and Path(file).is_file():
        made_of += _ingredient(
            "selection", f"the file of --clean-select {_short(file)}", [Path(file)]
        )
    elif rule and name:
        selector = TeacherName.parse(name)
        what = f"the weights of {flag} {_short(checkpoint or selector.rest)}"
        made_of += _ingredient("selection", what, _files_of_model(selector, checkpoint, flag))
    return made_of


def _files_of_model(name: TeacherName, checkpoint: str | None, flag: str) -> list[Path]:
    """Return the files of weights that a model is read from; none if they are not on this disk."""
    path = Path(name.rest)
    if checkpoint is not None:
        return [find_weights(checkpoint, flag)]
    if name.kind in ("local-dir", "checkpoint"):
        return [find_weights(name.rest, flag)]
    if name.kind == "onnx" and path.is_file():
        return onnx_files(path)
    return list(path.glob("*.safetensors")) if name.kind and path.is_dir() else []


def _short(path: str) -> str:
    """Return the last part of a path that tells runs apart: others may read it, but not where it lies on this disk."""
    parts = [part for part in Path(path).parts if part not in IN_RUNS]
    return parts[-1] if parts else path


def _ingredient(role: str, name: str, files: Sequence[Path]) -> list[Ingredient]:
    """Return what some files are in a run, nothing if there are none."""
    if not files:
        return []
    return [Ingredient(role, name, hash_of_place(*map(absolute_place, files)), files_sha256(files))]
