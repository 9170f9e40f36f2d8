"""The flags of a linear probe: what makes no sense on features of plain images is refused, the rest set."""

import argparse

from ..cli.declare import Role, option, shown_value
from ..cli.parser import train_parser
from ..errors import UserError


def resolve_probe(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags beside ``--linear-probe`` and fill in what follows from it, in place.

    Raises:
        UserError: the first flag that has no meaning for features that are computed once.
    """
    if not args.linear_probe:
        return
    facts, stores_views = train_parser().facts(), args.teacher_targets.startswith("cached-views")
    of_views, of_batches = ({n: f.off for n, f in facts.items() if f.role & role} for role in (Role.VIEW, Role.MIXING))
    if stores_views:
        of_views = {}
    changed = [name for name, plain in {**({} if args.no_aug else of_views), **of_batches}.items()
               if name in given and getattr(args, name) not in (plain, None, "", 0)]
    idle, remedy = _without_meaning(args), ""
    if changed:
        shown = ", ".join(f"{option(n)} {shown_value(getattr(args, n))}" for n in changed)
        remedy = f"sees every image once, without augmentation: leave out {shown}"
        if of_views.keys() & set(changed):
            remedy += ", add --no-aug, or store views with --teacher-targets cached-views:N"
        idle = f"; and {idle}" if idle else ""
    if changed or idle:
        raise UserError(f"--linear-probe {remedy}{idle}")
    for broken, message in _rules(args, given):
        if broken:
            raise UserError(f"--linear-probe {message}")
    for name, plain in (of_views | of_batches).items():
        setattr(args, name, plain)
    args.dist_bn = ""  # there is no statistic to share
    if not stores_views:
        args.no_aug = True
        if args.teacher:
            args.teacher_targets = "cached"


def _without_meaning(args: argparse.Namespace) -> str:
    """Return what to say of flags that ask for the training of an encoder; empty where there are none."""
    off = {f"--tune {args.tune}": args.tune != "all", "--freeze": args.freeze}
    found = [flag for flag, given in off.items() if given]
    return (f"trains one linear layer on stored features, for which {', '.join(found)} "
            f"{'has no meaning: leave it' if len(found) == 1 else 'have no meaning: leave them'} out, in files too"
            ) * bool(found)


def _rules(args: argparse.Namespace, given: set[str]) -> list[tuple[bool, str]]:
    encoder = "trains no encoder"
    return [
        (args.episodic, f"{encoder}, and --episodic trains nothing else: leave one out"),
        (args.few_shot_eval, f"{encoder}: test the model itself with validate.py --few-shot"),
        (args.kd_model_name, "trains on stored outputs, which timm's own distillation cannot: use --teacher in place "
         "of --kd-model-name"),
        (args.teacher and "teacher_targets" in given and args.teacher_targets == "online",
         "lets the teacher label each image once: leave out --teacher-targets online"),
    ]
