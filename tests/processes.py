"""Processes that are fresh but for what takes longest to import: a start takes a quarter of the time."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.warm import Warm

# what nothing of the environment changes, as huggingface_hub's settings do: the rest is imported anew by each
MODULES = (
    "PIL.Image", "safetensors.torch", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.export", "torchvision",
    "torchvision.datasets", "torchvision.models.feature_extraction", "yaml")


@functools.cache
def warm() -> Warm:
    """What starts them; its process ends when this one does."""
    return Warm(MODULES, os.environ)


def python(*argv: object, env: Mapping[str, str], cwd: Path, given: str = "") -> subprocess.CompletedProcess:
    """Run ``python *argv``, a script, ``-m MODULE`` or ``-c CODE``, and wait for its end.

    Args:
        argv: the command line after the name of the interpreter.
        env: environment of the process. What is read before anything is imported, as OMP_NUM_THREADS, is that of the
            tests; in place of one of the packages named above it can put no other.
        cwd: its folder.
        given: its standard input.
    """
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        told.write(given.encode())
        told.seek(0)
        code = warm().start(argv, env, stdin=told, stdout=out, stderr=err, cwd=cwd).wait()
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(argv, code, *texts)
