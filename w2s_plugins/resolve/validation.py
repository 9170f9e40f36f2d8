"""The flags of ``validate.py``: filled in from the run that is evaluated, checked, and made into settings."""

from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
from timm.utils.misc import natural_key

from ..errors import UserError, name_runs, near_path, said_of
from ..files import check_replaceable
from ..metrics.long_tail import CLASS_COUNTS
from ..models.foreign import refuse_addresses
from ..models.loading import find_weights
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..run.find import BEST, LAST
from ..settings.composite import ValidateSettings
from ..settings.field import Role
from ..settings.forms import parse_tuning
from ..settings.programs import train_program
from ..settings.rules import check_validation
from ..settings.teacher_name import parse_teachers
from ..settings.values import locate
from .fill_in import check_data_dir, resolve_data_dir
from .train import check_model_name, check_teacher_name, fit_device

# pretrained weights for other label sets or tasks, which `--model all` leaves out, as timm's script does
OTHER_LABELS = ["*_in21k", "*_in22k", "*in12k", "*_dino", "*fcmae", "*seer"]


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    Args:
        model: its name.
        checkpoint: its weights; empty for pretrained ones.
        recorded: arguments that its run names, of which only those of the architecture are taken.
    """

    model: str
    checkpoint: str = ""
    recorded: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.checkpoint or self.model


def resolve_validate_args(
    args: Namespace, explicit_flags: set[str]
) -> tuple[ValidateSettings, list[Candidate]]:
    """Check the flags of ``validate.py``, which stay as they are, and fill in what follows from the run that
    ``--checkpoint`` names.

    Returns:
        The settings that they come to, and what ``--model`` and ``--checkpoint`` stand for.
    """
    # What the run of the checkpoint used holds unless a flag says otherwise.
    args = Namespace(**vars(args), class_counts=None, data_of_run="")
    if args.few_shot and "split" not in explicit_flags:
        args.split = "novel"
    # A run in the place of the data is what is to be evaluated.
    if args.data and any(locate(args.data)) and not explicit_flags & {"model", "checkpoint"}:
        args.checkpoint, args.data = args.data, None
    recorded = take_run_flags(args, explicit_flags)
    # Names and values are checked once all of them are there.
    load_plugins(args.plugins)
    for name in parse_teachers(args.teacher):
        check_teacher_name("--teacher", name)
    if args.results_file:
        check_replaceable(Path(args.results_file), "--results-file")
    resolve_data_dir(args)
    # before a model is opened, because a run that is misspelt is taken for data
    settings = ValidateSettings.from_flags(vars(args))
    with said_of(args.data_of_run):
        check_data_dir(settings.data)
    check_validation(settings)
    changes = fit_device(settings.compute, explicit_flags)
    workers = changes.pop("workers", settings.data.workers)
    settings = replace(
        settings,
        data=replace(settings.data, workers=workers),
        compute=replace(settings.compute, **changes),
    )
    return settings, list_candidates(args.model, args.checkpoint, recorded)


def take_run_flags(args: Namespace, explicit_flags: set[str]) -> dict:
    """Let the flags of the run that was named set what was not given by hand: its own figure comes out.

    ``--checkpoint`` names it, or ``--model`` alone.

    Returns:
        The arguments of the model that it names.
    """
    name = args.checkpoint or args.model
    path, (export, folder) = Path(name), locate(name)
    if args.checkpoint and not path.exists():
        raise UserError(f"--checkpoint {path}: no such file or folder{near_path(path)}")
    # Without flags of a run it is an export, a name, or weights of the model that --model names.
    if folder is None:
        if export and not (args.checkpoint and "model" in explicit_flags):
            args.model, args.checkpoint = export, ""
        elif args.checkpoint and path.is_dir() and not weights_in(path):
            raise UserError(
                f"--checkpoint {path}: the folder has neither args.yaml nor checkpoints{name_runs(path)}"
            )
        return {}
    if not args.checkpoint:
        args.checkpoint, explicit_flags = name, explicit_flags - {"model"}

    # Flags of the run that hold for its evaluation, unless they are given: of several that come to the same the last
    # one that is set, and in a test on episodes its own.
    run, taken = read_run_args(folder, "--checkpoint"), {}
    # A table of true labels is about the images of the run, not about others.
    place = args.data or (args.data_dir if "data_dir" in explicit_flags else None)
    is_other_data = (
        bool(args.few_shot or "dataset" in explicit_flags)
        or ("split" in explicit_flags and args.split != run.get("val_split"))
        or (place and Path(place).resolve() != Path(str(run.get("data_dir") or "")).resolve())
    )
    for theirs, flag in train_program().flags.items():
        ours = flag.evaluation
        of_episodes = Role.EPISODES in flag.role
        if not ours or ours in explicit_flags or (of_episodes and not args.few_shot):
            continue
        if ours == "val_labels" and is_other_data:
            continue
        if run.get(theirs) not in (None, ""):
            taken[ours] = theirs
        elif of_episodes:
            taken.pop(ours, None)
    # A table is about images in a folder, whose classes it names itself.
    if "val_labels" in explicit_flags | taken.keys():
        for name in ("class_map", "dataset"):
            taken.pop(name, None)
    recorded = {}
    if taken.pop("model_kwargs", None) and isinstance(run["model_kwargs"], dict):
        recorded = run["model_kwargs"]
    refuse_addresses(
        run, {theirs: ours for ours, theirs in taken.items()}, f"--checkpoint {folder}"
    )
    for ours, theirs in taken.items():
        setattr(args, ours, run[theirs])
    if not args.data and not explicit_flags & {"data_dir", "dataset", "val_labels"}:
        args.data_of_run = f"--checkpoint {folder}: its flags say "

    # What follows from others of its flags, and from its files.
    if (folder / CLASS_COUNTS).is_file():
        args.class_counts = folder / CLASS_COUNTS
    number = str(run.get("few_shot_eval") or "").partition(":")[2]
    if args.few_shot and number and ":" not in args.few_shot:
        args.few_shot += f":{number}"
    defaults = {
        "use_train_size": True,
        "use_ema": bool(run.get("model_ema")) and not run.get("model_ema_force_cpu"),
    }
    for name in defaults.keys() - explicit_flags:
        setattr(args, name, defaults[name])
    if path.is_dir():
        kept = path / (BEST if run.get("select") == "best" else LAST)
        # The export has the weights with the adapters in them, and is there when the checkpoints are deleted.
        if parse_tuning(str(run.get("tune") or "all")).adds_modules or not kept.is_file():
            kept, args.use_ema = find_weights(str(path), "--checkpoint"), False
        args.checkpoint = str(kept)
    return recorded


def weights_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    return [
        path for pattern in ("*.pth.tar", "*.pth", "*.safetensors") for path in folder.glob(pattern)
    ]


def list_candidates(model: str, checkpoint: str, recorded: dict) -> list[Candidate]:
    """Return what ``--model`` and ``--checkpoint`` stand for; what its run says of a model is in ``recorded``."""
    # A folder of checkpoints, a pattern, a list in a file: each model is one row.
    path = Path(checkpoint)
    if checkpoint and path.is_dir():
        files = sorted(weights_in(path), key=lambda file: natural_key(file.name))
        return [Candidate(model, str(file)) for file in files]
    if model == "all":
        names = timm.list_models(pretrained=True, exclude_filters=OTHER_LABELS)
    elif any(sign in model for sign in "*?["):
        names = timm.list_models(model, pretrained=True)
    elif Path(model).is_file() and Path(model).suffix not in (".safetensors", ".tar", ".pth"):
        names = Path(model).read_text(encoding="utf-8").split()
    else:
        check_model_name("--model", model)
        return [Candidate(model, checkpoint, recorded)]
    if not names:
        raise UserError(f"--model {model}: no model with pretrained weights has such a name")
    return [Candidate(name) for name in names]
