"""Who a model is: what is stored of it is found again by this, and a run goes on with the models that it began with.

There is one notion. A fingerprint is a plain dictionary of the architecture, all arguments of its constructor, the code
beside it and the SHA-256 of its weights; whoever uses a model in a certain way adds that (`TeacherModel.fingerprint`:
dtype, classes). It is written beside everything that is stored of the model, and compared wherever that is used again.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from timm.models import get_model_args, is_model, model_entrypoint
from torch import Tensor, nn

from ..errors import UserError, logger
from ..files import file_sha256
from ..private_names import onnx_tensors

# packages whose models state_dict and repr identify
KNOWN_CODE = ("peft", "timm", "torch", "torchvision", "w2s_plugins")
# begins the identity of code that does not say what it is: another one in every process
THIS_RUN = "this run alone: "
# what differs from device to device, or is compared as a flag, while the model is still the same one
OF_THIS_USE = ("dtype", "modules")


def fingerprint(model: nn.Module, name: str | None = None) -> dict[str, object]:
    """Identify a model by its architecture, the arguments of its constructor, its code and its weights.

    These do not tell all about a model with code of a plugin, so such a model says itself what it is, see
    `plugin_identity`.

    Args:
        model: with its weights.
        name: by which timm made it.
    """
    cfg = getattr(model, "pretrained_cfg", {})
    return dict(
        architecture=cfg.get("architecture") or type(model).__name__,
        arguments=constructor_arguments(model),
        modules=hashlib.sha256(repr(model).encode()).hexdigest(),
        sha256=hash_tensors(model.state_dict()),
        **adapters_identity(model),
        **plugin_identity(model, name),
    )


def adapters_identity(model: nn.Module) -> dict[str, str]:
    """Identify the code of PEFT's adapters in a model and what scales them, nothing for a model without."""
    scales = [
        str(getattr(part, "scaling", ""))
        for part in model.modules()
        if type(part).__module__.startswith("peft.")
    ]
    return {"adapters": f"peft {version('peft')} {' '.join(scales)}"} if scales else {}


def constructor_arguments(model: nn.Module) -> dict[str, dict[str, object]]:
    """Return the arguments that timm made a model with, and those within it, as they are by now, by their names in it.

    The number of classes is left out: the weights say it.
    """
    # A model within another one, which a plugin may wrap around it, was made with arguments of its own.
    arguments = {}
    for name, part in model.named_modules():
        if hasattr(part, "pretrained_cfg"):
            of_part = get_model_args(part)
            of_part.pop("num_classes", None)
            arguments[name] = of_part
    return arguments


def plugin_identity(model: nn.Module, name: str | None) -> dict[str, str]:
    """Identify the code and data of a model that comes from a plugin, nothing for those of timm and of this project.

    The model's method ``cache_identity()`` returns a text that is another one whenever anything changes that is neither
    in its ``state_dict`` nor in its ``repr``. Without that method the identity is of this run alone: what other runs
    have stored is not found, nor is it found by them.

    Args:
        model: the model.
        name: by which timm made it.

    Raises:
        UserError: the method returns something else.
    """
    # Code of known packages is identified by state and repr.
    module = foreign_code(model, name)
    cache_identity = getattr(model, "cache_identity", None)
    if module is None and cache_identity is None:
        return {}
    # Code that does not say what it is may be another one tomorrow.
    if cache_identity is None:
        logger.info(
            f"Model {name or type(model).__name__} is code of {module} without a "
            "cache_identity(): what is stored of its outputs is for this run only"
        )
        return dict(plugin=f"{THIS_RUN}{uuid.uuid4().hex}")
    identity = cache_identity()
    if not isinstance(identity, str) or not identity:
        raise UserError(
            f"cache_identity() of {type(model).__name__} ({module}) returned "
            f"{str(identity)[:40]!r}, expected a text that names the version of its code and data"
        )
    return dict(plugin=identity)


def foreign_code(model: nn.Module, name: str | None = None) -> str | None:
    """Return the module whose code a model runs when it is none of `KNOWN_CODE`, else None.

    Args:
        model: the model.
        name: by which timm made it.
    """
    # What built it, and whatever runs in its forward pass: classes, and functions that are set in place of forward.
    architecture = str(getattr(model, "pretrained_cfg", {}).get("architecture"))
    entries = [text.partition(".")[0] for text in (name or "", architecture)]
    code = [model_entrypoint(entry) for entry in entries if is_model(entry)]
    for part in model.modules():
        code.append(type(part))
        for key, value in vars(part).items():
            if key.startswith("forward") and callable(value):
                code.append(value)
    modules = [getattr(item, "__module__", None) or type(item).__module__ for item in code]
    foreign = (module for module in modules if module.partition(".")[0] not in KNOWN_CODE)
    return next(foreign, None)


def digest(fingerprints: Iterable[Mapping[str, object]]) -> str:
    """Return one text for some models, that a run which goes on compares.

    What may be another on another device, and code that does not say what it is, are left out.
    """
    # A run goes on with the same models on another device, too.
    kept = []
    for of_model in fingerprints:
        lasting = {
            key: value
            for key, value in of_model.items()
            if key not in OF_THIS_USE and not str(value).startswith(THIS_RUN)
        }
        kept.append(lasting)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, shapes and dtypes."""
    sha256 = hashlib.sha256()
    for name, tensor in tensors.items():
        # The bytes as they are, whatever the dtype.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha256.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if flat.numel():
            sha256.update(flat.view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def files_sha256(files: Iterable[Path]) -> str | None:
    """Return the hash of a file, or of the hashes of several in the order of their names; None where there is none."""
    hashes = [file_sha256(file) for file in sorted(files)]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def onnx_files(file: Path) -> list[Path]:
    """Return a file of ONNX and those beside it that hold its weights, by the names in it."""
    import onnx

    # Without the weights themselves, which may be larger than memory.
    model = onnx.load(file, load_external_data=False)
    names = set()
    for tensor in onnx_tensors(model):
        names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return [file, *(file.parent / name for name in sorted(names))]
