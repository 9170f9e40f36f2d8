"""Models and weights: what is created, what is loaded into it, and a report of both."""

import argparse
import contextlib
import inspect
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from timm.data.model_config import resolve_input_data_config
from timm.models import (
    clean_state_dict,
    load_state_dict,
    parse_model_name,
    resolve_model_input_args,
    split_model_name_tag,
)
from torch import Tensor, nn

from .. import models  # noqa: F401  (importing registers the small networks with timm)
from ..errors import UserError, name_runs, near_path, one_line
from ..files import DamagedArchive, check_archive, check_extent, check_regular, file_sha256
from ..hub.client import on_hub
from ..hub.export import check_export
from ..hub.source import hub_source
from ..private_names import download_from_hf, tree_leaves
from ..settings.field import Role
from ..settings.programs import train_program
from ..target_kind import KINDS, TargetKind
from .foreign import (
    COMMON_ARGS,
    check_fields,
    check_model_args,
    read_model_config,
    recorded_kind,
    refuse_addresses,
    typed_flags,
)

# what weights and buffers are of
PLAIN = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
# of a run folder: the export is the checkpoint that the run selected
WEIGHT_FILES = (
    "export/model.safetensors",
    "model.safetensors",
    "last.pth.tar",
    "model_best.pth.tar",
)
# settings of a run that say how the inputs of its checkpoint are made
INPUT_KEYS = sorted(train_program().flags.names(Role.INPUT))


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names as a text."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


# ---------------------------------------------------------------- models


class TimmModel(nn.Module):
    """What each of timm's models has beside a module's own: timm itself types them as modules. None is of this class."""

    num_classes: int
    in_chans: int
    pretrained_cfg: dict[str, Any]
    get_classifier: Callable[[], nn.Module | Sequence[nn.Module]]
    reset_classifier: Callable[[int], None]
    set_grad_checkpointing: Callable[[bool], None]
    group_matcher: Callable[..., dict[str, Any]]


def of_timm(model: nn.Module) -> TimmModel:
    """Return a model that timm has made, with its type."""
    return cast(TimmModel, model)


# blocks of transformers without that word in their name; others of timm so called only weigh channels
ATTN = {
    "ClassAttn",
    "CrossCovarianceAttn",
    "FactorAttnConvRelPosEnc",
    "GlobalSubSampleAttn",
    "TalkingHeadAttn",
}


def is_transformer(model: nn.Module) -> bool:
    """Return whether a network has blocks with attention; attention that only pools is none."""
    names = {type(module).__name__ for module in model.modules()}
    return any(name in ATTN or ("Attention" in name and "Pool" not in name) for name in names)


