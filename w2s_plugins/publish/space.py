"""A Space: a folder with a Gradio app that shows a student beside its teacher on an uploaded image.

A model that plain timm loads by a name is loaded there by that name. Any other, be it in a run on this machine or of an
architecture of this package, goes into the folder as a file of ONNX: no pickle, and nothing that names a place here.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..errors import UserError, write_errors
from ..files import write_text
from ..hub.markdown import code, plain
from ..hub.push import push_files
from ..predictions.run import model_at, open_model
from .onnx_file import check_onnx, export_onnx

GRADIO = "6.31.0"  # that the app is tested with
REQUIREMENTS = ("gradio>=6", "timm>=1.0.31", "torch", "torchvision")
SETTINGS = "space.json"
WRITTEN = ("app.py", "requirements.txt", SETTINGS)  # and README.md, and perhaps these:
NETWORKS = tuple(f"{role}.onnx{end}" for role in ("teacher", "student") for end in ("", ".data"))


def write_space(student: str, teacher: str | None, folder: Path) -> list[Path]:
    """Write the app to ``folder``, which is made, empty, or has an earlier one; return its files, README.md first.

    Both models are opened first, so what cannot be loaded is found here.

    Args:
        student: run folder, export, ``hf-hub:ORG/NAME[@REVISION]``, or timm name.
        teacher: likewise; None shows the student alone.
        folder: for app.py, requirements.txt, README.md, space.json, and networks.

    Raises:
        UserError: a model cannot be opened or exported; the folder has something else in it.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    if SETTINGS not in there and there - set(NETWORKS):  # which an attempt that failed has left
        raise UserError(f"{folder}: has something else in it; expected a new folder, or an earlier Space")
    with write_errors(folder, "try again"):
        folder.mkdir(parents=True, exist_ok=True)
        shown = [("teacher", teacher)] * (teacher is not None) + [("student", student)]
        models = [_include(role, model, folder) for role, model in shown]
        used = {model["model"] for model in models}
        for name in NETWORKS:
            if name.removesuffix(".data") not in used:
                (folder / name).unlink(missing_ok=True)
        title = f"{models[-1]['name']} beside its teacher" if teacher else models[-1]["name"]
        needs = [*REQUIREMENTS, *["onnxruntime"] * bool(used & set(NETWORKS))]
        write_text(folder / "app.py", Path(__file__).with_name("space_app.py").read_text(encoding="utf-8"))
        write_text(folder / "requirements.txt", "\n".join(needs) + "\n")
        write_text(folder / SETTINGS, json.dumps(dict(title=title, models=models), indent=2) + "\n")
        write_text(folder / "README.md", readme(title, models))
    return [folder / name for name in ("README.md", *WRITTEN, *NETWORKS) if (folder / name).is_file()]


def push_space(files: list[Path], repo_id: str, private: bool | None) -> str:
    """Publish what `write_space` wrote as a Space; return its address. Raises `UserError`; it can be repeated."""
    card = files[0].read_text(encoding="utf-8")
    try:
        return push_files("space", files[1:], lambda _: card, repo_id, replaces=lambda names: [
            name for name in names if name in NETWORKS], private=private, commit_message="Upload app")
    except UserError as error:
        raise UserError(f"{error}; {files[0].parent} is written: repeat the command") from error.__cause__


def _include(role: str, model: str, folder: Path) -> dict[str, str]:
    """Return what the app is told of a model; put it into the folder where the app could not load it by its name."""
    opened, config, names = open_model(model)
    name, checkpoint = model_at(model, None)
    here, shown = checkpoint is not None or name.startswith("local-dir:"), name.partition(":")[2] or name
    if not here and type(opened).__module__.startswith("timm."):
        _refuse_names(opened, f"{role} {model}")
        return dict(role=role, name=plain(shown), model=name)
    file = folder / f"{role}.onnx"
    check_onnx(file, f"{role} {model}: goes into the Space as a file of ONNX, which")
    print(export_onnx(opened.eval(), config, names, file))
    if here:
        shown = f"{run_name(model)} ({opened.pretrained_cfg.get('architecture') or type(opened).__name__})"
    return dict(role=role, name=plain(shown), model=file.name)


def _refuse_names(model: nn.Module, where: str) -> None:
    """Raise a `UserError` for names of classes in a model's settings that the app, which takes them from there, cannot
    show.
    """
    names = model.pretrained_cfg.get("label_names")
    if names and not (isinstance(names, (list, tuple)) and len(set(map(str, names))) == model.num_classes
                      and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: its label_names are no list of {model.num_classes} different names, which the app "
                        "takes them for; publish it with others, or without")


def run_name(model: str) -> str:
    """Return the last part of a run's path, which is all that is said of where it lies."""
    folder = Path(model.removeprefix("local-dir:")).resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def readme(title: str, models: list[dict[str, str]]) -> str:
    """Return the README.md: what the Hub reads of a Space, and a word to those who look at its files."""
    repositories = [model["model"].partition(":")[2].partition("@")[0] for model in models
                    if model["model"].startswith(("hf-hub:", "hf_hub:"))]
    about: dict[str, Any] = dict(title=title, emoji="🔍", colorFrom="blue", colorTo="green", sdk="gradio",
                                 sdk_version=GRADIO, app_file="app.py", pinned=False)
    about |= dict(models=repositories) if repositories else {}
    rows = "\n".join(f"- {model['role']}: {code(model['name'])}" for model in models)
    header = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    return (f"---\n{header}---\n\n# {code(title)}\n\nWhat these say of an image:\n\n{rows}\n\n"
            "`pip install -r requirements.txt` and `python app.py` show it on a machine of your own. A model in a "
            "private repository needs a token: the secret `HF_TOKEN` in the settings of the Space.\n")
