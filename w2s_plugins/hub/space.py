"""A Space: a folder with a Gradio app that shows a student beside its teacher on an uploaded image.

Each model goes into the folder as a file of ONNX: no pickle, and nothing that names a place on this machine. The app is
``templates/app.py.txt``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..errors import UserError, write_errors
from ..files import delete, write_text
from .card import card_environment
from .markdown import plain
from .onnx_file import check_onnx, export_onnx
from .push import push_files

GRADIO = "6.31.0"  # that the app is tested with
REQUIREMENTS = ("gradio>=6", "onnxruntime", "timm>=1.0.31", "torch", "torchvision")
SETTINGS = "space.json"
NETWORKS = ("teacher.onnx", "teacher.onnx.data", "student.onnx", "student.onnx.data")
FILES = (SETTINGS, "README.md", "requirements.txt", "app.py", *NETWORKS)


@dataclass(frozen=True)
class Shown:
    """A model that a Space shows.

    Args:
        role: ``student`` or ``teacher``.
        named: as it was typed: a run folder, an export, ``hf-hub:ORG/NAME``, or a timm name.
        model: opened.
        data_config: preprocessing of its images, as timm has it.
        class_names: None where they are not known.
    """

    role: str
    named: str
    model: nn.Module
    data_config: Mapping[str, object]
    class_names: Sequence[str] | None


def check_space_folder(folder: Path) -> None:
    """Raise a `UserError` unless a folder can be made, is empty, or has an earlier Space in it."""
    check_onnx(folder.absolute().parent / "student.onnx", "a Space")
    if folder.exists() and not (folder / SETTINGS).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder}: has something else in it; expected a new folder, or an earlier Space")


def write_space(shown: Sequence[Shown], folder: Path) -> None:
    """Write a Space to a folder, in place of an earlier one.

    Args:
        shown: the teacher, if any, and the student.
        folder: as `check_space_folder` lets pass.

    Raises:
        UserError: a model cannot be exported; the folder cannot be written to.
    """
    models = [dict(role=one.role, name=_public_name(one.named), file=f"{one.role}.onnx") for one in shown]
    title = models[-1]["name"] + (" beside its teacher" if len(models) > 1 else "")
    header = dict(title=title, emoji="🔍", colorFrom="blue", colorTo="green", sdk="gradio", sdk_version=GRADIO,
                  app_file="app.py", pinned=False)
    readme = card_environment().get_template("space.md.jinja")
    # the settings come first: they mark the folder as one of a Space, also where an export fails
    with write_errors(folder, "try again"):
        folder.mkdir(exist_ok=True)
        write_text(folder / SETTINGS, json.dumps(dict(title=title, models=models), indent=2) + "\n")
        write_text(folder / "README.md", readme.render(
            header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True), title=title, models=models))
        write_text(folder / "requirements.txt", "\n".join(REQUIREMENTS) + "\n")
        app = Path(__file__).parent / "templates" / "app.py.txt"
        write_text(folder / "app.py", app.read_text(encoding="utf-8"))

    # the networks of an earlier Space go, of which the new one may have no teacher
    for name in NETWORKS:
        delete(folder / name)
    for one, model in zip(shown, models):
        names, subset = one.class_names, infer_imagenet_subset(one.model)
        if names is None and subset:
            names = ImageNetInfo(subset).label_descriptions()
        print(export_onnx(one.model.eval(), one.data_config, names, folder / model["file"]))


def _public_name(named: str) -> str:
    """Return the name that a Space shows: of where a run lies, only the last part is said."""
    # what is no path is a name of timm or of the Hub
    path = Path(named.removeprefix("local-dir:"))
    if not path.exists():
        return plain(named.removeprefix("hf-hub:"))
    path = path.resolve()
    return plain(path.parent.name if path.name == "export" else path.name)


def push_space(folder: Path, repo_id: str, private: bool | None) -> str:
    """Publish what `write_space` wrote as a Space; return its address. Raises `UserError`; it can be repeated."""
    # a folder may have other files of the user's, which stay here
    contents = {name: folder / name for name in FILES if (folder / name).is_file()}
    return push_files(contents, repo_id, replaces=lambda names: {*FILES} & {*names}, kind="space", private=private,
                      commit_message="Upload app")
