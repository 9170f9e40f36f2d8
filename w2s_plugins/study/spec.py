"""The specification of a study: a YAML file, read with every key checked, and written back with its defaults filled in.

Keys: ``base`` and ``config`` (flags of every run), ``sets``, ``weak``, ``strong``, ``losses``, ``protocols``,
``seeds``, ``slices`` and ``controls``; docs/studies.md explains them.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from ..cli.groups import CONTROLS
from ..cli.parser import Parser, check_flags, read_config
from ..errors import LOGIN, UserError, holds_token, nearest, one_line
from ..files import read_plain

KEYS = ("name", "config", "base", "sets", "weak", "strong", "losses", "protocols", "seeds", "slices", "controls")
SLICES = ("fixed", "by_seed")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


@dataclass(frozen=True)
class Part:
    """A weak teacher or a strong student.

    Args:
        name: its label.
        flags: of train_w2s.py, over those of the base.
        checkpoint: weights of a weak teacher that is trained already.
        sets: the data sets that it is for, each with flags over the others; empty: all of them.
    """

    name: str
    flags: dict[str, object] = field(default_factory=dict)
    checkpoint: str | None = None
    sets: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def trained_here(self) -> bool:
        """False for a weak teacher that is taken as it is."""
        return not self.checkpoint and not {":", "/"} & set(str(self.flags["model"]))

    def on(self, name: str) -> "Part":
        """Return what it is on a data set."""
        return replace(self, flags={**self.flags, **self.sets.get(name, {})}, sets={})


@dataclass(frozen=True)
class DataSet:
    """What is learned and tested on.

    Args:
        name: its label.
        flags: of all runs on it, over those of the base.
    """

    name: str
    flags: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LossChoice:
    """A distillation loss under a label."""

    name: str
    loss: str
    kwargs: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """Which samples teacher and student see, and what the student is told of them.

    Args:
        name: its label.
        split: teacher and student have disjoint parts of the training slice, cut at ``weak_fraction``; else both have
            all of it.
        flags: of the student, over all others.
    """

    name: str
    split: bool = True
    flags: dict[str, object] = field(default_factory=dict)


PROTOCOLS = {
    "w2s": Protocol("w2s", True),  # weak labels only, unless the base says otherwise: arXiv 2312.09390
    "supervised": Protocol("supervised", False),  # ground truth beside the teacher, on all samples: arXiv 2402.03749
}


@dataclass(frozen=True)
class Study:
    """Everything that a specification says.

    Args:
        name: of the study.
        base: flags of every run.
        weak: teachers.
        strong: students.
        losses: what the students learn with.
        protocols: what they learn from.
        seeds: of all runs.
        slices: fixed has the same samples in the slices of all seeds; by_seed draws them anew for each.
        controls: what students are compared with besides their ceiling.
        sets: data sets; empty: that of the base.
    """

    name: str
    base: dict[str, object]
    weak: list[Part]
    strong: list[Part]
    losses: list[LossChoice]
    protocols: list[Protocol]
    seeds: list[int]
    slices: str = "fixed"
    controls: list[str] = field(default_factory=list)
    sets: list[DataSet] = field(default_factory=list)

    def by_set(self) -> dict[str | None, "Study"]:
        """Return the study of each data set, with flags and models as they are there; itself by None without sets."""
        def there(parts: list[Part], name: str) -> list[Part]:
            return [part.on(name) for part in parts if not part.sets or name in part.sets]

        return {one.name: replace(self, base={**self.base, **one.flags}, weak=there(self.weak, one.name),
                                  strong=there(self.strong, one.name), sets=[])
                for one in self.sets} or {None: self}

    def to_yaml(self) -> str:
        """Return the specification with everything filled in; `read_spec` reads it as the same study."""
        content = asdict(self)
        for item in (content, *content["weak"], *content["strong"]):
            for key in ("checkpoint", "sets"):
                if not item.get(key, True):
                    del item[key]
        return yaml.safe_dump(content, sort_keys=False)


def read_spec(path: Path, parser: Parser) -> Study:
    """Read a specification.

    Args:
        path: the YAML file.
        parser: knows the flags of train_w2s.py.

    Raises:
        UserError: one line for the first thing that is wrong, with the place and the nearest valid choice.
    """
    try:
        content = read_plain(path)
    except OSError as error:
        others = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: cannot be read ({error.strerror}){nearest(str(path), others)}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a YAML file: {one_line(error)}") from error
    if holds_token(path.read_text(encoding="utf-8")):
        raise UserError(f"{path}: holds an access token, or a name or password in a URL, which would be recorded "
                        f"with the study; {LOGIN}, and give addresses without them")
    return Reader(str(path), parser).study(content, path.stem)


class Reader:
    """Turns the content of the file into a `Study`, and says where it cannot.

    Args:
        file: name of the file, for messages.
        parser: knows the flags of train_w2s.py.
    """

    def __init__(self, file: str, parser: Parser):
        self.file, self.parser = file, parser

    def study(self, content: object, default_name: str) -> Study:
        """Return the study that the content of the file describes."""
        fields = self.mapping(content, "the file", KEYS)
        study = Study(
            name=self.label(fields.get("name", default_name), "name"),
            base=self.flags(fields, "base", "base"),
            weak=self.items(fields, "weak", self.weak),
            strong=self.items(fields, "strong", self.part),
            losses=self.items(fields, "losses", self.losses),
            protocols=self.items({"protocols": ["w2s"], **fields}, "protocols", self.protocol),
            seeds=self.seeds(fields.get("seeds", 1)),
            slices=fields.get("slices", "fixed"),
            controls=fields.get("controls", []),
            sets=self.items(fields, "sets", self.data_set) if "sets" in fields else [],
        )

        # values that are one of a few
        if not isinstance(study.controls, list):
            raise self.wrong("controls", study.controls, f"a list of some of {', '.join(CONTROLS)}")
        for name in study.controls:
            self.known(name, CONTROLS, "controls")
        self.known(study.slices, SLICES, "slices")
        if study.slices == "by_seed" and any("slice_seed" in own.base for own in study.by_set().values()):
            raise UserError(f"{self.file}: slices by_seed and slice_seed say two things; leave one out")

        # names
        for key in ("sets", "weak", "strong", "losses", "protocols"):
            self.check_duplicates([item.name for item in getattr(study, key)], key)
        sets = [one.name for one in study.sets]
        for part in study.weak + study.strong:
            for name in part.sets:
                self.known(name, sets, f"{part.name}.sets")
        return study

    def known(self, name: object, choices: Sequence[str], where: str) -> None:
        """Refuse a name that is none of the choices."""
        if name not in choices:
            raise self.wrong(where, name, f"one of {', '.join(choices) or 'none'}{nearest(str(name), choices)}")

    def items(self, fields: dict, key: str, read: Callable) -> list:
        """Read a list, each item of which stands for one thing or for several."""
        values = fields.get(key)
        if not isinstance(values, list) or not values:
            raise self.wrong(key, values, "a list of at least one item")
        found = []
        for place, value in enumerate(values):
            item = read(value, f"{key}[{place}]")
            found += item if isinstance(item, list) else [item]
        return found

    def data_set(self, value: object, where: str) -> DataSet:
        """Read a data set with its flags."""
        fields = self.mapping(value, where, ("name", "flags", "config"))
        return DataSet(self.label(fields.get("name"), f"{where}.name"), self.flags(fields, "flags", where))

    def part(self, value: object, where: str, *more: str) -> Part:
        """Read a model with its flags, and those that it has on single data sets."""
        fields = self.mapping(value, where, ("name", "flags", "config", "sets", *more))
        flags = self.flags(fields, "flags", where)
        own = self.mapping(fields.get("sets", {}), f"{where}.sets")
        sets = {name: self.flags({"flags": own[name]}, "flags", f"{where}.sets.{name}") for name in own}
        if not all({**flags, **more}.get("model") for more in ({}, *sets.values())):
            raise UserError(f"{self.file}: {where}: no model; expected flags: {{model: NAME}}")
        return Part(self.label(fields.get("name", flags["model"]), f"{where}.name"), flags, sets=sets)

    def weak(self, value: object, where: str) -> Part:
        """Read a weak teacher, which may be trained already."""
        part = self.part(value, where, "checkpoint")
        checkpoint = value.get("checkpoint")
        if checkpoint is not None and not (isinstance(checkpoint, str) and Path(checkpoint).exists()):
            raise self.wrong(f"{where}.checkpoint", checkpoint, "a file or run folder that is there")
        part, known = replace(part, checkpoint=checkpoint), self.parser.facts()
        for own in map(part.on, part.sets or [""]):
            if "," in own.flags["model"]:
                raise UserError(f"{self.file}: {where}: model names several; expected one teacher")
            surplus = [] if own.trained_here else [k for k in own.flags if not known[k].for_teacher]
            if surplus:
                raise UserError(f"{self.file}: {where}: {surplus[0]} has no meaning for a teacher that is taken as it "
                                f"is; expected {', '.join(k for k in known if known[k].for_teacher)} only")
        return part

    def losses(self, value: object, where: str) -> list[LossChoice]:
        """Read a loss, or all points of a grid over its hyper-parameters."""
        if isinstance(value, str):
            return [LossChoice(self.label(value, where), value)]
        fields = self.mapping(value, where, ("name", "loss", "kwargs", "grid"))
        loss = fields.get("loss", fields.get("name"))
        if not isinstance(loss, str):
            raise self.wrong(f"{where}.loss", loss, "the name of a loss")
        kwargs, grid = (self.mapping(fields.get(key) or {}, f"{where}.{key}") for key in ("kwargs", "grid"))
        name = self.label(fields.get("name", loss), f"{where}.name")
        for key, choices in grid.items():
            if not isinstance(choices, list) or not choices:
                raise self.wrong(f"{where}.grid.{key}", choices, "a list of values")
            if key in kwargs:
                raise UserError(f"{self.file}: {where}: {key} is both in kwargs and in grid")
        points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
        return [LossChoice(self.label(_name_point(name, point), where), loss, {**kwargs, **point})
                for point in points]

    def protocol(self, value: object, where: str) -> Protocol:
        """Read the name of a protocol that is known, or one with flags of its own."""
        if isinstance(value, str):
            self.known(value, list(PROTOCOLS), where)
            return PROTOCOLS[value]
        fields = self.mapping(value, where, ("name", "split", "flags", "config"))
        split = fields.get("split", True)
        if not isinstance(split, bool):
            raise self.wrong(f"{where}.split", split, "true or false")
        return Protocol(
            self.label(fields.get("name"), f"{where}.name"), split, self.flags(fields, "flags", where))

    def seeds(self, value: object) -> list[int]:
        """Read a count or a list of seeds."""
        if type(value) is int and value > 0:
            return list(range(value))
        if not isinstance(value, list) or not value or not all(type(s) is int and 0 <= s < 2 ** 32 for s in value):
            raise self.wrong("seeds", value, "a count of at least 1, or a list of whole numbers from 0 on")
        self.check_duplicates(map(str, value), "seeds")
        return value

    def flags(self, fields: dict, key: str, where: str) -> dict[str, object]:
        """Read the flags of ``config`` files, but for what the study sets itself, and over them those under ``key``."""
        files = fields.get("config", [])
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise self.wrong(f"{where}.config" if key != "base" else "config", files, "a list of files")
        place = where if where == key else f"{where}.{key}"
        found: dict[str, object] = {}
        facts = self.parser.facts()
        try:
            for file in files:
                found.update((k, v) for k, v in read_config(file, self.parser).items() if not facts[k].in_study)
        except UserError as error:
            raise UserError(f"{self.file}: {where}: {error}") from error
        found.update(check_flags(fields.get(key), self.parser, f"{self.file}: {place}"))
        for name in found:
            if instead := facts[name].in_study:
                raise UserError(f"{self.file}: {place}: {name} is set by the study; in its place: {instead}")
            if name in ("unlabeled", "labeled_share"):
                raise UserError(f"{self.file}: {place}: {name}: a study compares with ceilings, which need labels of "
                                "all images; train on images without labels by train_w2s.py itself")
        return found  # None among them undoes what the base says

    def mapping(self, value: object, where: str, keys: Sequence[str] | None = None) -> dict:
        """Return a mapping after a check of its keys."""
        if not isinstance(value, dict):
            raise self.wrong(where, value, f"a mapping{f' with {keys[0]}, {keys[1]}, ...' if keys else ''}")
        for key in value:
            if not isinstance(key, str) or (keys is not None and key not in keys):
                hint = nearest(str(key), keys or ()) + (f"; one of {', '.join(keys)}" if keys else "")
                raise UserError(f"{self.file}: {where}: unknown key '{key}'{hint}")
        return value

    def label(self, value: object, where: str) -> str:
        """Return a label, which becomes part of the names of folders."""
        if not isinstance(value, str) or not LABEL.fullmatch(value) or len(value) > 50:
            raise self.wrong(where, value, "a name of letters, digits and . _ + = - (at most 50)")
        return value

    def check_duplicates(self, names: Iterable[str], key: str) -> None:
        """Refuse two items of one name."""
        seen: set[str] = set()
        for name in names:
            if name.lower() in seen:  # folders of some systems do not tell case
                raise UserError(f"{self.file}: {key}: '{name}' is there twice; give one of them another name")
            seen.add(name.lower())

    def wrong(self, where: str, value: object, expected: str) -> UserError:
        """Return an error about a value."""
        shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
        found = "is missing" if value is None else f"{shown} is not right"
        return UserError(f"{self.file}: {where}: {found}; expected {expected}")


def _name_point(name: str, point: dict[str, object]) -> str:
    """Name a point of a grid after its values."""
    texts = [re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{value}").strip("_") for value in point.values()]
    return "-".join([name, *(f"{key}={text}" for key, text in zip(point, texts))])
