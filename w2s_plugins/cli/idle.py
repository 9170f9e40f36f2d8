"""Flags that say how another one is followed: without that one they would have no effect, and are refused."""

import argparse
from collections.abc import Iterable, Mapping

from ..errors import UserError

# flag -> those of which one has to be given; where a script has none of them, the flag means something else there
NEEDS = {
    **dict.fromkeys(("weak_fraction", "weak_config"), ("protocol",)),
    **dict.fromkeys(("few_shot_class_list", "few_shot_split", "few_shot_episodes"), ("few_shot_eval",)),
    **dict.fromkeys(("few_shot_classifier", "few_shot_seed"), ("few_shot_eval", "few_shot")),
    "queries": ("few_shot_eval", "episodic", "few_shot"),
    "episodes": ("few_shot",),
    "episodes_per_batch": ("episodic",),
    "resume_changes": ("resume",),
}
FORMS = {"protocol": "w2s", "few_shot_eval": "NxK", "few_shot": "NxK", "episodic": "NxK", "resume": "PATH"}


def refuse_idle(
        args: argparse.Namespace,
        defaults: Mapping[str, object],
        filed: Iterable[str],
        typed: Iterable[str],
) -> None:
    """Raise a `UserError` for the first flag that has no effect since the one that it belongs to is not given.

    The default value is no such flag in a file, where it may be that of a run, nor typed to undo what a file says.

    Args:
        args: all flags.
        defaults: their default values.
        filed: names of those that were set in files.
        typed: names of those that were set on the command line.
    """
    for name, needed in NEEDS.items():
        value, masters = getattr(args, name, None), [n for n in needed if n in defaults]
        alone = name in typed and name not in filed
        if value in (None, "", []) or not masters or not (alone or value != defaults[name]):
            continue
        if not any(getattr(args, master) for master in masters):
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--{_dashes(name)} {shown} has no effect without "
                            f"{' or '.join(f'--{_dashes(m)} {FORMS[m]}' for m in masters)}: add it, or leave "
                            f"--{_dashes(name)} out")


def _dashes(name: str) -> str:
    return name.replace("_", "-")
