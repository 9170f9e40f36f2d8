"""Models and weights: what is created, what is loaded into it, and a report of both."""

import argparse
import contextlib
import inspect
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import timm
import torch
from timm.models import (
    clean_state_dict,
    get_pretrained_cfg_value,
    load_state_dict,
    parse_model_name,
    resolve_model_input_args,
    split_model_name_tag,
)
from timm.models._hub import download_from_hf
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import models  # noqa: F401  (importing registers the small networks with timm)
from ..cli.declare import Role
from ..cli.forms import parse_adapters
from ..cli.parser import train_parser
from ..errors import UserError, name_runs, near_path, one_line
from ..files import DamagedArchive, check_archive, check_count, check_extent, check_regular, file_sha256
from ..hub.errors import on_hub
from ..hub.export import check_export
from ..hub.source import hub_source
from .foreign import check_model_args, read_model_config, typed_flags
from .merged import has_adapters, merge_state
from .shards import RUN_FILE, is_sharded, read_section

# of a run folder: the export is the checkpoint that the run selected
WEIGHT_FILES = ("export/model.safetensors", "model.safetensors", "last.pth.tar", "last.sharded", "model_best.pth.tar")
# settings of a run that say how the inputs of its checkpoint are made
INPUT_KEYS = sorted(train_parser().names(Role.INPUT))


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names as a text."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint."""

    path: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.matched} matched"]
        for name in ("missing", "unexpected", "mismatched"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name} ({first_of(keys)})")
        return f"{self.path}: {', '.join(parts)}"


def create_model(flag: str, name: str, /, *, pretrained: bool, inputs: Mapping[str, object] | None = None,
                 recorded: Mapping[str, object] | None = None, **kwargs: object) -> nn.Module:
    """Create a timm model, with errors for the person who named it.

    Of the config.json of a repository or folder only what `read_model_config` allows reaches timm, and weights come
    from there alone.

    Args:
        flag: the flag that named the model.
        name: timm name, ``hf-hub:ORG/NAME[@REVISION]`` or ``local-dir:PATH``.
        pretrained: load its weights.
        inputs: requests such as ``img_size`` and ``in_chans``; also resizes models of fixed size.
        recorded: arguments that a checkpoint or a run names; only those of the architecture are taken.
        **kwargs: further arguments of `timm.create_model`, of the user's; None is left out.

    Raises:
        UserError: unknown model or argument, weights that cannot be had.
    """
    # A folder is looked at before timm reads it.
    source, place = parse_model_name(name)
    if source == "local-dir":
        if not (Path(place) / "config.json").is_file():
            raise UserError(f"{flag} {name}: no config.json in that folder; expected a folder in timm's export format")
        if pretrained:
            check_folder(Path(place), flag)
    own = {key: value for key, value in kwargs.items() if value is not None}

    def create() -> nn.Module:
        # What files say is checked, and what the user says wins over it.
        architecture, described = _described_model(flag, name, own)
        theirs = {key: value for key, value in (recorded or {}).items() if key not in own}
        if theirs:
            theirs = check_model_args(
                split_model_name_tag(architecture)[0], theirs, f"{flag} {name}: arguments beside its weights")
        # timm makes it, and brings it to the size of the images.
        resolved = resolve_model_input_args(architecture, args=dict(inputs or {}), **{**described, **own, **theirs})
        model = timm.create_model(pretrained=pretrained, **resolved)
        # The bytes are compared with what the Hub announced.
        if pretrained:
            hub_source(model, name)
        return model

    try:
        return on_hub(f"{flag} {name}", create)
    except UserError:
        raise
    except Exception as error:  # odd arguments and damaged files fail in many ways
        text = one_line(error)
        if "No pretrained weights exist" in text or "Invalid pretrained config" in text:
            raise UserError(f"{flag} {name}: timm has no pretrained weights for it; give a file of weights") from error
        if isinstance(error, (URLError, TimeoutError)):  # not of the Hub, whose client is another
            raise UserError(f"{flag} {name}: {get_pretrained_cfg_value(name, 'url')} cannot be had ({text}); put that "
                            f"file into {torch.hub.get_dir()}/checkpoints") from error
        raise UserError(f"{flag} {name}: cannot be created: {text}") from error


