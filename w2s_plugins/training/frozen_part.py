"""Is the frozen part of a student run once, before training, or in every step?"""

import shutil

from torch.utils.data import IterableDataset

from ..data.datasets import is_unlabeled, labels_of
from ..data.map_style import AnyDataset, classes_of_samples
from ..distributed.world import Precision, World, broadcast_from_rank0
from ..errors import logger
from ..settings.composite import TrainSettings
from ..settings.terms import MIXING, SEMI_SUPERVISED, in_use
from ..students.frozen import FrozenPart, find_frozen_part
from .loaders import Loaders, answer_store, load_stored, student_views
from .splits import Data
from .student import Student

LARGEST = 16e9  # bytes of stored outputs: most of them should stay in memory
# what needs the images in each step, or would round otherwise, as `in_use` reads it
NEEDS_IMAGES = (
    MIXING,
    SEMI_SUPERVISED,
    "--aug-repeats",
    "--aug-splits",
    "--strong-views",
    "--train-img-sizes",
    "--episodic",
    "--few-shot-eval",
    "--kd-model-name",
    "--save-images",
    "--no-prefetcher",
    "--model-dtype",
    "--grad-checkpointing",
    "--torchcompile",
    "--fsdp",
)


def run_frozen_part_once(
    settings: TrainSettings, data: Data, student: Student, precision: Precision, world: World
) -> Loaders | None:
    """Store what the frozen part of a student gives for all splits, and let the student, in place, begin after it; return
    loaders of what is stored.

    It is None where images are needed in each step, which the log says if the student has a frozen part.
    """
    # Probes have a way of their own; of adapters, biases and norms no beginning is frozen.
    tuning, model = settings.student.tune, student.model
    if settings.student.linear_probe or tuning.part not in ("last", "head"):
        return None
    # Whether it may begin after its frozen part, by flags, network and room; the same on all ranks.
    part, config = None, student.data_config
    reason = _needs_images(settings, data)
    if reason is None:
        part = find_frozen_part(model, config["input_size"], precision)
        reason = "its output is not all that the rest needs, or changes from epoch to epoch"
    if part is not None:
        reason = broadcast_from_rank0(_needs_room(settings, data, part), world.distributed)
    if part is None or reason is not None:
        logger.info(f"--tune {tuning.text}: the frozen part runs in every step: {reason}")
        return None

    # Found again by any run with the same frozen weights, images and precision.
    logger.info(
        f"--tune {tuning.text}: the frozen part, up to {part.name}, runs once for each image"
    )
    part.identify(config, settings.data.batch_size, settings.student.model)
    views = student_views(settings, config, precision, world, unchanging=True)
    loaders = load_stored(settings, data, part, views, precision, world)
    part.pass_over()
    return loaders


def _needs_images(settings: TrainSettings, data: Data) -> str | None:
    """Return why images are needed in each step; None if what is stored of them will do."""
    # A view, an answer or a target that changes from epoch to epoch needs the images.
    if not settings.views.no_aug:
        return "images are augmented (no --no-aug)"
    if settings.teacher.teacher and not settings.teacher.stores_targets:
        return "the teacher sees each batch (no --teacher-targets cached)"
    if settings.optim.epochs < 2:
        return "there is one epoch"
    flag = next((what for what in NEEDS_IMAGES if in_use(settings, what)), None)
    if flag is not None:
        return f"{flag} needs it"
    if not all(map(_tells_labels, _splits(data))):
        return "a split is a stream, or does not tell its labels"
    return None


def _needs_room(settings: TrainSettings, data: Data, part: FrozenPart) -> str | None:
    """Return why what a part gives cannot be stored; None if there is room for it."""
    # As much as is to stay in memory, and half of what the disk has.
    folder = answer_store(settings.data, settings.teacher.target_cache, World.alone("cpu")).folder
    # The folder may be made later.
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed = part.width * part.stores.itemsize * sum(map(len, _splits(data)))
    room = min(LARGEST, shutil.disk_usage(there).free / 2)
    if needed <= room:
        return None
    return f"its outputs would take {needed / 1e9:.1f} GB in {folder}, where {room / 1e9:.1f} GB may be used"


def _splits(data: Data) -> list[AnyDataset]:
    return [split for split in (data.train, data.val, data.select) if split is not None]


def _tells_labels(split: AnyDataset) -> bool:
    """Return whether the label of each sample is known without reading it."""
    if isinstance(split, IterableDataset):
        return False
    # Images without labels, a data set of files, and slices of both.
    known = is_unlabeled(split) or labels_of(split) is not None
    return known or classes_of_samples(split) is not None
