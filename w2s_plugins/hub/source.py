"""Where the weights of a model came from."""

import re
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import parse_model_name

from ..errors import UserError
from ..files import file_sha256
from ..private_names import HF_WEIGHTS_NAME, hf_split, safe_alternatives


def hub_source(model: torch.nn.Module, name: str) -> dict[str, str] | None:
    """Say which file of which commit the pretrained weights of a timm model came from.

    Args:
        model: just created by ``timm.create_model(name, pretrained=True)``.
        name: timm's own, or ``hf-hub:ORG/NAME[@REVISION]``.

    Returns:
        ``{"repo", "revision" (commit hash), "file", "sha256"}``; None where they are not from the Hub.

    Raises:
        UserError: the cached file is not the one the Hub announced (large files are stored under their hash).
    """
    # A name of timm alone leads to the repository by its configuration, where it has one.
    kind, model_id = parse_model_name(name)
    cfg = getattr(model, "pretrained_cfg", {})
    if kind is None:
        model_id = cfg.get("hf_hub_id")
    if kind == "local-dir" or cfg.get("file") or not model_id:
        return None

    # timm takes the first of these files that the repository has
    repo, revision = hf_split(model_id)
    wanted = cfg.get("hf_hub_filename") or HF_WEIGHTS_NAME
    for file in (*safe_alternatives(wanted), wanted):
        path = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(path, str):
            commit = Path(path).parents[len(Path(file).parts) - 1].name
            return {
                "repo": repo,
                "revision": commit,
                "file": file,
                "sha256": check_download(Path(path), name),
            }
    return None


def check_download(path: Path, what: str) -> str:
    """Return the SHA-256 of a file in the cache. Raises `UserError` where the Hub announced another one."""
    # a large file lies under its announced hash in the cache, and its name is a link to that
    digest = file_sha256(path)
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob) and blob != digest:
        for damaged in (path.resolve(), path):
            damaged.unlink(missing_ok=True)
        raise UserError(
            f"{what}: {path.name} was damaged on its way, its SHA-256 is {digest} and the Hub "
            f"announced {blob}; the file is removed from the cache, try again"
        )
    return digest