def create_model(
    flag: str,
    name: str,
    /,
    *,
    pretrained: bool,
    inputs: Mapping[str, object] | None = None,
    recorded: Mapping[str, object] | None = None,
    instead: str = "--checkpoint FILE",
    **kwargs: object,
) -> TimmModel:
    """Create a timm model, with errors for the person who named it.

    Of the config.json of a repository or folder only what `read_model_config` allows reaches timm, and weights come
    from there alone.

    Args:
        flag: the flag that named the model.
        name: timm name, ``hf-hub:ORG/NAME[@REVISION]`` or ``local-dir:PATH``.
        pretrained: load its weights.
        inputs: requests such as ``img_size`` and ``in_chans``; also resizes models of fixed size.
        recorded: arguments that a checkpoint or a run names; only those of the architecture are taken.
        instead: the flag of a file of its weights, for whom the Hub cannot be reached.
        **kwargs: further arguments of `timm.create_model`, of the user's; None is left out.

    Raises:
        UserError: unknown model or argument, weights that cannot be had.
    """
    who = f"{flag} {name}"
    asked = {key: value for key, value in kwargs.items() if value is not None}
    theirs = {key: value for key, value in (recorded or {}).items() if key not in asked}

    def create() -> TimmModel:
        # What a model of the Hub or a folder is, by its config.json. Where its weights lie is what the user named,
        # whatever the file says.
        architecture, arguments = name, {}
        kind = None
        source, address = parse_model_name(name)
        if source is not None:
            on_the_hub = source == "hf-hub"
            if on_the_hub:
                config = Path(download_from_hf(address, "config.json"))
            else:
                config = Path(address) / "config.json"
            architecture, cfg, model_args = read_model_config(config, f"{who}: its config.json")
            kind = recorded_kind(config)
            cfg = {**cfg, "source": source, "hf_hub_id" if on_the_hub else "file": address}
            arguments = {**model_args, "pretrained_cfg": cfg, "pretrained_model_args": model_args}
        # What else files say is checked, and what the user says wins over it.
        if theirs:
            plain_name, _ = split_model_name_tag(architecture)
            where = f"{who}: arguments beside its weights"
            arguments |= check_model_args(plain_name, theirs, where)
        # timm makes it, and brings it to the size of the images.
        resolved = resolve_model_input_args(
            architecture, args=dict(inputs or {}), **{**arguments, **asked}
        )
        if pretrained and name.startswith("local-dir:"):
            check_export(Path(name.removeprefix("local-dir:")), flag)
        model = timm.create_model(pretrained=pretrained, **resolved)
        if kind is not None:
            vars(model)["target_kind"] = kind
        # The bytes are compared with what the Hub announced, and the kinds of its tensors with the model's.
        if pretrained:
            published = hub_source(model, name)
            file = Path(address or "", WEIGHT_FILES[1])
            if published is not None:
                file = Path(
                    str(
                        try_to_load_from_cache(
                            published["repo"], published["file"], revision=published["revision"]
                        )
                    )
                )
            from_file = published is not None or source == "local-dir"
            if from_file and file.suffix == ".safetensors" and file.is_file():
                check_kinds(model, _stored_kinds(file), str(file), flag)
        return of_timm(model)

    try:
        in_file = name.startswith("local-dir:") or "pretrained_cfg_overlay" in asked
        return on_hub(
            who, create, pretrained and not in_file, f"; or give its weights by {instead}"
        )
    except UserError:
        raise
    except Exception as error:  # odd arguments and damaged files fail in many ways
        text = one_line(error)
        if "No pretrained weights exist" in text or "Invalid pretrained config" in text:
            raise UserError(
                f"{who}: timm has no pretrained weights for it; give a file of weights"
            ) from error
        raise UserError(f"{who}: cannot be created: {text}") from error


@torch.no_grad()
def check_input_size(model: nn.Module, size: tuple[int, ...], flag: str) -> None:
    """Raise a `UserError` unless the model takes images of ``size`` (C, H, W); many say so only when they are run."""
    parameter, training = next(model.parameters(), torch.empty(0)), model.training
    images = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    # in evaluation mode, so that batch norm does not learn from an image that there is not
    try:
        model.eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{flag}: the model takes no images of {' x '.join(map(str, size))}: "
            f"{one_line(error)}; give another image size"
        ) from error
    finally:
        model.train(training)


def input_config(
    model: nn.Module, who: str, asked: Mapping[str, object], use_test_size: bool = False
) -> dict[str, Any]:
    """Return timm's configuration of a model's input, with what is asked of it.

    Raises:
        UserError: the model cannot have it.
    """
    try:
        return resolve_input_data_config(model, args=dict(asked), use_test_size=use_test_size)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{who}: {one_line(error)}") from error


def find_weights(path: str, flag: str) -> Path:
    """Return the file of weights that ``path``, a file or a run folder, stands for.

    Raises:
        UserError: there is none.
    """
    # Of a run folder, the checkpoint that the run selected comes first.
    file = Path(path)
    if file.is_dir():
        for name in WEIGHT_FILES:
            if (file / name).is_file():
                return file / name
        raise UserError(
            f"{flag} {path}: the folder has no checkpoint; expected one of "
            f"{', '.join(WEIGHT_FILES)}{name_runs(file)}"
        )
    if not file.exists():
        raise UserError(f"{flag} {path}: no such file{near_path(file)}")
    return file


