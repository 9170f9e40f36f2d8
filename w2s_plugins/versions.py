"""The oldest versions that this project runs with, checked before anything of them is imported."""

import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

# as in requirements.txt
OLDEST = {"timm": "1.0.31", "torch": "2.9", "torchvision": "0.24", "huggingface-hub": "1.4", "safetensors": "0.5"}


def too_old() -> dict[str, str]:
    """Say of each package that is too old, or absent, which version is there and which is needed."""
    found = {}
    for name, oldest in OLDEST.items():
        try:
            own = version(name)
        except PackageNotFoundError:
            found[name] = f"{name} is not installed, {oldest} or newer is needed"
            continue
        if Version(own) < Version(oldest):
            found[name] = f"{name} {own} is too old, {oldest} or newer is needed"
    return found


def check_versions(prog: str) -> None:
    """End the process with one line and exit code 2 when a package is too old."""
    if problems := too_old():
        remedy = " ".join(f"'{name}>={OLDEST[name]}'" for name in problems)
        print(f"{prog}: error: {'; '.join(problems.values())}: pip install {remedy}", file=sys.stderr, flush=True)
        sys.exit(2)
