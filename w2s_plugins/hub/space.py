"""A Space: a folder with a Gradio app that shows a student beside its teacher on an uploaded image.

A model that plain timm loads by a name is loaded there by that name. Any other, be it in a run on this machine or of an
architecture of this package, goes into the folder as a file of ONNX: no pickle, and nothing that names a place here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from ..errors import UserError, write_errors
from ..files import write_text
from .markdown import code, plain
from .onnx_file import check_onnx, export_onnx
from .push import push_files

GRADIO = "6.31.0"  # that the app is tested with
REQUIREMENTS = ("gradio>=6", "timm>=1.0.31", "torch", "torchvision")
SETTINGS = "space.json"
WRITTEN = ("app.py", "requirements.txt", SETTINGS)  # and README.md, and perhaps these:
NETWORKS = tuple(f"{role}.onnx{end}" for role in ("teacher", "student") for end in ("", ".data"))


@dataclass(frozen=True)
class Shown:
    """A model that a Space shows.

    Args:
        role: ``student`` or ``teacher``.
        place: as it was typed: a run folder, an export, ``hf-hub:ORG/NAME``, or a timm name.
        name: by which timm loads it; None where its weights are on this machine.
        model: opened.
        data_config: preprocessing of its images, as timm has it.
        class_names: None where they are not known.
    """

    role: str
    place: str
    name: str | None
    model: nn.Module
    data_config: dict[str, object]
    class_names: Sequence[str] | None


def write_space(shown: Sequence[Shown], folder: Path) -> list[Path]:
    """Write the app to ``folder``, which is made, empty, or has an earlier one; return its files, README.md first.

    Args:
        shown: the teacher, if any, and the student.
        folder: for app.py, requirements.txt, README.md, space.json, and networks.

    Raises:
        UserError: a model cannot be exported; the folder has something else in it.
    """
    with write_errors(folder, "try again"):
        models = [_include(one, folder) for one in shown]
        used = {model["model"] for model in models}
        for name in NETWORKS:
            if name.removesuffix(".data") not in used:
                (folder / name).unlink(missing_ok=True)
        title = models[-1]["name"] + (" beside its teacher" if len(models) > 1 else "")
        needs = [*REQUIREMENTS, "onnxruntime"] if used & set(NETWORKS) else REQUIREMENTS
        write_text(folder / "app.py", Path(__file__).with_name("space_app.py").read_text(encoding="utf-8"))
        write_text(folder / "requirements.txt", "\n".join(needs) + "\n")
        write_text(folder / SETTINGS, json.dumps(dict(title=title, models=models), indent=2) + "\n")
        write_text(folder / "README.md", _readme(title, models))
    return [folder / name for name in ("README.md", *WRITTEN, *NETWORKS) if (folder / name).is_file()]


def make_folder(folder: Path) -> None:
    """Make the folder of a Space. Raises `UserError` where it has something else in it."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # networks alone are what an attempt that failed has left
    if folder.is_file() or (SETTINGS not in there and there - set(NETWORKS)):
        raise UserError(f"{folder}: has something else in it; expected a new folder, or an earlier Space")
    with write_errors(folder, "try again"):
        folder.mkdir(parents=True, exist_ok=True)


def push_space(files: Sequence[Path], repo_id: str, private: bool | None) -> str:
    """Publish what `write_space` wrote as a Space; return its address. Raises `UserError`; it can be repeated."""
    card = files[0].read_text(encoding="utf-8")
    try:
        return push_files("space", files[1:], lambda _: card, repo_id, replaces=lambda names: [
            name for name in names if name in NETWORKS], private=private, commit_message="Upload app")
    except UserError as error:
        raise UserError(f"{error}; {files[0].parent} is written: repeat the command") from error.__cause__


def _include(shown: Shown, folder: Path) -> dict[str, str]:
    """Return what the app is told of a model; put it into the folder where the app could not load it by its name."""
    model, where = shown.model, f"{shown.role} {shown.place}"
    if shown.name is not None and type(model).__module__.startswith("timm."):
        names = model.pretrained_cfg.get("label_names")  # which the app takes from there
        if names and (not isinstance(names, list) or len({*map(str, names)}) != model.num_classes):
            raise UserError(f"{where}: its label_names are no list of {model.num_classes} different names, which the "
                            "app takes them for; publish it with others, or without")
        return dict(role=shown.role, name=plain(shown.name.removeprefix("hf-hub:")), model=shown.name)
    file = folder / f"{shown.role}.onnx"
    check_onnx(file, f"{where}: goes into the Space as a file of ONNX, which")
    print(export_onnx(model.eval(), shown.data_config, shown.class_names, file))
    name = shown.name
    if name is None:
        # of where a run lies, only the last part is said
        path = Path(shown.place.removeprefix("local-dir:")).resolve()
        run = path.parent if path.name == "export" else path
        name = f"{run.name} ({model.pretrained_cfg.get('architecture') or type(model).__name__})"
    return dict(role=shown.role, name=plain(name.removeprefix("hf-hub:")), model=file.name)


def _readme(title: str, models: Sequence[dict[str, str]]) -> str:
    """Return the README.md: what the Hub reads of a Space, and a word to those who look at its files."""
    about = dict(title=title, emoji="🔍", colorFrom="blue", colorTo="green", sdk="gradio", sdk_version=GRADIO,
                 app_file="app.py", pinned=False)
    on_hub = [model["model"] for model in models if model["model"].startswith("hf-hub:")]
    if on_hub:
        about["models"] = [name.removeprefix("hf-hub:").partition("@")[0] for name in on_hub]
    rows = "\n".join(f"- {model['role']}: {code(model['name'])}" for model in models)
    header = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    return (f"---\n{header}---\n\n# {code(title)}\n\nWhat these say of an image:\n\n{rows}\n\n"
            "`pip install -r requirements.txt` and `python app.py` show it on a machine of your own. A model in a "
            "private repository needs a token: the secret `HF_TOKEN` in the settings of the Space.\n")