def pretrained_source(model: nn.Module, name: str, flag: str) -> dict[str, str] | None:
    """Say where the pretrained weights of a model came from, with their SHA-256: as `hub_source`, or of a folder."""
    if not name.startswith("local-dir:"):
        return hub_source(model, name)
    file = find_weights(name.removeprefix("local-dir:"), flag)
    return {"file": str(file), "sha256": file_sha256(file)}


# ---------------------------------------------------------------- weights


def read_weights(
    path: Path, flag: str, use_ema: bool = False, keep_adapters: bool = False
) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a checkpoint, never running code from it.

    DDP and compile prefixes are removed; the state may be plain or under ``state_dict``, ``state_dict_ema``, ``model``,
    or, of self-distillation, ``teacher`` or ``student``. Weights with adapters beside them are for the run itself,
    which asks to ``keep_adapters``.

    Raises:
        UserError: truncated, not a checkpoint, a pickle that would run code, or weights that are not finite.
    """
    if path.suffix == ".safetensors":
        check_export(path.parent, flag)
    with _read_errors(path, flag):
        check_archive(path)
        state = load_state_dict(str(path), use_ema=use_ema, device="cpu", weights_only=True)
        # Self-distillation has two networks, of which the teacher counts.
        nested = [state[key] for key in ("teacher", "student") if isinstance(state.get(key), dict)]
        if nested:
            state = clean_state_dict(nested[0])
        check_extent(tree_leaves(state), path)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"{flag} {path}: holds no tensors; expected a state dict, plain or under state_dict or model"
        )
    # Loaded without them they would be another model, and nobody would notice.
    if not keep_adapters and ".lora_A." in " ".join(tensors):
        raise UserError(
            f"{flag} {path}: has adapters beside its weights; give the run's folder or its export, "
            "export/model.safetensors, where they are in the weights"
        )
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise UserError(
            f"{flag} {path}: {len(odd)} of its {len(tensors)} tensors are no plain numbers "
            f"({first_of(odd)}), but sparse, quantised, complex, of 8 bits, or without data; expected "
            "floating point"
        )
    check_finite(tensors, str(path), flag)
    return tensors


def _is_plain(value: Tensor) -> bool:
    """Return whether a tensor is an array of numbers in memory, as weights are."""
    in_memory = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
    return in_memory and value.dtype in PLAIN


def _stored_kinds(path: Path) -> dict[str, bool]:
    """Return of each tensor in a safetensors file whether it is in floating point."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_slice(name).get_dtype().startswith(("F", "BF")) for name in names}


