"""The name of a teacher, parsed once: what stands before the colon is its kind."""

from dataclasses import dataclass

from .forms import parse_labels
from .values import split_names

# what timm itself reads before a colon; a name without one is an architecture
OF_TIMM = ("", "hf-hub", "hf_hub", "local-dir")
LABELS_KIND = "labels"


@dataclass(frozen=True)
class TeacherName:
    """The name of a teacher.

    Args:
        text: as it was typed.
        kind: what stands before the colon, such as ``hf``, or the module of a function; empty for an architecture.
        rest: what stands behind it: an id, a path, a function; the architecture itself.
    """

    text: str
    kind: str
    rest: str

    @classmethod
    def parse(cls, text: str) -> "TeacherName":
        """Take a name apart; whether there is such a kind is checked where it is opened."""
        # A name of timm has no colon.
        kind, colon, rest = text.partition(":")
        return cls(text, kind, rest) if colon else cls(text, "", text)

    def __str__(self) -> str:
        return self.text

    @property
    def is_architecture(self) -> bool:
        """Whether it is the name of a model in timm, which does not say where its weights are."""
        return self.kind == ""

    @property
    def is_of_timm(self) -> bool:
        """Whether timm opens it: by the name of an architecture, from the Hub or from a folder."""
        return self.kind in OF_TIMM

    @property
    def is_labels(self) -> bool:
        """Whether it is no model, but what somebody has said: ``rest`` is the path."""
        return self.kind == LABELS_KIND


def parse_teachers(text: str | None) -> tuple[TeacherName, ...]:
    """Return the names of ``--teacher``, which are separated by commas."""
    return tuple(map(TeacherName.parse, split_names(text)))


def label_paths(teacher: str | None) -> list[str]:
    """Return the files of labels among the names of ``--teacher``."""
    return parse_labels(teacher)[0]


def teacher_models(teacher: str | None) -> list[TeacherName]:
    """Return the models among the names of ``--teacher``."""
    return [name for name in parse_teachers(teacher) if not name.is_labels]
