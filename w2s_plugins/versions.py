"""The oldest versions that this project runs with, checked before anything of them is imported."""

import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

# as in requirements.txt
OLDEST = {"timm": "1.0.31", "torch": "2.9", "torchvision": "0.24", "huggingface-hub": "1.4", "safetensors": "0.5"}


def too_old() -> list[str]:
    """Say of each package that is too old, or absent, which version is there and which is needed."""
    found = []
    for name, oldest in OLDEST.items():
        try:
            own = version(name)
        except PackageNotFoundError:
            found.append(f"{name} is not installed, {oldest} or newer is needed")
            continue
        if Version(own) < Version(oldest):
            found.append(f"{name} {own} is too old, {oldest} or newer is needed")
    return found


def check_versions(prog: str) -> None:
    """End the process with one line and exit code 2 when a package is too old."""
    if problems := too_old():
        print(f"{prog}: error: {'; '.join(problems)}: pip install -r requirements.txt", file=sys.stderr, flush=True)
        sys.exit(2)