def kinds_of(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Return of each tensor whether it is in floating point."""
    return {name: value.is_floating_point() for name, value in state.items()}


def check_kinds(model: nn.Module, floating: Mapping[str, bool], path: str, flag: str) -> None:
    """Raise a `UserError` for weights that are whole numbers where the model has others; torch rounds without a word.

    Args:
        model: what they are for.
        floating: of each tensor, by its name, whether it is in floating point.
        path: of the file.
        flag: begins the message.
    """
    wrong = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not floating.get(name, True)
    ]
    if wrong:
        raise UserError(
            f"{flag} {path}: {len(wrong)} of its tensors are whole numbers ({first_of(wrong)}); expected "
            "floating point: is it quantised, or of another program?"
        )


def read_checkpoint(path: Path, flag: str, peek: bool = False) -> dict[str, Any]:
    """Read everything in a training checkpoint, never running code from it.

    With ``peek``, tensors stay on the disk and their checksums are left alone: for what else is in it.

    Raises:
        UserError: as `read_weights`.
    """
    with _read_errors(path, flag), torch.serialization.safe_globals([argparse.Namespace]):
        if not peek:
            check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=peek)
        check_extent(tree_leaves(checkpoint), path)
    known = isinstance(checkpoint, dict) and isinstance(
        checkpoint.get("args") or {}, (dict, argparse.Namespace)
    )
    if not known:
        raise UserError(f"{flag} {path}: not a training checkpoint of this program or of timm")
    return checkpoint


@contextlib.contextmanager
def _read_errors(path: Path, flag: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its readers stumble on into a `UserError`, in words of our own: torch's tell
    how to run what is in the file.
    """
    try:
        check_regular(path)
        yield
    except Exception as error:
        # what torch says of a pickle is in the error, or in what it was raised from
        text = f"{error} {error.__cause__ or ''}"
        if isinstance(error, DamagedArchive) or text.startswith("refused: a tensor"):
            reason = str(error)
        elif isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read as a checkpoint: {error.strerror}"
        elif any(
            word in text for word in ("TorchScript", "nsupported global", "nsupported GLOBAL")
        ):
            reason = (
                "refused: it is a pickle that would run code when loaded, or a TorchScript archive, which holds "
                "code; expected tensors only"
            )
        else:
            reason = (
                "cannot be read as a checkpoint: empty, truncated, damaged, of another kind, or a pickle that "
                "would run code when loaded; expected a file of torch.save or safetensors"
            )
        raise UserError(f"{flag} {path}: {reason}") from error


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint: a number, and names of those that did not fit."""

    path: str
    matched: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        parts = [f"{self.path}: {self.matched} matched"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} ({first_of(names)})")
        return ", ".join(parts)


def load_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    path: str,
    flag: str,
    *,
    allow: tuple[str, ...] = (),
) -> LoadReport:
    """Load a state dict and report what matched; ``allow`` names prefixes of keys that may differ.

    Raises:
        UserError: nothing matched, or keys outside ``allow`` did not; the message names keys and shapes.
    """
    # What fits by name and shape, and what does not. Counters of batch norm came late to torch: old files lack them.
    expected = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in expected and expected[name].shape == value.shape
    }
    check_kinds(model, kinds_of(fitting), path, flag)
    report = LoadReport(
        path=path,
        matched=len(fitting),
        missing=[
            name
            for name in expected
            if name not in state and not name.endswith("num_batches_tracked")
        ],
        unexpected=[name for name in state if name not in expected],
        mismatched=[name for name in state if name in expected and name not in fitting],
    )
    # All must fit, but for what is allowed to differ.
    wrong = [
        name
        for name in (*report.missing, *report.unexpected, *report.mismatched)
        if not (allow and name.startswith(allow))
    ]
    if wrong or not fitting:
        sizes = [
            f"; {name} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in report.mismatched
            if name in wrong
        ]
        raise UserError(f"{flag} {report}: does not fit {type(model).__name__}{''.join(sizes[:1])}")
    model.load_state_dict(fitting, strict=False)
    return report


def check_finite(state: dict[str, Tensor], path: str, flag: str) -> None:
    """Raise a `UserError` for weights that are not finite, those of a run that has diverged."""
    # NaN in one tensor is NaN in every answer.
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{flag} {path}: {len(broken)} of its {len(state)} tensors have values that are not finite "
            f"({first_of(broken)}); take an earlier checkpoint"
        )


def check_loaded(model: nn.Module, state: dict[str, Tensor], path: str, flag: str) -> None:
    """Raise a `UserError` when nothing of ``state`` is in the model; timm renames and resizes what it loads."""
    # Names and sizes may be others than in the file, so values are compared.
    check_kinds(model, kinds_of(state), path, flag)
    # Vectors are left out: ones and zeros of a norm are in every model.
    matrices = [value for value in state.values() if value.ndim > 1]
    loaded = list(model.state_dict().values())
    if not any(torch.equal(value, weight) for value in matrices for weight in loaded):
        raise UserError(
            f"{flag} {path}: does not fit {type(model).__name__}: none of its tensors was loaded, such as "
            f"{next(iter(state))}; expected such as {next(iter(model.state_dict()))}"
        )


def adapt_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published checkpoint under timm's names and sizes, where timm knows how (position embeddings)."""
    # The filter that timm itself applies to what is published for the architecture.
    convert = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    # It is given a copy, from which it may have taken some when it fails. A layout that it does not know stays as it
    # is, and what does not fit is told when it is loaded.
    try:
        return convert(dict(state), model)
    except (KeyError, RuntimeError, AssertionError):
        return state


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return the name prefixes of the model's classification head."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    if isinstance(names, str):
        names = (names,)
    return tuple(f"{name}." for name in names)


# ---------------------------------------------------------------- what is recorded beside weights


def architecture_of(path: Path, flag: str) -> str:
    """Return the model of timm that a checkpoint of a run is of. Raises `UserError` where it does not say so."""
    saved = _saved_flags(path, flag, peek=True)
    if not saved.get("model"):
        raise UserError(
            f"{flag} {path}: does not say which model it is of; expected --teacher NAME with "
            "--teacher-checkpoint FILE"
        )
    # it may come from others: the name of one model, and no address
    typed = typed_flags({"model": saved["model"]}, f"{flag} {path}: its flags")
    refuse_addresses(typed, {"model": "model"}, f"{flag} {path}")
    return str(typed["model"])


class Recorded(NamedTuple):
    """What is known about the model of a checkpoint; nothing where nothing is.

    Args:
        inputs: how its images are made, some of `INPUT_KEYS`.
        num_classes: as many as it has.
        model_kwargs: arguments of its constructor.
        target_kind: what its labels are.
    """

    inputs: dict[str, Any]
    num_classes: int | None
    model_kwargs: dict[str, Any]
    target_kind: TargetKind | None = None


def kind_beside(path: Path, flag: str) -> TargetKind | None:
    """Return what is recorded beside weights of their labels; None if nothing known is. Weights stay on the disk."""
    if path.suffix == ".safetensors":
        config = path.parent / "config.json"
        return recorded_kind(config) if config.is_file() else None
    # an older checkpoint is no archive, of which a part could be read
    return _kind_of_flags(_saved_flags(path, flag, peek=zipfile.is_zipfile(path)))


def _kind_of_flags(saved: Mapping[str, Any]) -> TargetKind | None:
    # other programs call something else a task
    task = saved.get("task")
    return KINDS.get(task) if isinstance(task, str) else None


def settings_beside(path: Path, flag: str) -> Recorded:
    """Return what is known about the inputs and classes of a checkpoint: from a run's ``args``, or from an export."""
    # An export has a config.json beside it.
    if path.suffix == ".safetensors":
        config = path.parent / "config.json"
        if not config.is_file():
            return Recorded({}, None, {})
        _, recorded, model_kwargs = read_model_config(config, f"{flag} {config}")
        model_kwargs.pop("num_classes", None)
        kind = recorded_kind(config)
    else:
        # A checkpoint has the flags of its run. A tensor in their place would be copied with them wherever they go.
        saved = _saved_flags(path, flag)
        if any(isinstance(value, Tensor) for value in tree_leaves(saved)):
            return Recorded({}, None, {})
        names = (*INPUT_KEYS, "num_classes", "model_kwargs", "gp")
        flags = {name: saved[name] for name in names if saved.get(name) not in (None, "", {})}
        kind = _kind_of_flags(saved)
        recorded = typed_flags(flags, f"{flag} {path}: its flags")
        check_fields(recorded, COMMON_ARGS, f"{flag} {path}: its flags")
        model_kwargs = recorded.get("model_kwargs", {})
        if recorded.get("gp"):
            model_kwargs = {"global_pool": recorded["gp"], **model_kwargs}
    inputs = {name: recorded[name] for name in INPUT_KEYS if recorded.get(name) is not None}
    return Recorded(inputs, recorded.get("num_classes"), model_kwargs, kind)


def _saved_flags(path: Path, flag: str, peek: bool = False) -> dict[str, Any]:
    """Return the flags in a training checkpoint, which timm keeps as a Namespace."""
    saved = read_checkpoint(path, flag, peek).get("args") or {}
    return vars(saved) if isinstance(saved, argparse.Namespace) else saved
