"""The specification of a study: a YAML file, read with every key checked; docs/measure.md explains its keys."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..cli.parser import check_flags, read_config, read_yaml, train_parser
from ..errors import UserError, nearest, one_line, said_of
from ..settings.programs import train_program
from .controls import CONTROLS

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,49}")  # becomes part of the names of folders
# the lists of a study, and the keys that their items may have
ITEMS = {
    "sets": ("name", "flags"),
    "weak": ("name", "flags", "sets", "checkpoint"),
    "strong": ("name", "flags", "sets"),
    "losses": ("name", "loss", "kwargs", "grid"),
}
# of these the parts of the training set follow, which teachers and students share: no flags of a model
OF_ALL = {"strong": ("train_slice", "weak_fraction", "slice_seed"), "weak": ("slice_seed",)}
MOST_SEEDS = 1000
KEYS = ("config", "base", *ITEMS, "seeds", "slices", "controls")


@dataclass(frozen=True)
class Choice:
    """One of the things that a study compares: a data set, a weak teacher, a strong student or a loss.

    Args:
        name: its label.
        flags: of train_w2s.py, over those of the base; of a loss its hyper-parameters.
        sets: of a model the data sets that it is for, each with flags over the others; empty: all of them.
        checkpoint: of a weak teacher that is trained already, its weights.
        loss: of a loss, its name in ``--loss``.
    """

    name: str
    flags: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: str | None = None
    loss: str = ""

    @property
    def trained_here(self) -> bool:
        """False for a weak teacher that is taken as it is."""
        return not self.checkpoint and not {":", "/"} & set(str(self.flags["model"]))

    def on(self, data_set: str) -> "Choice":
        """Return what it is on a data set."""
        return replace(self, flags={**self.flags, **self.sets.get(data_set, {})}, sets={})


@dataclass(frozen=True)
class Study:
    """What a specification says.

    Args:
        base: flags of every run.
        sets: data sets; empty: that of the base.
        weak: teachers.
        strong: students.
        losses: what the students learn with.
        seeds: of all runs.
        slices: fixed has the same samples in the slices of all seeds; by_seed draws them anew for each.
        controls: what students are compared with besides their ceiling.
    """

    base: dict[str, Any]
    sets: list[Choice]
    weak: list[Choice]
    strong: list[Choice]
    losses: list[Choice]
    seeds: list[int]
    slices: str
    controls: list[str]

    def by_set(self) -> dict[str | None, "Study"]:
        """Return the study of each data set, with flags and models as they are there; itself by None without sets."""
        # a set's flags lie over the base, those of a model on this set over all others
        studies: dict[str | None, Study] = {}
        for one in self.sets:
            weak, strong = (
                [part.on(one.name) for part in parts if not part.sets or one.name in part.sets]
                for parts in (self.weak, self.strong)
            )
            studies[one.name] = replace(
                self,
                base={**self.base, **one.flags},
                weak=weak,
                strong=strong,
                sets=[],
            )
        return studies or {None: self}


def read_spec(path: Path) -> Study:
    """Read a specification.

    Args:
        path: the YAML file.

    Raises:
        UserError: one line for the first thing that is wrong, with the place and the nearest valid choice.
    """
    # keys are checked one by one; whatever else is wrong with the form says itself by an exception of Python's
    _, content = read_yaml(path, str(path))
    with said_of(f"{path}: "):
        try:
            return _read_study(content)
        except (
            TypeError,
            ValueError,
            AttributeError,
        ) as error:  # a list where a mapping belongs, and the like
            raise UserError(
                f"not a study ({one_line(error)}); docs/measure.md has the form of one"
            ) from error


def _read_study(content: object) -> Study:
    """Return the study that the content of the file describes."""
    fields = _mapping(content, "the file", KEYS)
    # flags of files lie below those of the base; what the study sets itself is left out of them
    known, base = train_program().flags, {}
    files = fields.get("config", [])
    for file in [files] if isinstance(files, str) else files:
        flags = read_config(file, train_parser())
        base.update((name, value) for name, value in flags.items() if not known[name].in_study)
    base.update(_read_flags(fields.get("base"), "base"))
    # every item of a list stands for one thing or, with a grid, for several
    sets, weak, strong, losses = (_read_choices(key, fields.get(key, [])) for key in ITEMS)
    # what is one of a few
    slices = fields.get("slices", "fixed")
    controls = fields.get("controls", [])
    if slices == "by_seed" and any(
        "slice_seed" in flags for flags in (base, *(one.flags for one in sets))
    ):
        raise UserError(
            "slice_seed: with slices: by_seed it is the seed of each run: leave out one of the two"
        )
    seeds = _read_seeds(fields.get("seeds", 1))
    _check_known([slices], ("fixed", "by_seed"), "slices")
    _check_known(controls, CONTROLS, "controls")
    for part in weak + strong:
        _check_known(part.sets, [one.name for one in sets], f"{part.name}.sets")
    return Study(base, sets, weak, strong, losses, seeds, slices, controls)


def _read_choices(key: str, items: Iterable[object]) -> list[Choice]:
    """Return what the items of one list of a study, such as ``sets``, stand for."""
    choices: list[Choice] = []
    for number, item in enumerate(items):
        where = f"{key}[{number}]"
        of_item: Iterable[Choice]
        if key == "losses":
            of_item = _read_loss(item, where)
        else:
            of_item = [_read_part(key, item, where)]
        for choice in of_item:
            if not (isinstance(choice.name, str) and LABEL.fullmatch(choice.name)):
                raise UserError(
                    f"{where}: name {choice.name!r:.60} is not right; expected letters, digits and . _ + = -"
                )
            choices.append(choice)
    names = [choice.name.lower() for choice in choices]  # folders of some systems do not tell case
    if len({*names}) < len(names):
        raise UserError(f"{key}: two of {', '.join(names)} have one name; give one of them another")
    return choices


def _read_seeds(seeds: object) -> list[int]:
    """Return the seeds that a file names by their number, or one by one. Raises `UserError` for anything else."""
    if type(seeds) is int and 0 <= seeds <= MOST_SEEDS:
        return list(range(seeds))
    listed = seeds if isinstance(seeds, list) else [seeds]
    # True is an int as well, and no seed
    known = {seed for seed in listed if type(seed) is int and 0 <= seed < 2**32}
    if not isinstance(seeds, list) or len(known) < len(listed) or len(known) > MOST_SEEDS:
        raise UserError(
            f"seeds: {str(seeds)[:40]}: expected how many there are, at most {MOST_SEEDS}, or a list of "
            "different whole numbers"
        )
    return seeds


def _read_part(key: str, item: object, where: str) -> Choice:
    """Read a data set or a model."""
    fields = _mapping(item, where, ITEMS[key])
    flags = _read_flags(fields.get("flags"), f"{where}.flags")
    # flags that hold everywhere, then those on single data sets
    sets = {
        name: _read_flags(content, f"{where}.sets.{name}")
        for name, content in fields.get("sets", {}).items()
    }
    choice = Choice(fields.get("name", flags.get("model")), flags, sets, fields.get("checkpoint"))
    # models, on each of their data sets
    for_teacher = [name for name, flag in train_program().flags.items() if flag.for_teacher]
    for on_set in map(choice.on, sets or [""]):
        if key != "sets" and not on_set.flags.get("model"):
            raise UserError(f"{where}: no model; expected flags: {{model: NAME}}")
        for name in OF_ALL.get(key, ()):
            if name in on_set.flags:
                raise UserError(
                    f"{where}: {name} cuts the training set for all models: give it in base, "
                    "or in the flags of a data set"
                )
        # whoever has trained it has decided on everything else
        if key == "weak" and not on_set.trained_here and on_set.flags.keys() - for_teacher:
            raise UserError(
                f"{where}: a teacher that is taken as it is has no flags but {', '.join(for_teacher)}"
            )
    return choice


def _read_loss(item: object, where: str) -> Iterator[Choice]:
    """Yield a loss, or all points of a grid over its hyper-parameters, each named after its values."""
    # most losses need no more than their name
    fields = _mapping({"loss": item} if isinstance(item, str) else item, where, ITEMS["losses"])
    loss = fields.get("loss", fields.get("name"))
    if not isinstance(loss, str):
        raise UserError(f"{where}: no loss; expected {{loss: NAME}}")
    # without a grid there is one point, of no values
    grid = fields.get("grid", {})
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values))
        texts = [
            f"{key}={re.sub(r'[^A-Za-z0-9._+-]+', '_', str(value)).strip('_')}"
            for key, value in point.items()
        ]
        name = "-".join([fields.get("name", loss), *texts])
        yield Choice(name, {**fields.get("kwargs", {}), **point}, loss=loss)


def _read_flags(content: object, where: str) -> dict[str, object]:
    """Read flags; None among them undoes what others say."""
    flags = check_flags(content, train_parser(), where)
    for name in flags:
        instead = train_program().flags[name].in_study
        if instead:
            raise UserError(f"{where}: {name} is set by the study; in its place: {instead}")
    return flags


def _mapping(value: object, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a mapping, none of whose keys is unknown."""
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: {value!r:.60} is not right; expected a mapping with {keys[0]}, {keys[1]}, ..."
        )
    _check_known(value, keys, f"{where}: unknown key")
    return value


def _check_known(names: Iterable[object], choices: Iterable[str], where: str) -> None:
    """Raise a `UserError` for a name that is none of the choices."""
    for name in names:
        if name not in [*choices]:
            raise UserError(
                f"{where} {name!r:.60}{nearest(str(name), choices)}; one of {', '.join(choices) or 'none'}"
            )
