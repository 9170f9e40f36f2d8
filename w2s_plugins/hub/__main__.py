"""``python -m w2s_plugins.hub COMMAND``: a trained model published or exported to ONNX."""

from collections.abc import Sequence
from pathlib import Path

from ..cli.parser import read_command
from ..errors import UserError, near_path, run_main


def main() -> None:
    """Command line: ``python -m w2s_plugins.hub push RUN ORG/NAME`` and others."""
    command, values = read_command("hub")
    {"push": push, "export": export}[command](**values)


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
