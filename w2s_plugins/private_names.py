"""Names of timm, torch and onnx that are private there, and may vanish with any version of theirs.

They are imported here and nowhere else. `tests/test_private_names.py` says which of them a new version lacks.
"""
# ruff: noqa: F401  (others import them from here)

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

# ---------------------------------------------------------------- timm: data
# the names of a split that timm takes for one: "val", "valid", "validation", "eval", ...
from timm.data.dataset_factory import _EVAL_SYNONYM as EVAL_SYNONYMS
from timm.data.dataset_factory import _TRAIN_SYNONYM as TRAIN_SYNONYMS

# the folder of a split; the root where there is none, which would be training data taken for test data
from timm.data.dataset_factory import _search_split as search_split

# ---------------------------------------------------------------- timm: models
# which feature levels are asked for, counted from either end
from timm.models._features import feature_take_indices

# which files of weights timm takes, the first one that a repository has
from timm.models._hub import HF_WEIGHTS_NAME, download_from_hf, hf_split
from timm.models._hub import _get_safe_alternatives as safe_alternatives

# config.json of the Hub in one form, whatever its age; without the code and addresses that it may name
from timm.models._hub import _parse_model_cfg as parse_model_cfg

# ---------------------------------------------------------------- timm: evaluation
# average precision of each class, and the rows of all ranks one rank after the other
from timm.task.evaluator import _average_precision as average_precision_columns
from timm.task.evaluator import _gather_rows as gather_rows

# ---------------------------------------------------------------- torch
# a copy of many tensors at once, and what sorts them by device and dtype for it
from torch import _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]  # this file is for such

# whether an x86 CPU multiplies bfloat16 in hardware
from torch.cpu import _is_amx_tile_supported as is_amx_tile_supported
from torch.cpu import _is_avx512_bf16_supported as is_avx512_bf16_supported

# where processes count each other, without the time limit of an exchange
from torch.distributed.distributed_c10d import _get_default_store as get_default_store
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

# every operation on tensors, to see who reads what
from torch.utils._python_dispatch import TorchDispatchMode

# all tensors in nested containers, and the same containers with other tensors
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, by one call a device and dtype: of a mixture CUDA would copy one by one."""
    pairs: list[list[Tensor | None]] = [[*targets], [*sources]]
    for (into, values), _ in _group_tensors_by_device_and_dtype(pairs).values():
        _foreach_copy_(into, values)  # pyright: ignore[reportArgumentType]  # None of them is None


def onnx_tensors(model: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    """Return all tensors of a model, also those in attributes and in graphs within it. onnx is optional."""
    from onnx.external_data_helper import _get_all_tensors

    return _get_all_tensors(model)
