"""``python -m w2s_plugins.hub COMMAND``: a trained model described, published, or exported to ONNX."""

from collections.abc import Sequence
from pathlib import Path

from ..cli.parser import read_command
from ..errors import UserError, near_path, one_line, run_main, say
from ..files import check_replaceable, note_written, read_plain
from ..settings.values import locate, no_model


def main() -> None:
    """Command line: ``python -m w2s_plugins.hub push RUN ORG/NAME`` and others."""
    command, values = read_command("hub")
    {"push": push, "card": card, "export": export}[command](**values)


# What each command needs is imported in it, so that wrong flags are answered without the seconds that torch takes.


def push(
    run: str,
    repo_id: str,
    private: bool,
    revision: str | None,
    commit_message: str | None,
    hub_license: str | None,
    dry_run: bool,
) -> None:
    """Publish the export of a finished run, without training again."""
    run = run.removeprefix("local-dir:")
    exported, folder = locate(run)
    if exported is None and (folder is None or Path(run).is_file()):
        raise no_model("RUN", run, "the folder of a run, or its export")
    from .client import check_login

    check_login(repo_id, dry_run)
    from .push import push_export

    export_folder = exported.removeprefix("local-dir:") if exported else f"{run}/export"
    address = push_export(
        Path(export_folder),
        repo_id,
        private=private,
        revision=revision,
        commit_message=commit_message,
        license=hub_license,
        dry_run=dry_run,
    )
    say(address)


def card(run: Path, results: Sequence[Path]) -> None:
    """Write the card of a finished run anew, with figures that ``validate.py`` has measured of its export."""
    from jinja2 import TemplateError
    from safetensors.torch import load_file

    from ..models.fingerprint import hash_tensors
    from .export import check_export, write_card
    from .model_card import lookup

    run = locate(str(run))[1] or run
    folder, result = run / "export", run / "result.json"
    if not result.is_file():
        raise UserError(f"{run}: no finished run{near_path(run)}")
    check_export(folder, "card of")

    # Whose figures a file has is known by the weights: a card with those of another student would praise the wrong one.
    weights = hash_tensors(dict(sorted(load_file(folder / "model.safetensors").items())))
    rows = []
    for file in results:
        try:
            row = read_plain(file)
        except (OSError, ValueError):
            row = None
        if lookup(row, "weights") != weights:
            near = "" if file.exists() else near_path(file)
            raise UserError(
                f"{file}: no figures of this student{near}; expected what validate.py --checkpoint {run} "
                "--results-file FILE.json --results-format json writes"
            )
        rows.append(row)
    try:
        record = read_plain(result)
        if not isinstance(record, dict):
            raise TypeError(f"'{type(record).__name__}' object is not a mapping")
        write_card(folder, {**record, "results": rows})
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        raise UserError(
            f"{result}: is not what a run has written ({one_line(error, 100)}); take another copy of the "
            "file"
        ) from error
    print(folder / "README.md")


def export(model: str, onnx: Path, checkpoint: str | None, plugins: Sequence[str]) -> None:
    """Write a model as a file of ONNX."""
    from ..predictions.run import open_model
    from ..registry import load_plugins
    from .onnx_file import check_onnx, export_onnx

    check_onnx(onnx, "--onnx")
    check_replaceable(onnx, "--onnx")
    load_plugins(plugins)
    opened = open_model(model, checkpoint)
    names, kind = opened.class_names, opened.target_kind
    print(export_onnx(opened.model.eval(), opened.data_config, names, onnx, kind))
    note_written(onnx)


def console() -> None:
    """The command of that name, ``w2s-hub``, and ``python -m``."""
    run_main(main, "w2s_plugins.hub")


if __name__ == "__main__":
    console()
