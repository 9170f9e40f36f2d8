"""`--clean-select` by what a model makes of the training samples: features or losses of all of them, once."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import labels_of
from ..errors import UserError
from ..labels.format import Part
from ..labels.selection import agrees_with_neighbours, has_small_loss
from ..models.class_names import match_classes, names_of_model
from ..models.loading import check_input_size
from .stored import Pass, label_images
from .teacher import Teacher, combine, load_frozen_model

_logger = logging.getLogger(__name__)

Progress = Callable[[str], Callable[[Sequence], Sequence] | None]
LOG_SECONDS = 20


class FrozenModel(nn.Module):
    """A frozen model on images in its own form.

    Args:
        model: a timm model.
        data_config: timm's data configuration of the model.
        source: where it came from, for the record.
        flag: the flag that named it.
        features: return the pooled features in place of the logits.
        dtype: dtype it runs in.
        class_map: the class of the data for each class of the model, where their order differs.
    """

    def __init__(self, model: nn.Module, data_config: dict, source: dict, *, flag: str, features: bool,
                 dtype: torch.dtype = torch.float32, class_map: Tensor | None = None):
        super().__init__()
        missing = [m for m in ("forward_features", "forward_head") if features and not hasattr(model, m)]
        if missing:
            raise UserError(f"{flag}: {type(model).__name__} has no {missing[0]}: --clean-select knn needs a model "
                            "with timm's interface")
        self.model = model.eval().requires_grad_(False)
        self.data_config, self.source, self.features, self.dtype = data_config, source, features, dtype
        self.register_buffer("class_map", class_map, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) or logits (B, C) in float32."""
        images = images.to(self.dtype)
        if not self.features:
            output = self.model(images)
            logits = (output[0] if isinstance(output, (tuple, list)) else output).float()
            return logits if self.class_map is None else torch.empty_like(logits).index_copy_(
                1, self.class_map, logits)
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True).flatten(1).float()


def selection_models(
        rule: str,
        name: str | None,
        checkpoint: str | None,
        teacher: Teacher | None,
        *,
        in_chans: int,
        num_classes: int,
        class_names: list[str] | None,
        device: torch.device,
) -> list[nn.Module]:
    """Return the frozen models whose outputs decide: that of ``--clean-select-model``, else the teacher's.

    Args:
        rule: knn or small-loss.
        name: timm name, Hub id or ``local-dir:PATH``; None for the teacher.
        checkpoint: weights for ``name``.
        teacher: the teacher.
        in_chans: channels of the images.
        num_classes: classes of the data.
        class_names: their names, or None.
        device: where they run.

    Raises:
        UserError: several teachers have no common features; another number of classes.
    """
    by_features = rule == "knn"
    if name is None:
        if not by_features:
            for member in teacher.members:  # with their class maps
                if member.num_classes != num_classes:
                    raise UserError(f"--clean-select small-loss: the teacher has {member.num_classes} classes, the "
                                    f"data {num_classes}; name a model of the same ones with --clean-select-model")
            return list(teacher.members)
        if len(teacher.members) > 1:
            raise UserError("--clean-select knn: several teachers have no common features; name one model with "
                            "--clean-select-model")
        (member,) = teacher.members
        return [FrozenModel(member.model, member.data_config, member.source, flag="--teacher", features=True,
                            dtype=member.dtype)]
    flag = "--clean-select-model"
    model, data_config, source = load_frozen_model(
        name if checkpoint else find_export(name), checkpoint, in_chans, flags=(flag, "--clean-select-checkpoint"))
    if data_config["input_size"][0] != in_chans:
        raise UserError(f"{flag} {name}: it has {data_config['input_size'][0]} input channel(s), the data {in_chans}")
    check_input_size(model, data_config["input_size"], f"{flag} {name}")
    if not by_features and model.num_classes != num_classes:
        raise UserError(f"{flag} {name}: it has {model.num_classes} classes, the data {num_classes}; small-loss needs "
                        "a model of the same classes")
    class_map = None if by_features else match_classes(
        f"{flag} {name}", names_of_model(model, checkpoint, "--clean-select-checkpoint"), class_names)
    return [FrozenModel(model, data_config, source, flag=f"{flag} {name}", features=by_features, class_map=class_map
                        ).to(device)]


