"""What a run that has ended has learned from: its training images and their labels, opened again by its own flags."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..cli.parser import fill, train_parser
from ..data.datasets import known_labels
from ..data.keys import describe
from ..data.map_style import classes_of_samples
from ..distributed.world import World
from ..errors import UserError, logger, near_path, said_of
from ..files import read_plain
from ..labels.selection import read_selection, take_selected
from ..labels.store import LabelReader
from ..made_of import Ingredient, from_plain
from ..models.foreign import refuse_addresses
from ..models.loading import of_timm
from ..no_label import NO_LABEL
from ..resolve.fill_in import check_paths
from ..run.args_file import read_run_args
from ..run.record import SELECTED
from ..settings.composite import TrainSettings
from ..settings.forms import PREFIXES
from ..settings.values import split_names
from ..teachers.openers import Opened
from ..teachers.teacher import TeacherModel
from .data import build_data
from .device import create_precision
from .labels import attach_labels, find_label_files, match_labels
from .loaders import answer_store, student_views
from .run_files import check_unchanged, ingredients
from .splits import Data
from .teacher import build_teacher, cached_targets

ROWS = 8192  # images at a time
RESULT = "result.json"


@dataclass
class Learned:
    """What a run has learned from.

    Args:
        run: its folder.
        settings: those of the run.
        world: this process.
        data: its training set, with the labels that were given for it.
        made_of: what it was made of when it was trained.
    """

    run: Path
    settings: TrainSettings
    world: World
    data: Data
    made_of: list[Ingredient]

    def labels(self, student: Opened) -> np.ndarray:
        """Return the class (N,) that each image was given, or, of several classes an image, 1, 0 or `NO_LABEL` for each of
        them (N, C): by the teacher, before anything is made of its answers, or by the data. Of several teachers it is
        that of their mean, or of their posterior if the run has learned from that. A teacher is asked about plain
        images, if its answers are not stored.

        Raises:
            UserError: the teacher has other weights now.
        """
        # A teacher with other weights would say other labels than those that were learned, so it is compared first.
        settings, data, config = self.settings, self.data, student.data_config
        precision = create_precision(settings.compute, self.world)
        model = of_timm(student.model)
        kind = data.target_kind
        names = data.class_names
        teacher = build_teacher(settings, model, config, precision, names, target_kind=kind)
        # What it was asked about was compared when it was opened.
        now = [one for one in ingredients(settings, data, teacher=teacher) if one.role == "teacher"]
        _check(self.run, self.made_of, now)
        targets = cached_targets(
            settings.teacher,
            teacher,
            data,
            settings.data.train_split,
            answer_store(settings.data, settings.teacher.target_cache, self.world),
            student_views(settings, config, precision, self.world),
        )
        if targets is None:
            several = classes_of_samples(data.train)
            if several is not None:
                return several.nan_to_num(nan=NO_LABEL).to(torch.int8).numpy()
            return np.array(known_labels(data.train, "RUN"))
        # Some rows at a time: the answers of all would be as large as the store that they are in.
        rows = torch.arange(len(data.samples)).split(ROWS)
        return torch.cat([kind.decide(targets(index)) for index in rows]).numpy(force=True)

    def held_out(self) -> "Learned | None":
        """Return the same about the samples that the run has held out of its training set, None if there are none."""
        data = self.data
        if data.select is None:
            return None
        given = [replace(one, train=one.select) for one in data.given_labels if one.select]
        data = replace(data, train=data.select, select=None, given_labels=given)
        return replace(self, data=data)

    def answers(self, member: TeacherModel, folder: Path) -> LabelReader:
        """Return what a model says of each image, kept in a folder."""
        loading = self.settings.data
        store = answer_store(loading, folder, self.world)
        return store.answers(member, self.data.samples, loading.train_split, dtype=torch.float32)


def open_learned(run: Path, data_dir: str | None) -> Learned:
    """Open the training set of a run again.

    Args:
        run: its folder.
        data_dir: where the images lie if they were moved.

    Raises:
        UserError: they are not there, are a stream, or are not what the run has learned from any more.
    """
    flags = read_run_args(run, "RUN")
    # Runs of other programs have an args.yaml too, and may name addresses, which nobody has typed here.
    if not {"dataset", "data_dir", "unlabeled", "class_names"} <= flags.keys():
        raise UserError(f"RUN {run}: its args.yaml does not say what it learned from")
    refuse_addresses(flags, {"dataset": "data_dir"}, f"RUN {run}: its args.yaml")
    if data_dir is not None:
        # Whoever has moved the images says where they are; what they hold is compared below.
        names = [name for name in split_names(data_dir) if not name.lower().startswith(PREFIXES)]
        gone = next((name for name in names if not Path(name).exists()), None)
        if gone is not None:
            raise UserError(f"--data-dir {gone}: no such folder or tar file{near_path(gone)}")
        flags["unlabeled" if flags["unlabeled"] else "data_dir"] = data_dir
    if flags["unlabeled"]:  # labelled images beside them need not be there
        flags["task_loss_weight"] = 0.0
    # nothing is evaluated, and the classes are those of the run in their order
    names = run / "class_names.json"
    flags |= dict(
        val_split="",
        val_labels=None,
        few_shot_eval=None,
        episodic=None,
        teacher_targets="cached",
        device="cuda" if torch.cuda.is_available() else "cpu",
        class_names=str(names) if names.is_file() else flags["class_names"],
    )
    args, _ = fill(train_parser(), flags)
    settings = TrainSettings.from_flags(vars(args))
    loading, teaching = settings.data, settings.teacher
    made_of = _recorded(run)
    with said_of(f"RUN {run}: its flags say "):
        # A message about a flag would be read as one about this command, which has no such flag.
        check_paths(loading, teaching)
        world = World.alone(settings.compute.device)
        labels = find_label_files(teaching, world)
        # A stream is refused as one, and not because answers about it cannot be stored.
        plain = settings.with_flags(teacher_targets="online")
        data = build_data(plain, labels)
        if isinstance(data.train, IterableDataset):
            raise UserError(
                f"--dataset {loading.dataset}: a stream, of which no images can be drawn"
            )
    _check(run, made_of, data.sources)

    # its labels, and the samples that were selected then, whoever selected them
    with said_of(f"RUN {run}: its flags say "):
        answers = match_labels(teaching, data, labels, data.class_names)
        if settings.labels.clean_select:
            fingerprint = describe(data.train, loading.dataset, loading.train_split).fingerprint
            selected, _ = read_selection(
                str(run / SELECTED), data.train, data.split_size, fingerprint
            )
            data.train = take_selected(data.train, selected)
        attach_labels(data, labels, answers)
    _check(run, made_of, ingredients(settings, data))
    return Learned(run, settings, world, data, made_of)


def _recorded(run: Path) -> list[Ingredient]:
    """Return what a run that has ended was made of, by its record. Raises `UserError` where it has none."""
    try:
        record = read_plain(run / RESULT)
        if not isinstance(record, dict):
            raise TypeError(f"a {type(record).__name__}, no record")
        made_of = from_plain(record.get("made_of"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"RUN {run}: its {RESULT} cannot be read; repeat the run's command with --resume auto, which "
            "writes it again"
        ) from error
    if not made_of:
        logger.warning(
            f"WARNING: RUN {run}: its {RESULT} does not say what it was made of; see to it yourself that "
            "images and labels are those that it learned from"
        )
    return made_of


def _check(run: Path, before: list[Ingredient], now: list[Ingredient]) -> None:
    """Raise a `UserError` if a run has not learned from what is there now."""
    check_unchanged(before, now, f"RUN {run}", "train again")
