"""Who a model is: what its stored answers are found again by."""

import hashlib
import logging
import uuid

from timm.models import is_model, model_entrypoint
from torch import nn

from ..errors import UserError
from ..models.loading import hash_tensors
from .teacher import TeacherModel

_logger = logging.getLogger(__name__)

KNOWN_CODE = ("timm", "torch", "torchvision", "w2s_plugins")  # packages whose models state_dict and repr identify


def teacher_identity(member: TeacherModel) -> dict[str, object]:
    """Identify a model of the teacher by its architecture, weights, class map and dtype.

    It is found once, for such a model does not change. These do not tell all about a model with code of a plugin, so
    such a model says itself what it is, see `plugin_identity`.
    """
    if member.identity is None:
        member.identity = _identify(member)
    return member.identity


def _identify(member: TeacherModel) -> dict[str, object]:
    architecture = getattr(member.model, "pretrained_cfg", {}).get("architecture") or type(member.model).__name__
    pool = getattr(member.model, "global_pool", None)
    return dict(
        architecture=architecture,
        **({"pool": pool} if isinstance(pool, str) else {}),  # where no module does it
        modules=hashlib.sha256(repr(member.model).encode()).hexdigest(),
        sha256=hash_tensors(member.model.state_dict()),
        class_map=None if member.class_map is None else member.class_map.tolist(),
        dtype=str(member.dtype).removeprefix("torch."),
        **plugin_identity(member.model, (member.source or {}).get("name")),
    )


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
    module = foreign_code(model, name)
    if module is None and not hasattr(model, "cache_identity"):
        return {}
    if not hasattr(model, "cache_identity"):
        _logger.info(f"Model {name or type(model).__name__} is code of {module} without a cache_identity(): what is "
                     "stored of its outputs is for this run only")
        return dict(plugin=f"run {uuid.uuid4().hex}")
    identity = model.cache_identity()
    if not isinstance(identity, str) or not identity:
        raise UserError(f"cache_identity() of {type(model).__name__} ({module}) returned {str(identity)[:40]!r}, "
                        "expected a text that names the version of its code and data")
    return dict(plugin=identity)


def foreign_code(model: nn.Module, name: str | None = None) -> str | None:
    """Return the module whose code a model runs when it is none of `KNOWN_CODE`, else None.

    Args:
        model: the model.
        name: by which timm made it.
    """
    names = [n.partition(".")[0] for n in (name or "", str(getattr(model, "pretrained_cfg", {}).get("architecture")))]
    code = [model_entrypoint(n) for n in names if is_model(n)]
    for part in model.modules():
        code += [type(part), *part._forward_hooks.values(), *part._forward_pre_hooks.values(),
                 *(value for key, value in vars(part).items() if key.startswith("forward") and callable(value))]
    modules = [getattr(item, "__module__", None) or type(item).__module__ for item in code]
    return next((module for module in modules if module.partition(".")[0] not in KNOWN_CODE), None)
