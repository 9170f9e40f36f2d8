"""The flags of a linear probe: what makes no sense on features of plain images is refused, the rest set."""

import argparse
from typing import NamedTuple

from ..cli.declare import Role, option, shown_value
from ..cli.forms import POOLS, candidate_pieces
from ..cli.parser import train_parser
from ..errors import UserError


class HeadSettings(NamedTuple):
    """In what a head of a grid differs from the others; without ``pool`` all see the features of the student's own."""

    pool: str | None
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"{f'pool {self.pool}, ' if self.pool else ''}lr {self.lr:g}, weight decay {self.weight_decay:g}"

    def about(self) -> dict[str, str | float]:
        """Return what is said of it in records."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def grid(args: argparse.Namespace) -> list[HeadSettings]:
    """Return the settings of the heads that are trained side by side, each once; of a single one there are none."""
    pools = [*candidate_pieces(args.probe_pools, args.probe_blocks)]
    if not (args.probe_lrs or args.probe_weight_decays or len(pools) > 1):
        return []
    return [HeadSettings(pool, rate, decay) for pool in (pools if len(pools) > 1 else [None])
            for rate in dict.fromkeys(args.probe_lrs or [args.lr])
            for decay in dict.fromkeys(args.probe_weight_decays or [args.weight_decay])]


def sees_levels(args: argparse.Namespace) -> bool:
    """True where the head sees several blocks of the student, each in the student's own pooling."""
    return args.linear_probe and not args.probe_pools and args.probe_blocks != [1]


def grid_flag(args: argparse.Namespace) -> str:
    """Return the flag by which there are several heads, for messages."""
    return "--probe-lrs" if args.probe_lrs else "--probe-weight-decays" if args.probe_weight_decays else "--probe-pools"


def grid_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """Return what cannot be where heads are trained side by side, and what to say of it."""
    if not grid(args):
        return []
    flag = grid_flag(args)
    return [
        (args.select_split is None, f"{flag}: the best head is chosen on samples that are held out: give --select best "
         "--select-split 0.1"),
        (args.speedtest, f"{flag}: --speedtest evaluates nothing that could choose a head: leave one out"),
        (args.teacher_until_passed, f"{flag}: --teacher-until-passed is about one head: leave it out"),
        ("lamb" in args.opt.lower(), f"{flag}: --opt {args.opt} clips the gradients of all parameters together: take "
         "another one, such as adamw"),
        ("plateau" in args.sched, f"{flag}: --sched plateau would lower the rates of all heads by the figures "
         "of one: take another one, such as cosine"),
        (bool(args.lr_scale), f"{flag}: --lr-scale is for the parameters of one model: leave it out"),
    ]


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
    encoder, candidates = "trains no encoder", candidate_pieces(args.probe_pools, args.probe_blocks)
    return [
        (args.episodic, f"{encoder}, and --episodic trains nothing else: leave one out"),
        (args.few_shot_eval, f"{encoder}: test the model itself with validate.py --few-shot"),
        (args.kd_model_name, "trains on stored outputs, which timm's own distillation cannot: use --teacher in place "
         "of --kd-model-name"),
        (args.teacher and "teacher_targets" in given and args.teacher_targets == "online",
         "lets the teacher label each image once: leave out --teacher-targets online"),
        (candidates and not set(POOLS) & candidates.keys(), "has to export a model of timm, and none has the pooling "
         f"{', '.join(candidates)}: name token or avg as well"),
        (sees_levels(args) and len(args.probe_blocks) > 1, "compares heads on several numbers of blocks by their class "
         "tokens: give --probe-pools token or both, or one number of --probe-blocks"),
        (bool(args.probe_pools) and args.probe_blocks != [1] and not {"token", "both"} & set(args.probe_pools),
         "takes class tokens from several blocks: give --probe-pools token or both with --probe-blocks, or leave "
         "--probe-pools out"),
        (args.probe_also and not args.val_split and (args.unlabeled or args.select_split is None),
         "has no samples with ground truth to measure --probe-also on: give --val-split, or leave it out"),
    ]