def select_by_model(
        rule: str,
        value: float,
        models: Sequence[nn.Module],
        dataset: Dataset,
        num_classes: int,
        how: Pass,
        progress: Progress = lambda text: None,
) -> Tensor:
    """Say which samples of a training set are selected; all ranks call this and get the same.

    Args:
        rule: knn or small-loss.
        value: K, or the share that is kept.
        models: those of `selection_models`.
        dataset: the training set; its transform is changed.
        num_classes: C.
        how: how the models go over the dataset.
        progress: takes a heading, returns what wraps a sequence to show progress.

    Returns:
        (N,) bool on the CPU.

    Raises:
        UserError: K is not below the number of samples; the model gives values that are not finite.
    """
    outputs = [outputs_of(model, dataset, how, progress("outputs for --clean-select")) for model in models]
    if not all(output.isfinite().all() for output in outputs):
        raise UserError(f"--clean-select {rule}: the model gives values that are not finite")
    labels, world = torch.tensor(labels_of(dataset)), how.world
    if rule == "small-loss":
        return has_small_loss(F.cross_entropy(combine(outputs), labels, reduction="none"), value)
    agrees = agrees_with_neighbours(
        outputs[0].to(world.device), labels.to(world.device), int(value), num_classes, rank=world.rank,
        world_size=world.size, progress=progress("neighbours"))
    if world.distributed:
        counts = agrees.to(torch.uint8)
        dist.all_reduce(counts)  # every sample was looked at by one rank
        agrees = counts > 0
    return agrees.cpu()


def outputs_of(
        model: nn.Module,
        dataset: Dataset,
        how: Pass,
        progress: Callable[[Sequence], Sequence] | None = None,
) -> Tensor:
    """Return the outputs (N, D) of a model for all samples, on the CPU of every rank; ranks divide the work.

    Every batch is of full size, whichever rank computes it, so that outputs do not depend on the number of ranks.
    """
    size, world = how.batch_size, how.world
    parts = [Part(0, first, min(first + size, len(dataset))) for first in range(0, len(dataset), size)]
    own = parts[world.rank::world.size]
    rows, started, said = [], time.monotonic(), time.monotonic()
    answers = label_images(model, dataset, how, own)
    for done, _ in enumerate(progress(own) if progress else own, start=1):
        rows.append(next(answers).values)
        now = time.monotonic()
        if now - said > LOG_SECONDS:
            said = now
            _logger.info(f"Clean selection: batch {done} of {len(own)}, "
                         f"{(now - started) / done * (len(own) - done):.0f} s left")
    if world.distributed:
        gathered: list[list[Tensor]] = [[]] * world.size
        dist.all_gather_object(gathered, rows)
        rows = [gathered[i % world.size][i // world.size] for i in range(len(parts))]
    return torch.cat(rows)


def find_export(name: str) -> str:
    """Return the timm name for ``--clean-select-model``, which may also be a run folder or an exported one.

    Raises:
        UserError: a folder with no export, or a file, which does not say what model it is of.
    """
    path = Path(name)
    if path.is_file():
        raise UserError(f"--clean-select-model {name}: a file does not say what model it is of; give the name, and the "
                        f"file with --clean-select-checkpoint {name}")
    if not path.is_dir():
        return name
    for folder in (path / "export", path):
        if (folder / "config.json").is_file():
            return f"local-dir:{folder}"
    raise UserError(f"--clean-select-model {name}: the folder has no export (config.json); expected a run that has "
                    "ended, or a folder in timm's export format")
