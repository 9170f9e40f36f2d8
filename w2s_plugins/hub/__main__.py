"""``python -m w2s_plugins.hub COMMAND``: a trained model published or exported to ONNX."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OneLineParser, UserError, called, near_path, run_main


def hub_parser() -> OneLineParser:
    """The parser of ``python -m w2s_plugins.hub``."""
    parser = OneLineParser(
        prog=called("python -m w2s_plugins.hub"), description="Publish models on the Hugging Face Hub.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pushed = _add(commands, "push", push, "publish the export of a run")
    pushed.add_argument("run", metavar="RUN", type=Path, help="run folder, or its export/, which is published")
    pushed.add_argument("repo_id", metavar="ORG/NAME", help="repository, created when missing")
    pushed.add_argument("--private", action="store_true", default=None, help="create the repository private")
    pushed.add_argument("--revision", metavar="R", help="branch to push to, created when missing (default: main)")
    pushed.add_argument("--hub-license", metavar="ID", help="license in the card (default: what the run's card says)")
    pushed.add_argument("--commit-message", metavar="M", help="first line of the commit")

    model = "run folder, export, hf-hub:ORG/NAME, or timm name"
    exported = _add(commands, "export", export, "write a model as a file of ONNX, checked against the model")
    exported.add_argument("model", metavar="MODEL", help=model)
    exported.add_argument("--onnx", metavar="FILE", type=Path, required=True, help="file that is written")
    exported.add_argument("--checkpoint", metavar="PATH", help="weights of MODEL: a file or a run folder")
    exported.add_argument("--plugins", metavar="FILE", nargs="+", default=[], help="modules or files to import")
    return parser


def _add(
        commands: "argparse._SubParsersAction[OneLineParser]",
        name: str,
        function: Callable[..., None],
        text: str,
) -> OneLineParser:
    command = commands.add_parser(name, help=text)
    command.set_defaults(function=function)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def main() -> None:
    """Command line: ``python -m w2s_plugins.hub push RUN ORG/NAME`` and others."""
    flags = vars(hub_parser().parse_args())
    del flags["debug"]  # `run_main` sees it
    flags.pop("function")(**flags)


# What each command needs is imported in it, so that wrong flags are answered without the seconds that torch takes.


def push(run: Path, repo_id: str, hub_license: str | None, **how: object) -> None:
    """Publish the export of a finished run, without training again."""
    if not run.is_dir():
        raise UserError(f"no run folder {run}{near_path(run)}")
    from .push import push_export

    # the folder of a run, or its export
    is_export = run.resolve().name == "export" and not (run / "export").is_dir()
    print(push_export(run if is_export else run / "export", repo_id, license=hub_license, **how))


def export(model: str, onnx: Path, checkpoint: str | None, plugins: Sequence[str]) -> None:
    """Write a model as a file of ONNX."""
    from ..predictions.run import open_model
    from ..registry import load_plugins
    from .onnx_file import check_onnx, export_onnx

    check_onnx(onnx, "--onnx")
    load_plugins(plugins)
    opened = open_model(model, checkpoint)
    print(export_onnx(opened.model.eval(), opened.data_config, opened.class_names, onnx))


if __name__ == "__main__":
    run_main(main, "w2s_plugins.hub")