def _described_model(flag: str, name: str, given: Container[str]) -> tuple[str, dict[str, object]]:
    """Return the architecture, or timm's own name, that ``name`` stands for, and arguments of `timm.create_model`, but
    for those that are ``given``.
    """
    source, place = parse_model_name(name)
    if source is None:
        return name, {}
    # What the model is, by its config.json.
    hub = source == "hf-hub"
    path = download_from_hf(place, "config.json") if hub else Path(place) / "config.json"
    architecture, cfg, model_args = read_model_config(Path(path), f"{flag} {name}: its config.json", given)
    # A number of classes takes memory: in a folder its weights stand behind it, of a repository, whose weights may not
    # be here yet, the names of the classes.
    if hub:
        beside = len(cfg.get("label_names") or ())
    else:
        beside = sum(file.stat().st_size for file in Path(place).iterdir() if file.is_file())
    check_count(cfg.get("num_classes") or 0, beside, f"{flag} {name}: classes in its config.json")
    # Where its weights lie is what the user named, whatever the file says.
    cfg = {**cfg, "source": source, "hf_hub_id" if hub else "file": place}
    return architecture, {**model_args, "pretrained_cfg": cfg, "pretrained_model_args": model_args}


@torch.no_grad()
def check_input_size(model: nn.Module, size: tuple[int, ...], flag: str) -> None:
    """Raise a `UserError` unless the model takes images of ``size`` (C, H, W); many say so only when they are run."""
    some, training = next(model.parameters(), torch.empty(0)), model.training
    try:
        model.eval()(torch.zeros(1, *size, device=some.device, dtype=some.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{flag}: the model takes no images of {' x '.join(map(str, size))}: "
                        f"{one_line(error)}; give another image size") from error
    finally:
        model.train(training)


def find_weights(path: str, flag: str) -> Path:
    """Return the file of weights that ``path``, a file or a run folder, stands for.

    Raises:
        UserError: there is none.
    """
    # Of a run folder, the checkpoint that the run selected comes first.
    file = Path(path)
    if file.is_dir() and not is_sharded(file):
        for name in WEIGHT_FILES:
            if (file / name).is_file() or is_sharded(file / name):
                return file / name
        raise UserError(f"{flag} {path}: the folder has no checkpoint; expected one of {', '.join(WEIGHT_FILES)}"
                        f"{name_runs(file)}")
    if not file.exists():
        raise UserError(f"{flag} {path}: no such file{near_path(file)}")
    return file


def pretrained_source(model: nn.Module, name: str, flag: str) -> dict[str, str] | None:
    """Say where the pretrained weights of a model came from, with their SHA-256: as `hub_source`, or of a folder."""
    if not name.startswith("local-dir:"):
        return hub_source(model, name)
    file = find_weights(name.removeprefix("local-dir:"), flag)
    return {"file": str(file), "sha256": file_sha256(file)}


def check_folder(folder: Path, flag: str) -> None:
    """Look at the files of a folder in timm's export format before timm reads them.

    Raises:
        UserError: an archive or the export of a run is damaged.
    """
    check_export(folder, flag)
    for path in (*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")):
        with _read_errors(path, flag):
            check_archive(path)


def read_weights(
        path: Path, flag: str, use_ema: bool = False, keep_adapters: bool = False) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a checkpoint, never running code from it.

    DDP and compile prefixes are removed; the state may be plain or under ``state_dict``, ``state_dict_ema``, ``model``,
    or, of self-distillation, ``teacher`` or ``student``. Adapters are added to the weights, unless the run itself asks
    to ``keep_adapters``.

    Raises:
        UserError: truncated, not a checkpoint, a pickle that would run code, or quantised weights.
    """
    # Shards are put together; a file is one of torch.save or safetensors.
    if is_sharded(path):
        averaged = use_ema and has_ema(path, flag)
        state = read_section(path, "state_dict_ema" if averaged else "state_dict", flag)
    else:
        state = _read_state(path, flag, use_ema)
    # torch would take quantised numbers as they are, without the scales that belong to them.
    packed = [f"{name} is {value.dtype}" for name, value in state.items() if value.dtype.itemsize == 1 and (
        name.endswith("weight") or value.is_floating_point())]
    if packed:
        raise UserError(f"{flag} {path}: has quantised weights ({packed[0]}, {len(packed)} in all), of which a student "
                        "cannot be made; expected weights in float32, float16 or bfloat16")
    return state if keep_adapters or not has_adapters(state) else _merged(state, path, flag)


def _read_state(path: Path, flag: str, use_ema: bool) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        check_export(path.parent, flag)
    with _read_errors(path, flag), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*TorchScript archive")  # the error that follows says it
        check_archive(path)
        # timm finds the state within a checkpoint; self-distillation has two, of which the teacher counts.
        state = load_state_dict(str(path), use_ema=use_ema, device="cpu", weights_only=True)
        nested = [state[key] for key in ("teacher", "student") if isinstance(state.get(key), dict)]
        state = clean_state_dict(nested[0]) if nested else state
        check_extent(tree_leaves(state), path)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{flag} {path}: holds no tensors; expected a state dict, plain or under state_dict or model")
    return tensors


def _merged(state: dict[str, Tensor], path: Path, flag: str) -> dict[str, Tensor]:
    # How the adapters are scaled is known from the run's own flags alone.
    flags = {} if path.suffix == ".safetensors" else _flags_beside(path, flag, ("tune",))
    try:
        return merge_state(state, **parse_adapters(flags["tune"]))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{flag} {path}: has adapters without the weights or the settings that go with them; expected "
                        "last.pth.tar of the run, or its export, export/model.safetensors") from error


def has_ema(path: Path, flag: str) -> bool:
    """True when a checkpoint also holds averaged weights."""
    return path.suffix != ".safetensors" and read_checkpoint(path, flag).get("state_dict_ema") is not None


def read_checkpoint(path: Path, flag: str, peek: bool = False) -> dict[str, object]:
    """Read everything in a training checkpoint, never running code from it.

    With ``peek``, tensors stay on the disk and their checksums are left alone: for what else is in it.

    Raises:
        UserError: as `read_weights`.
    """
    path = path / RUN_FILE if is_sharded(path) else path
    with _read_errors(path, flag), torch.serialization.safe_globals([argparse.Namespace]):
        if not peek:
            check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=peek)
        check_extent(tree_leaves(checkpoint), path)
    # Flags are plain values: a tensor in their place would be copied with them wherever they go.
    flags = _flags_of(checkpoint) if isinstance(checkpoint, dict) else None
    if flags is None or any(isinstance(value, Tensor) for value in tree_leaves(flags)):
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
        text = f"{error} {error.__cause__ or ''}"
        if isinstance(error, DamagedArchive) or text.startswith("refused: a tensor"):
            reason = str(error)
        elif isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read as a checkpoint: {error.strerror}"
        elif "TorchScript" in text or "nsupported global" in text or "nsupported GLOBAL" in text:
            reason = ("refused: it is a pickle that would run code when loaded, or a TorchScript archive, which holds "
                      "code; expected tensors only")
        else:
            reason = ("cannot be read as a checkpoint: empty, truncated, damaged, of another kind, or a pickle that "
                      "would run code when loaded; expected a file of torch.save or safetensors")
        raise UserError(f"{flag} {path}: {reason}") from error


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
    # What fits by name and shape, and what does not.
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    report = LoadReport(
        path=path,
        matched=len(fitting),
        missing=[name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        unexpected=[name for name in state if name not in own],
        mismatched=[name for name in state if name in own and name not in fitting],
    )
    # All must fit, but for what is allowed to differ.
    details = []
    for kind in ("missing", "unexpected", "mismatched"):
        wrong = [name for name in getattr(report, kind) if not (allow and name.startswith(allow))]
        if wrong:
            details.append(f"{len(wrong)} {kind} ({wrong[0]})")
        if wrong and kind == "mismatched":
            details.append(f"it is {tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}")
    if details or not fitting:
        raise UserError(f"{flag} {path}: does not fit {type(model).__name__}: {len(fitting)} of {len(own)} tensors "
                        f"matched; {'; '.join(details) or 'no key in common'}")
    model.load_state_dict(fitting, strict=False)
    return report


def check_finite(state: dict[str, Tensor], path: str, flag: str) -> None:
    """Raise a `UserError` for weights that are not finite, those of a run that has diverged."""
    # NaN in one tensor is NaN in every answer.
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{flag} {path}: {len(broken)} of its {len(state)} tensors have values that are not finite "
                        f"({first_of(broken)}); take an earlier checkpoint")


def check_loaded(model: nn.Module, state: dict[str, Tensor], path: str, flag: str) -> None:
    """Raise a `UserError` when nothing of ``state`` is in the model; timm renames and resizes what it loads."""
    # Names and sizes may be others than in the file, so values are compared.
    loaded = list(model.state_dict().values())
    if not any(torch.equal(value, own) for value in state.values() if value.ndim > 1 for own in loaded):
        raise UserError(f"{flag} {path}: does not fit {type(model).__name__}: none of its tensors was loaded, such as "
                        f"{next(iter(state))}; expected such as {next(iter(model.state_dict()))}")


def adapt_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published checkpoint under timm's names and sizes, where timm knows how (position embeddings)."""
    # The filter that timm itself applies to what is published for the architecture.
    convert = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    try:
        return convert(dict(state), model) if convert else state  # it may have taken out some when it fails
    except (KeyError, RuntimeError, AssertionError):
        return state  # of another layout; what does not fit is told when it is loaded


def unwrap_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model in a checkpoint of Lightning, which has them under ``model.``."""
    # A model of which something is named as in the file is not wrapped.
    inside = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return inside if inside and model.state_dict().keys().isdisjoint(state) else state


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return the name prefixes of the model's classification head."""
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def settings_beside(path: Path, flag: str, given: Container[str] = ()) -> dict[str, object]:
    """Return what is known about the inputs and classes of a checkpoint: from a run's ``args``, or from an export.

    Returns:
        Some of `INPUT_KEYS`, ``num_classes``, ``model_kwargs``; empty when nothing is known.
    """
    # An export has a config.json beside it.
    if path.suffix == ".safetensors":
        config = path.parent / "config.json"
        if not config.is_file():
            return {}
        _, cfg, model_args = read_model_config(config, f"{flag} {config}", given)
        found = {key: cfg[key] for key in (*INPUT_KEYS, "num_classes") if cfg.get(key) is not None}
        model_args.pop("num_classes", None)
        return {**found, "model_kwargs": model_args}
    # A checkpoint has the flags of its run.
    found = _flags_beside(path, flag, (*INPUT_KEYS, "num_classes", "model_kwargs", "gp"))
    check_count(found.get("num_classes") or 0, path.stat().st_size, f"{flag} {path}: its classes, by its bytes")
    if pool := found.pop("gp", None):
        found["model_kwargs"] = {"global_pool": pool, **found.get("model_kwargs", {})}
    return found


def _flags_of(checkpoint: Mapping[str, object]) -> object:
    """Return the flags that a training checkpoint has recorded, which timm keeps as a Namespace."""
    flags = checkpoint.get("args") or {}
    return vars(flags) if isinstance(flags, argparse.Namespace) else flags


def _flags_beside(path: Path, flag: str, names: Iterable[str]) -> dict[str, object]:
    """Return those of some flags that a checkpoint says something of."""
    saved = _flags_of(read_checkpoint(path, flag))
    saved = saved if isinstance(saved, dict) else {}
    return typed_flags({k: saved[k] for k in names if saved.get(k) not in (None, "", {})}, f"{flag} {path}: its flags")
