"""The export of a finished run: written, loaded back and compared."""

import json
import os
import shutil
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf

from ..errors import UserError, one_line, scrub
from ..files import apply_umask, file_sha256, read_plain, write_text
from ..target_kind import ONE_CLASS, TargetKind
from .model_card import lookup, model_card

EXPORTED = ("config.json", "model.safetensors")  # what an export is loaded from
# what timm says of the pretrained weights of a model, not of the model
ABOUT_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
NAMES = ("label_names", "label_descriptions")  # of the classes


def export_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what an export is loaded from, by name of the file, for result.json."""
    return {name: file_sha256(folder / name) for name in EXPORTED if (folder / name).is_file()}


def check_export(folder: Path, what: str) -> None:
    """Compare the export of a run with what its result.json says of it; any other folder passes.

    Raises:
        UserError: a file is missing or not the one that was exported, or result.json does not say which that was.
    """
    # A folder that somebody has made by hand has no run that could say what is in it.
    result = folder.parent / "result.json"
    if folder.resolve().name != "export" or not result.is_file():
        return
    try:
        expected = lookup(read_plain(result), "export")
    except (OSError, ValueError):
        expected = None
    actual = export_hashes(folder)
    if not isinstance(expected, dict):
        problem = f"{result} does not say what was exported"
    elif wrong := [name for name in EXPORTED if expected.get(name) != actual.get(name)]:
        problem = f"{wrong[0]} is damaged: its SHA-256 is not that in {result}"
    else:
        return
    raise UserError(
        f"{what} {folder}: {problem}; repeat the run's command with --resume auto, which writes both "
        "again, or copy the folder elsewhere if you trust it as it is"
    )


def export_model(
    model: torch.nn.Module,
    folder: Path,
    data_config: dict,
    record: dict,
    class_names: list[str] | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> None:
    """Write ``folder`` in timm's Hub format: config.json, model.safetensors, README.md.

    It is written next to ``folder`` and then renamed, so that an earlier export stays whole until the new one is.

    Args:
        model: timm model, not wrapped.
        folder: folder to create or replace.
        data_config: preprocessing of evaluation, as ``timm.data.resolve_data_config`` returns it.
        record: content of the run's ``result.json``, see `model_card`.
        class_names: name of each class, for timm's ``label_names``; those of earlier training are left out.
        target_kind: what its labels are, for ``problem_type``, by which transformers chooses softmax or sigmoid, and
            for the thresholds if there is one for each of several classes.

    Raises:
        UserError: the folder cannot be written, or timm cannot load what was written; an earlier export stays then.
    """
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    pretrained_cfg = getattr(model, "pretrained_cfg", {})
    # safetensors refuses the strides of channels_last
    hook = model.register_state_dict_post_hook(
        lambda module, state, *_: state.update({k: v.contiguous() for k, v in state.items()})
    )
    try:
        # written beside it
        shutil.rmtree(new, ignore_errors=True)
        other_names = {key: None for key in NAMES if pretrained_cfg.get(key)}
        save_for_hf(
            model,
            str(new),
            safe_serialization=True,
            data_config=data_config,
            model_config=dict(pretrained_cfg=other_names, label_names=class_names),
        )
        # transformers would not load it with the number of classes among the arguments, which it gives timm itself;
        # timm has it from beside these if its own function makes the model, a plugin's function from these alone
        config = new / "config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        if hasattr(model, "pretrained_model_args"):
            del content["model_args"]["num_classes"]
        # nor is said what is true of weights that the model did not start from
        known = {**(lookup(record, "model", "weights") or {}), "license": record.get("license")}
        about = content["pretrained_cfg"]
        for key in ABOUT_WEIGHTS:
            about.pop(key, None)
            if known.get(key):
                about[key] = known[key]
        content |= target_kind.recorded
        config.write_text(json.dumps(content, indent=2), encoding="utf-8")
        write_card(new, record)
        for path in new.rglob("*"):
            apply_umask(path)
            if path.is_file():  # on the disk before it takes another's place
                with path.open("rb") as file:
                    os.fsync(file.fileno())

        # loaded back, then in place of an earlier one
        _check_loads(model, new, folder, (data_config or pretrained_cfg)["input_size"])
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the export {folder}: {one_line(error)}; make room and go on with --resume"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        hook.remove()


def write_card(folder: Path, record: dict) -> None:
    """Write the README.md of an export."""
    write_text(folder / "README.md", scrub(model_card(record)))


@torch.inference_mode()
def _check_loads(
    model: torch.nn.Module, export: Path, name: Path, size: tuple[int, int, int]
) -> None:
    """Load an export as timm does, and compare weights, and logits of two images, with the model's.

    Raises:
        UserError: timm cannot load it, or loads something else.
    """

    # The most frequent reason is a plugin that changes what timm has made: timm alone makes another model then.
    def fail(reason: str) -> UserError:
        return UserError(
            f"{name}: not exported: {reason}; the checkpoints of the run are kept. A student that a "
            "plugin wraps has to be unwrapped by it, or be registered as an architecture of its own"
        )

    try:
        loaded = timm.create_model(f"local-dir:{export}", pretrained=True)
    except Exception as error:  # each architecture refuses in its own way what does not fit it
        raise fail(f"timm cannot load it again ({one_line(error, 200)})") from error
    ours, theirs = model.state_dict(), loaded.state_dict()
    same = ours.keys() == theirs.keys() and all(
        torch.equal(value.float().cpu(), theirs[key].float().cpu()) for key, value in ours.items()
    )
    if not same:
        raise fail("timm loads other weights from it")

    # the same weights can give other logits, if the model was changed after it was made
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    training = model.training
    expected = model.eval()(images).float()
    model.train(training)
    logits = loaded.to(device, dtype).eval()(images).float()
    near = 0.01 if dtype == torch.float32 else 0.05  # what memory format and the device change
    reach = near * expected.abs().nan_to_num(0, 0, 0).max().item()
    same = expected.shape == logits.shape and torch.allclose(
        expected, logits, rtol=near, atol=reach, equal_nan=True
    )
    if not same:
        raise fail("timm's model of it gives other logits")
