"""The keywords of `train`, `protocol` and `predict` for a type checker; ``python -m tests.keywords`` writes their file."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

import w2s_plugins as w2s
from w2s_plugins.cli.parser import predict_parser, train_parser

FILE = Path(w2s.__file__).with_name("keywords.pyi")
HEADER = '''\
"""All flags that have no keyword of their own in api.py; made of the flags by ``python -m tests.keywords``."""

from typing import TypedDict
'''


def keywords() -> str:
    """Return the content of the file."""
    train = set(train_parser().by_dest())
    # the folder of images has another name in Python
    predict = set(predict_parser().by_dest()) - {"dir"}
    classes = {
        "TrainFlags(TypedDict, total=False)": train - _named(w2s.train),
        "ProtocolFlags(TrainFlags, total=False)": _named(w2s.train) - _named(w2s.protocol),
        "PredictFlags(TypedDict, total=False)": predict - _named(w2s.predict),
    }
    return HEADER + "".join(_as_class(*item) for item in classes.items())


def _named(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters)


def _as_class(head: str, names: Iterable[str]) -> str:
    return f"\nclass {head}:\n" + "".join(f"    {name}: object\n" for name in sorted(names))


if __name__ == "__main__":
    FILE.write_text(keywords())
