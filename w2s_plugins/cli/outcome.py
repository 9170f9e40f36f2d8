"""Which flags decide what comes out of a run: all of them, but for those that are known not to."""

from collections.abc import Mapping

from . import groups
from .parser import Parser


def names_of(*adders: object) -> set[str]:
    """Return the names of the flags in some groups."""
    parser = Parser()
    for add in adders:
        add(parser.add_argument)
    return set(parser.by_dest())


# Flags of where a run lies and works, what it says and how much it keeps. Those of folders of data are among them since
# data may be moved. --lr-base and its like act through --lr. Of --data-errors, an unreadable sample ends a run or not.
NEUTRAL = names_of(groups.add_hub, groups.add_run) | {
    "protocol", "weak_fraction", "weak_config", "ceiling_checkpoint", "data", "data_dir", "image_root", "output",
    "experiment", "resume", "resume_changes", "device", "device_modules", "local_rank", "dist_timeout", "workers",
    "pin_mem", "use_multi_epochs_loader", "log_interval", "save_images", "save_epochs", "checkpoint_hist",
    "recovery_interval", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id", "validation_batch_size",
    "synchronize_step", "no_teacher_eval", "target_cache", "model_name", "list_losses", "lr_base", "lr_base_size",
    "lr_base_scale"}
# and those of how far a run goes, and what is reckoned at its end: it goes on as if they had been so from the start
OF_RESUMING = {"stop_epoch", "start_epoch", "no_resume_opt", "ceiling_acc"}
# flags without meaning where there is no teacher
OF_TEACHER = names_of(groups.add_teacher, groups.add_loss, groups.add_timm_distillation, groups.add_released_code) - {
    "teacher", "loss", "task_loss", "finetune", "eval_interval_end", "speedtest"}
OF_OPTIMIZER = names_of(groups.add_optimizer)
OF_SCHEDULE = names_of(groups.add_schedule)
PER_PROCESS = ("batch_size", "train_batch_sizes")  # what counts is that of all processes
PROCESSES = "processes"  # no flag, but named like one


def other_values(theirs: Mapping[str, object], ours: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return old and new value of the flags that differ, for what changes the outcome of a run.

    Args:
        theirs: resolved flags of the earlier run.
        ours: resolved flags.
    """
    ignored = NEUTRAL if ours.get("teacher") else NEUTRAL | OF_TEACHER
    if not ours.get("amp"):
        ignored = ignored | {"amp_dtype"}  # its default is that of the device
    if ours.get("loss"):
        ignored = ignored | {"kd_temperature"}  # stands in --loss-kwargs
    return {name: (theirs[name], ours[name]) for name in sorted(theirs.keys() & ours.keys())
            if name not in ignored and _differ(theirs[name], ours[name])}


def of_all_processes(value: object, processes: int) -> object:
    """Return a flag of `PER_PROCESS`, a number or a list of them, for all processes together."""
    if isinstance(value, list):
        return [of_all_processes(part, processes) for part in value]
    return value * processes if isinstance(value, int) else value


def _differ(one: object, other: object) -> bool:
    try:
        return bool(one != other)
    except (RuntimeError, ValueError):  # tensors, in the place of what a flag may be
        return True
